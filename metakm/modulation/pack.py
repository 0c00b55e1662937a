"""Task packs of a model: save the task that it holds, load another in its place."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from metakm.errors import UserError, unknown_name
from metakm.modulation.attachment import Attachment, attachment, detach, is_modulated, modulate, unwrap, within
from metakm.modulation.modulators.registry import classes_called
from metakm.modulation.norms import is_norm
from metakm.modulation.pack_file import Pack, class_names, read_pack, write_pack
from metakm.modulation.partition import base_fingerprint, partition_tensors
from metakm.modulation.precision import PackPrecision, rounded

_resident: WeakKeyDictionary[nn.Module, tuple[object, str]] = WeakKeyDictionary()  # state of the base, fingerprint


def make_pack(
    model: nn.Module,
    task: str = "",
    classes: Sequence[str] = (),
    metrics: Mapping[str, float] | None = None,
    precision: PackPrecision = "full",
) -> Pack:
    """Copy the task that a modulated model holds.

    Args:
        precision: `fp16` rounds the tensors to half precision and stores them so, in half the bytes; in memory they
            keep the model's precision. A tensor that float16 cannot hold, such as one of values above 65504, is left
            as it is.

    Raises:
        UserError: a model that is not modulated, or whose base is trained as well and so would not be that of the
            pack; a number of classes that differs from the classifier's outputs; or an unknown precision.
    """
    if precision not in get_args(PackPrecision):
        raise unknown_name("precision", precision, get_args(PackPrecision))
    model = unwrap(model)
    found = attachment(model)
    outputs, names = _outputs(model, found.classifier), class_names(classes)
    if names and outputs is not None and len(names) != outputs:
        raise UserError(f"Expected {outputs} class names, one for each output of the classifier, got {len(names)}")
    tensors = partition_tensors(model, found.implicit, found.classifier, found.statistics)
    _require_frozen(model, found, tensors.base)
    copies = {name: tensor.detach().cpu().clone().contiguous() for name, tensor in tensors.task.items()}
    return Pack(
        rounded(copies) if precision == "fp16" else copies,
        _resident_fingerprint(model, found, tensors.base, trusted=False),
        task,
        names,
        {name: float(value) for name, value in (metrics or {}).items()},
        _arguments(found),
        precision=precision,
    )


def save_pack(
    model: nn.Module,
    path: Path | str,
    task: str = "",
    classes: Sequence[str] = (),
    metrics: Mapping[str, float] | None = None,
    precision: PackPrecision = "full",
) -> Pack:
    """Write the task that a modulated model holds to one file, and return it.

    Raises:
        UserError: see `make_pack`.
    """
    pack = make_pack(model, task, classes, metrics, precision)
    write_pack(pack, path)
    return pack


def load_pack(model: nn.Module, pack: Pack | Path | str) -> Pack:
    """Put the task of a pack, in memory or in a file, into `model`, after checking the hash of the base.

    A plain model is modulated like the pack. The classifier gets the pack's number of classes. To go on training, make
    a new optimiser.

    Raises:
        UserError: see `read_pack` and `swap`. `model` is then unchanged.
    """
    pack, model = _read(pack), unwrap(model)
    if is_modulated(model):
        _install(model, pack, trusted=False)
        return pack
    wanted = pack.modulation
    modulators = classes_called(wanted["modulator"])
    if len(modulators) != 1:
        raise UserError(
            f"Expected a modulated model for a pack of {wanted['modulator']}, got a plain one and "
            f"{len(modulators)} registered modulators of that class; modulate it first"
        )
    _check_classifier(model, wanted["classifier"])
    check_base(base_fingerprint(model, wanted["implicit"], wanted["classifier"], wanted["statistics"]), pack)
    with _roll_back_on_error(model):
        modulate_as(model, {**wanted, "modulator": modulators[0]})
        _install(model, pack, trusted=False)
    return pack


def swap(model: nn.Module, pack: Pack | Path | str) -> None:
    """Put the task of `pack` into a modulated model, in milliseconds: the base stays where it is.

    Gradients are dropped. To go on training, make a new optimiser: the old one has the former task's moments.

    The base is hashed once; later calls hash it again only if one of its tensors was replaced or written to
    (as counted by PyTorch, which misses writes through `.data`). `parametrize.cached()` must not be active.

    Raises:
        UserError: a pack of another base, other modulators, or tensors of other shapes (the classifier's number of
            outputs may differ). `model` is then unchanged.
    """
    _install(unwrap(model), _read(pack), trusted=True)


def _read(pack: Pack | Path | str) -> Pack:
    return pack if isinstance(pack, Pack) else read_pack(pack)


@torch.inference_mode(False)
@torch.no_grad()
def _install(model: nn.Module, pack: Pack, trusted: bool) -> None:
    found = attachment(model)
    _check_modulation(_arguments(found), pack.modulation)
    live = partition_tensors(model, found.implicit, found.classifier, found.statistics)
    check_base(_resident_fingerprint(model, found, live.base, trusted), pack)
    check_shapes(live.task, pack, found.classifier)
    for name, tensor in live.task.items():
        new, tensor.grad = pack.tensors[name], None
        if tensor.shape == new.shape:
            tensor.copy_(new)
        else:  # the number of classes
            tensor.data = new.to(tensor.device, copy=True)
    for module in _classifier_layers(model, found.classifier):
        outputs = "out_features" if isinstance(module, nn.Linear) else "out_channels"
        setattr(module, outputs, module.weight.shape[0])


def _require_frozen(model: nn.Module, found: Attachment, base: Mapping[str, Tensor]) -> None:
    """Refuse to make a pack of a model that trains more than a pack holds: its base would fit no other model."""
    if trained := [name for name, tensor in base.items() if tensor.requires_grad]:
        listed = ", ".join(trained[:4]) + (f", ... ({len(trained)} in all)" if trained[4:] else "")
        raise UserError(
            f"Expected a frozen base, got trainable tensors that a pack does not hold: {listed}; freeze them before "
            "training (requires_grad_(False))"
        )
    if found.statistics == "task":
        return
    for name, module in model.named_modules():
        counts = is_norm(module) and next(module.buffers(recurse=False), None) is not None
        if counts and module.training and not within(name, found.classifier):
            raise UserError(
                f'Expected norms in evaluation mode with statistics="base", got {name!r} in training mode, which '
                'changes the base; call eval() on them before training, or modulate with statistics="task"'
            )


def _resident_fingerprint(model: nn.Module, found: Attachment, base: Mapping[str, Tensor], trusted: bool) -> str:
    """The fingerprint of the model's base; with `trusted`, the last one unless a tensor was written to since."""
    state = [(tensor.data_ptr(), tensor._version) for tensor in base.values()]
    known_state, known = _resident.get(model, (None, ""))
    if not trusted or known_state != state:
        known = base_fingerprint(model, found.implicit, found.classifier, found.statistics)
        _resident[model] = state, known
    return known


