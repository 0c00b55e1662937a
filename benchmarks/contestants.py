"""The peers' ways to one meta-training iteration, as their own examples do it, on one plain network.

`higher`: its `examples/maml-omniglot.py` patches the whole network with `innerloop_ctx`, one task at a time, and calls
`backward()` on each task's query loss. `higher` differentiates every patched parameter, so ANIL and KM done this way
(the optimiser has only their parameters) still pay for the whole network.

`learn2learn`: `examples/vision/maml_omniglot.py` clones `MAML(network)` for each task; `anil_fc100.py` computes the
features of a task's support and query images at once, then clones `MAML(head)`.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import higher
import torch
import torch.nn.functional as F
from torch import Tensor, nn

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


def plain_network(algo: str, in_channels: int, filters: int, pool: bool, features: int, ways: int) -> nn.Module:
    """Features and head; for KM with modulators inside."""
    body = plain_features(in_channels, filters, pool)
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


def _learn2learn() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import learn2learn
    return learn2learn


def _learn2learn_maml(module: nn.Module) -> Any:
    return _learn2learn().algorithms.MAML(module, lr=LR, first_order=False)
