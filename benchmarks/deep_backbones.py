"""ResNet-12 against learn2learn's, a converted ResNet-18 against a hand-written one.

    python benchmarks/deep_backbones.py --comparison resnet12

Second-order meta-gradients of the same network on the same episodes, 5-way 1-shot, in turn in one program; a ratio is
the median over rounds. learn2learn runs its own ResNet-12, one task at a time, in MAML and in KM as
`metakm.interop.learn2learn` writes it for learn2learn's loop; ours has the same layers, without dropout in both. The
hand-written ResNet-18 is made of the layers of `metakm.models`; the other is torchvision's, after `metakm.carry_tasks`.

Times are CPU time of one thread: other work on the machine then changes them little. Writes
results/benchmarks/deep_backbones_<comparison>.csv.
"""

from __future__ import annotations

import copy
import statistics
import time
import warnings
from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
import torchvision
import tyro
from contestants import LR, learn2learn_is_installed
from measuring import alternate, describe, median_ratio, noise_episodes, write_csv
from torch import Tensor, nn

import metakm
from metakm.data import Episodes
from metakm.learning.malloc import keep_freed_memory
from metakm.models.layers import BatchNorm2d, Conv2d, join_tasks, split_tasks
from metakm.models.resnet import BasicBlock, layers_with_task_axis
from metakm.models.resnet12 import ResNet12

WAYS = 5


def main(
    comparison: Literal["resnet12", "resnet18"] = "resnet12",
    rounds: int = 3,
    tasks: int = 4,
    side: int = 32,
    steps: int = 3,
) -> None:
    """Measure and print one table.

    Args:
        comparison: resnet12: MAML and KM against learn2learn; resnet18: converted against hand-written.
        rounds: counted rounds; every contestant runs once a round.
        tasks: tasks in a meta-batch.
        side: of the images in pixels.
        steps: inner steps.
    """
    keep_freed_memory()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    episodes = noise_episodes(tasks, WAYS, (3, side, side))
    contestants = (resnet12 if comparison == "resnet12" else resnet18)(episodes, side, steps)
    made_by = f"{describe()}; 5-way 1-shot, {tasks} tasks of {side} px, {steps} inner steps, CPU time"
    print(made_by, flush=True)
    times = alternate(contestants, rounds, clock=time.process_time)
    rows = []
    for name, measured in times.items():
        algo, who = name.split(" ", 1)
        base = next(other for other in times if other.startswith(f"{algo} "))
        ratio = median_ratio(measured, times[base])
        rows.append((algo, who, f"{statistics.median(measured):.1f}", f"{ratio:.2f}"))
        print(f"{algo:6}{who:24}{statistics.median(measured):10.1f} ms   {ratio:6.2f} x the first of {algo}")
    header = ("iteration", "contestant", "median_cpu_ms", "ratio_to_first")
    print(write_csv(f"deep_backbones_{comparison}_cpu", header, rows, made_by))


def resnet12(episodes: Episodes, _side: int, steps: int) -> dict[str, Callable[[], None]]:
    """MAML and KM; MAML adapts the norm affine too, as learn2learn's does."""
    contestants = {}
    for algo, options in (("maml", {"implicit": True}), ("km", {})):
        strategy = metakm.make_strategy(algo, ResNet12(dropout=0.0), WAYS, **options)
        contestants[f"{algo} metakm"] = ours(strategy, episodes, steps)
        if learn2learn_is_installed():
            contestants[f"{algo} learn2learn"] = learn2learn(algo, episodes, steps)
    return contestants


