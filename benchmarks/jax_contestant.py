"""One meta-training iteration in JAX: `vmap` over the tasks of an inner loop by `grad`, differentiated and compiled.

The network is that of `contestants.plain_network`, with its parameters and their names, on the same CPU threads.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from contestants import LR, adapted_parameters
from jax import lax
from torch import Tensor, nn

from metakm.data import Episodes

Parameters = dict[str, Any]


def jax_iteration(
    algo: str, network: nn.Sequential, episodes: Episodes, steps: int
) -> Callable[[], tuple[Any, Parameters]]:
    """One meta-gradient of all tasks at once: loss and gradients by parameter."""
    body, _ = network
    fast_ids = {id(parameter) for parameter in adapted_parameters(algo, network)}
    fast_names = [name for name, parameter in network.named_parameters() if id(parameter) in fast_ids]
    layers = [(f"0.{name}", layer) for name, layer in body.named_children()]

    def encode(own: Parameters, x: Any) -> Any:
        for name, layer in layers:
            x = _apply(name, layer, own, x)
        return x

    def head(own: Parameters, x: Any) -> Any:
        return x @ own["1.weight"].T + own["1.bias"]

    def task_loss(own: Parameters, support: Any, labels: Any, query: Any, answers: Any) -> Any:
        if algo == "anil":
            encoded = encode(own, jnp.concatenate([support, query]))
            support, query = encoded[: len(support)], encoded[len(support) :]
        fast = {name: own[name] for name in fast_names}

        def loss(changed: Parameters, x: Any, y: Any) -> Any:
            now = {**own, **changed}
            return _cross_entropy(head(now, x if algo == "anil" else encode(now, x)), y)

        for _ in range(steps):
            gradients = jax.grad(loss)(fast, support, labels)
            fast = {name: fast[name] - LR * gradients[name] for name in fast}
        return loss(fast, query, answers)

    def meta_loss(own: Parameters, *episode: Any) -> Any:
        return jax.vmap(task_loss, (None, 0, 0, 0, 0))(own, *episode).mean()

    step = jax.jit(jax.value_and_grad(meta_loss))
    own = {name: _array(parameter) for name, parameter in network.named_parameters()}
    parts = (episodes.support_images, episodes.support_labels, episodes.query_images, episodes.query_labels)
    episode = [_array(part) for part in parts]

    def run() -> tuple[Any, Parameters]:
        found: tuple[Any, Parameters] = jax.block_until_ready(step(own, *episode))
        return found

    return run


def _apply(name: str, layer: nn.Module, own: Parameters, x: Any) -> Any:
    """One layer of `contestants.plain_features`, or a convolution with its modulator."""
    if isinstance(layer, nn.Conv2d):
        return _convolve(x, own[f"{name}.weight"], own[f"{name}.bias"], layer)
    if isinstance(layer, nn.BatchNorm2d):
        mean, variance = x.mean((0, 2, 3), keepdims=True), x.var((0, 2, 3), keepdims=True)
        scale = own[f"{name}.weight"][:, None, None] * lax.rsqrt(variance + layer.eps)
        return (x - mean) * scale + own[f"{name}.bias"][:, None, None]
    if isinstance(layer, nn.ReLU):
        return jax.nn.relu(x)
    if isinstance(layer, nn.MaxPool2d):
        return lax.reduce_window(x, -jnp.inf, lax.max, (1, 1, 2, 2), (1, 1, 2, 2), "VALID")
    if isinstance(layer, nn.AdaptiveAvgPool2d):
        return x.mean((2, 3))
    if isinstance(layer, nn.Flatten):
        return x.reshape(len(x), -1)
    conv = layer.get_submodule("conv")  # of a ModulatedConv2d
    assert isinstance(conv, nn.Conv2d)
    weight = own[f"{name}.conv.weight"]
    hidden = jnp.tanh(weight.reshape(*weight.shape[:2], -1) @ own[f"{name}.modulator.first"].T)
    modulated = (hidden @ own[f"{name}.modulator.second"].T).reshape(weight.shape)
    return _convolve(x, modulated, own[f"{name}.conv.bias"], conv)


def _convolve(x: Any, weight: Any, bias: Any, layer: nn.Conv2d) -> Any:
    padding = [(int(p), int(p)) for p in layer.padding]
    return lax.conv_general_dilated(x, weight, layer.stride, padding) + bias[:, None, None]


def _cross_entropy(logits: Any, labels: Any) -> Any:
    return -jnp.take_along_axis(jax.nn.log_softmax(logits), labels[:, None], axis=1).mean()


def _array(tensor: Tensor) -> Any:
    return jnp.asarray(tensor.detach().cpu().numpy())