def _arguments(found: Attachment) -> dict[str, Any]:
    return {**vars(found), "layers": list(found.layers), "modulator": found.modulator.__name__}


def modulate_as(model: nn.Module, wanted: Mapping[str, Any]) -> None:
    """Modulate a plain model with arguments of `modulate`, and leave the global generator alone."""
    with torch.random.fork_rng(devices=[]):  # initial values are overwritten, so leave the generator alone
        modulate(model, **wanted)


@contextlib.contextmanager
def _roll_back_on_error(model: nn.Module) -> Iterator[None]:
    """If the block raises, remove the modulators and restore what was trainable."""
    trainable = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    try:
        yield
    except BaseException:
        if is_modulated(model):
            detach(model)
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(trainable[name])
        raise


def _check_classifier(model: nn.Module, classifier: str | None) -> None:
    if classifier is not None and classifier not in dict(model.named_modules()):
        raise UserError(f"Expected a model with the pack's classifier {classifier!r}, got one without; use its base")


def check_base(base: str, pack: Pack) -> None:
    """Raise UserError unless the fingerprint `base` is that of the pack's base."""
    if base != pack.base:
        raise UserError(
            f"Expected the base network of the pack (fingerprint {pack.base[:12]}), got {base[:12]}: other "
            "frozen weights, layers or precision; load the base that the pack was trained on"
        )


def _check_modulation(have: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    unread = {"init"} if wanted["layers"] else {"init", "start"}  # init leaves only its shapes
    different = [key for key in have if key not in unread and have[key] != wanted[key]]
    if different:
        changes = ", ".join(f"{key}={wanted[key]!r} (the model has {have[key]!r})" for key in different)
        raise UserError(
            f"Expected a model modulated like the pack, got other arguments: {changes}; load it onto a plain base"
        )


def check_shapes(live: Mapping[str, Tensor], pack: Pack, classifier: str | None) -> None:
    """Raise UserError unless the pack has the tensors of `live`, except for the number of classes."""
    if missing := sorted(live.keys() ^ pack.tensors.keys()):
        raise UserError(
            f"Expected the pack and the model to have the same tensors, got {len(missing)} in one of them only "
            f"({', '.join(missing[:4])}); load the base that the pack was trained on"
        )
    for name, tensor in live.items():
        have, new = tuple(tensor.shape), tuple(pack.tensors[name].shape)
        if tensor.dtype != pack.tensors[name].dtype:
            kinds = f"{tensor.dtype}, got {pack.tensors[name].dtype}"
            raise UserError(f"Expected {name} of {kinds} in the pack; convert the model to the pack's precision")
        if have != new and not (within(name, classifier) and have[1:] == new[1:]):
            raise UserError(f"Expected {name} of shape {have}, got {new} in the pack; load the base it was trained on")


def _classifier_layers(model: nn.Module, classifier: str | None) -> list[nn.Linear | nn.Conv2d]:
    if classifier is None:
        return []
    return [m for m in model.get_submodule(classifier).modules() if isinstance(m, nn.Linear | nn.Conv2d)]


def _outputs(model: nn.Module, classifier: str | None) -> int | None:
    layers = _classifier_layers(model, classifier)
    return layers[-1].weight.shape[0] if layers else None
