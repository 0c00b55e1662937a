"""The fallback for what cannot carry tasks: it is called with the rows and the tensors of one task after the other."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils._pytree import tree_flatten, tree_unflatten

from metakm.models.batch_statistics import current_statistics
from metakm.models.layers import BatchNorm2d
from metakm.models.rows import rows_here, rows_of, select_rows, tasks_here

_RANKS, _ALWAYS = "_ranks", "_always"


class TaskByTask(nn.Module):
    """Mixed in before a module's own class by `run_task_by_task`."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The module's own forward for rows `[n*T, ...]`, in one call where all rows share its parameters."""
        tasks, rows, tensors = tasks_here(), rows_here(), _parameters(self)
        ranks: dict[str, int] = getattr(self, _RANKS)
        apart = {name for name, tensor in tensors.items() if tensor.dim() > ranks.get(name, tensor.dim())}
        if not apart and (tasks == 1 or not getattr(self, _ALWAYS)):
            return super().forward(*args, **kwargs)
        outputs, statistics = [], _RunningStatistics(self)
        for task in range(tasks):
            own = {name: tensors[name][task] for name in apart}
            here, named = select_rows((args, kwargs), slice(task, None, tasks), rows)
            with rows_of(1, rows // tasks), statistics.of_one_task():
                outputs.append(functional_call(self, own, here, named, tie_weights=False))
        statistics.average(tasks)
        return _interleaved(outputs)

    def __reduce_ex__(self, protocol: Any) -> Any:
        """By the module's own class, as this one has no name to be found by."""
        del protocol
        return _new, (type(self).__mro__[2],), self.__dict__


def _new(kind: Any) -> Any:
    mixed = _mixed_with(kind)
    return mixed.__new__(mixed)


def run_task_by_task(module: nn.Module, *, always: bool = False) -> None:
    """Change the class of `module` so that parameters with a task axis reach its code without it.

    Args:
        always: also where no parameter has a task axis, for code that mixes rows.
    """
    kind: Any = type(module)
    module.__class__ = _mixed_with(kind)
    object.__setattr__(module, _RANKS, {name: tensor.dim() for name, tensor in _parameters(module).items()})
    object.__setattr__(module, _ALWAYS, always or _has_batch_statistics(module))


@functools.cache
def _mixed_with(kind: Any) -> Any:
    return type(kind.__name__, (TaskByTask, kind), {"__module__": kind.__module__})


def _parameters(module: nn.Module) -> dict[str, Tensor]:
    """Each parameter of each module once; a module with two names under the first (see PyTorch issue 164759)."""
    return {
        f"{prefix}.{leaf}" if prefix else leaf: parameter
        for prefix, part in module.named_modules()
        for leaf, parameter in part._parameters.items()
        if parameter is not None
    }


def _has_batch_statistics(module: nn.Module) -> bool:
    """These layers need to know how many tasks there are; they may come after `module` has been changed."""
    return any(isinstance(part, BatchNorm2d) for part in module.modules())


def _interleaved(outputs: list[Any]) -> Any:
    """Rows of one task each to rows of all."""
    flat = [tree_flatten(output) for output in outputs]
    joined = [torch.stack(each, 1).flatten(0, 1) for each in zip(*(leaves for leaves, _ in flat), strict=True)]
    return tree_unflatten(joined, flat[0][1])


class _RunningStatistics:
    """Running averages, while they are tracked, move by the mean over the tasks, as in the layers themselves."""

    def __init__(self, module: nn.Module) -> None:
        layers = [part for part in module.modules() if isinstance(part, BatchNorm2d) and part.mode == "running"]
        pairs = [(layer.running_mean, layer.running_var) for layer in layers if current_statistics().track]
        self.buffers = [buffer for pair in pairs for buffer in pair]
        self.before = [buffer.clone() for buffer in self.buffers]
        self.sums = [torch.zeros_like(buffer) for buffer in self.buffers]

    @contextlib.contextmanager
    def of_one_task(self) -> Iterator[None]:
        """Put the averages back after a task."""
        yield
        for buffer, before, total in zip(self.buffers, self.before, self.sums, strict=True):
            total.add_(buffer)
            buffer.copy_(before)

    def average(self, tasks: int) -> None:
        """The mean of what the tasks made of them."""
        for buffer, total in zip(self.buffers, self.sums, strict=True):
            buffer.copy_(total / tasks)
