"""Layers of a plain network with weights that may carry a leading task axis.

A plain network sees rows: images of T tasks on its first axis, `[n*T, C, H, W]`, image 0 of every task, then image 1 of
every task, and so on. So its own code stays right as long as it treats rows independently. These layers are those of
`metakm.models.layers` on such rows: in contiguous memory, `[n*T, C, H, W]` and their `[n, T*C, H, W]` are the same.
A layer of torch becomes one of these by its class alone: tensors, names, hooks and places in the network stay.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metakm.errors import UserError
from metakm.models import layers
from metakm.models.modes import BatchNormMode
from metakm.models.rows import as_rows, repeat_for_rows, side_by_side
from metakm.ops.conv2d import Geometry


class RowConv2d(layers.Conv2d):
    """`nn.Conv2d`, and timm's `Conv2dSame`, on `[n*T, C, H, W]`; weight `[O, C, kh, kw]` or `[T, O, C, kh, kw]`."""

    pad: Callable[[Tensor], Tensor] | None

    def forward(self, input: Tensor, *, bias_cancels: bool = False) -> Tensor:  # noqa: A002 (torch's name)
        """`[n*T, C, H, W]` to `[n*T, O, H', W']`.

        Raises:
            UserError: another number of channels, which would count as further tasks.
        """
        if input.shape[1] != self.in_channels:
            raise UserError(
                f"Expected images or feature maps of {self.in_channels} channels for a convolution, got "
                f"{input.shape[1]}; build the network for these, or convert the images"
            )
        x = input if self.pad is None else self.pad(input)
        weight, bias = self.weight, self.bias
        if weight.dim() == 4 and (bias is None or bias.dim() == 1):
            return super().forward(x, bias_cancels=bias_cancels)  # all rows as those of one task
        return as_rows(super().forward(side_by_side(x), bias_cancels=bias_cancels))


def adopt_conv2d(layer: nn.Conv2d, _: BatchNormMode, __: Tensor) -> None:
    """Make the layer a `RowConv2d`."""
    kernel, stride, dilation = (_pair(values) for values in (layer.kernel_size, layer.stride, layer.dilation))
    given: Any = layer.padding
    pad: Callable[[Tensor], Tensor] | None = None
    if type(layer).__name__ == "Conv2dSame":
        given, pad = (0, 0), functools.partial(_pad_same, kernel=kernel, stride=stride, dilation=dilation)
    elif isinstance(given, str) or layer.padding_mode != "zeros":
        given, pad = (0, 0), _fixed_padding(layer)
    new: Any = layer
    new.geometry, new.pad = Geometry(stride, _pair(given), dilation, layer.groups), pad
    # channels-last, as `layers.Conv2d` has it; the parameter stays the same object
    new.weight.data = new.weight.data.contiguous(memory_format=torch.channels_last)
    new.__class__ = RowConv2d


def _fixed_padding(layer: nn.Conv2d) -> Callable[[Tensor], Tensor]:
    mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
    return functools.partial(F.pad, pad=list(layer._reversed_padding_repeated_twice), mode=mode)


