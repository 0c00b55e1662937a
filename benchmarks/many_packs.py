"""A batch of several tasks on one resident base, against its alternatives: `python benchmarks/many_packs.py`.

16 images of 16 tasks in one pass (`ResidentPacks`) and in a loop of swaps, against 16 images of one task, whose kernels
are merged, or computed in each pass as in training. Times are medians over rounds in which all take turns, and ratios
medians of the rounds' ratios. Memory is the growth of a fresh process by 100 resident packs, against their tensors'
bytes. The networks are untrained and the packs random: neither time nor memory depends on values. Writes
results/benchmarks/many_packs.csv.
"""

from __future__ import annotations

import copy
import ctypes
import gc
import tempfile
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
import torchvision
import tyro
from measuring import alternate, describe, median_ratio, resident_mb, write_csv
from torch import Tensor, nn

from metakm.modulation import Pack, ResidentPacks, make_pack, merge, modulate, save_pack, swap

ONE = "16 images of one task, merged"


def main(
    bases: tuple[str, ...] = ("tf_efficientnet_lite0", "resnet18"),
    size: int = 96,
    tasks: int = 16,
    resident: int = 100,
    classes: int = 20,
    rounds: int = 15,
) -> None:
    """Measure and print.

    Args:
        bases: torchvision networks, or else timm's.
        size: height and width of the images, in pixels.
        tasks: images of a batch, each of a task of its own.
        resident: tasks whose memory is measured.
        classes: of each task.
        rounds: counted rounds.
    """
    rows: list[tuple[str, ...]] = []
    for base in bases:
        torch.manual_seed(0)
        model, classifier = build(base, classes)
        for kind, options in (("km + norm + head", {}), ("norm + head", {"layers": []})):
            modulated = modulate(copy.deepcopy(model), classifier=classifier, **options).eval()
            rows += [(base, kind, *row) for row in times(modulated, size, tasks, rounds)]
            with ProcessPoolExecutor(1, get_context("spawn")) as pool:
                rows.append((base, kind, *pool.submit(memory, base, options, resident, classes).result()))
    made_by = describe()
    width = max(len(row[2]) for row in rows)
    print(made_by)
    print(
        "\n".join(f"{base:24}{kind:18}{what:{width}}{value:>10}{ratio:>8}" for base, kind, what, value, ratio in rows)
    )
    print(write_csv("many_packs", ("base", "packs", "what", "value", "ratio"), rows, made_by))


def build(base: str, classes: int) -> tuple[nn.Module, str]:
    """An untrained network in evaluation mode, and its classifier's name."""
    if base in torchvision.models.list_models(torchvision.models):
        model = torchvision.models.get_model(base, weights=None, num_classes=classes)
        return model.eval(), "fc" if hasattr(model, "fc") else "classifier"
    import timm

    model = timm.create_model(base, pretrained=False, num_classes=classes)
    return model.eval(), next(name for name, m in model.named_modules() if m is model.get_classifier())


def draw(model: nn.Module, n: int) -> Iterator[Pack]:
    """`n` tasks, a little apart from each other."""
    for i in range(n):
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter.add_(0.01 * torch.randn_like(parameter))
        yield make_pack(model, task=f"task {i}")


@torch.no_grad()
def times(model: nn.Module, size: int, tasks: int, rounds: int) -> list[tuple[str, str, str]]:
    """(what, median in ms, ratio to one merged task)."""
    packs = list(draw(model, tasks))
    resident, merged = ResidentPacks(model, packs), merge(model)
    images, names = torch.randn(tasks, 3, size, size), [pack.task for pack in packs]

    def one_by_one() -> Tensor:
        outputs = []
        for image, pack in zip(images, packs, strict=True):
            swap(model, pack)
            outputs.append(model(image[None]))
        return torch.cat(outputs)

    torch.testing.assert_close(resident(images, names), one_by_one(), rtol=1e-3, atol=1e-3)
    measured = alternate(
        {
            ONE: lambda: merged(images),
            "16 images of one task, modulated": lambda: model(images),
            "16 images of one task, resident": lambda: resident(images, names[0]),
            "16 images of 16 tasks, resident": lambda: resident(images, names),
            "16 images of 16 tasks, loop of swaps": one_by_one,
        },
        rounds,
    )
    return [
        (what.replace("16", str(tasks)), f"{sorted(ms)[len(ms) // 2]:.1f} ms", f"{median_ratio(ms, measured[ONE]):.2f}")
        for what, ms in measured.items()
    ]


def memory(name: str, options: dict[str, Any], n: int, classes: int) -> tuple[str, str, str]:
    """What base and `n` resident packs take, against the base's bytes and those of the packs' tensors. Linux only."""
    plain, classifier = build(name, classes)
    model = modulate(plain, classifier=classifier, **options)
    base = sum(t.nbytes for t in model.state_dict().values())
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "task.safetensors")
        of_pack = sum(t.nbytes for t in save_pack(model, path).tensors.values())
        resident = ResidentPacks(model)
        for i in range(5):  # what the first ones need once
            resident.add(path, name=f"first {i}")
        before = settled_mb()
        for i in range(n):
            resident.add(path, name=f"task {i}")
        grown = 1e6 * (settled_mb() - before)
    return (
        f"memory of base and {n} resident packs",
        f"{(base + grown) / 1e6:.1f} MB",
        f"{(base + grown) / (base + n * of_pack):.3f}",
    )


def settled_mb() -> float:
    """Resident set after what is free has been given back."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    return resident_mb()


if __name__ == "__main__":
    tyro.cli(main)
