"""The layers that peft puts in the place of a network's convolutions and norms."""

from __future__ import annotations

import copy
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer, check_adapters_to_merge
from torch import Tensor, nn
from torch.func import functional_call

from metakm.errors import UserError
from metakm.interop.peft_config import KernelModulationConfig
from metakm.modulation.modulators import modulator_class
from metakm.modulation.new_modulator import modulator_for


class ModulationLayer(nn.Module, BaseTunerLayer):
    """What the two kinds of layer share: one adapter is active at a time."""

    def __init__(self, base_layer: nn.Module, adapter_name: str) -> None:
        super().__init__()
        self.base_layer = base_layer
        self._active_adapter: str | list[str] = adapter_name
        self.merged_adapters: list[str] = []

    def active(self) -> str | None:
        """The adapter to run with; None for the base.

        Raises:
            UserError: several adapters are active.
        """
        own = [name for name in self.active_adapters if name in self._get_available_adapters()]
        if len(own) > 1:
            raise UserError(f"Expected one active adapter of kernel modulation, got {', '.join(own)}; set_adapter one")
        if self.disable_adapters and self.merged:
            self.unmerge()
        return None if self.disable_adapters or self.merged or not own else own[0]

    def check_unmerged(self) -> None:
        """Raise UserError if an adapter is merged: a new one would start from it."""
        if self.merged:
            raise UserError(f"Expected no merged adapter, got {self.merged_adapters[0]!r}; unmerge_adapter() first")

    def adapter_to_merge(self, adapter_names: list[str] | None) -> str | None:
        """The adapter of this layer out of `adapter_names`, by default the active one.

        Raises:
            UserError: several adapters, or one that is merged already.
        """
        wanted = [n for n in check_adapters_to_merge(self, adapter_names) if n in self._get_available_adapters()]
        if len(wanted) + len(self.merged_adapters) > 1:
            both = ", ".join([*self.merged_adapters, *wanted])
            raise UserError(f"Expected one adapter of kernel modulation to merge, got {both}; unmerge_adapter() first")
        return wanted[0] if wanted else None


class ModulatedConv2d(ModulationLayer):
    """A convolution whose kernel is W~ = g(W; U) of the active adapter."""

    adapter_layer_names = ("km_modulators",)
    base_layer: nn.Conv2d

    def __init__(self, base_layer: nn.Conv2d, adapter_name: str, config: KernelModulationConfig, name: str) -> None:
        super().__init__(base_layer, adapter_name)
        self.km_modulators = nn.ModuleDict()
        self.update_layer(adapter_name, config, name)

    def update_layer(self, adapter_name: str, config: KernelModulationConfig, name: str) -> None:
        """Add an adapter.

        Raises:
            UserError: one is merged.
        """
        self.check_unmerged()
        modulator = modulator_class(config.modulator)
        self.km_modulators[adapter_name] = modulator_for(
            self.base_layer, name, modulator, config.start, config.depth, config.activation, config.init
        )
        self._move_adapter_to_device_of_base_layer(adapter_name)
        self.set_adapter(self.active_adapters, inference_mode=config.inference_mode)

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """`[n, C, H, W]` to `[n, O, H', W']`."""
        name = self.active()
        if name is None:
            output: Tensor = self.base_layer(*args, **kwargs)
            return output
        modulated = self.km_modulators[name](self.base_layer.weight)  # [O, C / groups, kh, kw]
        return functional_call(self.base_layer, {"weight": modulated}, args, kwargs)  # type: ignore[no-any-return]

    @torch.no_grad()
    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Store W~ as the base's weight; W is kept for `unmerge`.

        Raises:
            UserError: with `safe_merge`, values that are not finite; see `adapter_to_merge`.
        """
        name = self.adapter_to_merge(adapter_names)
        if name is None:
            return
        modulated = self.km_modulators[name](self.base_layer.weight)
        if safe_merge and not torch.isfinite(modulated).all():
            raise UserError(
                f"Expected finite kernels, got others from adapter {name!r}; train it with a lower learning rate"
            )
        self._unmerged = (self.base_layer.weight,)  # not in the state; other layers may share it
        self.base_layer.weight = nn.Parameter(modulated, requires_grad=False)
        self.merged_adapters.append(name)

    def unmerge(self) -> None:
        """Put W back, to the last bit, where the layer is now and in its precision."""
        if self.merged_adapters:
            self.merged_adapters.clear()
            (weight,) = self._unmerged
            weight.data = weight.to(self.base_layer.weight)  # the layer may have moved since
            self.base_layer.weight = weight
            del self._unmerged


class ModulatedNorm(ModulationLayer):
    """A norm layer of which each adapter has its own: affine parameters and running statistics."""

    adapter_layer_names = ("km_norms",)

    def __init__(self, base_layer: nn.Module, adapter_name: str, config: KernelModulationConfig, name: str) -> None:
        super().__init__(base_layer, adapter_name)
        self.km_norms = nn.ModuleDict()
        self.frozen_peft_weight_names: dict[str, tuple[str, ...]] = {}
        self.update_layer(adapter_name, config, name)

    def update_layer(self, adapter_name: str, config: KernelModulationConfig, name: str) -> None:
        """Add an adapter; `name` is the layer's, for messages.

        Raises:
            UserError: one is merged.
        """
        self.check_unmerged()
        del name
        if not config.implicit:
            self.frozen_peft_weight_names[adapter_name] = self.adapter_layer_names
        self.km_norms[adapter_name] = copy.deepcopy(self.base_layer)
        self.set_adapter(self.active_adapters, inference_mode=config.inference_mode)

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """What the active adapter's norm gives."""
        name = self.active()
        output: Tensor = (self.base_layer if name is None else self.km_norms[name])(*args, **kwargs)
        return output

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Put the adapter's norm in the place of the base's, which is kept; `safe_merge` has nothing to check."""
        del safe_merge
        name = self.adapter_to_merge(adapter_names)
        if name is not None:
            self._unmerged = (self.base_layer,)  # in a tuple, so that it is no module of this one
            self.base_layer = copy.deepcopy(self.km_norms[name])
            self.merged_adapters.append(name)

    def unmerge(self) -> None:
        """Put it back, where the model is by now."""
        if self.merged_adapters:
            now = next(iter(self.base_layer.parameters()), None)
            (self.base_layer,) = self._unmerged
            if now is not None:
                self.base_layer.to(now.device, now.dtype)
            self.merged_adapters.clear()