def _pad_same(x: Tensor, kernel: tuple[int, int], stride: tuple[int, int], dilation: tuple[int, int]) -> Tensor:
    """TensorFlow's: the output has ceil(size / stride) pixels, and of an odd padding the greater part is behind."""
    widths: list[int] = []
    for size, k, s, d in zip(x.shape[2:], kernel, stride, dilation, strict=True):
        total = max((math.ceil(size / s) - 1) * s + (k - 1) * d + 1 - size, 0)
        widths = [total // 2, total - total // 2, *widths]  # the last axis comes first
    return F.pad(x, widths)


def _pair(values: Sequence[int]) -> tuple[int, int]:
    return values[0], values[1]


class RowBatchNorm(layers.BatchNorm2d):
    """`nn.BatchNorm1d`, `nn.BatchNorm2d` and timm's `BatchNormAct2d` on `[n*T, C, ...]`, by a `bn_mode`."""

    def forward(self, x: Tensor, *, relu: bool = False, leak: float = 0.0, pool: bool = False) -> Tensor:
        """Normalise the rows of each task; timm's layer then drops and activates."""
        maps = x.reshape(*x.shape, *[1] * (4 - x.dim()))  # [n*T, C, H, W]
        normalised = as_rows(super().forward(side_by_side(maps), relu=relu, leak=leak, pool=pool))
        normalised = normalised if pool else normalised.reshape(x.shape)
        for name in ("drop", "act"):  # of BatchNormAct2d
            if name in self._modules:
                normalised = self._modules[name](normalised)  # type: ignore[misc]
        return normalised


def adopt_batch_norm(layer: nn.modules.batchnorm._BatchNorm, bn_mode: BatchNormMode, like: Tensor) -> None:
    """Make the layer a `RowBatchNorm`; without running statistics, it starts from those of untrained layers.

    What it lacks has the device and precision of `like`.
    """
    plain = layers.BatchNorm2d(layer.num_features, bn_mode).to(like.device, like.dtype)
    new: Any = layer
    new.channels, new.mode = layer.num_features, bn_mode
    new.momentum = plain.momentum if layer.momentum is None else layer.momentum
    new._buffers.pop("num_batches_tracked", None)
    for name in ("running_mean", "running_var"):
        if new._buffers.get(name) is None:
            new._buffers[name] = getattr(plain, name)
    if new.weight is None:  # affine=False
        for name in ("weight", "bias"):
            del new._parameters[name]
            new.register_buffer(name, getattr(plain, name).detach(), persistent=False)
    new.__class__ = RowBatchNorm


class RowGroupNorm(nn.GroupNorm):
    """`nn.GroupNorm` on `[n*T, C, ...]` with an affine of `[C]` or `[T, C]`."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 (torch's name)
        """The shape stays."""
        return _scaled(self, F.group_norm(input, self.num_groups, eps=self.eps), 1)


class RowLayerNorm(nn.LayerNorm):
    """`nn.LayerNorm` on `[n*T, ..., *shape]` with an affine of `[*shape]` or `[T, *shape]`."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 (torch's name)
        """The shape stays."""
        return _scaled(self, F.layer_norm(input, self.normalized_shape, eps=self.eps), None)


class RowLayerNorm2d(nn.LayerNorm):
    """The `LayerNorm2d` of torchvision and timm, over the channels of `[n*T, C, H, W]`."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 (torch's name)
        """The shape stays."""
        last = input.permute(0, 2, 3, 1)  # [n*T, H, W, C]
        normalised = F.layer_norm(last, self.normalized_shape, eps=self.eps).permute(0, 3, 1, 2)
        return _scaled(self, normalised, 1)


def _scaled(layer: nn.GroupNorm | nn.LayerNorm, normalised: Tensor, axis: int | None) -> Tensor:
    """Scale and shift rows; the affine's first axis is the rows' `axis`, or its last axis is theirs."""
    rank = 1 if isinstance(layer, nn.GroupNorm) else len(layer.normalized_shape)
    for name, act in (("weight", torch.mul), ("bias", torch.add)):
        values: Tensor | None = getattr(layer, name, None)
        if values is None:
            continue
        own = repeat_for_rows(values, rank, len(normalised))
        lead, shape = own.shape[: own.dim() - rank], own.shape[own.dim() - rank :]
        free = normalised.dim() - 1 - rank
        places = (*shape, *[1] * free) if axis == 1 else (*[1] * free, *shape)
        normalised = act(normalised, own.reshape(*lead, *places))
    return normalised


class RowLinear(nn.Linear):
    """`nn.Linear` on `[n*T, ..., F]` with a weight of `[O, F]` or `[T, O, F]`."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 (torch's name)
        """Return `[n*T, ..., O]`."""
        weight = self.weight
        bias: Tensor | None = self.bias  # torch's type says that it is never None
        x = input.to(weight.dtype)
        if weight.dim() == 2:
            output = F.linear(x, weight)
        else:
            tasks, features = len(weight), x.shape[-1]
            by_task = x.reshape(len(x) // tasks, tasks, -1, features).transpose(0, 1)  # [T, n, L, F]
            product = torch.bmm(by_task.reshape(tasks, -1, features), weight.transpose(1, 2))  # [T, n*L, O]
            by_image = product.reshape(tasks, len(x) // tasks, -1, product.shape[-1]).transpose(0, 1)
            output = by_image.reshape(*x.shape[:-1], -1)  # [n*T, ..., O]
        if bias is None:
            return output
        own = repeat_for_rows(bias, 1, len(output))
        return output + own.reshape(*own.shape[:-1], *[1] * (output.dim() - 2 if own.dim() == 2 else 0), own.shape[-1])


class TwiceHardsigmoid(nn.Hardsigmoid):
    """`nn.Hardsigmoid` of operations that have second derivatives; torch's has none (tried: 2.14)."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 (torch's name)
        """The shape stays."""
        return F.relu6(input + 3.0) / 6.0


def _adopt(layer: nn.Module, _: BatchNormMode, __: Tensor, *, kind: type[nn.Module]) -> None:
    layer.__class__ = kind


def _as(kind: type[nn.Module]) -> Callable[..., None]:
    return functools.partial(_adopt, kind=kind)


ADOPTED: dict[str, Callable[..., None]] = {
    "torch.Conv2d": adopt_conv2d,
    "timm.Conv2dSame": adopt_conv2d,
    "torch.BatchNorm1d": adopt_batch_norm,
    "torch.BatchNorm2d": adopt_batch_norm,
    "torch.SyncBatchNorm": adopt_batch_norm,
    "timm.BatchNormAct2d": adopt_batch_norm,
    "torch.GroupNorm": _as(RowGroupNorm),
    "timm.GroupNorm": _as(RowGroupNorm),
    "timm.GroupNorm1": _as(RowGroupNorm),
    "torch.LayerNorm": _as(RowLayerNorm),
    "timm.LayerNorm": _as(RowLayerNorm),
    "timm.LayerNorm2d": _as(RowLayerNorm2d),
    "torchvision.LayerNorm2d": _as(RowLayerNorm2d),
    "torch.Linear": _as(RowLinear),
    "torch.Hardsigmoid": _as(TwiceHardsigmoid),
}
"""What makes a layer carry tasks, by its library and its class."""
