"""Task packs on one resident backbone, in milliseconds: `python benchmarks/packs.py`.

A torchvision network, untrained, in evaluation mode, and two tasks with different numbers of classes. Medians over
rounds in which all take turns. Writes results/benchmarks/packs.csv.
"""

from __future__ import annotations

import copy
import itertools
import statistics
import tempfile
from pathlib import Path

import torch
import torchvision
import tyro
from measuring import alternate, describe, write_csv

from metakm.modulation import load_pack, make_pack, merge, modulate, read_pack, save_pack, swap


def main(base: str = "resnet50", classifier: str = "fc", rounds: int = 30, size: int = 224) -> None:
    """Measure and print.

    Args:
        base: a torchvision network.
        classifier: its submodule that classifies.
        rounds: counted rounds.
        size: height and width of the one image of the forward passes, in pixels.
    """
    torch.manual_seed(0)
    image = torch.randn(1, 3, size, size)
    models = [torchvision.models.get_model(base, weights=None, num_classes=n).eval() for n in (100, 196)]
    frozen = {name: t for name, t in models[0].state_dict().items() if not name.startswith(f"{classifier}.")}
    models[1].load_state_dict(frozen, strict=False)
    plain = copy.deepcopy(models[0])
    resident, other = (modulate(model, classifier=classifier) for model in models)
    tasks = itertools.cycle([make_pack(other), make_pack(resident)])
    merged = merge(resident)
    made_by = describe()
    print(made_by, flush=True)
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        path = Path(folder, "task.safetensors")
        pack = save_pack(resident, path)
        times = alternate(
            {
                "swap (pack in memory)": lambda: swap(resident, next(tasks)),
                "read pack and swap": lambda: swap(resident, read_pack(path)),
                "load pack (hashes the base)": lambda: load_pack(resident, path),
                "save pack": lambda: save_pack(resident, path),
                "merge": lambda: merge(resident),
                "forward, plain": lambda: plain(image),
                "forward, modulated": lambda: resident(image),
                "forward, merged": lambda: merged(image),
            },
            rounds,
        )
        megabytes = path.stat().st_size / 1e6
    rows = [(name, f"{statistics.median(measured):.2f}") for name, measured in times.items()]
    print(f"{base}, {len(pack.tensors)} tensors in a pack of {megabytes:.2f} MB, image {size}x{size}")
    print("\n".join(f"{name:30}{ms:>10} ms" for name, ms in rows))
    print(write_csv("packs", ("what", "median_ms"), rows, made_by))


if __name__ == "__main__":
    tyro.cli(main)
