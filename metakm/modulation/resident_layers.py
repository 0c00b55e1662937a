"""Layers that hold no task of their own: each row uses its own task's tensors.

`metakm.modulation.resident_rows.current_rows` says which rows are whose.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from metakm.errors import UserError
from metakm.models.rows import select_rows
from metakm.modulation.resident_kernels import kernel, kernels, published, streamed
from metakm.modulation.resident_rows import ResidentRows, current_rows

FEW_PIXELS = 64  # of a task, up to which matrix products beat a grouped convolution with kernels of more than 1x1


class TaskLayer(nn.Module):
    """Any layer, task by task: its rows are computed with `torch.func.functional_call`.

    Where tasks have different numbers of outputs, the missing ones are minus infinity.
    """

    def __init__(self, name: str, inner: nn.Module) -> None:
        super().__init__()
        self.layer_name, self.inner = name, inner

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """The layer's output; `args[0]` has the rows.

        Raises:
            UserError: an input whose first axis is not that of the batch.
        """
        rows = current_rows.get()
        if not args or not isinstance(args[0], Tensor) or args[0].shape[:1] != (rows.total,):
            shape = tuple(args[0].shape) if args and isinstance(args[0], Tensor) else "no tensor"
            raise UserError(
                f"Expected {self.layer_name!r} to be called with one row per image ({rows.total}), got {shape}; use a "
                "model that keeps images on the first axis, or swap() task after task"
            )
        return self.mixed(rows, args[0], *args[1:], **kwargs)

    def mixed(self, rows: ResidentRows, images: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """The output `[n, ...]` for rows of several tasks."""
        outputs = []
        for task, part in zip(rows.tasks, rows.slices(), strict=True):
            here, named = select_rows(((images, *args), kwargs), part, rows.total)
            outputs.append(functional_call(self.inner, task.tensors(self.layer_name), here, named))
        return rows.joined(outputs)

    def __getattr__(self, name: str) -> Any:
        """What the model's code reads of the layer, such as `out_channels`.

        Raises:
            UserError: a tensor, of which each task has its own.
        """
        if name == "inner":
            return super().__getattr__(name)
        found = getattr(self.inner, name)
        if isinstance(found, Tensor):
            raise UserError(
                f"Expected the model to call {self.layer_name!r}, got a read of its {name}, of which each task has its "
                "own; swap() task after task"
            )
        return found


class TaskBatchNorm(TaskLayer):
    """Batch norm with running statistics, in one call: rows stand side by side on the channel axis."""

    def mixed(self, rows: ResidentRows, images: Tensor, *_: Any, **__: Any) -> Tensor:
        """`[n, C, H, W]` to the same shape."""
        wide = images.reshape(1, -1, *images.shape[2:])  # [1, n*C, H, W]
        state = self.inner.state_dict(keep_vars=True)
        names = [name for name in ("weight", "bias", "running_mean", "running_var") if name in state]
        stacked = rows.stacked(self.layer_name, names, state)  # [T, C]
        tensors: dict[str, Tensor] = {
            name: rows.repeat_for_rows(own).flatten() for name, own in zip(names, stacked, strict=True)
        }  # [n*C]
        output: Tensor = functional_call(self.inner, tensors, (wide,))
        return output.view(images.shape)


class TaskLinear(TaskLayer):
    """A linear layer on `[n, F]`."""

    def mixed(self, rows: ResidentRows, images: Tensor, *_: Any, **__: Any) -> Tensor:
        """`[n, F]` to `[n, most outputs]`."""
        outputs = []
        for task, part in zip(rows.tasks, rows.slices(), strict=True):
            own = task.tensors(self.layer_name)
            weight, bias = (own.get(name, getattr(self.inner, name)) for name in ("weight", "bias"))
            outputs.append(F.linear(images[part], weight, bias))
        return rows.joined(outputs)


class TaskConv2d(TaskLayer):
    """A convolution with the task's W~, which is computed in every call and not kept."""

    inner: nn.Conv2d

    def mixed(self, rows: ResidentRows, images: Tensor, *_: Any, **__: Any) -> Tensor:
        """`[n, C, H, W]` to `[n, O, H', W']`."""
        if not any(self.layer_name in task.modulators for task in rows.tasks):
            output: Tensor = self.inner(images)
            return output
        modulators = published(self.layer_name, rows)
        if modulators is None:
            return self._one_by_one(rows, images, [kernel(self.layer_name, t, self.inner.weight) for t in rows.tasks])
        if self._streams(rows, images):
            return streamed(images, self.inner, rows, modulators)
        found = kernels(self.inner.weight, modulators)  # [T, O, C / groups, kh, kw]
        if rows.each is None or not self._groups():
            return self._one_by_one(rows, images, list(found))
        return self._grouped(rows.each, images, found)

    def _streams(self, rows: ResidentRows, images: Tensor) -> bool:
        conv = self.inner
        if type(conv) is not nn.Conv2d or conv.padding_mode != "zeros" or isinstance(conv.padding, str):
            return False
        pixels = (images.shape[2] // conv.stride[0]) * (images.shape[3] // conv.stride[1]) * max(rows.counts)
        return conv.groups == 1 and (tuple(conv.kernel_size) == (1, 1) or pixels <= FEW_PIXELS)

    def _groups(self) -> bool:
        """Whether the layer's code is known to do all tasks as groups: torch's, or timm's that only pads before."""
        conv = self.inner
        plain = type(conv) is nn.Conv2d or (type(conv).__name__, type(conv).__module__[:5]) == ("Conv2dSame", "timm.")
        return plain and conv.padding_mode == "zeros"

    def _one_by_one(self, rows: ResidentRows, images: Tensor, weights: list[Tensor]) -> Tensor:
        outputs = [
            functional_call(self.inner, {"weight": weight}, (images[part],))
            for weight, part in zip(weights, rows.slices(), strict=True)
        ]
        return torch.cat(outputs)

    def _grouped(self, each: int, images: Tensor, weights: Tensor) -> Tensor:
        tasks, n = len(weights), len(images)
        size = images.shape[1:]
        joined = images.view(tasks, each, *size).transpose(0, 1).reshape(each, -1, *size[1:])  # [n / T, T*C, H, W]
        wide = copy.copy(self.inner)  # its tensors are replaced in the call
        wide.groups = tasks * self.inner.groups
        tensors = {"weight": weights.flatten(0, 1)}
        if self.inner.bias is not None:
            tensors["bias"] = self.inner.bias.repeat(tasks)
        output: Tensor = functional_call(wide, tensors, (joined,))
        split = output.view(each, tasks, -1, *output.shape[2:]).transpose(0, 1)  # [T, n / T, O, H', W']
        return split.reshape(n, -1, *output.shape[2:])


def resident_layer(name: str, module: nn.Module, whole: bool) -> TaskLayer:
    """`module` as a layer for all tasks; `whole` for the classifier, of which every tensor is the task's."""
    if whole:
        return (TaskLinear if type(module) is nn.Linear else TaskLayer)(name, module)
    if isinstance(module, nn.Conv2d):
        # a subclass, such as one that pads by itself, computes its own rows with its own code
        return TaskConv2d(name, module)
    held = type(module).__name__ in ("BatchNorm2d", "SyncBatchNorm", "BatchNormAct2d")
    side_by_side = held and isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is not None
    return (TaskBatchNorm if side_by_side else TaskLayer)(name, module)
