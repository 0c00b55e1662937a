"""Reptile: move towards the adapted parameters (Nichol, Achiam & Schulman 2018, "On First-Order Meta-Learning ...").

    phi~_t = k steps of SGD on task t, from phi
    phi <- phi + epsilon mean_t(phi~_t - phi)

As the paper suggests, (phi - mean_t phi~_t) / alpha is treated as a gradient, so that the outer loop's optimiser can
use it; with SGD of rate epsilon alpha it is the update above. No derivative of the inner loop is taken.

The gain over joint training comes from steps on different minibatches of a task (their Sec. 5.1). So in meta-training
the support and the query images form one pool, as in the paper, which does not split tasks: the first step uses the
support images, the next ones equally many query images each, and then it starts over. In evaluation every step uses
the support images. Deviations: SGD in the inner loop, where the paper's experiments use Adam; and meta-training reports
loss and accuracy on query images that the inner loop may have seen.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from metakm.errors import UserError
from metakm.options import Options
from metakm.strategies.interfaces import EpisodeBatch, InnerLoop
from metakm.strategies.losses import require_ways, with_gradients
from metakm.strategies.parameter_subset import DirectStrategy
from metakm.strategies.registry import register_strategy


@register_strategy("reptile", options=Options)
class Reptile(DirectStrategy):
    """Reptile (Nichol et al. 2018): adapts the network with its norm affine; no second derivatives."""

    def __init__(self, backbone: nn.Module, ways: int) -> None:
        super().__init__(backbone, ways, lambda _network, _name: True)

    def outer_loss(self, inner: InnerLoop, episodes: EpisodeBatch) -> tuple[Tensor, Tensor]:
        """The query loss after adaptation as a value, (phi - mean_t phi~_t) / alpha as its gradient."""
        if any(isinstance(rate, Tensor) and rate.dim() for rate in inner.rates):
            raise UserError("Expected inner rates that are the same in every step for Reptile, got one for each step")
        adapted = inner.descend(*minibatches(episodes), graph=False)  # phi~: [T, ...]
        with torch.no_grad():
            logits = self.query_logits(adapted, episodes.support_images, episodes.query_images)
            require_ways(logits, episodes.support_labels)
            loss = self.inner_loss(logits, episodes.query_labels).mean()
            directions = [
                (phi - fast.mean(dim=0)) / rate
                for phi, fast, rate in zip(self.adapted.parameters(), adapted.parameters(), inner.rates, strict=True)
            ]
        return with_gradients(loss, self.adapted.parameters(), directions), logits


def minibatches(episodes: EpisodeBatch) -> list[tuple[Tensor, Tensor]]:
    """The support set, then the query images in parts of about the size of the support set, each with its labels.

    Part i of m takes every m-th query image, so that in class-major order with m dividing Q all classes are in each.
    """
    parts = max(1, episodes.query_labels.shape[1] // episodes.support_labels.shape[1])
    queries = [(episodes.query_images[:, i::parts], episodes.query_labels[:, i::parts]) for i in range(parts)]
    return [(episodes.support_images, episodes.support_labels), *queries]
