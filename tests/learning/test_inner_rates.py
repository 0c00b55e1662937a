"""The head alone adapted, against gradient descent written out."""

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from small import random_episodes, small_strategy

import metakm
from metakm.learning.inner_loop import evaluate_episodes
from metakm.learning.inner_rates import head_rates

STEPS = 3


def by_hand(strategy, episodes, rates):
    """Query logits `[T, n, N]` after descent of each task's head by the rates of each step."""
    found = []
    for t in range(len(episodes.support_labels)):
        own = copy.deepcopy(strategy)
        head = list(own.head_parameters().values())
        for rate in rates:
            loss = F.cross_entropy(own(episodes.support_images[t : t + 1])[0], episodes.support_labels[t])
            with torch.no_grad():
                for parameter, gradient in zip(head, torch.autograd.grad(loss, head), strict=True):
                    parameter -= rate * gradient
        found.append(own(episodes.query_images[t : t + 1]).detach())
    return torch.cat(found)


@pytest.mark.parametrize("algo", ["km", "maml", "anil"])
@pytest.mark.parametrize("learned", [False, True], ids=["one-rate", "learned-rates-by-step"])
def test_nothing_but_the_head_moves(algo, learned):
    strategy, episodes = small_strategy(algo), random_episodes()
    count = len(list(strategy.adapted.parameters()))
    inner_lr = [torch.tensor([0.3, 0.1, 0.2]) for _ in range(count)] if learned else 0.3
    rates = head_rates(strategy, inner_lr)
    found = evaluate_episodes(strategy, episodes, inner_lr=rates, inner_steps=STEPS).logits
    expected = by_hand(strategy, episodes, [0.3, 0.1, 0.2] if learned else [0.3] * STEPS)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-10)
    whole = evaluate_episodes(strategy, episodes, inner_lr=inner_lr, inner_steps=STEPS).logits
    assert torch.equal(found, whole) == (algo == "anil")


def test_without_a_head_that_adapts_it_is_refused():
    with pytest.raises(metakm.UserError, match="whose inner loop adapts a head, got ProtoNet"):
        head_rates(small_strategy("protonet"), 0.1)


@pytest.mark.parametrize("kind", [list, tuple, np.array])
def test_rates_may_be_plain_numbers(kind):
    strategy, episodes = small_strategy("anil"), random_episodes()
    given, tensors = kind([0.3, 0.2]), [torch.tensor(0.3, dtype=torch.float64), torch.tensor(0.2, dtype=torch.float64)]
    found, expected = (
        metakm.meta_loss(strategy, episodes, inner_lr=rates, inner_steps=2).logits for rates in (given, tensors)
    )
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    images, labels = episodes.support_images[0].clamp(0, 1), episodes.support_labels[0]
    one, other = (metakm.adapt(strategy, images, labels, inner_lr=rates, inner_steps=2) for rates in (given, tensors))
    torch.testing.assert_close(one(images), other(images), rtol=1e-12, atol=1e-12)
