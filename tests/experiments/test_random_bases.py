import pytest
import torch

from metakm.experiments.random_bases import RandomBases


def parameters(*shapes):
    made = [torch.nn.Parameter(torch.zeros(shape)) for shape in shapes]
    generator = torch.Generator().manual_seed(1)
    for p in made:
        p.grad = torch.randn(p.shape, generator=generator, dtype=p.dtype)
    return made


def test_the_gradient_becomes_its_projection_on_the_directions():
    bases = RandomBases(directions=6, compartments=2, seed=3)
    trained = parameters((4, 3), (5,))
    flat = torch.cat([p.grad.flatten() for p in trained])  # 17 numbers: compartments of 9 and 8
    blocks = [bases.basis(9, 7, 0).to(flat), bases.basis(8, 7, 1).to(flat)]
    whole = torch.block_diag(*(b.T for b in blocks))  # P, [17, 6]
    bases(trained, iteration=7)
    torch.testing.assert_close(torch.cat([p.grad.flatten() for p in trained]), whole @ whole.T @ flat)


def test_every_iteration_compartment_and_seed_has_directions_of_its_own():
    drawn = [
        RandomBases(4, 2, seed).basis(50, iteration, compartment)
        for seed in (0, 1)
        for iteration in (0, 1)
        for compartment in (0, 1)
    ]
    for i, one in enumerate(drawn):
        for other in drawn[:i]:
            assert (one - other).abs().max() > 0.01
    assert torch.equal(drawn[0], RandomBases(4, 2, 0).basis(50, 0, 0))


@pytest.mark.float32
def test_the_projection_is_the_share_of_directions_on_average():
    bases = RandomBases(directions=20, compartments=1, seed=0)
    gradient = torch.ones(100)
    mean = torch.stack([bases.project(gradient, iteration, 0) for iteration in range(400)]).mean(0)
    assert mean.mean() == pytest.approx(0.2, abs=0.01)
    torch.testing.assert_close(mean, 0.2 * gradient, atol=0.1, rtol=0)


def test_the_basis_does_not_touch_the_global_generator():
    torch.manual_seed(0)
    wanted = torch.rand(1)
    torch.manual_seed(0)
    RandomBases(4, 2, 0).basis(5, 0, 0)
    assert torch.equal(torch.rand(1), wanted)
