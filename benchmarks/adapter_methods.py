"""The contestants of adapters.py: ours and peft's, on the same network, with the same words."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import peft
import safetensors.torch
import torch
from peft.utils import get_peft_model_state_dict, set_peft_model_state_dict
from torch import nn

from metakm.modulation import load_pack, merge, modulate, save_pack

Build = Callable[[nn.Module, str], "Adapted"]


class Adapted:
    """A network with a method attached: what takes gradients is trained."""

    def __init__(self, network: nn.Module, classifier: str) -> None:
        self.network, self.classifier = network, classifier

    def write(self, path: Path, half: bool) -> None:
        """Write what was adapted to one file, in half precision or float32."""
        save_pack(self.network, path, precision="fp16" if half else "full")

    def read(self, path: Path) -> None:
        """Put what `write` wrote in the place of what was adapted."""
        load_pack(self.network, path)

    def merged(self) -> nn.Module:
        """A plain network that computes the same, for inference."""
        return merge(self.network)

    def trained(self) -> tuple[int, int]:
        """Parameters that are trained: all, and those of the classifier."""
        head = sum(p.numel() for p in self.network.get_submodule(self.classifier).parameters())
        return sum(p.numel() for p in self.network.parameters() if p.requires_grad), head


class PeftAdapted(Adapted):
    """The same, of peft."""

    def write(self, path: Path, half: bool) -> None:
        """Peft's own file, `adapter_model.safetensors`; or its tensors in float16."""
        if half:
            tensors = get_peft_model_state_dict(self.network)
            safetensors.torch.save_file({n: t.half().contiguous() for n, t in tensors.items()}, path)
            return
        folder = path.parent / "peft"
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self.network.save_pretrained(str(folder))  # type: ignore[operator]
        (folder / "adapter_model.safetensors").replace(path)

    def read(self, path: Path) -> None:
        """Peft casts to float32."""
        set_peft_model_state_dict(self.network, {n: t.float() for n, t in safetensors.torch.load_file(path).items()})

    def merged(self) -> nn.Module:
        """`merge_and_unload` of a copy."""
        network: nn.Module = copy.deepcopy(self.network).merge_and_unload()  # type: ignore[operator]
        return network.eval().requires_grad_(False)


class Contestant(NamedTuple):
    """One method.

    label: in the table.
    kind: `km` of ours, `peer` of peft or without a library.
    rate, norm_rate: AdamW's highest learning rates at factor 1 of what is neither norm nor head, and of norms: those
        of `metakm fit`, of its low-rank method for all of peft's.
    """

    label: str
    kind: str
    rate: float
    norm_rate: float
    build: Build


def _ours(**arguments: Any) -> Build:
    def build(network: nn.Module, classifier: str) -> Adapted:
        given = {"classifier": classifier, "statistics": "base", **arguments}
        return Adapted(modulate(network, **given), classifier)

    return build


def _whole(network: nn.Module, classifier: str) -> Adapted:
    return Adapted(modulate(network, layers=(), classifier="", statistics="base"), classifier)


def _peft(make: Callable[..., peft.PeftConfig], fits: Callable[[nn.Conv2d], bool], **arguments: Any) -> Build:
    def build(network: nn.Module, classifier: str) -> Adapted:
        layers = {name: m for name, m in network.named_modules() if isinstance(m, nn.Conv2d) and name != classifier}
        targets = [name for name, layer in layers.items() if fits(layer)]
        config = make(target_modules=targets, modules_to_save=[classifier], **arguments)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            adapted = peft.get_peft_model(network, config)
        return PeftAdapted(adapted, f"base_model.model.{classifier}.modules_to_save.default")

    return build


def _lora(rank: int) -> Build:
    return _peft(peft.LoraConfig, lambda layer: layer.groups == 1, r=rank, lora_alpha=rank)


def _plain(layer: nn.Conv2d) -> bool:
    return type(layer) is nn.Conv2d


CONTESTANTS: dict[str, Contestant] = {
    "head": Contestant("head alone", "peer", 0.0, 0.0, _ours(layers=(), implicit=False)),
    "norm": Contestant("norm + head (KM implicit, BitFit-like)", "peer", 0.0, 2e-3, _ours(layers=())),
    "km": Contestant("KM explicit", "km", 2e-4, 0.0, _ours(implicit=False)),
    "both": Contestant("KM both", "km", 5e-5, 2e-3, _ours()),
    "channel": Contestant("KM both, neighbouring channels", "km", 5e-5, 2e-3, _ours(modulator="channel")),
    "low-rank": Contestant("KM both, low-rank (r 4)", "km", 3e-4, 2e-3, _ours(modulator="low-rank")),
    "lora1": Contestant("LoRA, r 1 (peft)", "peer", 3e-4, 0.0, _lora(1)),
    "lora4": Contestant("LoRA, r 4 (peft)", "peer", 3e-4, 0.0, _lora(4)),
    "lora8": Contestant("LoRA, r 8 (peft)", "peer", 3e-4, 0.0, _lora(8)),
    "lokr4": Contestant("LoKr, r 4 (peft)", "peer", 3e-4, 0.0, _peft(peft.LoKrConfig, _plain, r=4, alpha=4)),
    "full": Contestant("full fine-tuning", "peer", 1e-4, 1e-3, _whole),
}
"""peft's LoRA refuses depthwise convolutions, and its LoKr those whose class pads by itself (timm's Conv2dSame)."""


def build(name: str, network: nn.Module, classifier: str, seed: int) -> Adapted:
    """A copy of `network` with the method called `name`; what starts at random has the seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return CONTESTANTS[name].build(copy.deepcopy(network), classifier)
