"""Meta-curvature against a hand-unrolled loop with explicit sums over each mode, in float64."""

import pytest
import torch
import torch.nn.functional as F
from oracle import conv4
from small import assert_close, gradients, random_episodes, small_strategy

from metakm.learning.inner_loop import meta_loss

LR, STEPS = 0.4, 2


def transformed(gradient, matrices):
    """Sums over all modes at once; a vector has one factor for each entry."""
    if gradient.dim() == 1:
        return gradient * matrices[0]
    if gradient.dim() == 2:
        return torch.einsum("oi,ao,bi->ab", gradient, *matrices)
    flat = gradient.reshape(*gradient.shape[:2], -1)
    return torch.einsum("oif,ao,bi,cf->abc", flat, *matrices).reshape(gradient.shape)


def unrolled(strategy, episodes, first_order):
    network = dict(strategy.network.named_parameters())
    names = [k for k in network if ".norm." not in k]
    losses = []
    for t in range(len(episodes.support_images)):
        fast = {k: network[k] for k in names}
        for _ in range(STEPS):
            loss = F.cross_entropy(
                conv4({**network, **fast}, episodes.support_images[t], "stride"), episodes.support_labels[t]
            )
            found = torch.autograd.grad(loss, list(fast.values()), create_graph=True)
            for (key, value), g in zip(list(fast.items()), found, strict=True):
                matrices = list(strategy.curvatures[key.replace(".", "__")].matrices)
                fast[key] = value - LR * transformed(g.detach() if first_order else g, matrices)
        logits = conv4({**network, **fast}, episodes.query_images[t], "stride")
        losses.append(F.cross_entropy(logits, episodes.query_labels[t]))
    return torch.stack(losses).mean()


@pytest.mark.parametrize("first_order", [False, True])
def test_the_network_and_its_curvatures_get_the_gradient_of_a_hand_unrolled_loop(first_order):
    strategy, episodes = small_strategy("meta-curvature"), random_episodes()
    with torch.no_grad():
        for matrix in strategy.curvatures.parameters():
            matrix.add_(0.3 * torch.randn_like(matrix))
    expected = gradients(strategy, unrolled(strategy, episodes, first_order))
    assert sum(g.norm() for k, g in expected.items() if k.startswith("curvatures")) > 1e-3
    result = meta_loss(strategy, episodes, inner_lr=LR, inner_steps=STEPS, first_order=first_order)
    assert_close(gradients(strategy, result.loss), expected)


def test_meta_curvature_starts_as_maml():
    episodes = random_episodes()
    algos = ("maml", "meta-curvature")
    losses = [meta_loss(small_strategy(algo), episodes, inner_lr=LR, inner_steps=STEPS).loss for algo in algos]
    torch.testing.assert_close(*losses, rtol=1e-12, atol=0)
