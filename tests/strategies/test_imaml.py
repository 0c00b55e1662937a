"""iMAML: the proximal loop by hand, the implicit gradient against a dense Hessian and against a long unrolled loop."""

import pytest
import torch
import torch.nn.functional as F
from oracle import conv4
from small import assert_close, gradients, random_episodes, small_strategy

import metakm
from metakm.learning.inner_loop import evaluate_episodes, meta_loss
from metakm.presets import preset_config
from metakm.strategies.imaml import conjugate_gradient


def proximal_descent(theta, episodes, t, lr, steps, proximal, graph=False):
    """Gradient descent on the support loss plus half of `proximal` times the squared distance to theta."""
    phi = {k: v if graph else v.detach().clone().requires_grad_() for k, v in theta.items()}
    for _ in range(steps):
        loss = F.cross_entropy(conv4(phi, episodes.support_images[t], "stride"), episodes.support_labels[t])
        loss = loss + proximal / 2 * sum((phi[k] - theta[k]).square().sum() for k in phi)
        found = torch.autograd.grad(loss, list(phi.values()), create_graph=graph)
        phi = {k: v - lr * g for (k, v), g in zip(phi.items(), found, strict=True)}
        phi = phi if graph else {k: v.detach().requires_grad_() for k, v in phi.items()}
    return phi


def test_the_inner_loop_is_explicit_descent_on_the_proximal_loss():
    strategy, episodes = small_strategy("imaml", proximal=1.5), random_episodes()
    theta = {k: p.detach() for k, p in strategy.network.named_parameters()}
    logits = evaluate_episodes(strategy, episodes, inner_lr=0.4, inner_steps=3).logits
    for t in range(3):
        phi = proximal_descent(theta, episodes, t, 0.4, 3, 1.5)
        torch.testing.assert_close(logits[t], conv4(phi, episodes.query_images[t], "stride").detach())


def dense_gradient(theta, episodes, t, phi, proximal, fixed=None):
    """(I + H / lambda)^-1 grad L_query by a solver, with a Hessian of the whole network."""
    names, shapes = list(theta), [v.shape for v in theta.values()]

    def loss_of(images, labels):
        def loss(flat):
            parts = flat.split([shape.numel() for shape in shapes])
            values = {k: p.reshape(shape) for k, p, shape in zip(names, parts, shapes, strict=True)}
            return F.cross_entropy(conv4({**(fixed or {}), **values}, images, "stride"), labels)

        return loss

    flat = torch.cat([v.detach().flatten() for v in phi.values()]).requires_grad_()
    support = loss_of(episodes.support_images[t], episodes.support_labels[t])
    hessian = torch.autograd.functional.hessian(support, flat)
    (target,) = torch.autograd.grad(loss_of(episodes.query_images[t], episodes.query_labels[t])(flat), flat)
    parts = torch.linalg.solve(torch.eye(len(flat)) + hessian / proximal, target).split([s.numel() for s in shapes])
    return {k: p.reshape(shape) for k, p, shape in zip(names, parts, shapes, strict=True)}


def test_the_meta_gradient_solves_the_system_with_the_dense_hessian():
    lr, steps, proximal, tasks = 0.02, 3, 20.0, 2
    strategy, episodes = small_strategy("imaml", proximal=proximal, cg_steps=40), random_episodes(tasks=tasks)
    theta = {k: p.detach() for k, p in strategy.network.named_parameters()}
    found = [
        dense_gradient(theta, episodes, t, proximal_descent(theta, episodes, t, lr, steps, proximal), proximal)
        for t in range(tasks)
    ]
    expected = {f"network.{k}": (found[0][k] + found[1][k]) / tasks for k in theta}
    result = meta_loss(strategy, episodes, inner_lr=lr, inner_steps=steps)
    actual = {name: g for name, g in gradients(strategy, result.loss).items() if name in expected}
    assert_close(actual, expected, tolerance=1e-8)


