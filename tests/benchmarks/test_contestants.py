"""The contestants of `benchmarks/inner_loop.py` compute one and the same meta-gradient."""

import dataclasses

import inner_loop
import pytest
import torch
from contestants import (
    higher_iteration,
    jax_is_installed,
    learn2learn_is_installed,
    learn2learn_iteration,
    vmap_iteration,
)

SHAPES = dataclasses.replace(inner_loop.SETTINGS["omniglot"], ways=3, shots=2, tasks=2, filters=4, features=4, steps=2)


def gradients(iteration, algo, written_out=False):
    torch.manual_seed(0)
    network = SHAPES.network(algo, written_out)
    torch.manual_seed(1)
    iteration(algo, network, SHAPES.episodes(torch.device("cpu")), SHAPES.steps)()
    return {name: parameter.grad for name, parameter in network.named_parameters()}


@pytest.mark.parametrize("algo", ["maml", "km"])
def test_torch_func_and_higher_agree(algo):
    expected, actual = gradients(higher_iteration, algo), gradients(vmap_iteration, algo, written_out=True)
    assert expected.keys() == actual.keys()
    for name, value in expected.items():
        torch.testing.assert_close(actual[name], value, rtol=1e-9, atol=1e-11)


@pytest.mark.skipif(not learn2learn_is_installed(), reason="learn2learn is not installed")
def test_torch_func_and_learn2learn_agree_on_anil():
    """Both encode a task's support and query images at once."""
    expected, actual = gradients(learn2learn_iteration, "anil"), gradients(vmap_iteration, "anil", written_out=True)
    for name, value in expected.items():
        torch.testing.assert_close(actual[name], value, rtol=1e-9, atol=1e-11)


@pytest.mark.slow
@pytest.mark.skipif(not jax_is_installed(), reason="JAX is not installed")
@pytest.mark.parametrize(("algo", "pool"), [("maml", True), ("anil", False), ("km", False)])
def test_jax_and_torch_func_agree(algo, pool):
    import jax
    from jax_contestant import jax_iteration

    shapes = dataclasses.replace(SHAPES, pool=pool)
    torch.manual_seed(0)
    network = shapes.network(algo, written_out=True)
    torch.manual_seed(1)
    episodes = shapes.episodes(torch.device("cpu"))
    vmap_iteration(algo, network, episodes, shapes.steps)()
    with jax.enable_x64(True):
        _, gradients = jax_iteration(algo, network, episodes, shapes.steps)()
        for name, parameter in network.named_parameters():
            actual = torch.tensor(gradients[name].tolist(), dtype=torch.float64)
            torch.testing.assert_close(actual, parameter.grad, rtol=1e-8, atol=1e-10)
