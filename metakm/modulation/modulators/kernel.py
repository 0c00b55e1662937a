"""Explicit kernel modulation (Hu & Liu, "Kernel Modulation", Sec. III-A).

A convolution's weight W of shape (k_n, k_c, k_h, k_w) is read as k_n*k_c rows of k_h*k_w values; a small network g
maps each row, and the result is reshaped back (Eq. 3)::

    W~ = g(W; U),    g(w) = U2 tanh(U1 w)

with no biases and every layer initialised to U = I + N(0, 0.001) (Eq. 4), so that W~ starts near tanh(W).

This equals W only if W is small. Trained kernels may be larger, and tanh then destroys the network before the first
step. For them there is an exact start, with s the kernel's scale and I the identity in every layer::

    W~ = W + s (g(W/s; U) - g(W/s; I)),    U = I at the start

There W~ is W for any scale, and its derivative with respect to U is that of s g(W/s; U).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metakm.errors import UserError, unknown_name
from metakm.modulation.modulators.registry import register_modulator
from metakm.modulation.requirements import check_plain
from metakm.ops.autograd import without_autocast
from metakm.ops.conv2d import plain_strides
from metakm.ops.frozen_kernel import modulate_frozen_kernel
from metakm.ops.modulator_mlp import channels_innermost, tanh, two_layer_mlp

Activation = Literal["tanh", "sin", "leaky_relu", "relu"]
Initialisation = Literal["identity", "orthogonal", "diagonal"]
Start = Literal["exact", "paper"]

NOISE = 0.001  # standard deviation in Eq. 4

_activations: dict[str, Callable[[Tensor], Tensor]] = {
    "tanh": tanh,
    "sin": torch.sin,
    "leaky_relu": lambda x: F.leaky_relu(x, 0.1),
    "relu": torch.relu,
}


@register_modulator("kernel")
class KernelModulator(nn.Module):
    """The network g of one convolution layer, as in the paper.

    Args:
        kernel_size: (k_h, k_w) of the layer; each of g's layers has (k_h*k_w)^2 weights, 162 in all for 3x3.
        depth: number of layers; the activation is between them, so depth 1 is linear.
        activation: `leaky_relu` has the paper's negative slope of 0.1 (Sec. IV-D).
        init: `identity` is Eq. 4; `orthogonal` draws orthogonal matrices; `diagonal` keeps, and trains, only the
            diagonal 1 + N(0, 0.001), k_h*k_w weights per layer (Sec. IV-D b).
        scale: s of the exact start, which has no noise; see `kernel_scale`. None for the paper's start.

    Raises:
        UserError: an unknown activation or initialisation, a depth or kernel size below 1, a scale that is not
            positive, or one with orthogonal matrices, which have no identity to start from.
    """

    scale: Tensor | None

    def __init__(
        self,
        kernel_size: tuple[int, int],
        depth: int = 2,
        activation: Activation = "tanh",
        init: Initialisation = "identity",
        scale: float | None = None,
    ) -> None:
        super().__init__()
        if activation not in get_args(Activation):
            raise unknown_name("activation", activation, get_args(Activation))
        if init not in get_args(Initialisation):
            raise unknown_name("init", init, get_args(Initialisation))
        if depth < 1 or min(kernel_size) < 1:
            raise UserError(f"Expected depth and kernel size of at least 1, got {depth} and {kernel_size}")
        if scale is not None and not 0 < scale < math.inf:
            raise UserError(f"Expected a positive scale, got {scale}; kernel_scale(weight) is one")
        if scale is not None and init == "orthogonal":
            raise UserError(
                'Expected init="identity" or "diagonal" for an exact start, got "orthogonal"; pass start="paper"'
            )
        self.kernel_size, self.activation, self.diagonal = kernel_size, activation, init == "diagonal"
        width = kernel_size[0] * kernel_size[1]
        noise = NOISE if scale is None else 0.0
        self.layers = nn.ParameterList(_initial_layer(width, init, noise) for _ in range(depth))
        self.register_buffer("scale", None if scale is None else torch.tensor(scale))

    @without_autocast
    def forward(self, kernel: Tensor) -> Tensor:
        """Return W~ of `[O, C, kh, kw]`, or of `[T, O, C, kh, kw]` if U or W has a task axis.

        It has W's memory format and, even under autocast, W's precision, so that a convolution with W~ rounds like one
        with W.
        Differentiable with respect to both W and U.
        """
        if self._has_fused_form() and self._is_frozen_on_cpu(kernel):
            first, second = self.layers
            return plain_strides(modulate_frozen_kernel(kernel, first, second, self.scale), self.kernel_size)
        # The paper's rows are columns here, channels innermost, for long matrix products.
        columns = kernel.flatten(-2).movedim(-1, -3).flatten(-2)  # [..., kh*kw, O*C]
        if self.scale is None:
            by_pixel = self._network(columns, [*self.layers], kernel.shape[-4])  # [..., O, kh*kw, C]
        else:
            changed = self._exact(columns, self.scale)
            by_pixel = changed.view(*changed.shape[:-1], kernel.shape[-4], -1).transpose(-3, -2)
        channels_last = not kernel.is_contiguous()
        by_pixel = by_pixel.contiguous() if channels_last else by_pixel
        modulated = by_pixel.view(*by_pixel.shape[:-2], *self.kernel_size, -1).movedim(-1, -3)  # [..., O, C, kh, kw]
        return plain_strides(modulated if channels_last else modulated.contiguous(), self.kernel_size)

    def _exact(self, columns: Tensor, scale: Tensor) -> Tensor:
        """W~ by columns. Both networks take the same steps, so that equal layers give equal roundings: W~ is W."""
        first, *rest = self.layers
        identity = _identity(columns.shape[-2], self.diagonal).to(columns)
        start = [identity / scale, *(identity for _ in rest)]
        moved = self._network(columns, [first / scale, *rest]) - self._network(columns, start)
        return torch.addcmul(columns, scale, moved)

    def _network(self, columns: Tensor, layers: Sequence[Tensor], out_channels: int | None = None) -> Tensor:
        """The network of `[..., k, O*C]`: `[..., O, k, C]`, or `[..., k, O*C]` without `out_channels`.

        Layers with a task axis give a result with one.
        """
        if columns.dim() == 2 and self._has_fused_form():
            first, second = layers
            if first.dim() == 2:
                return two_layer_mlp(columns, first.unsqueeze(0), second.unsqueeze(0), out_channels).squeeze(0)
            return two_layer_mlp(columns, first, second, out_channels)
        activation = _activations[self.activation]
        for depth, layer in enumerate(layers):
            columns = activation(columns) if depth else columns
            columns = columns * layer.unsqueeze(-1) if self.diagonal else layer @ columns
        return columns if out_channels is None else channels_innermost(columns, out_channels)

    @property
    def is_published(self) -> bool:
        """Whether the MLP is the paper's: two layers, tanh, whole matrices."""
        return len(self.layers) == 2 and self.activation == "tanh" and not self.diagonal

    def _has_fused_form(self) -> bool:
        """Whether functions with their own derivatives can be used; under torch.func and tracing, plain ones are."""
        looked_into = torch._C._functorch.maybe_current_level() is not None or torch._C._get_tracing_state() is not None
        return self.is_published and not looked_into and not torch.compiler.is_compiling()

    def _is_frozen_on_cpu(self, kernel: Tensor) -> bool:
        """Whether this is one kernel, for one task, that needs no gradient."""
        alone = kernel.dim() == 4 and all(layer.dim() == 2 for layer in self.layers)
        return alone and kernel.device.type == "cpu" and not (kernel.requires_grad and torch.is_grad_enabled())

    def extra_repr(self) -> str:
        """Kernel size, activation and start."""
        start = "paper" if self.scale is None else "exact"
        return f"kernel_size={self.kernel_size}, activation={self.activation}, start={start}"


