"""Random bases descent (Gressmann et al. 2020, "Improving Neural Network Training in Low Dimensional Random Bases").

In every iteration the gradient g is replaced by its projection on d new random directions,

    g~ = P P^T g,    P of shape [D, d], entries N(0, 1/D),

so that an iteration depends on d numbers, P^T g, instead of D. The variance of the entries makes the expectation of g~
equal to (d/D) g. The D parameters form one vector, divided into equal compartments, each with its own share of the
directions (their Sec. 4.2): P is then block-diagonal, and d*D/compartments numbers are drawn instead of d*D. They are
drawn again from (seed, iteration, compartment) when needed, and never stored.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from metakm.data.rng import stream_key


class RandomBases:
    """Replaces the gradients of a step by their projection on random directions.

    Args:
        directions: d in all.
        compartments: how many blocks P has; divides d.
    """

    def __init__(self, directions: int, compartments: int, seed: int) -> None:
        self.directions, self.compartments, self.seed = directions, compartments, seed

    def __call__(self, parameters: list[nn.Parameter], iteration: int) -> None:
        """See `metakm.experiments.training.GradientMap`."""
        gradients = [p.grad for p in parameters if p.grad is not None]
        flat = torch.cat([g.flatten() for g in gradients])
        projected: Tensor = torch.cat(
            [
                self.project(block, iteration, number)
                for number, block in enumerate(flat.tensor_split(self.compartments))
            ]
        )
        start = 0
        for gradient in gradients:
            gradient.copy_(projected[start : start + gradient.numel()].view_as(gradient))
            start += gradient.numel()

    def project(self, gradient: Tensor, iteration: int, compartment: int) -> Tensor:
        """P P^T of one compartment's gradient `[D_k]`."""
        basis = self.basis(len(gradient), iteration, compartment).to(gradient)
        projected: Tensor = basis.T @ (basis @ gradient)
        return projected

    def basis(self, size: int, iteration: int, compartment: int) -> Tensor:
        """P^T of one compartment, `[d / compartments, size]`, drawn on the CPU so that every device sees the same."""
        generator = torch.Generator().manual_seed(stream_key("basis", self.seed, iteration, compartment) % 2**63)
        rows = self.directions // self.compartments
        return torch.randn(rows, size, generator=generator).div_(size**0.5)
