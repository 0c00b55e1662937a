"""Modulate any ConvNet: freeze its convolutions, attach a modulator to each, and train little else.

W~ = g(W; U) is a `torch.nn.utils.parametrize` parametrization of each layer's weight, so the model's code stays as it
is. In training W~ is computed once for each call of a layer. `with torch.nn.utils.parametrize.cached():` computes it
once for all calls in the block: use it for a network that calls a layer repeatedly. In evaluation without gradients W~
is kept until the task changes (see `weight_cache`). For inference, `merge` leaves no cost at all.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Literal, cast, get_args

from torch import inference_mode, nn
from torch.nn.parameter import is_lazy
from torch.nn.utils import parametrize

from metakm.errors import UserError, did_you_mean, unknown_name
from metakm.modulation.coverage import check_coverage
from metakm.modulation.modulators import Activation, Initialisation, Start, modulator_class
from metakm.modulation.new_modulator import DEPTH, modulator_for
from metakm.modulation.norms import is_norm
from metakm.modulation.requirements import check_network, check_writable
from metakm.modulation.weight_cache import CachedParametrization

Statistics = Literal["task", "base"]
LayerChoice = str | Sequence[str] | Callable[[str, nn.Module], bool]

_NAMES_SHOWN = 6
_ATTACHMENT = "_metakm_attachment"
_PARALLEL = (nn.DataParallel, nn.parallel.DistributedDataParallel)


@dataclass(frozen=True)
class Attachment:
    """What `modulate` did to a model: its arguments, with the names of the modulated layers."""

    layers: tuple[str, ...]
    implicit: bool
    classifier: str | None
    modulator: type[nn.Module]
    activation: Activation
    init: Initialisation
    depth: int
    start: Start
    statistics: Statistics = "task"


@inference_mode(False)
def modulate(
    model: nn.Module,
    layers: LayerChoice | None = None,
    implicit: bool = True,
    classifier: str | None = "fc",
    activation: Activation = "tanh",
    init: Initialisation = "identity",
    depth: int = DEPTH,
    modulator: str | type[nn.Module] = "kernel",
    start: Start = "exact",
    statistics: Statistics = "task",
) -> nn.Module:
    """Freeze `model` except for kernel modulators, the norms' affine parameters and the classifier (Sec. III).

    Changes `model` and returns it. Everything else is frozen: convolution biases, linear layers outside the classifier,
    transposed convolutions, and those in one or three dimensions. Without `layers`, a warning names such layers.

    By default W~ starts at W, whatever the size of its values, and the model computes what it did before. With
    `start="paper"` it starts at (I + E2) tanh((I + E1) W), as published, with E of standard deviation 0.001 from the
    global generator on the CPU: tanh(W) up to noise. This suits small random kernels, but destroys many trained
    networks. See `metakm.modulation.modulators`.

    Batch norm keeps its ordinary behaviour: in training mode it normalises by the batch and updates its running
    statistics, with `implicit` or without, because they must follow what W~ does to the feature maps. Like
    the affine parameters, they belong to the task and its pack. To keep them fixed, put the norm layers in evaluation
    mode and pass `statistics="base"`: packs then leave them out.

    Train without weight decay on the modulators: it pulls U to zero, and W~ away from W.

    Args:
        layers: the convolutions to modulate: a name or glob pattern (`"layer4.*"`; `*` matches dots), a list of
            them, or a predicate of (name, module). All by default; none for an empty list. The others stay frozen.
        implicit: train the affine parameters of the norm layers (Sec. III-B).
        classifier: name of the submodule to train as it is, including its convolutions; None for no such module.
        activation, init, depth: see `KernelModulator`.
        modulator: the modulators' registered name, such as `kernel`, `channel` or `low-rank`, or their class; see
            `register_modulator`.
        start: `exact` (W~ = W) or `paper`.
        statistics: whether batch norm's running statistics belong to the task or the base.

    Raises:
        UserError: a name that matches no convolution, an unknown classifier, modulator, activation, init or start, a
            modulator that does not start as `start` says or would ignore an argument, a layer whose weight is computed
            (weight_norm, pruning), lazy or on the meta device, a model without Conv2d layers, wrapped (DataParallel),
            compiled, made in inference mode or modulated already, or without `layers` one whose convolutions hold less
            than a tenth of the parameters outside the classifier. `model` is then unchanged.
    """
    check_network(model)
    if unwrap(model) is not model:
        wrapper = type(model).__name__
        raise UserError(f"Expected a network that is not wrapped yet, got {wrapper}; modulate the network within it")
    if is_modulated(model):
        raise UserError("Expected a model that is not modulated yet, got a modulated one; merge() it first")
    modulator = modulator_class(modulator) if isinstance(modulator, str) else modulator
    if not (isinstance(modulator, type) and issubclass(modulator, nn.Module)):
        raise UserError(f"Expected modulator to be a name or a class of modules, got {modulator!r:.100}")
    check_writable(model.parameters())
    _check_classifier(model, classifier)
    for name, value, known in (
        ("statistics", statistics, Statistics), ("start", start, Start), ("activation", activation, Activation),
        ("init", init, Initialisation),
    ):  # fmt: skip
        if value not in get_args(known):
            raise unknown_name(name, str(value), get_args(known))
    if not isinstance(depth, int) or depth < 1:
        raise UserError(f"Expected depth to be a whole number of at least 1, got {depth!r}")
    convolutions = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.Conv2d) and not within(name, classifier)
    }
    if "" in convolutions:
        raise UserError("Expected a network, got a single convolution; put it into nn.Sequential")
    chosen = _select(convolutions, layers)
    modulators = {
        name: modulator_for(convolutions[name], name, modulator, start, depth, activation, init) for name in chosen
    }
    if layers is None:  # a caller who chooses layers knows what is left out
        check_coverage(model, convolutions, [] if classifier is None else model.get_submodule(classifier).modules())
    model.requires_grad_(False)
    for name, network in modulators.items():
        _attach(convolutions[name], network)
    for name, module in model.named_modules():
        if within(name, classifier) or (implicit and is_norm(module)):
            module.requires_grad_(True)
    made = Attachment(chosen, implicit, classifier, modulator, activation, init, depth, start, statistics)
    setattr(model, _ATTACHMENT, made)
    return model


def _check_classifier(model: nn.Module, classifier: str | None) -> None:
    if classifier is None:
        return
    if not isinstance(classifier, str) or classifier not in dict(model.named_modules()):
        raise UserError(
            f"Expected classifier to name a submodule, got {classifier!r:.100}; the model's own are "
            f"{', '.join(name for name, _ in model.named_children()) or '(none)'}, or pass None"
        )
    for name, parameter in model.get_submodule(classifier).named_parameters():
        if is_lazy(parameter):
            raise UserError(f"Expected an initialised classifier, got a lazy {name!r}; run the model once first")


def unwrap(model: nn.Module) -> nn.Module:
    """The network within `torch.compile`, `nn.DataParallel` and `nn.parallel.DistributedDataParallel`.

    They prefix each name; a task pack has the names of the network itself.
    """
    while True:
        inner = model.module if isinstance(model, _PARALLEL) else getattr(model, "_orig_mod", None)
        if not isinstance(inner, nn.Module):
            return model
        model = inner


def is_modulated(model: nn.Module) -> bool:
    """Whether `modulate` was called on `model`."""
    return hasattr(model, _ATTACHMENT)


def attachment(model: nn.Module) -> Attachment:
    """What `modulate` did to `model`.

    Raises:
        UserError: `modulate` was not called on it.
    """
    if not is_modulated(model):
        raise UserError(f"Expected a modulated model, got a plain {type(model).__name__}; call modulate() first")
    found: Attachment = getattr(model, _ATTACHMENT)
    return found


def modulated_layers(model: nn.Module) -> dict[str, nn.Conv2d]:
    """The modulated convolutions by name; the `weight` of each is W~."""
    return {name: cast(nn.Conv2d, model.get_submodule(name)) for name in attachment(model).layers}


def detach(model: nn.Module) -> None:
    """Take the modulators off; the layers' weights are W again.

    Without `parametrize.remove_parametrizations`, which removes the weight from the layer's class, shared by copies of
    the model.

    Raises:
        UserError: another parametrization was added to a modulated layer.
    """
    layers = modulated_layers(model)
    for name, layer in layers.items():
        if [len(chain) for chain in _parametrizations(layer).values()] != [1]:
            raise UserError(f"Expected modulators alone on {name!r}, got another parametrization; remove that first")
    for layer in layers.values():
        original = cast(nn.Parameter, _parametrizations(layer)["weight"].original)
        layer.__class__ = parametrize.type_before_parametrizations(layer)
        del layer.parametrizations
        layer.register_parameter("weight", original)
    delattr(model, _ATTACHMENT)


def _attach(layer: nn.Conv2d, modulator: nn.Module) -> None:
    parametrize.register_parametrization(layer, "weight", modulator)
    _parametrizations(layer)["weight"].__class__ = CachedParametrization
    layer.train(layer.training)  # what was attached, too


def _parametrizations(layer: nn.Conv2d) -> dict[str, parametrize.ParametrizationList]:
    return dict(cast(nn.ModuleDict, layer.parametrizations).items())  # type: ignore[arg-type]


def within(name: str, ancestor: str | None) -> bool:
    """Whether the module or tensor `name` is `ancestor` or in it; None contains nothing, the root `""` everything."""
    return ancestor is not None and (ancestor == "" or name == ancestor or name.startswith(f"{ancestor}."))


def _select(convolutions: dict[str, nn.Conv2d], layers: LayerChoice | None) -> tuple[str, ...]:
    if not convolutions and layers not in ((), []):  # all of them may be the classifier's
        raise UserError("Expected a model with Conv2d layers to modulate, got one without; pass a ConvNet")
    if layers is None:
        return tuple(convolutions)
    if callable(layers):
        chosen = tuple(name for name, module in convolutions.items() if layers(name, module))
        if not chosen:
            raise UserError(f"Expected layers to select a convolution, got none of {_format_names(convolutions)}")
        return chosen
    patterns = [layers] if isinstance(layers, str) else list(layers)
    for pattern in patterns:
        if not isinstance(pattern, str):
            raise UserError(f"Expected layers to be names or patterns, got a {type(pattern).__name__}; pass its name")
        if not any(fnmatchcase(name, pattern) for name in convolutions):
            candidates = [f"{pattern}.*"] if any(within(name, pattern) for name in convolutions) else convolutions
            raise UserError(
                f"Expected layers to match convolutions outside the classifier ({_format_names(convolutions)}), got "
                f"{pattern!r}, which matches none{did_you_mean(pattern, candidates, cutoff=0.5)}"
            )
    return tuple(name for name in convolutions if any(fnmatchcase(name, pattern) for pattern in patterns))


def _format_names(names: dict[str, nn.Conv2d]) -> str:
    shown = ", ".join(list(names)[:_NAMES_SHOWN])
    return f"{shown}, ... ({len(names)} in all)" if len(names) > _NAMES_SHOWN else shown