def resnet18(episodes: Episodes, side: int, steps: int) -> dict[str, Callable[[], None]]:
    """KM and MAML on both networks, which have the same weights and give the same loss."""
    plain = torchvision.models.resnet18()
    plain.fc = nn.Identity()
    contestants = {}
    for algo in ("maml", "km"):
        written = ResNet18()
        written.load_state_dict(renamed(plain.state_dict()))
        torch.manual_seed(1)
        strategy = metakm.make_strategy(algo, written, WAYS)
        torch.manual_seed(1)
        carried = metakm.carry_tasks(copy.deepcopy(plain), image_shape=(3, side, side))
        converted = metakm.make_strategy(algo, carried, WAYS)
        losses = [loss(each, episodes, steps=1).detach() for each in (strategy, converted)]
        torch.testing.assert_close(losses[0], losses[1], rtol=1e-2, atol=1e-3)
        contestants[f"{algo} hand-written"] = ours(strategy, episodes, steps)
        contestants[f"{algo} converted"] = ours(converted, episodes, steps)
    return contestants


class ResNet18(nn.Module):
    """He et al. 2016, Table 1, in layers that carry tasks; `[T, n, C, H, W]` to `[T, n, 512]`."""

    carries_tasks = True

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = Conv2d(3, 64, 7, stride=2, padding=3, bias=False), BatchNorm2d(64)
        self.out_features, layers = 512, layers_with_task_axis("transductive")
        widths = (64, 64, 128, 256, 512)
        self.blocks = nn.ModuleList(
            BasicBlock(before if first else filters, filters, stride if first else 1, layers, "projection")
            for before, filters, stride in zip(widths, widths[1:], (1, 2, 2, 2), strict=False)
            for first in (True, False)
        )

    def forward(self, images: Tensor) -> Tensor:
        """See the class."""
        x = F.max_pool2d(self.norm(self.conv(join_tasks(images, 3)), relu=True), 3, 2, 1)  # [n, T*C, H, W]
        for block in self.blocks:
            x = block(x)
        return split_tasks(x.mean(dim=(2, 3)), images)  # [T, n, F]


def renamed(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Torchvision's parameters by the names of `ResNet18`."""
    found = {}
    for name, tensor in state.items():
        if not name.endswith("num_batches_tracked"):
            stage, *rest = name.split(".")
            if stage.startswith("layer"):
                block = 2 * (int(stage[5:]) - 1) + int(rest[0])
                own = ".".join(rest[1:]).replace("bn", "norm").replace("downsample", "projection")
                found[f"blocks.{block}.{own}"] = tensor
            else:
                found[name.replace("conv1", "conv").replace("bn1", "norm")] = tensor
    return found


def loss(strategy: metakm.Strategy, episodes: Episodes, steps: int) -> Tensor:
    """The meta-loss."""
    return metakm.meta_loss(strategy, episodes, inner_lr=LR / 50, inner_steps=steps).loss


def ours(strategy: metakm.Strategy, episodes: Episodes, steps: int) -> Callable[[], None]:
    """One meta-gradient of all tasks at once."""

    def run() -> None:
        strategy.zero_grad()
        loss(strategy, episodes, steps).backward()  # type: ignore[no-untyped-call]

    return run


def learn2learn(algo: str, episodes: Episodes, steps: int) -> Callable[[], None]:
    """One meta-gradient, one task at a time, on learn2learn's own network."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import learn2learn as l2l

        from metakm.interop.learn2learn import KernelModulation
    backbone = l2l.vision.models.ResNet12Backbone(avg_pool=True, dropblock_dropout=0.0)
    backbone.avgpool = nn.AdaptiveAvgPool2d(1)  # theirs pools 5x5, which needs images of 84 px
    network = nn.Sequential(backbone, nn.Linear(640, WAYS))
    rate = LR / 50
    learner = l2l.algorithms.MAML(network, lr=rate) if algo == "maml" else KernelModulation(network, lr=rate)

    def run() -> None:
        network.zero_grad()
        for t in range(len(episodes)):
            clone = learner.clone()
            for _ in range(steps):
                clone.adapt(F.cross_entropy(clone(episodes.support_images[t]), episodes.support_labels[t]))
            query = F.cross_entropy(clone(episodes.query_images[t]), episodes.query_labels[t])
            (query / len(episodes)).backward()  # type: ignore[no-untyped-call]

    return run


if __name__ == "__main__":
    tyro.cli(main)
