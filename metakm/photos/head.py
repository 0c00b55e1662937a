"""The head alone: the best linear classifier of features. A fit that adapts more starts from one, and needs few steps.

Of a network that was meta-trained, class means of features divided by their length are as good and need no training. As
classes are compared for one image at a time, its features need no division: the answer is that of the cosines.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

L2 = 0.01
START_L2 = 1e-4
COSINE_SCALE = 10.0  # of the logits, as in meta-training
RIDGE = 1.0

Solver = Callable[[Tensor, Tensor, Tensor, int], tuple[Tensor, Tensor]]
"""From features `[n, D]`, labels `[n]`, weights `[n]` and the number of classes N to weights `[N, D]`, biases `[N]`."""


def solve_head(inputs: Tensor, labels: Tensor, weights: Tensor, classes: int, l2: float = L2) -> tuple[Tensor, Tensor]:
    """Logistic regression by L-BFGS: weights `[N, D]` and biases `[N]`.

    The sum of the losses has l2 times the sum of squares added to it. Features are divided by their mean norm, so that
    one penalty suits every network, and as the losses are summed, it suits few images and many.

    Args:
        inputs: features `[n, D]`.
        labels: `[n]`, each in 0 ... N - 1.
        weights: of each image in the loss, `[n]`, with mean 1.
        l2: the penalty, chosen on validation images of Flowers-102 and Grocery Store, with 15 to 2,575 images.
    """
    scale = inputs.norm(dim=1).mean().clamp_min(1e-6)
    scaled = (inputs / scale).double()
    weight = torch.zeros(classes, inputs.shape[1], dtype=torch.float64, device=inputs.device, requires_grad=True)
    bias = torch.zeros(classes, dtype=torch.float64, device=inputs.device, requires_grad=True)
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=200, tolerance_change=1e-9, line_search_fn="strong_wolfe")

    def loss() -> float:
        optimizer.zero_grad()
        errors = F.cross_entropy(scaled @ weight.T + bias, labels, reduction="none")
        value = (weights * errors).mean() + l2 / len(labels) * weight.square().sum()
        value.backward()  # type: ignore[no-untyped-call]
        return value.item()

    closure: Callable[[], float] = loss
    optimizer.step(closure)  # type: ignore[no-untyped-call]
    return (weight / scale).detach().to(inputs.dtype), bias.detach().to(inputs.dtype)


def solve_start(inputs: Tensor, labels: Tensor, weights: Tensor, classes: int) -> tuple[Tensor, Tensor]:
    """The head that training starts from: a `Solver`, as `solve_head` with a penalty that grows with the images.

    A head that fits many images closely leaves little loss to learn from: norms that were trained on all 1,020 training
    images of Flowers-102 from this start were better on the validation images than from `solve_head`.
    """
    return solve_head(inputs, labels, weights, classes, START_L2 * len(labels))


def solve_centroid(inputs: Tensor, labels: Tensor, weights: Tensor, classes: int) -> tuple[Tensor, Tensor]:
    """Class means of features divided by their length: a `Solver`."""
    unit = F.normalize(inputs, dim=1)
    members = F.one_hot(labels, classes).to(unit.dtype) * weights.to(unit.dtype)[:, None]  # [n, N]
    means = F.normalize(members.T @ unit, dim=1)
    return _scaled(means, inputs), torch.zeros(classes, dtype=inputs.dtype, device=inputs.device)


def solve_ridge(inputs: Tensor, labels: Tensor, weights: Tensor, classes: int) -> tuple[Tensor, Tensor]:
    """Least squares from features divided by their length to -1 and 1, with a penalty: a `Solver`.

    W = Y^T S (S X X^T S + r I)^-1 S X, or the same through D x D where images are more than features; S has the square
    roots of the weights.
    """
    roots = weights.double().sqrt()[:, None]
    unit = F.normalize(inputs, dim=1).double() * roots  # [n, D]
    wanted = (2.0 * F.one_hot(labels, classes).double() - 1.0) * roots  # [n, N]
    size = min(unit.shape)
    penalty = RIDGE * torch.eye(size, dtype=unit.dtype, device=unit.device)
    if size == len(unit):
        found = unit.T @ torch.linalg.solve(unit @ unit.T + penalty, wanted)  # [D, N]
    else:
        found = torch.linalg.solve(unit.T @ unit + penalty, unit.T @ wanted)
    return _scaled(found.T.to(inputs.dtype), inputs), torch.zeros(classes, dtype=inputs.dtype, device=inputs.device)


def _scaled(directions: Tensor, inputs: Tensor) -> Tensor:
    """Weights whose logits are about `COSINE_SCALE` times those of features divided by their length."""
    mean_length: Tensor = inputs.norm(dim=1).mean().clamp_min(1e-6)
    return COSINE_SCALE * directions / mean_length


@torch.no_grad()
def install_head(network: nn.Module, classifier: str, weight: Tensor, bias: Tensor) -> None:
    """Write a solution into the network's classifier."""
    layer = network.get_submodule(classifier)
    assert isinstance(layer, nn.Linear | nn.Conv2d), "see metakm.models.pretrained.classifier_name"
    layer.weight.copy_(weight.view_as(layer.weight))
    if layer.bias is not None:
        layer.bias.copy_(bias)
