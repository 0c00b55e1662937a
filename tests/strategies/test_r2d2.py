"""R2-D2 against a ridge regression by the normal equations, one task at a time, in float64."""

import pytest
import torch
import torch.nn.functional as F
from oracle import conv4
from small import assert_close, gradients, random_episodes, small_strategy

import metakm
from metakm.config import RunConfig
from metakm.learning.inner_loop import evaluate_episodes, meta_loss
from metakm.presets import preset_config
from metakm.strategies.r2d2 import ridge_regression

FILTERS = 12


@pytest.mark.parametrize("bn_mode", ["transductive", "support"])
@pytest.mark.parametrize("shots", [1, 6], ids=["fewer-images-than-features", "more"])
def test_r2d2_equals_the_normal_equations_of_each_task(shots, bn_mode):
    """W = (X^T X + lambda I)^-1 X^T Y, the form without Woodbury's identity."""
    strategy = small_strategy("r2d2", bn_mode=bn_mode, filters=FILTERS, ridge=0.3, scale=4.0)
    episodes = random_episodes(shots=shots)
    identity = {"head.weight": torch.eye(FILTERS), "head.bias": torch.zeros(FILTERS)}
    parameters = {**{f"backbone.{k}": p for k, p in strategy.backbone.named_parameters()}, **identity}
    losses = []
    for t in range(3):
        support, labels = episodes.support_images[t], episodes.support_labels[t]
        reference = support if bn_mode == "support" else None
        x, q = conv4(parameters, support, "stride"), conv4(parameters, episodes.query_images[t], "stride", reference)
        x, q = (torch.cat([z, torch.ones(len(z), 1)], 1) for z in (x, q))
        normal = x.T @ x + strategy.log_ridge.exp() * torch.eye(FILTERS + 1)
        w = torch.linalg.inv(normal) @ x.T @ torch.eye(4)[labels]
        losses.append(F.cross_entropy(strategy.log_scale.exp() * q @ w, episodes.query_labels[t]))
    expected = torch.stack(losses).mean()
    slopes = gradients(strategy, expected)
    assert min(slopes[name].abs() for name in ("log_ridge", "log_scale")) > 1e-3
    actual = meta_loss(strategy, episodes, inner_lr=0.4, inner_steps=3).loss
    torch.testing.assert_close(actual, expected, rtol=1e-10, atol=0)
    assert_close(gradients(strategy, actual), slopes)


def test_the_solution_is_where_the_gradient_of_the_ridge_loss_is_zero():
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(2, 5, 7, generator=generator), torch.randn(2, 5, 3, generator=generator)
    w = ridge_regression(x, y, torch.tensor(0.2)).requires_grad_()
    loss = (x @ w - y).square().sum() + 0.2 * w.square().sum()
    (gradient,) = torch.autograd.grad(loss, w)
    assert loss > 0.1
    assert gradient.abs().max() < 1e-12


def test_r2d2_takes_any_number_of_ways_and_ignores_the_inner_settings():
    strategy, episodes = small_strategy("r2d2", ways=4), random_episodes(ways=6)
    first = evaluate_episodes(strategy, episodes, inner_lr=0.4, inner_steps=0)
    second = evaluate_episodes(strategy, episodes, inner_lr=9.0, inner_steps=5)
    assert first.logits.shape == (3, 18, 6)
    assert torch.equal(first.logits, second.logits)


def test_the_options_are_where_the_learned_numbers_start():
    config = preset_config(algo="r2d2", **{"r2d2.ridge": 0.5, "r2d2.scale": 3.0})
    assert RunConfig.from_json(config.to_json()) == config
    learner = metakm.Learner("r2d2", backbone="conv4-4-stride", image_shape=(1, 14, 14), ways=3, inner_lr=1.0,
                             inner_steps=0, ridge=0.5, scale=3.0)  # fmt: skip
    assert learner.strategy.log_ridge.exp().item() == pytest.approx(0.5)
    assert learner.strategy.log_scale.exp().item() == pytest.approx(3.0)


@pytest.mark.parametrize("option", ["ridge", "scale"])
@pytest.mark.parametrize("value", [0.0, -1.0, float("inf"), float("nan")])
def test_numbers_that_are_not_positive_are_refused(option, value):
    with pytest.raises(metakm.UserError, match=f"r2d2.{option} .*above 0"):
        preset_config(algo="r2d2", **{f"r2d2.{option}": value})


@pytest.mark.float32
@pytest.mark.parametrize("shots", [1, 5], ids=["fewer-images-than-features", "more"])
def test_autocast_does_not_round_the_system(shots):
    """A Gram matrix rounded to 16 bits before lambda is added is of no use."""
    strategy, labels = small_strategy("r2d2", filters=24, ways=8), torch.arange(8).repeat(shots).expand(3, -1)
    encoded = torch.rand(3, 8 * shots, 25)
    plain = strategy.adapt(None, encoded, labels)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(strategy.adapt(None, encoded, labels), plain)


@pytest.mark.float32
@pytest.mark.parametrize("ridge", [1.0, 0.01, 0.001])
def test_gradients_in_single_precision_are_right_with_more_images_than_features(ridge):
    generator = torch.Generator().manual_seed(0)
    means = torch.randn(4, 10, 1, 24, generator=generator)
    images = torch.relu(means + 0.5 * torch.randn(4, 10, 5, 24, generator=generator)).flatten(1, 2)
    targets = torch.eye(10).repeat_interleave(5, dim=0).expand(4, -1, -1)

    def slopes(kind):
        x, weight = images.to(kind).requires_grad_(), torch.tensor(ridge, dtype=kind, requires_grad=True)
        outputs = x @ ridge_regression(x, targets.to(kind), weight)
        return torch.autograd.grad(
            F.cross_entropy(10 * outputs.flatten(0, 1), targets.argmax(-1).flatten()), (x, weight)
        )

    for single, double in zip(slopes(torch.float32), slopes(torch.float64), strict=True):
        assert (single.double() - double).norm() < 1e-3 * double.norm()