def test_where_the_inner_loop_has_converged_it_is_the_gradient_through_all_of_its_steps():
    lr, steps, proximal = 0.002, 60, 200.0
    strategy, episodes = small_strategy("imaml", proximal=proximal, cg_steps=30), random_episodes(tasks=1)
    theta = dict(strategy.network.named_parameters())
    phi = proximal_descent(theta, episodes, 0, lr, steps, proximal, graph=True)
    loss = F.cross_entropy(conv4(phi, episodes.query_images[0], "stride"), episodes.query_labels[0])
    expected = gradients(strategy, loss)
    result = meta_loss(strategy, episodes, inner_lr=lr, inner_steps=steps)
    torch.testing.assert_close(result.loss, loss)
    assert_close(gradients(strategy, result.loss), expected, tolerance=1e-8)
    strategy.cg_steps = 1
    early = gradients(strategy, meta_loss(strategy, episodes, inner_lr=lr, inner_steps=steps).loss)
    assert sum((early[k] - g).norm() for k, g in expected.items()) > 1e-4, "choose a case that the Hessian matters in"


def test_conjugate_gradient_solves_a_system_for_each_task_in_as_many_steps_as_unknowns():
    generator = torch.Generator().manual_seed(0)
    roots = torch.randn(3, 6, 6, generator=generator)
    systems = roots @ roots.transpose(1, 2) + torch.eye(6)
    target = torch.randn(3, 6, generator=generator)
    (x,) = conjugate_gradient(lambda v: [(systems @ v[0][..., None])[..., 0]], [target], steps=6)
    torch.testing.assert_close(x, torch.linalg.solve(systems, target), rtol=1e-7, atol=1e-9)
    (longer,) = conjugate_gradient(lambda v: [(systems @ v[0][..., None])[..., 0]], [target], steps=30)
    assert longer.isfinite().all(), "an exact solution stays"


def test_a_task_of_negative_curvature_falls_back_to_its_first_order_gradient():
    signs = torch.tensor([[1.0, 2.0], [-1.0, -2.0]])
    target = torch.ones(2, 2)
    (x,) = conjugate_gradient(lambda v: [signs * v[0]], [target], steps=4)
    torch.testing.assert_close(x, torch.tensor([[1.0, 0.5], [1.0, 1.0]]))


@pytest.mark.parametrize(("option", "value"), [("proximal", 0.0), ("proximal", float("inf")), ("cg_steps", 0)])
def test_options_out_of_range_are_refused(option, value):
    with pytest.raises(metakm.UserError, match=f"imaml.{option.replace('_', '-')}"):
        preset_config(algo="imaml", **{f"imaml.{option}": value})


@pytest.mark.parametrize("frozen", ["network.backbone", "network.backbone.blocks.0"])
def test_what_is_frozen_has_no_part_in_the_system(frozen):
    """The inner loop does not move it, so phi depends on the rest of theta alone."""
    lr, steps, proximal = 0.02, 3, 20.0
    strategy, episodes = small_strategy("imaml", proximal=proximal, cg_steps=60), random_episodes(tasks=1)
    strategy.get_submodule(frozen).requires_grad_(False)
    theta = {k: p.detach() for k, p in strategy.network.named_parameters()}
    moving = [k for k, p in strategy.network.named_parameters() if p.requires_grad]
    fixed = {k: v for k, v in theta.items() if k not in moving}
    phi = {k: theta[k].clone().requires_grad_() for k in moving}
    for _ in range(steps):
        loss = F.cross_entropy(
            conv4({**fixed, **phi}, episodes.support_images[0], "stride"), episodes.support_labels[0]
        )
        loss = loss + proximal / 2 * sum((phi[k] - theta[k]).square().sum() for k in phi)
        found = torch.autograd.grad(loss, list(phi.values()))
        phi = {k: (v - lr * g).detach().requires_grad_() for (k, v), g in zip(phi.items(), found, strict=True)}
    expected = dense_gradient({k: theta[k] for k in moving}, episodes, 0, phi, proximal, fixed)
    result = meta_loss(strategy, episodes, inner_lr=lr, inner_steps=steps)
    names, parameters = zip(*[(k, p) for k, p in strategy.network.named_parameters() if p.requires_grad], strict=True)
    actual = dict(zip(names, torch.autograd.grad(result.loss, parameters), strict=True))
    assert_close(actual, expected, tolerance=1e-8)
