"""Layers whose weights may carry a leading task axis.

Feature maps of T tasks have the shape `[n, T*C, H, W]`: image i of every task, side by side on the channel axis. In
this layout, a convolution with one weight per task is one grouped convolution, and batch normalisation over the T*C
channels is per-task batch normalisation. Each layer tells shared weights from weights of `[T, ...]` by their rank, so
the same network runs with either, or with a mixture. The memory format is channels-last, in which oneDNN returns the
input gradient without a copy. Feature maps have the precision of the parameters, unless the images have 16 bits:
bfloat16 images run the convolutions in bfloat16, on float32 parameters. Autocast does the same.
"""

from __future__ import annotations

from typing import Any, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metakm.errors import UserError, unknown_name
from metakm.models.batch_statistics import current_statistics
from metakm.models.modes import BatchNormMode
from metakm.ops.conv2d import Geometry, convolve
from metakm.ops.norm_relu_pool import batch_norm_relu


def join_tasks(images: Tensor, channels: int) -> Tensor:
    """`[T, n, C, H, W]` to the layers' layout `[n, T*C, H, W]`; images `[n, C, H, W]` have it.

    Raises:
        UserError: C is not `channels`; the layers would mistake the excess for further tasks.
    """
    *tasks_and_n, found, height, width = images.shape
    if found != channels:
        raise UserError(f"Expected images of {channels} channels, got {found}; convert them, or build another backbone")
    if images.dim() == 4:
        return images
    tasks, n = tasks_and_n
    joined = images.transpose(0, 1).reshape(n, tasks * channels, height, width)
    return joined.contiguous(memory_format=torch.channels_last)


def split_tasks(features: Tensor, images: Tensor) -> Tensor:
    """`[n, T*F]` to `[T, n, F]` for images `[T, n, C, H, W]`, or `[n, F]` for `[n, C, H, W]`; F may be several axes."""
    if images.dim() == 4:
        return features.flatten(1)
    return features.reshape(len(features), len(images), -1).transpose(0, 1)


class Conv2d(nn.Conv2d):
    """`nn.Conv2d` on `[n, T*C, H, W]` with a weight of `[O, C, kh, kw]` or `[T, O, C, kh, kw]`."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        padding: Any = self.padding
        if isinstance(padding, str) or self.padding_mode != "zeros":
            raise UserError(f"Expected zero padding by a number, got {padding!r}, {self.padding_mode!r}; pass a number")
        stride, dilation = (self.stride[0], self.stride[1]), (self.dilation[0], self.dilation[1])
        self.geometry = Geometry(stride, (padding[0], padding[1]), dilation, self.groups)
        self.weight.data = self.weight.data.contiguous(memory_format=torch.channels_last)

    def forward(self, input: Tensor, *, bias_cancels: bool = False) -> Tensor:  # noqa: A002 (torch's name)
        """Convolve; `[n, T*C, H, W]` to `[n, T*O, H', W']`.

        With `bias_cancels` the caller promises to subtract the mean over images and pixels next: the bias then has
        no effect, is not added, and gets a gradient of exactly zero.
        """
        tasks = input.shape[1] // self.in_channels
        weight = self.weight  # read once: with a modulator, each access computes it
        input = input.to(_precision(input, weight))  # noqa: A001
        kernels = _of_tasks(weight, tasks).to(input.dtype)  # [T*O, C, kh, kw]
        output = convolve(input, kernels, self.geometry._replace(groups=tasks * self.groups))  # [n, T*O, H', W']
        if self.bias is None:
            return output
        if bias_cancels:
            unchanged: Tensor = _WithoutEffect.apply(output, self.bias)
            return unchanged
        return output + per_channel(self.bias, tasks).to(input.dtype)[:, None, None]


def _of_tasks(weight: Tensor, tasks: int) -> Tensor:
    """`[O, C, kh, kw]` or `[T, O, C, kh, kw]` to `[T*O, C, kh, kw]`, in its own memory format."""
    weight = weight if weight.dim() == 5 else weight.expand(tasks, *weight.shape)
    if weight.stride(2) != 1:
        return weight.flatten(0, 1)
    return weight.permute(0, 1, 3, 4, 2).flatten(0, 1).permute(0, 3, 1, 2)  # channels last


def _precision(images: Tensor, weight: Tensor) -> torch.dtype:
    """The precision to compute in: autocast's, that of 16-bit images, or else that of the weight."""
    if torch.is_autocast_enabled(images.device.type):
        return torch.get_autocast_dtype(images.device.type)
    return images.dtype if images.dtype in (torch.bfloat16, torch.float16) else weight.dtype


