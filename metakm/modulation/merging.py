"""Fold a task into plain convolutions, so that inference costs what the base costs."""

from __future__ import annotations

import copy
import inspect
import warnings
from collections import Counter
from typing import cast

import torch
from torch import fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from metakm.modulation.attachment import attachment, detach, modulated_layers, unwrap


@torch.no_grad()
def merge(model: nn.Module, norms: bool = True) -> nn.Module:
    """A copy of a modulated model in evaluation mode, with W~ stored as its weights and no trace of modulation.

    With `norms`, batch norm with running statistics that directly follows a convolution is folded into it, too, and
    becomes `nn.Identity`. The order of layers must be known, so this works for models that `torch.fx` can trace, and
    for `nn.BatchNorm2d` itself: each layer of the pair is called once, only the norm reads the convolution's output,
    and neither layer's tensors are used elsewhere. Group, layer and instance norm depend on the image and stay. A norm
    before its convolution (Eq. 8) stays, too, because zero padding, which Eq. 8 does not have, would change in value.

    The copy has no trainable parameters; `requires_grad_()` makes them so.

    Raises:
        UserError: a model that is not modulated.

    Warns:
        UserWarning: `norms`, and the model cannot be traced; only the weights were folded.
    """
    model = unwrap(model)
    attachment(model)  # refuses a plain model before copying it
    merged = copy.deepcopy(model).eval()
    kernels = [(layer, layer.weight) for layer in modulated_layers(merged).values()]
    detach(merged)
    for layer, kernel in kernels:  # a new parameter, because layers may share W, in W's memory format
        layer.weight = nn.Parameter(torch.empty_like(layer.weight).copy_(kernel))
    if norms:
        _fold_norms(merged)
    return merged.requires_grad_(False)


def _fold_norms(model: nn.Module) -> None:
    if not any(_is_foldable(module) for module in model.modules()):
        return
    try:
        graph = _graph(copy.deepcopy(model))  # the model's own code may keep what it computes, here proxies
    except Exception as error:  # the model's own code runs on proxies and may raise anything
        warnings.warn(f"Only the weights were folded, not the norms: torch.fx cannot trace ({error})", stacklevel=4)
        return
    for conv_name, norm_name in _foldable_pairs(graph, dict(model.named_modules())):
        conv, norm = model.get_submodule(conv_name), model.get_submodule(norm_name)
        fused = fuse_conv_bn_eval(cast(nn.Conv2d, conv), cast(nn.BatchNorm2d, norm))
        _replace(model, conv_name, fused)
        _replace(model, norm_name, nn.Identity())


def _graph(model: nn.Module) -> fx.Graph:
    """What a call with the images alone does: other parameters of `forward` have their defaults."""
    others = list(inspect.signature(model.forward).parameters.values())[1:]
    defaults = {each.name: each.default for each in others if each.default is not each.empty}
    return fx.Tracer().trace(model, concrete_args=defaults)


def _foldable_pairs(graph: fx.Graph, modules: dict[str, nn.Module]) -> list[tuple[str, str]]:
    """Names of the pairs (convolution, batch norm) that can be folded."""
    uses = Counter(id(modules[str(node.target)]) for node in graph.nodes if node.op == "call_module")
    read = {str(node.target).rpartition(".")[0] for node in graph.nodes if node.op == "get_attr"}
    pairs = []
    for node in graph.nodes:
        before = node.args[0] if node.op == "call_module" and len(node.args) == 1 and not node.kwargs else None
        if not isinstance(before, fx.Node) or before.op != "call_module" or len(before.users) != 1:
            continue
        names = str(before.target), str(node.target)
        conv, norm = modules[names[0]], modules[names[1]]
        once = uses[id(conv)] == uses[id(norm)] == 1 and not read & set(names)
        plain = type(conv) is nn.Conv2d and not _has_hooks(conv) and not _has_hooks(norm)
        if plain and _is_foldable(norm) and once:
            pairs.append(names)
    return pairs


def _is_foldable(module: nn.Module) -> bool:
    return type(module) in (nn.BatchNorm2d, nn.SyncBatchNorm) and module.running_mean is not None


def _has_hooks(module: nn.Module) -> bool:
    """Whether more than its forward runs in a call; `torch.nn.utils.prune` and the old weight norm use hooks, too."""
    return bool(module._forward_hooks or module._forward_pre_hooks)


def _replace(model: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(parent), leaf, module)
