"""The peers' ways to one meta-training iteration, as their own examples do it, on one plain network.

`higher`: its `examples/maml-omniglot.py` patches the whole network with `innerloop_ctx`, one task at a time, and calls
`backward()` on each task's query loss. `higher` differentiates every patched parameter, so ANIL and KM done this way
(the optimiser has only their parameters) still pay for the whole network.

`learn2learn`: `examples/vision/maml_omniglot.py` clones `MAML(network)` for each task; `anil_fc100.py` computes the
features of a task's support and query images at once, then clones `MAML(head)`.

`torch.func`: as its tutorial on model ensembles and a researcher would: the inner loop of one task with
`torch.func.grad` and `functional_call`, `vmap` over the tasks, and `backward()` through it; or that compiled. Batch
norm is written out: with torch 2.14 the second derivative of `F.batch_norm` behind a convolution is wrong under `vmap`
where its weights have a task axis.
"""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Callable
from typing import Any

import higher
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from metakm.data import Episodes

LR = 0.5


def plain_features(in_channels: int, filters: int, pool: bool) -> nn.Sequential:
    """The same conv4 as `metakm.Conv4`, of torch's own layers."""
    layers: list[nn.Module] = []
    for i in range(4):
        channels = in_channels if i == 0 else filters
        layers += [
            nn.Conv2d(channels, filters, 3, stride=1 if pool else 2, padding=1),
            nn.BatchNorm2d(filters, track_running_stats=False),
            nn.ReLU(),
        ]
        layers += [nn.MaxPool2d(2)] if pool else []
    layers += [nn.Flatten()] if pool else [nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return nn.Sequential(*layers)


class PlainModulator(nn.Module):
    """U2 tanh(U1 w) for each kernel w (the paper's Eq. 3), of torch's own operations and derivatives."""

    def __init__(self, pixels: int) -> None:
        super().__init__()
        self.first = nn.Parameter(torch.eye(pixels) + 0.001 * torch.randn(pixels, pixels))
        self.second = nn.Parameter(torch.eye(pixels) + 0.001 * torch.randn(pixels, pixels))

    def forward(self, kernel: Tensor) -> Tensor:
        """Modulate `[O, C, kh, kw]`."""
        hidden = torch.tanh(kernel.flatten(2) @ self.first.mT)  # [O, C, kh*kw]
        return (hidden @ self.second.mT).view_as(kernel)


class ModulatedConv2d(nn.Module):
    """A convolution with its kernel modulator inside, as a user of `higher` would write it."""

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.conv = conv
        self.modulator = PlainModulator(conv.kernel_size[0] * conv.kernel_size[1])

    def forward(self, x: Tensor) -> Tensor:
        """Convolve with the modulated kernel."""
        conv = self.conv
        return F.conv2d(x, self.modulator(conv.weight), conv.bias, conv.stride, conv.padding)


class WrittenOutNorm(nn.BatchNorm2d):
    """Batch norm by batch statistics, of torch's basic operations."""

    def forward(self, x: Tensor) -> Tensor:
        """Normalise `[n, C, H, W]`."""
        variance, mean = torch.var_mean(x, (0, 2, 3), correction=0, keepdim=True)
        scale = self.weight.view(-1, 1, 1) * torch.rsqrt(variance + self.eps)
        return (x - mean) * scale + self.bias.view(-1, 1, 1)


def plain_network(
    algo: str, in_channels: int, filters: int, pool: bool, features: int, ways: int, written_out: bool = False
) -> nn.Sequential:
    """Features and head; for KM with modulators inside; with batch norm written out if asked for."""
    body = plain_features(in_channels, filters, pool)
    if written_out:
        for i, layer in enumerate(body):
            if isinstance(layer, nn.BatchNorm2d):
                body[i] = WrittenOutNorm(layer.num_features, track_running_stats=False)
    if algo == "km":
        for i, layer in enumerate(body):
            if isinstance(layer, nn.Conv2d):
                body[i] = ModulatedConv2d(layer)
    return nn.Sequential(body, nn.Linear(features, ways))


def adapted_parameters(algo: str, network: nn.Module) -> list[nn.Parameter]:
    """What the inner loop of `algo` updates."""
    named = list(network.named_parameters())
    if algo == "anil":
        return [p for name, p in named if name.startswith("1.")]
    if algo == "km":
        return [p for name, p in named if name.startswith("1.") or "modulator" in name or name.endswith("conv.bias")]
    return [p for _, p in named]


def higher_iteration(algo: str, network: nn.Module, episodes: Episodes, steps: int) -> Callable[[], None]:
    """One meta-gradient, one task at a time."""
    inner = torch.optim.SGD(adapted_parameters(algo, network), lr=LR)

    def run() -> None:
        network.zero_grad()
        for t in range(len(episodes)):
            with higher.innerloop_ctx(network, inner, copy_initial_weights=False) as (patched, optimiser):
                for _ in range(steps):
                    logits = patched(episodes.support_images[t])
                    optimiser.step(F.cross_entropy(logits, episodes.support_labels[t]))
                loss = F.cross_entropy(patched(episodes.query_images[t]), episodes.query_labels[t])
                (loss / len(episodes)).backward()  # type: ignore[no-untyped-call]

    return run


def vmap_iteration(
    algo: str, network: nn.Sequential, episodes: Episodes, steps: int, compiled: bool = False
) -> Callable[[], None]:
    """One meta-gradient, all tasks at once, by `torch.func`."""
    names = {id(parameter): name for name, parameter in network.named_parameters()}
    fast_names = [names[id(parameter)] for parameter in adapted_parameters(algo, network)]

    def loss_of(parameters: dict[str, Tensor], images: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(functional_call(network, parameters, (images,)), labels)

    def head_loss(parameters: dict[str, Tensor], encoded: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(F.linear(encoded, parameters["1.weight"], parameters["1.bias"]), labels)

    def task_loss(own: dict[str, Tensor], support: Tensor, labels: Tensor, query: Tensor, answers: Tensor) -> Tensor:
        loss = loss_of
        if algo == "anil":
            body = {name.removeprefix("0."): p for name, p in own.items() if name.startswith("0.")}
            encoded = functional_call(network[0], body, (torch.cat([support, query]),))
            support, query, loss = encoded[: len(support)], encoded[len(support) :], head_loss
        fast = {name: own[name] for name in fast_names}
        for _ in range(steps):
            gradients = grad(lambda f: loss({**own, **f}, support, labels))(fast)
            fast = {name: fast[name] - LR * gradients[name] for name in fast}
        return loss({**own, **fast}, query, answers)

    def meta_loss(own: dict[str, Tensor], *episode: Tensor) -> Tensor:
        in_dims = (None, 0, 0, 0, 0)
        losses: Tensor = vmap(task_loss, in_dims, randomness="error")(own, *episode)
        return losses.mean()

    function = torch.compile(meta_loss) if compiled else meta_loss
    parts = (episodes.support_images, episodes.support_labels, episodes.query_images, episodes.query_labels)

    def run() -> None:
        network.zero_grad()
        function(dict(network.named_parameters()), *parts).backward()  # type: ignore[no-untyped-call]

    return run


def learn2learn_iteration(algo: str, network: nn.Sequential, episodes: Episodes, steps: int) -> Callable[[], None]:
    """One meta-gradient, one task at a time, as learn2learn's examples for MAML and ANIL."""
    maml = _learn2learn_maml(network if algo == "maml" else network[1])

    def run() -> None:
        network.zero_grad()
        for t in range(len(episodes)):
            support, query = episodes.support_images[t], episodes.query_images[t]
            if algo == "anil":
                encoded = network[0](torch.cat([support, query]))
                support, query = encoded[: len(support)], encoded[len(support) :]
            learner = maml.clone()
            for _ in range(steps):
                learner.adapt(F.cross_entropy(learner(support), episodes.support_labels[t]))
            loss = F.cross_entropy(learner(query), episodes.query_labels[t])
            (loss / len(episodes)).backward()  # type: ignore[no-untyped-call]

    return run


def learn2learn_evaluation(network: nn.Module, episodes: Episodes, steps: int) -> Callable[[], None]:
    """The accuracy of each task as learn2learn's example measures it: the second-order graph is built and dropped."""
    maml = _learn2learn_maml(network)

    def run() -> None:
        for t in range(len(episodes)):
            learner = maml.clone()
            for _ in range(steps):
                logits = learner(episodes.support_images[t])
                learner.adapt(F.cross_entropy(logits, episodes.support_labels[t]))
            right = learner(episodes.query_images[t]).argmax(1) == episodes.query_labels[t]
            right.double().mean().item()

    return run


def learn2learn_is_installed() -> bool:
    """Whether learn2learn can be imported; says how to install it where it cannot."""
    try:
        _learn2learn()
    except ImportError as error:
        print(f"learn2learn is left out ({error}); benchmarks/install_peers.sh installs it")
        return False
    return True


def jax_is_installed() -> bool:
    """Whether JAX can be imported; says how to install it where it cannot."""
    found = importlib.util.find_spec("jax") is not None
    if not found:
        print("JAX is left out (not installed); benchmarks/install_peers.sh installs it")
    return found


def _learn2learn() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import learn2learn
    return learn2learn


def _learn2learn_maml(module: nn.Module) -> Any:
    return _learn2learn().algorithms.MAML(module, lr=LR, first_order=False)
