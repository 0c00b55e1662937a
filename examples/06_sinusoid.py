"""Regression: MAML on sinusoids (Finn, Abbeel & Levine 2017, Sec. 5.1).

A task is a sinusoid of amplitude 0.1 to 5 and phase 0 to pi; the network sees 10 points of it. As in the paper's Figure
3, the error on other points falls with the first step, and further with more steps than meta-training takes.
"""

import math

import torch
from torch import Tensor, nn

import metakm
from metakm.models import Linear


class Sinusoids:
    """Tasks of 10 points to learn from and 10 to test on."""

    def __init__(self, first: int) -> None:
        self.first = first

    def batch(self, index: int, tasks: int) -> metakm.Episodes:
        """Points `[T, 10, 1]` and targets `[T, 10, 1]`."""
        seeds = range(self.first + index, self.first + index + tasks)
        numbers = torch.stack([torch.rand(22, 1, generator=torch.Generator().manual_seed(seed)) for seed in seeds])
        amplitude, phase, x = 0.1 + 4.9 * numbers[:, :1], math.pi * numbers[:, 1:2], 10 * numbers[:, 2:] - 5
        y = amplitude * torch.sin(x - phase)
        return metakm.Episodes(x[:, :10], y[:, :10], x[:, 10:], y[:, 10:], range(index, index + tasks))


class Regression(metakm.Strategy):
    """The inner loop adapts the whole network to the squared error."""

    def __init__(self) -> None:
        super().__init__()
        self.adapted = nn.Sequential(Linear(1, 40), nn.ReLU(), Linear(40, 40), nn.ReLU(), Linear(40, 1))

    def predict(self, adapted: nn.Module, encoded: Tensor) -> Tensor:
        """Points `[T, n, 1]` to values `[T, n, 1]`."""
        return adapted(encoded)

    def inner_loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Mean squared error of each task, `[T]`."""
        return (logits - labels).square().mean((1, 2))

    def metric(self, logits: Tensor, labels: Tensor) -> Tensor:
        """More is better."""
        return -self.inner_loss(logits, labels)


def main() -> None:
    """Train for a short while, then test after more and more inner steps."""
    torch.manual_seed(0)
    learner = metakm.Learner(Regression(), inner_lr=0.01, inner_steps=1)
    optimizer = torch.optim.Adam(learner.meta_parameters(), lr=3e-3)
    for iteration in range(1000):
        loss = learner.meta_loss(Sinusoids(first=0).batch(index=25 * iteration, tasks=25)).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    for steps in (0, 1, 5, 10):
        found = learner.evaluate(Sinusoids(first=10**9), tasks=200, inner_steps=steps, tasks_at_once=200)
        print(f"{steps:2} inner steps: mean squared error {-found.accuracy:.2f} +- {found.interval:.2f}")


if __name__ == "__main__":
    main()
