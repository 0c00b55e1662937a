"""Kernel modulation as a method of peft: `get_peft_model(model, KernelModulationConfig(...))`.

Importing this module registers it. Everything else is peft's: `save_pretrained`, `PeftModel.from_pretrained`,
`add_adapter`, `set_adapter`, `disable_adapter`, `merge_and_unload`, and `modules_to_save` for the classifier. Needs
`metakm[peft]`.

peft's `PeftType` is a closed enumeration and `register_peft_method` refuses names that are not in it. A member is added
to it here; if that fails, the import ends with an error that names peft's version.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from metakm.errors import UserError
from metakm.modulation.attachment import within
from metakm.modulation.norms import is_norm

try:
    import peft as _peft  # noqa: F401
except ImportError as problem:
    raise ImportError(f"Expected peft 0.21 or newer, got {problem}; run `pip install 'metakm[peft]'`") from problem

from peft.mapping import PEFT_TYPE_TO_TUNER_MAPPING
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer, check_target_module_exists
from peft.utils import register_peft_method

from metakm.interop.peft_config import KM, KernelModulationConfig
from metakm.interop.peft_layers import ModulatedConv2d, ModulatedNorm, ModulationLayer

__all__ = ["KernelModulationConfig", "KernelModulationModel", "ModulatedConv2d", "ModulatedNorm"]


class KernelModulationModel(BaseTuner):
    """A network with its convolutions and norms replaced; `get_peft_model` makes it."""

    prefix: str = "km_"
    tuner_layer_cls = ModulationLayer

    def _prepare_adapter_config(self, peft_config: Any, model_config: Any) -> Any:
        del model_config
        names = {name for name, module in self._own_modules().items() if isinstance(module, nn.Conv2d)}
        if peft_config.target_modules is None:
            if not names:
                raise UserError("Expected a model with Conv2d layers to modulate, got one without; pass a ConvNet")
            peft_config.target_modules = names
        elif not any(check_target_module_exists(peft_config, name) for name in names):  # peft counts the norms, too
            raise UserError(
                f"Expected target_modules to name Conv2d layers, got {peft_config.target_modules!r}, which names none; "
                "see model.named_modules(), or leave it out for all of them"
            )
        return peft_config

    def _own_modules(self) -> dict[str, nn.Module]:
        """The model's modules as they were, by name, without what the layers of earlier adapters hold."""
        modules = dict(self.model.named_modules())
        layers = {name: m.get_base_layer() for name, m in modules.items() if isinstance(m, BaseTunerLayer)}
        inside = tuple(f"{name}." for name in layers)
        return {**{name: m for name, m in modules.items() if not name.startswith(inside)}, **layers}

    def _check_target_module_exists(self, peft_config: Any, key: str) -> Any:  # type: ignore[override]
        module = self.model.get_submodule(key)
        base = module.get_base_layer() if isinstance(module, BaseTunerLayer) else module
        if isinstance(base, nn.Conv2d):
            return check_target_module_exists(peft_config, key)
        saved = any(within(key, name) or f".{name}." in f".{key}." for name in peft_config.modules_to_save or ())
        of_task = peft_config.implicit or next(base.buffers(), None) is not None
        return is_norm(base) and of_task and not saved

    def _create_and_replace(  # type: ignore[override]
        self,
        peft_config: KernelModulationConfig,
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        current_key: str,
    ) -> None:
        if isinstance(target, ModulatedConv2d | ModulatedNorm):
            target.update_layer(adapter_name, peft_config, current_key)
            return
        layer: ModulatedConv2d | ModulatedNorm
        if isinstance(target, nn.Conv2d):
            layer = ModulatedConv2d(target, adapter_name, peft_config, current_key)
        else:
            layer = ModulatedNorm(target, adapter_name, peft_config, current_key)
        self._replace_module(parent, target_name, layer, target)

    def _replace_module(self, parent: nn.Module, child_name: str, new_module: nn.Module, child: nn.Module) -> None:
        """Replace a module; peft's own version fails for a head without a `weight`, such as a Sequential."""
        setattr(parent, child_name, new_module)
        device = next((tensor.device for tensor in child.parameters()), None)
        for name, module in new_module.named_modules():
            meta = any(tensor.is_meta for tensor in module.parameters())  # to be loaded
            if self.prefix in name and device is not None and not meta:
                module.to(device)

    def _cast_adapter_dtype(self, adapter_name: str, autocast_adapter_dtype: bool = True) -> None:
        """Modulators keep the precision of the kernels that they map."""

    @classmethod
    def _remove_adapter_name_from_key(cls, key: str, adapter_name: str) -> str:
        for container in ("km_modulators", "km_norms"):
            layer, found, rest = key.rpartition(f".{container}.{adapter_name}.")
            if found:
                return f"{layer}.{container}.{rest}"
        return str(super()._remove_adapter_name_from_key(key, adapter_name))


if KM not in PEFT_TYPE_TO_TUNER_MAPPING:
    register_peft_method(name="km", config_cls=KernelModulationConfig, model_cls=KernelModulationModel)
