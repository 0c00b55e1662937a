"""Milliseconds of a meta-training iteration, metakm against its peers: `python benchmarks/inner_loop.py`.

All contestants compute a second-order meta-gradient of the same network on the same episodes, in turn, in one run; a
ratio is the median over rounds of peer / metakm. The floor is the iteration's convolution FLOPs at the rate that the
bare forward convolution reaches in the same run. Writes results/benchmarks/inner_loop_<setting>.csv.
"""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Callable
from typing import Literal

import torch
import tyro
from contestants import (
    LR,
    higher_iteration,
    jax_is_installed,
    learn2learn_evaluation,
    learn2learn_is_installed,
    learn2learn_iteration,
    plain_network,
    vmap_iteration,
)
from measuring import alternate, describe, median_ratio, noise_episodes, write_csv

import metakm
from metakm.data import Episodes
from metakm.learning.malloc import keep_freed_memory

ALGORITHMS = ("maml", "anil", "km")
Peer = Literal["higher", "learn2learn", "torch.func", "torch.func-compiled", "jax"]


@dataclasses.dataclass(frozen=True)
class Setting:
    """Shapes of one table."""

    ways: int
    shots: int
    queries: int
    tasks: int
    shape: tuple[int, int, int]
    filters: int
    pool: bool
    features: int
    steps: int = 5

    def strategy(self, algo: str) -> metakm.Strategy:
        """Our contestant."""
        downsample: Literal["pool", "stride"] = "pool" if self.pool else "stride"
        backbone = metakm.Conv4(self.shape[0], self.filters, downsample, image_size=self.shape[1])
        return metakm.make_strategy(algo, backbone, self.ways)

    def network(self, algo: str, written_out: bool = False) -> torch.nn.Sequential:
        """The peers' contestant."""
        return plain_network(algo, self.shape[0], self.filters, self.pool, self.features, self.ways, written_out)

    def episodes(self, device: torch.device) -> Episodes:
        """Noise: time does not depend on the pixels."""
        return noise_episodes(self.tasks, self.ways, self.shape, self.shots, self.queries, device)


SETTINGS = {
    "omniglot": Setting(20, 1, 1, 16, (1, 28, 28), 64, False, 64),
    "mini-imagenet": Setting(5, 5, 15, 2, (3, 84, 84), 32, True, 800),
}


