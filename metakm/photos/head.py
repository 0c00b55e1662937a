"""The head alone: the best linear classifier of features. Every fit starts from it, and then needs few steps."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

L2 = 1e-4


def solve_head(inputs: Tensor, labels: Tensor, weights: Tensor, classes: int, l2: float = L2) -> tuple[Tensor, Tensor]:
    """Logistic regression by L-BFGS: weights `[N, D]` and biases `[N]`.

    The penalty is l2 times the sum of squares, on features divided by their mean norm, so that l2 suits any network.

    Args:
        inputs: features `[n, D]`.
        labels: `[n]`, each in 0 ... N - 1.
        weights: of each image in the loss, `[n]`, with mean 1.
    """
    scale = inputs.norm(dim=1).mean().clamp_min(1e-6)
    scaled = (inputs / scale).double()
    weight = torch.zeros(classes, inputs.shape[1], dtype=torch.float64, device=inputs.device, requires_grad=True)
    bias = torch.zeros(classes, dtype=torch.float64, device=inputs.device, requires_grad=True)
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=200, tolerance_change=1e-9, line_search_fn="strong_wolfe")

    def loss() -> float:
        optimizer.zero_grad()
        errors = F.cross_entropy(scaled @ weight.T + bias, labels, reduction="none")
        value = (weights * errors).mean() + l2 * weight.square().sum()
        value.backward()  # type: ignore[no-untyped-call]
        return value.item()

    closure: Callable[[], float] = loss
    optimizer.step(closure)  # type: ignore[no-untyped-call]
    return (weight / scale).detach().to(inputs.dtype), bias.detach().to(inputs.dtype)


@torch.no_grad()
def install_head(network: nn.Module, classifier: str, weight: Tensor, bias: Tensor) -> None:
    """Write a solution into the network's classifier."""
    layer = network.get_submodule(classifier)
    assert isinstance(layer, nn.Linear | nn.Conv2d), "see metakm.models.pretrained.classifier_name"
    layer.weight.copy_(weight.view_as(layer.weight))
    if layer.bias is not None:
        layer.bias.copy_(bias)
