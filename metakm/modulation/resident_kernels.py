"""The kernels W~ of several tasks at once, and convolutions that use each as soon as it is computed.

For the published modulator, two layers and tanh, with s the scale (1 and R = 0 for the paper's start)::

    W~_t = R + s U2_t tanh(U1_t W/s),    R = W - s tanh(W/s),    tanh(x) = 2 sigmoid(2x) - 1

R is shared by the tasks, and on a CPU PyTorch's sigmoid is about ten times as fast as its tanh. W~_t of a layer with
many weights and few pixels would take longer to write and read again than to compute. `streamed` therefore computes it
for a few output channels at a time, multiplies, and forgets it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from metakm.modulation.modulators import KernelModulator
from metakm.modulation.resident_rows import ResidentRows, ResidentTask

_FIRST, _SECOND, _SCALE = "modulator.layers.0", "modulator.layers.1", "modulator.scale"

BLOCK = 131_072  # values of W~ at a time, for which a core's cache has room


class PublishedModulators(NamedTuple):
    """The published modulators of one layer: U1/s and s U2 of every task, `[T, k, k]`, and the scale, or None."""

    first: Tensor
    second: Tensor
    scale: float | None


def published(layer: str, rows: ResidentRows) -> PublishedModulators | None:
    """The layer's modulators, if all tasks have the published one with the same scale."""
    modulators = [task.modulators.get(layer) for task in rows.tasks]
    if not all(_is_published(modulator) for modulator in modulators):
        return None
    scaled = {_SCALE in task.places[layer] for task in rows.tasks}
    if len(scaled) != 1:
        return None
    first, second, *scales = rows.stacked(layer, [_FIRST, _SECOND, *([_SCALE] if scaled == {True} else [])], {})
    found = {scale for each in scales for scale in each.tolist()}
    if len(found) > 1:
        return None
    scale = found.pop() if found else None
    return PublishedModulators(first / (scale or 1.0), second * (scale or 1.0), scale)


def _is_published(modulator: nn.Module | None) -> bool:
    return type(modulator) is KernelModulator and modulator.is_published


def kernel(layer: str, task: ResidentTask, weight: Tensor) -> Tensor:
    """W~ `[O, C / groups, kh, kw]` of one task; W where it does not modulate the layer."""
    if layer not in task.modulators:
        return weight
    modulated: Tensor = functional_call(task.modulators[layer], task.modulator_tensors(layer), (weight,))
    return modulated


def kernels(weight: Tensor, modulators: PublishedModulators) -> Tensor:
    """W~ of all tasks, `[T, O, C / groups, kh, kw]`."""
    tasks, size = len(modulators.first), weight.shape[2] * weight.shape[3]
    values = weight.reshape(-1, size)  # [O*C, k]
    hidden = _tanh(values @ (2 * modulators.first).flatten(0, 1).t())  # [O*C, T*k]
    hidden = hidden.view(-1, tasks, size).transpose(0, 1)  # [T, O*C, k]
    residual = _residual(values, modulators.scale)
    if residual is None:
        found = hidden @ modulators.second.mT
    else:
        found = torch.baddbmm(residual.expand(tasks, -1, -1), hidden, modulators.second.mT)
    return found.view(tasks, *weight.shape)


def streamed(images: Tensor, conv: nn.Conv2d, rows: ResidentRows, modulators: PublishedModulators) -> Tensor:
    """Convolve each row with its task's W~: `[n, C, H, W]` to `[n, O, H', W']`. For `groups` of 1."""
    patches, size = _patches(images, conv)  # [k, n*P, C]
    pixels, channels = size[0] * size[1], conv.in_channels
    output = images.new_empty(rows.total * pixels, conv.out_channels)
    parts = rows.slices(pixels)
    taken = [patches[:, part] for part in parts]
    layers = _layers(modulators)
    step = max(1, BLOCK // (channels * len(patches)))
    for start in range(0, conv.out_channels, step):
        columns = _columns(conv.weight[start : start + step])  # [k, o*C]
        residual = _residual(columns, modulators.scale)
        for own, part, (first, second) in zip(taken, parts, layers, strict=True):
            block = _block(columns, residual, first, second).view(len(patches), -1, channels)
            _multiply(own, block, output[part, start : start + step])
    if conv.bias is not None:
        output += conv.bias
    return output.view(rows.total, pixels, -1).mT.reshape(rows.total, -1, *size)


def _layers(modulators: PublishedModulators) -> Sequence[tuple[float | Tensor, float | Tensor]]:
    """2 U1/s and s U2 of each task; numbers for 1x1 kernels."""
    first, second = 2 * modulators.first, modulators.second
    if first[0].numel() == 1:
        return list(zip(first.flatten().tolist(), second.flatten().tolist(), strict=True))
    return list(zip(first, second, strict=True))


def _block(columns: Tensor, residual: Tensor | None, first: Tensor | float, second: Tensor | float) -> Tensor:
    if isinstance(first, float) and isinstance(second, float):
        hidden = torch.mul(columns, first).sigmoid_()
        if residual is None:
            return hidden.mul_(2 * second).sub_(second)
        return torch.add(residual, hidden, alpha=2 * second, out=hidden).sub_(second)
    assert not isinstance(first, float)
    assert not isinstance(second, float)
    hidden = _tanh(first @ columns)
    return second @ hidden if residual is None else torch.addmm(residual, second, hidden)


def _multiply(patches: Tensor, block: Tensor, target: Tensor) -> None:
    """Write the sum over k of `[k, p, C]` x `[k, o, C]`, `[p, o]`, into `target`."""
    torch.mm(patches[0], block[0].t(), out=target)
    for pixels, weights in zip(patches[1:], block[1:], strict=True):
        target.addmm_(pixels, weights.t())


def _columns(weight: Tensor) -> Tensor:
    return weight.flatten(2).movedim(-1, 0).reshape(weight.shape[2] * weight.shape[3], -1)  # [k, O*C]


def _tanh(halved: Tensor) -> Tensor:
    """tanh(x) of 2x, in place."""
    return halved.sigmoid_().mul_(2).sub_(1)


def _residual(columns: Tensor, scale: float | None) -> Tensor | None:
    """R; tanh as for W~, so that W~ is W to rounding where U is I."""
    return None if scale is None else columns - _tanh(columns * (2 / scale)).mul_(scale)


def _patches(images: Tensor, conv: nn.Conv2d) -> tuple[Tensor, tuple[int, int]]:
    """The pixels that each place of the kernels meets, `[k, n*P, C]`, and (H', W')."""
    padding = (int(conv.padding[0]), int(conv.padding[1]))
    size = [
        (images.shape[2 + i] + 2 * padding[i] - conv.dilation[i] * (conv.kernel_size[i] - 1) - 1) // conv.stride[i] + 1
        for i in (0, 1)
    ]
    if tuple(conv.kernel_size) == (1, 1) and padding == (0, 0):
        met = images[:, :, :: conv.stride[0], :: conv.stride[1]].flatten(2).unsqueeze(2)  # [n, C, 1, P]
    else:
        unfolded = F.unfold(images, conv.kernel_size, conv.dilation, padding, conv.stride)  # [n, C*k, P]
        met = unfolded.view(len(images), images.shape[1], -1, unfolded.shape[-1])  # [n, C, k, P]
    return met.permute(2, 0, 3, 1).reshape(met.shape[2], -1, images.shape[1]), (size[0], size[1])
