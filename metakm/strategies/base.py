"""The contract that every adaptation strategy keeps, and the pieces that most of them share."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn
from torch.func import functional_call

from metakm.errors import UserError
from metakm.models.layers import BatchNorm2d, BatchNormMode, Linear, tracking_statistics
from metakm.modulation.norms import is_norm


class Strategy(nn.Module):
    """What the inner loop adapts, and how a prediction follows from it.

    The inner loop updates a copy of `adapted` for each task, with a leading task axis on every parameter; all other
    parameters are learned by the outer loop alone and get their meta-gradient through the graph.

    A strategy sets `adapted` in its constructor (`__init__(self, backbone, ways, **options)`) and may override
    `encode`. It knows nothing of data or files.
    """

    adapted: nn.Module

    def encode(self, images: Tensor) -> Tensor:
        """All that does not depend on `adapted`, once per batch of episodes.

        Args:
            images: `[T, n, C, H, W]`, the support or the query images.
        """
        return images

    def predict(self, adapted: nn.Module, encoded: Tensor) -> Tensor:
        """Logits `[T, n, N]`.

        Args:
            adapted: `self.adapted`, or a copy of it whose parameters carry a leading task axis.
            encoded: what `encode` returned.
        """
        del adapted, encoded
        raise UserError(f"Expected {type(self).__qualname__} to define predict(self, adapted, encoded); add it")

    def forward(self, images: Tensor) -> Tensor:
        """Logits `[T, n, N]` of the strategy before any adaptation."""
        return self.predict(self.adapted, self.encode(images))

    @torch.no_grad()
    def track_statistics(self, images: Tensor) -> None:
        """Fold `images` into the running statistics of `bn_mode="running"` layers, at the unadapted weights."""
        with tracking_statistics():
            self(images)

    @property
    def bn_modes(self) -> set[BatchNormMode]:
        """The modes of the batch-norm layers."""
        return {module.mode for module in self.modules() if isinstance(module, BatchNorm2d)}

    def parameter_counts(self) -> tuple[int, int]:
        """How many parameters the inner loop adapts, and how many there are in all (each counted once)."""
        return (
            sum(p.numel() for p in self.adapted.parameters()),
            sum(p.numel() for p in self.parameters()),
        )


class Classifier(nn.Module):
    """A backbone and a linear head; `[T, n, C, H, W]` to logits `[T, n, N]`."""

    def __init__(self, backbone: nn.Module, ways: int) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = make_head(backbone, ways)

    def forward(self, images: Tensor) -> Tensor:
        """See the class."""
        logits: Tensor = self.head(self.backbone(images))
        return logits


def make_head(backbone: nn.Module, ways: int) -> Linear:
    """The linear classifier on top of `backbone.out_features` features.

    Raises:
        UserError: fewer than 2 ways, or a backbone that does not say how many features it has.
    """
    if ways < 2:
        raise UserError(f"Expected ways to be at least 2, got {ways}; an episode tells classes apart")
    features = getattr(backbone, "out_features", None)
    if not isinstance(features, int):
        raise UserError(
            f"Expected a backbone with an integer attribute out_features, got {type(backbone).__name__} with "
            f"{features!r}; set it to the number of features that forward() returns"
        )
    return Linear(features, ways)


class SharedParameters(nn.Module):
    """Chosen parameters of a network, under their names there, as a module of their own.

    The parameters stay the network's too: training either trains both. Patched by the inner loop, calling it returns
    the fast weights by name, ready for `torch.func.functional_call` on the network.
    """

    def __init__(self, network: nn.Module, names: Iterable[str]) -> None:
        super().__init__()
        self.names = tuple(names)
        for name in self.names:
            self.register_parameter(_key(name), network.get_parameter(name))

    def forward(self) -> dict[str, Tensor]:
        """The parameters by the network's names."""
        return {name: getattr(self, _key(name)) for name in self.names}


def is_norm_affine(network: nn.Module, name: str) -> bool:
    """Whether the parameter `name` of `network` scales or shifts a normalisation."""
    owner = network.get_submodule(name.rpartition(".")[0])
    return is_norm(owner)


def call_with(network: nn.Module, parameters: Mapping[str, Tensor], images: Tensor) -> Tensor:
    """`network(images)` with the named parameters replaced; the others stay as they are."""
    logits: Tensor = functional_call(network, dict(parameters), (images,))
    return logits


def _key(name: str) -> str:
    return name.replace(".", "__")
