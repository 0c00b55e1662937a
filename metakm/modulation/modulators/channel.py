"""A modulator that also mixes neighbouring channels, which Sec. V of the paper leaves open."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metakm.modulation.modulators.kernel import NOISE, Activation, Initialisation, KernelModulator
from metakm.modulation.modulators.registry import register_modulator


@register_modulator("channel")
class ChannelModulator(KernelModulator):
    """A `KernelModulator` g behind three taps along the channel axis.

    With W[n, c] the k_h x k_w values of channel c of kernel n, taken as 0 beyond the first and last channel::

        V[n, c] = a[0] * W[n, c - 1] + a[1] * W[n, c] + a[2] * W[n, c + 1]    (element by element)
        W~      = g(V; U)

    The taps a, one for each neighbour and position in the kernel, start at a[1] = 1 and a[0] = a[2] = 0, each plus
    N(0, 0.001) as in Eq. 4. They add 3 k_h k_w parameters: 189 in all for a 3x3 layer. In a grouped
    convolution, neighbours are in the same group; a depthwise one has no neighbours, and only a[1] acts.

    Args:
        kernel_size, depth, activation, init, scale: see `KernelModulator`; `init` is that of g alone. With a scale the
            taps start without noise, and W~ = V + s (g(V/s; U) - g(V/s; I)).
    """

    def __init__(
        self,
        kernel_size: tuple[int, int],
        depth: int = 2,
        activation: Activation = "tanh",
        init: Initialisation = "identity",
        scale: float | None = None,
    ) -> None:
        super().__init__(kernel_size, depth, activation, init, scale)
        identity = torch.tensor([0.0, 1.0, 0.0])[:, None, None]
        noise = NOISE if scale is None else 0.0
        self.taps = nn.Parameter(identity + noise * torch.randn(3, *kernel_size))  # [3, kh, kw]

    def forward(self, kernel: Tensor) -> Tensor:
        """Return W~ of `[O, C, kh, kw]`; differentiable with respect to W, a and U."""
        padded = F.pad(kernel, (0, 0, 0, 0, 1, 1))  # [O, C + 2, kh, kw]
        channels = kernel.shape[1]
        mixed = sum((tap * padded[:, d : d + channels] for d, tap in enumerate(self.taps)), torch.zeros_like(kernel))
        return super().forward(mixed)
