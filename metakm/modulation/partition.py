"""Divide the tensors of a model into the task's and the base's, and fingerprint the base.

The task's: the modulators; of every norm layer, with `implicit`, the affine parameters and, unless the base keeps
them, the running statistics; the classifier. The base's: everything else in the state dict. Names are those of the
plain model, with `<layer>.modulator.<name>` for the tensors of a modulator, whatever `torch.nn.utils.parametrize` calls
them.
"""

from __future__ import annotations

import hashlib
from typing import NamedTuple

from torch import Tensor, nn

from metakm.io.tensor_file import update_digest
from metakm.modulation.attachment import Statistics, within
from metakm.modulation.norms import is_norm
from metakm.modulation.requirements import check_writable
from metakm.modulation.weight_cache import CachedParametrization

_PARAMETRIZATION = ".parametrizations.weight."


class TensorPartition(NamedTuple):
    """A model's own tensors by name: writing to them changes the model.

    `base` is the same before and after modulation.
    """

    task: dict[str, Tensor]
    base: dict[str, Tensor]


def partition_tensors(
    model: nn.Module, implicit: bool, classifier: str | None, statistics: Statistics = "task"
) -> TensorPartition:
    """Split the tensors into the task's and the base's, for `modulate`'s arguments of these names.

    Raises:
        UserError: a tensor that was made in inference mode.
    """
    modules = dict(model.named_modules(remove_duplicate=False))
    found = TensorPartition({}, {})
    for name, tensor in model.state_dict(keep_vars=True).items():
        if not isinstance(tensor, Tensor):  # a module's extra state
            continue
        layer, marker, rest = name.partition(_PARAMETRIZATION)
        modulated = isinstance(modules.get(f"{layer}{marker}".removesuffix(".")), CachedParametrization)
        if modulated and rest != "original":
            found.task[f"{layer}.modulator.{rest.removeprefix('0.')}"] = tensor
        elif modulated:
            found.base[f"{layer}.weight"] = tensor
        else:
            moves = implicit if isinstance(tensor, nn.Parameter) else statistics == "task"
            of_norm = moves and is_norm(modules[name.rpartition(".")[0]])
            (found.task if of_norm or within(name, classifier) else found.base)[name] = tensor
    check_writable([*found.task.values(), *found.base.values()])
    return found


def base_fingerprint(model: nn.Module, implicit: bool, classifier: str | None, statistics: Statistics = "task") -> str:
    """SHA-256, in hexadecimal, of the base's tensors (name, precision, shape, bytes) and of how its layers use them.

    The latter is each convolution's stride, padding, dilation and groups, each norm's eps and number of groups. Takes
    a pass over the base's bytes.
    """
    digest = hashlib.sha256()
    for name, module in model.named_modules():
        own = classifier != "" and within(name, classifier)  # a pack of everything still needs the same layers
        if not own and ".parametrizations" not in name:
            digest.update(_behaviour(name, module).encode())
    update_digest(digest, partition_tensors(model, implicit, classifier, statistics).base)
    return digest.hexdigest()


def _behaviour(name: str, module: nn.Module) -> str:
    if isinstance(module, nn.Conv2d):
        settings = (module.stride, module.padding, module.dilation, module.groups, module.padding_mode)
        return f"{name} {settings}\n"
    if is_norm(module):
        return f"{name} eps={getattr(module, 'eps', None)} groups={getattr(module, 'num_groups', None)}\n"
    return ""
