"""Explicit kernel modulation (Hu & Liu, "Kernel Modulation", Sec. III-A).

A convolution's weight W of shape (k_n, k_c, k_h, k_w) is read as k_n*k_c rows of k_h*k_w values; a small network g
maps each row, and the result is reshaped back (Eq. 3)::

    W~ = g(W; U),    g(w) = U2 tanh(U1 w)

with no biases and every layer initialised to U = I + N(0, 0.001) (Eq. 4), so that W~ starts near tanh(W).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metakm.errors import UserError, unknown_name
from metakm.modulation.two_layers import two_layers

Activation = Literal["tanh", "sin", "leaky_relu", "relu"]
Initialisation = Literal["identity", "orthogonal", "diagonal"]

NOISE = 0.001  # standard deviation in Eq. 4

_activations: dict[str, Callable[[Tensor], Tensor]] = {
    "tanh": torch.tanh,
    "sin": torch.sin,
    "leaky_relu": lambda x: F.leaky_relu(x, 0.1),
    "relu": torch.relu,
}


class KernelModulator(nn.Module):
    """The network g of one convolution layer.

    Args:
        kernel_size: (k_h, k_w) of the layer; each of g's layers has (k_h*k_w)^2 weights, 162 in all for 3x3.
        depth: number of layers; the activation stands between them, so depth 1 is linear.
        activation: `leaky_relu` has the paper's negative slope of 0.1 (Sec. IV-D).
        init: `identity` is Eq. 4; `orthogonal` draws orthogonal matrices; `diagonal` keeps, and trains, only the
            diagonal 1 + N(0, 0.001), k_h*k_w weights a layer (Sec. IV-D b).

    Raises:
        UserError: an unknown activation or initialisation, a depth or kernel size below 1.
    """

    def __init__(
        self,
        kernel_size: tuple[int, int],
        depth: int = 2,
        activation: Activation = "tanh",
        init: Initialisation = "identity",
    ) -> None:
        super().__init__()
        if activation not in get_args(Activation):
            raise unknown_name("activation", activation, get_args(Activation))
        if init not in get_args(Initialisation):
            raise unknown_name("init", init, get_args(Initialisation))
        if depth < 1 or min(kernel_size) < 1:
            raise UserError(f"Expected depth and kernel size of at least 1, got {depth} and {kernel_size}")
        self.kernel_size, self.activation, self.diagonal = kernel_size, activation, init == "diagonal"
        width = kernel_size[0] * kernel_size[1]
        self.layers = nn.ParameterList(_initial_layer(width, init) for _ in range(depth))

    def forward(self, kernel: Tensor) -> Tensor:
        """Return W~ of `[O, C, kh, kw]`, or of `[T, O, C, kh, kw]` where U or W carries a task axis.

        Differentiable with respect to both W and U.
        """
        # The paper's rows stand as columns, channels innermost, for long matrix products.
        columns = kernel.flatten(-2).movedim(-1, -3).flatten(-2)  # [..., kh*kw, O*C]
        out_channels = kernel.shape[-4]
        by_pixel = (self._two_layers if self._as_published(columns) else self._layers)(columns, out_channels)
        # Contiguous as [..., O, kh*kw, C], W~ is channels-last, as the convolution wants it.
        return by_pixel.view(*by_pixel.shape[:-2], *self.kernel_size, -1).movedim(-1, -3)

    def _as_published(self, columns: Tensor) -> bool:
        return len(self.layers) == 2 and self.activation == "tanh" and not self.diagonal and columns.dim() == 2

    def _two_layers(self, columns: Tensor, out_channels: int) -> Tensor:
        first, second = self.layers
        if first.dim() == 2:
            return two_layers(columns, first.unsqueeze(0), second.unsqueeze(0), out_channels).squeeze(0)
        return two_layers(columns, first, second, out_channels)

    def _layers(self, columns: Tensor, out_channels: int) -> Tensor:
        activation = _activations[self.activation]
        for depth, layer in enumerate(self.layers):
            columns = activation(columns) if depth else columns
            columns = columns * layer.unsqueeze(-1) if self.diagonal else layer @ columns
        return columns.reshape(*columns.shape[:-1], out_channels, -1).transpose(-3, -2).contiguous()

    def extra_repr(self) -> str:
        """Kernel size and activation."""
        return f"kernel_size={self.kernel_size}, activation={self.activation}"


def _initial_layer(width: int, init: Initialisation) -> nn.Parameter:
    if init == "diagonal":
        return nn.Parameter(1 + NOISE * torch.randn(width))  # [k]
    if init == "orthogonal":
        return nn.Parameter(nn.init.orthogonal_(torch.empty(width, width)))
    return nn.Parameter(torch.eye(width) + NOISE * torch.randn(width, width))  # [k, k]


class KernelModulators(nn.Module):
    """One `KernelModulator` for every convolution of a network, found by the name of the layer's weight."""

    def __init__(
        self,
        network: nn.Module,
        depth: int = 2,
        activation: Activation = "tanh",
        init: Initialisation = "identity",
    ) -> None:
        super().__init__()
        sizes = {
            f"{name}.weight" if name else "weight": (module.kernel_size[0], module.kernel_size[1])
            for name, module in network.named_modules()
            if isinstance(module, nn.Conv2d)
        }
        if not sizes:
            raise UserError("Expected a network with Conv2d layers to modulate, got one without; pass a ConvNet")
        self.weight_names = tuple(sizes)
        self.modulators = nn.ModuleList(KernelModulator(k, depth, activation, init) for k in sizes.values())

    def forward(self, kernels: dict[str, Tensor]) -> dict[str, Tensor]:
        """Modulate the kernels called `weight_names` out of `kernels`; other entries are left out."""
        return {
            name: modulator(kernels[name]) for name, modulator in zip(self.weight_names, self.modulators, strict=True)
        }
