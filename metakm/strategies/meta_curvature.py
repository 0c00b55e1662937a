"""Meta-curvature: MAML with a learned transform of every gradient (Park & Oliva 2019, "Meta-Curvature", Sec. 3).

    MC(G) = G x_1 M_o x_2 M_i x_3 M_f    (mode products, for G of [outputs, inputs, positions of the kernel])
    theta' = theta - alpha MC(grad_theta L_support(theta)),    theta and all M learned by the outer loop

The head's weight has M_o and M_i alone. The matrices start as the identity, so that training starts as MAML's. As
in MAML here, the inner loop leaves the norm affine to the outer loop, unless `implicit`.

Deviations: the paper describes matrices and kernels; a vector, such as a bias, has one factor for each entry here. In
the paper's experiments the inner loop also learns a rate for each layer and step: see `--learn-inner-lr`.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from metakm.strategies.interfaces import Gradients, InnerLoop
from metakm.strategies.maml import MAML
from metakm.strategies.registry import register_strategy


class Curvature(nn.Module):
    """MC of one parameter: a matrix for each of its first two dimensions and one for all further ones together."""

    def __init__(self, shape: torch.Size) -> None:
        super().__init__()
        sizes = [*shape[:2], *([shape[2:].numel()] if len(shape) > 2 else [])]
        starts = [torch.eye(size) for size in sizes] if len(shape) > 1 else [torch.ones(shape)]
        self.matrices = nn.ParameterList(starts)

    def forward(self, gradient: Tensor) -> Tensor:
        """Transform `[T, ...]`, a gradient for each of T tasks."""
        if len(self.matrices) == 1:
            scaled: Tensor = gradient * self.matrices[0]
            return scaled
        modes = gradient.flatten(3) if gradient.dim() > 4 else gradient  # [T, O, I, ...]
        for dim, matrix in enumerate(self.matrices, start=1):
            modes = (modes.movedim(dim, -1) @ matrix.T).movedim(-1, dim)
        return modes.reshape(gradient.shape)


@register_strategy("meta-curvature")
class MetaCurvature(MAML):
    """Meta-curvature (Park & Oliva 2019): as MAML; `curvatures` has a `Curvature` for each parameter."""

    def __init__(self, backbone: nn.Module, ways: int, implicit: bool = False) -> None:
        super().__init__(backbone, ways, implicit)
        self.curvatures = nn.ModuleDict({name: Curvature(p.shape) for name, p in self.adapted.named_parameters()})

    def adapt(self, inner: InnerLoop, encoded: Tensor, labels: Tensor) -> nn.Module:
        """See `Strategy`."""
        return inner.descend((encoded, labels), transform=self._transform)

    def _transform(self, _adapted: nn.Module, gradients: Gradients) -> Gradients:
        return [None if g is None else mc(g) for mc, g in zip(self.curvatures.values(), gradients, strict=True)]