class Linear(nn.Linear):
    """`nn.Linear` on `[T, n, F]` (or `[n, F]`) in the weight's precision.

    The weight is `[O, F]` or `[T, O, F]`, the bias `[O]` or `[T, O]`, each on its own.
    """

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 (torch's name)
        """Return `[T, n, O]` (or `[n, O]`)."""
        input = input.to(self.weight.dtype)  # noqa: A001
        bias: Tensor | None = self.bias  # torch's type says that it is never None
        own_bias = bias is not None and bias.dim() == 2
        if self.weight.dim() == 2:
            product = F.linear(input, self.weight, None if own_bias else bias)
            return product + bias.unsqueeze(1) if bias is not None and own_bias else product
        if bias is None:
            return torch.bmm(input, self.weight.transpose(1, 2))
        return torch.baddbmm(bias.unsqueeze(1) if own_bias else bias, input, self.weight.transpose(1, 2))


class BatchNorm2d(nn.Module):
    """Batch normalisation of each task on its own, `[n, T*C, H, W]`; affine of `[C]` or `[T, C]`.

    The mode says where mean and variance come from, and so what a query's prediction can depend on:

    - `transductive`: the current batch, support or query, always (as in MAML's code): queries influence each other.
    - `support`: the task's support images, for the support and the query pass: queries are independent.
    - `running`: the batch in training mode; running averages, over meta-training, in evaluation mode.
    - `frozen`: the stored averages, always (mean 0, variance 1, unless loaded).

    Args:
        momentum: weight of a new batch in the running averages.
    """

    running_mean: Tensor
    running_var: Tensor

    def __init__(
        self, channels: int, mode: BatchNormMode = "transductive", eps: float = 1e-5, momentum: float = 0.1
    ) -> None:
        super().__init__()
        if mode not in get_args(BatchNormMode):
            raise unknown_name("bn_mode", mode, get_args(BatchNormMode))
        self.channels, self.mode, self.eps, self.momentum = channels, mode, eps, momentum
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))

    @property
    def removes_mean(self) -> bool:
        """Whether a constant added to a channel beforehand always cancels."""
        return self.mode in ("transductive", "support")

    def forward(self, x: Tensor, *, relu: bool = False, leak: float = 0.0, pool: bool = False) -> Tensor:
        """Normalise, scale and shift; with `relu`, rectify; with `pool`, keep the maxima of 2x2 windows.

        The shape stays, or is `[n, T*C, H/2, W/2]` with `pool`. On batch statistics, norm, pooling and ReLU together
        are one function with its own second derivative (faster).

        Args:
            relu: multiply negative values by `leak`.
            leak: 0 for ReLU, more for leaky ReLU.
            pool: see above.
        """
        tasks = x.shape[1] // self.channels
        if self.mode == "running" and current_statistics().track:
            self._track(x, tasks)
        weight, bias = per_channel(self.weight, tasks), per_channel(self.bias, tasks)  # [T*C]
        leak = leak if relu else 1.0
        if self._at_hand():
            return batch_norm_relu(x, weight, bias, self.eps, leak=leak, pool=pool)
        normalised = self._normalise(x, weight, bias)
        if pool:
            normalised = F.max_pool2d(normalised, 2)  # before ReLU, which commutes with it and then has less work
        if leak == 1:
            return normalised
        return F.leaky_relu(normalised, leak) if leak else torch.relu(normalised)

    def _at_hand(self) -> bool:
        """Whether the statistics are those of the whole batch."""
        if self.mode == "running":
            return self.training
        return self.mode == "transductive" or (self.mode == "support" and current_statistics().reference is None)

    def _normalise(self, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        if self.mode == "support":
            reference, total, _ = current_statistics()
            if total not in (None, len(x)):
                raise UserError(
                    f'Expected feature maps of {total} images for bn_mode="support", got {len(x)} on their first axis; '
                    "keep images there (no patches), or choose another bn_mode"
                )
            return _normalise_by(x, x[:reference], weight, bias, self.eps)
        tasks = x.shape[1] // self.channels
        mean, var = self.running_mean.repeat(tasks), self.running_var.repeat(tasks)
        return F.batch_norm(x, mean, var, weight, bias, False, 0.0, self.eps)

    @torch.no_grad()
    def _track(self, x: Tensor, tasks: int) -> None:
        variance, mean = torch.var_mean(x.to(self.weight.dtype), dim=(0, 2, 3))  # [T*C]
        self.running_mean.lerp_(mean.view(tasks, -1).mean(0), self.momentum)
        self.running_var.lerp_(variance.view(tasks, -1).mean(0), self.momentum)

    def extra_repr(self) -> str:
        """Channels and mode."""
        return f"{self.channels}, mode={self.mode}"


def per_channel(values: Tensor, tasks: int) -> Tensor:
    """`[C]` (shared) or `[T, C]` to `[T*C]`."""
    return values.repeat(tasks) if values.dim() == 1 else values.reshape(-1)


def _normalise_by(x: Tensor, reference: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    variance, mean = torch.var_mean(reference.to(weight.dtype), dim=(0, 2, 3), correction=0)
    scale = weight * torch.rsqrt(variance + eps)
    return (x * scale[:, None, None] + (bias - mean * scale)[:, None, None]).to(x.dtype)


class _WithoutEffect(torch.autograd.Function):
    """Return x unchanged, and give `bias` a gradient of zero instead of none."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(bias)
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor, Tensor]:
        (bias,) = ctx.saved_tensors
        return grads[0], torch.zeros_like(bias)