def main(
    setting: Literal["omniglot", "mini-imagenet"] = "omniglot",
    rounds: int = 7,
    device: str = "cpu",
    peers: tuple[Peer, ...] = ("higher", "learn2learn", "torch.func"),
) -> None:
    """Measure and print one table.

    Args:
        setting: omniglot: 20-way 1-shot, conv4-64 with stride; mini-imagenet: 5-way 5-shot, conv4-32 with pooling.
        rounds: counted rounds; every contestant runs once a round.
        device: cpu or cuda.
        peers: also torch.func-compiled, torch.compile of torch.func.vmap, which needs a C++ compiler and did not end in
            nine minutes here; and jax, under jit, on the CPU alone.
    """
    keep_freed_memory()
    torch.manual_seed(0)
    shapes, where = SETTINGS[setting], torch.device(device)
    episodes = shapes.episodes(where)
    wanted = {peer for peer in peers if _INSTALLED.get(peer, lambda: True)()}
    made_by = describe(where)
    print(made_by, flush=True)
    for peer in sorted(set(peers) - wanted):
        print(f"{peer} is not installed and is left out: bash benchmarks/install_peers.sh", flush=True)
    contestants: dict[str, Callable[[], object]] = {}
    for algo in ALGORITHMS:
        contestants[f"{algo} metakm"] = _ours(shapes.strategy(algo).to(where), episodes, shapes.steps)
        rounded = episodes.to(where, torch.bfloat16)
        contestants[f"{algo} metakm-bf16"] = _ours(shapes.strategy(algo).to(where), rounded, shapes.steps)
        if "higher" in wanted:
            patched = shapes.network(algo).to(where)
            contestants[f"{algo} higher"] = higher_iteration(algo, patched, episodes, shapes.steps)
        functional = shapes.network(algo, written_out=True).to(where)
        for name in ("torch.func", "torch.func-compiled"):
            if name in wanted:
                compiled = name.endswith("compiled")
                contestants[f"{algo} {name}"] = vmap_iteration(algo, functional, episodes, shapes.steps, compiled)
        if "jax" in wanted:
            from jax_contestant import jax_iteration

            contestants[f"{algo} jax"] = jax_iteration(algo, shapes.network(algo), episodes, shapes.steps)
        if "learn2learn" in wanted and algo != "km":
            cloned = shapes.network(algo).to(where)
            contestants[f"{algo} learn2learn"] = learn2learn_iteration(algo, cloned, episodes, shapes.steps)
    contestants["evaluation metakm"] = _our_evaluation(shapes.strategy("maml").to(where), episodes, shapes.steps)
    if "learn2learn" in wanted:
        contestants["evaluation learn2learn"] = learn2learn_evaluation(
            shapes.network("maml").to(where), episodes, shapes.steps
        )
    forward, flops = _floor(shapes, where)
    contestants["floor"] = forward
    times = alternate(contestants, rounds, where)
    scale = _iteration_flops(shapes, flops) / flops
    rows = []
    for name, measured in times.items():
        algo, _, who = name.partition(" ")
        median = statistics.median(measured) * (scale if name == "floor" else 1)
        base = "maml metakm" if name == "floor" else f"{algo} metakm"
        ratio = median_ratio(measured, times[base]) * (scale if name == "floor" else 1)
        rows.append((algo, who or "bare forward convolution", f"{median:.1f}", f"{ratio:.2f}"))
        print(f"{algo:12}{who:22}{median:10.1f} ms   {ratio:6.2f} x metakm")
    floor = statistics.median(a / (b * scale) for a, b in zip(times["maml metakm"], times["floor"], strict=True))
    print(f"metakm MAML is at {floor:.2f} of the floor")
    header = ("iteration", "contestant", "median_ms", "ratio_to_metakm")
    print(write_csv(f"inner_loop_{setting}_{where.type}", header, rows, made_by))


_INSTALLED: dict[str, Callable[[], bool]] = {"learn2learn": learn2learn_is_installed, "jax": jax_is_installed}


def _ours(strategy: metakm.Strategy, episodes: Episodes, steps: int) -> Callable[[], None]:
    def run() -> None:
        strategy.zero_grad()
        loss = metakm.meta_loss(strategy, episodes, inner_lr=LR, inner_steps=steps).loss
        loss.backward()  # type: ignore[no-untyped-call]

    return run


def _our_evaluation(strategy: metakm.Strategy, episodes: Episodes, steps: int) -> Callable[[], None]:
    def run() -> None:
        metakm.evaluate_episodes(strategy, episodes, inner_lr=LR, inner_steps=steps)

    return run


def _floor(shapes: Setting, device: torch.device) -> tuple[Callable[[], None], float]:
    """One forward pass of the bare convolutions over all support images, grouped by task, and its FLOPs."""
    n, size, calls, flops = shapes.ways * shapes.shots, shapes.shape[1], [], 0.0
    for i in range(4):
        channels = shapes.shape[0] if i == 0 else shapes.filters
        x = torch.rand(n, shapes.tasks * channels, size, size, device=device)
        x = x.contiguous(memory_format=torch.channels_last)
        weight = torch.rand(shapes.tasks * shapes.filters, channels, 3, 3, device=device)
        stride = 1 if shapes.pool else 2
        calls.append((x, weight, None, stride, 1, 1, shapes.tasks))
        out = (size + stride - 1) // stride
        flops += 2.0 * n * shapes.tasks * shapes.filters * channels * 9 * out * out
        size = out // 2 if shapes.pool else out

    def run() -> None:
        with torch.no_grad():
            for call in calls:
                torch.conv2d(*call)

    return run, flops


def _iteration_flops(shapes: Setting, forward: float) -> float:
    """Convolution FLOPs of a MAML iteration, from those of one forward pass over the support images.

    An inner step is a forward pass, a backward pass (2) and its double backward (6); the query set costs a forward and
    a backward pass. The first layer's input needs no gradient; that small saving is counted as done.
    """
    return forward * (9 * shapes.steps + 3 * shapes.queries / shapes.shots)


if __name__ == "__main__":
    tyro.cli(main)
