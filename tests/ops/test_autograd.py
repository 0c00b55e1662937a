"""Our autograd functions under autocast, and where their derivatives end."""

import pytest
import torch
from convnets import Mixed, resnet18
from small import gradients, random_episodes, small_strategy

from metakm.learning.inner_loop import meta_loss
from metakm.modulation import modulate
from metakm.ops.conv2d import Geometry, convolve
from metakm.ops.modulator_mlp import two_layer_mlp
from metakm.ops.norm_relu_pool import batch_norm_relu


def modulator(columns, first, second):
    return two_layer_mlp(columns, first, second, 2)


def norm(x, weight, bias):
    return batch_norm_relu(x, weight, bias, 1e-5)


CASES = {
    "modulator": (modulator, [(4, 6), (2, 4, 4), (2, 4, 4)]),
    "norm": (norm, [(3, 2, 4, 4), (2,), (2,)]),
}


@pytest.mark.parametrize("name", CASES)
def test_a_third_derivative_raises_even_where_inputs_are_named(name):
    function, shapes = CASES[name]
    torch.manual_seed(0)
    given = [torch.randn(shape, requires_grad=True) for shape in shapes]
    first = torch.autograd.grad((function(*given) ** 3).sum(), given, create_graph=True)
    second = torch.autograd.grad(sum((g**3).sum() for g in first), given, create_graph=True)
    for wanted in (given, given[1:2]):
        with pytest.raises(NotImplementedError, match="not third ones"):
            torch.autograd.grad(sum((g**2).sum() for g in second), wanted, retain_graph=True)
    with pytest.raises(NotImplementedError, match="not third ones"):
        sum((g**2).sum() for g in second).backward()


def test_a_convolution_has_derivatives_of_every_order():
    torch.manual_seed(0)
    given = [torch.randn(2, 2, 5, 5, requires_grad=True), torch.randn(3, 2, 3, 3, requires_grad=True)]
    geometry = Geometry((2, 2), (1, 1), (1, 1), 1)

    def third(convolution):
        found = (convolution(*given) ** 3).sum()
        for power in (3, 2):
            found = sum((g**power).sum() for g in torch.autograd.grad(found, given, create_graph=True))
        return torch.autograd.grad(found, given)

    ours = third(lambda x, w: convolve(x, w, geometry))
    theirs = third(lambda x, w: torch.conv2d(x, w, None, *geometry))
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


@pytest.mark.float32
@pytest.mark.parametrize("start", ["paper", "exact"])
@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16])
def test_gradients_of_a_modulated_network_under_autocast_are_those_of_float32(kind, start):
    found = []
    for on in (False, True):
        torch.manual_seed(0)
        model, x = modulate(resnet18(), start=start).eval(), torch.rand(2, 3, 64, 64)
        with torch.autocast("cpu", kind, enabled=on):
            loss = model(x).float().square().sum()
            if on:  # the backward pass within the block, too
                loss.backward()
        if not on:
            loss.backward()
        found.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]))
    assert found[1].dtype == torch.float32
    assert torch.cosine_similarity(*found, dim=0) > 0.98


@pytest.mark.float32
@pytest.mark.parametrize("algo", ["km", "maml", "anil", "protonet"])
def test_a_meta_gradient_under_autocast_is_near_that_of_float32(algo):
    found = []
    for on in (False, True):
        strategy, episodes = small_strategy(algo, filters=8), random_episodes()
        with torch.autocast("cpu", torch.bfloat16, enabled=on):
            loss = meta_loss(strategy, episodes, inner_lr=0.1, inner_steps=2).loss
        found.append(torch.cat([g.flatten() for g in gradients(strategy, loss).values()]))
    assert not torch.equal(*found)
    assert torch.cosine_similarity(*found, dim=0) > 0.95


@pytest.mark.float32
def test_gradient_scaling_trains_a_modulated_network():
    torch.manual_seed(0)
    model = modulate(Mixed())
    before = [p.detach().clone() for p in model.parameters()]
    optimiser, scaler = torch.optim.SGD(model.parameters(), lr=0.01), torch.amp.GradScaler("cpu", init_scale=2.0**8)
    with torch.autocast("cpu", torch.float16):
        loss = torch.nn.functional.cross_entropy(model(torch.randn(4, 3, 16, 16)), torch.tensor([0, 1, 2, 0]))
    scaler.scale(loss).backward()
    scaler.step(optimiser)
    scaler.update()
    moved = [not torch.equal(p, q) for p, q in zip(model.parameters(), before, strict=True) if p.requires_grad]
    assert all(moved)
    assert scaler.get_scale() == 2.0**8, "a gradient was not finite"