@torch.no_grad()
def kernel_scale(weight: Tensor) -> float:
    """Return s of an exact start: twice the root mean square of W, for which tanh(W/s) is neither linear nor flat.

    1 for a kernel of zeros, whose W~ is zero anyway.
    """
    return 2.0 * float(weight.cpu().double().square().mean().sqrt()) or 1.0  # not every device has float64


def start_scale(start: Start, weight: Tensor) -> float | None:
    """The `scale` of the modulator of `weight` for the given start.

    Raises:
        UserError: an unknown start.
    """
    if start not in get_args(Start):
        raise unknown_name("start", start, get_args(Start))
    return kernel_scale(weight) if start == "exact" else None


def _initial_layer(width: int, init: Initialisation, noise: float) -> nn.Parameter:
    if init == "diagonal":
        return nn.Parameter(1 + noise * torch.randn(width))  # [k]
    if init == "orthogonal":
        return nn.Parameter(nn.init.orthogonal_(torch.empty(width, width)))
    return nn.Parameter(torch.eye(width) + noise * torch.randn(width, width))  # [k, k]


def _identity(width: int, diagonal: bool) -> Tensor:
    return torch.ones(width) if diagonal else torch.eye(width)


def _size(layer: nn.Conv2d) -> tuple[int, int]:
    return layer.kernel_size[0], layer.kernel_size[1]


class KernelModulators(nn.Module):
    """One `KernelModulator` per convolution of a network, by the name of the layer's weight.

    Args:
        depth, activation, init: see `KernelModulator`.
        start: `paper`, as published, or `exact`; see `metakm.modulation.modulate`, whose default is `exact`.

    Raises:
        UserError: a network without Conv2d layers, or a layer whose weight is computed.
    """

    def __init__(
        self,
        network: nn.Module,
        depth: int = 2,
        activation: Activation = "tanh",
        init: Initialisation = "identity",
        start: Start = "paper",
    ) -> None:
        super().__init__()
        layers = {
            f"{name}.weight" if name else "weight": module
            for name, module in network.named_modules()
            if isinstance(module, nn.Conv2d)
        }
        if not layers:
            raise UserError("Expected a network with Conv2d layers to modulate, got one without; pass a ConvNet")
        for name, layer in layers.items():
            check_plain(layer, name.removesuffix("weight").removesuffix("."))
        self.weight_names = tuple(layers)
        self.modulators = nn.ModuleList(
            KernelModulator(_size(layer), depth, activation, init, start_scale(start, layer.weight))
            for layer in layers.values()
        )

    def forward(self, kernels: dict[str, Tensor]) -> dict[str, Tensor]:
        """Modulate the kernels called `weight_names` out of `kernels`; other entries are left out."""
        return {
            name: modulator(kernels[name]) for name, modulator in zip(self.weight_names, self.modulators, strict=True)
        }
