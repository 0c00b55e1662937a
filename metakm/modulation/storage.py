"""Storage for many tasks: whole networks, or one base and a pack per task (paper, Sec. V)."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Literal

import safetensors.torch
import torchvision
from torch import nn

from metakm.errors import UserError, unknown_name
from metakm.modulation.attachment import modulate, within
from metakm.modulation.norms import replace_norm
from metakm.modulation.pack import save_pack

MB = 10**6  # as in Sec. V, where 23.5 M parameters of 4 bytes are 94 MB
PAPER_BASE, PAPER_SHARE, PAPER_TASKS = 94 * MB, 0.014, 100  # ResNet-50; a pack's share of the base


@dataclass(frozen=True)
class StoragePlan:
    """Sizes of files.

    Attributes:
        base: bytes of the network without its classifier.
        pack: mean bytes of one task's pack.
    """

    tasks: int
    base: float
    pack: float

    @property
    def networks(self) -> float:
        """Bytes of a network for each task."""
        return self.tasks * self.base

    @property
    def packs(self) -> float:
        """Bytes of one network and a pack for each task."""
        return self.base + self.tasks * self.pack


def paper_plan() -> StoragePlan:
    """Sec. V's arithmetic: 9400 MB against 226 MB, whose ratio is 41.7, where the text says 43X."""
    return StoragePlan(PAPER_TASKS, PAPER_BASE, PAPER_SHARE * PAPER_BASE)


def table(plans: dict[str, StoragePlan]) -> str:
    """The plans side by side, one column each, in MB of 10^6 bytes."""
    rows = {
        "base network, MB": [f"{plan.base / MB:.2f}" for plan in plans.values()],
        "pack of a task, MB": [f"{plan.pack / MB:.2f}" for plan in plans.values()],
        "pack / base": [f"{100 * plan.pack / plan.base:.2f} %" for plan in plans.values()],
        "tasks": [f"{plan.tasks}" for plan in plans.values()],
        "a network each, MB": [f"{plan.networks / MB:.0f}" for plan in plans.values()],
        "base and packs, MB": [f"{plan.packs / MB:.0f}" for plan in plans.values()],
        "times smaller": [f"{plan.networks / plan.packs:.1f}" for plan in plans.values()],
    }
    lines = [["", *plans], *([what, *values] for what, values in rows.items())]
    return "\n".join(f"{what:<20}" + "".join(f"{value:>20}" for value in values) for what, *values in lines)


def plan_storage(
    name: str,
    tasks: int,
    classes: Sequence[int],
    norm: Literal["group", "batch"] = "group",
    classifier: str = "fc",
) -> StoragePlan:
    """Write a torchvision network and one pack per number of classes to files, and measure these.

    The weights are random, as sizes do not depend on values, and the files are removed.

    Args:
        name: such as `resnet50`; `torchvision.models.list_models(torchvision.models)` lists all.
        norm: `group` replaces batch norm, as in the paper, so that packs have no running statistics.

    Raises:
        UserError: an unknown network, norm or classifier, fewer than 1 task, or than 2 classes.
    """
    known = torchvision.models.list_models(torchvision.models)
    if name not in known:
        raise unknown_name("base", name, known)
    if norm not in ("group", "batch"):
        raise unknown_name("norm", norm, ("group", "batch"))
    if tasks < 1 or not classes or min(classes) < 2:
        raise UserError(f"Expected at least 1 task of at least 2 classes, got {tasks} of {list(classes)}")
    packs: list[int] = []
    with tempfile.TemporaryDirectory() as folder:
        base, pack = Path(folder, "base.safetensors"), Path(folder, "pack.safetensors")
        for n in classes:
            model = torchvision.models.get_model(name, weights=None, num_classes=n)
            model = replace_norm(model) if norm == "group" else model
            if not packs:
                _write_base(model, base, classifier)
            save_pack(modulate(model, classifier=classifier), pack)
            packs.append(pack.stat().st_size)
        return StoragePlan(tasks, base.stat().st_size, mean(packs))


def _write_base(model: nn.Module, path: Path, classifier: str) -> None:
    tensors = {name: tensor for name, tensor in model.state_dict().items() if not within(name, classifier)}
    safetensors.torch.save_file(tensors, path)
