"""CAVIA against a hand-unrolled loop with FiLM as a layer of its own, in float64."""

import pytest
import torch
import torch.nn.functional as F
from small import assert_close, gradients, random_episodes, small_strategy
from torch import nn

import metakm
from metakm.learning.inner_loop import evaluate_episodes, meta_loss

LR, STEPS, CONTEXTS = 0.7, 2, 5


def network(parameters, films, phi, images):
    """Convolution, batch norm, FiLM where there is one, ReLU; four times with a stride of 2, then a spatial mean."""
    x = images
    for i in range(4):
        p = {k.split(f"blocks.{i}.")[1]: v for k, v in parameters.items() if f"blocks.{i}." in k}
        x = F.conv2d(x, p["conv.weight"], p["conv.bias"], stride=2, padding=1)
        x = F.batch_norm(x, None, None, p["norm.weight"], p["norm.bias"], training=True)
        if i in films:
            gamma, beta = (films[i].map.weight @ phi + films[i].map.bias).chunk(2)
            x = (1 + gamma)[:, None, None] * x + beta[:, None, None]
        x = torch.relu(x)
    return x.mean((2, 3)) @ parameters["head.weight"].T + parameters["head.bias"]


def unrolled(strategy, films, episodes, first_order):
    parameters, losses = dict(strategy.network.named_parameters()), []
    for t in range(len(episodes.support_images)):
        phi = torch.zeros(CONTEXTS, requires_grad=True)
        for _ in range(STEPS):
            logits = network(parameters, films, phi, episodes.support_images[t])
            loss = F.cross_entropy(logits, episodes.support_labels[t])
            (gradient,) = torch.autograd.grad(loss, phi, create_graph=True)
            phi = phi - LR * (gradient.detach() if first_order else gradient)
        logits = network(parameters, films, phi, episodes.query_images[t])
        losses.append(F.cross_entropy(logits, episodes.query_labels[t]))
    return torch.stack(losses).mean()


@pytest.mark.parametrize("first_order", [False, True])
@pytest.mark.parametrize("layer", [0, 3])
def test_cavia_gets_the_gradient_of_a_hand_unrolled_loop(layer, first_order):
    strategy, episodes = small_strategy("cavia", contexts=CONTEXTS, layer=layer), random_episodes()
    with torch.no_grad():
        for film in strategy.films:
            film.map.bias.add_(0.3 * torch.randn_like(film.map.bias))
    places = [layer - 1] if layer else range(4)
    films = dict(zip(places, strategy.films, strict=True))
    expected = unrolled(strategy, films, episodes, first_order)
    actual = meta_loss(strategy, episodes, inner_lr=LR, inner_steps=STEPS, first_order=first_order).loss
    torch.testing.assert_close(actual, expected, rtol=1e-10, atol=0)
    assert_close(gradients(strategy, actual), gradients(strategy, expected))


def test_every_task_starts_from_a_context_of_zero():
    strategy, episodes = small_strategy("cavia"), random_episodes()
    before = evaluate_episodes(strategy, episodes, inner_lr=LR, inner_steps=STEPS).logits
    with torch.no_grad():
        strategy.adapted.phi.fill_(3.0)
    assert torch.equal(evaluate_episodes(strategy, episodes, inner_lr=LR, inner_steps=STEPS).logits, before)


def test_without_inner_steps_the_network_is_the_unmodulated_one():
    torch.manual_seed(0)
    strategy, episodes = metakm.make_strategy("cavia", metakm.Conv4(1, 3, image_size=14), 4), random_episodes()
    logits = evaluate_episodes(strategy, episodes, inner_lr=LR, inner_steps=0).logits
    torch.testing.assert_close(logits, strategy.network(episodes.query_images), rtol=1e-12, atol=1e-12)


class Plain(nn.Module):
    out_features = 3

    def forward(self, images):
        return images.mean((3, 4)).expand(*images.shape[:2], 3)


@pytest.mark.parametrize(
    ("backbone", "layer", "said"),
    [
        (Plain(), 0, "with some norm layers that scale and shift, got 0; use another backbone$"),
        (metakm.Conv4(1, 3), 5, "with 5 norm layers .*, got 4; use another backbone, or a smaller --cavia.layer$"),
    ],
)
def test_a_backbone_without_such_a_norm_is_refused(backbone, layer, said):
    with pytest.raises(metakm.UserError, match=said):
        metakm.make_strategy("cavia", backbone, 4, layer=layer)


@pytest.mark.parametrize(("option", "value"), [("contexts", 0), ("layer", -1)])
def test_options_out_of_range_are_refused(option, value):
    with pytest.raises(metakm.UserError, match=f"cavia.{option}"):
        metakm.RunConfig(algo="cavia", options=type(metakm.RunConfig(algo="cavia").options)(**{option: value}))


def test_norms_over_whole_feature_maps_are_modulated_element_by_element():
    torch.manual_seed(0)
    layers = nn.Conv2d(1, 4, 3), nn.LayerNorm([4, 12, 12]), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    strategy = metakm.make_strategy("cavia", metakm.carry_tasks(nn.Sequential(*layers), (1, 14, 14)), 4)
    episodes = random_episodes()
    before, after = (evaluate_episodes(strategy, episodes, inner_lr=50.0, inner_steps=steps).logits for steps in (0, 2))
    with torch.no_grad():
        torch.testing.assert_close(before, strategy(episodes.query_images))
    assert not torch.allclose(before, after)
