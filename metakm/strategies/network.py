"""The network that a strategy adapts: backbone and head, a subset of its parameters, and calls that replace these."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

from torch import Tensor, nn
from torch.func import functional_call

from metakm.errors import UserError
from metakm.models.layers import Linear
from metakm.modulation.norms import is_norm


class Classifier(nn.Module):
    """A backbone and a linear head; `[T, n, C, H, W]` to logits `[T, n, N]`."""

    BACKBONE = "backbone."
    """Prefix of the names of the backbone's parameters."""
    HEAD = "head."
    """Prefix of the names of the head's parameters."""

    def __init__(self, backbone: nn.Module, ways: int) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = make_head(backbone, ways)

    def forward(self, images: Tensor) -> Tensor:
        """See the class."""
        logits: Tensor = self.head(self.backbone(images))
        return logits


def make_head(backbone: nn.Module, ways: int) -> Linear:
    """The linear head on top of `backbone.out_features` features.

    Raises:
        UserError: fewer than 2 ways, or a backbone that does not say how many features it returns.
    """
    if ways < 2:
        raise UserError(f"Expected ways to be at least 2, got {ways}; an episode needs two classes or more")
    return Linear(feature_count(backbone), ways)


def feature_count(backbone: nn.Module) -> int:
    """How many features a backbone returns.

    Raises:
        UserError: it does not say so.
    """
    features = getattr(backbone, "out_features", None)
    if not isinstance(features, int):
        raise UserError(
            f"Expected a backbone with an integer attribute out_features, got {type(backbone).__name__} with "
            f"{features!r}; set it to the number of features that forward() returns, or make a backbone of a plain "
            "network with metakm.carry_tasks"
        )
    return features


class SharedParameters(nn.Module):
    """Chosen parameters of a network, under their names there, as a module of their own.

    The network keeps these parameters: training either trains both. Patched by the inner loop, a call returns the fast
    weights by name, ready for `torch.func.functional_call` on the network.
    """

    def __init__(self, network: nn.Module, names: Iterable[str]) -> None:
        super().__init__()
        self.keys: dict[str, str] = {}
        for name in names:
            self.keys[name] = key = _key(name, self.keys.values())
            self.register_parameter(key, network.get_parameter(name))

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the parameters in the network."""
        return tuple(self.keys)

    def forward(self) -> dict[str, Tensor]:
        """The parameters by their names in the network."""
        return {name: getattr(self, key) for name, key in self.keys.items()}


def is_norm_affine(network: nn.Module, name: str) -> bool:
    """Whether the parameter `name` of `network` scales or shifts a normalisation."""
    owner = network.get_submodule(name.rpartition(".")[0])
    return is_norm(owner)


def call_with(network: nn.Module, parameters: Mapping[str, Tensor], images: Tensor) -> Tensor:
    """`network(images)` with the named parameters replaced; the others stay as they are.

    A parameter that the network uses in several places is replaced in all of them, except those named themselves.
    """
    logits: Tensor = functional_call(network, _with_tied_names(network, parameters), (images,), tie_weights=False)
    return logits


def _with_tied_names(network: nn.Module, parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Add the other names of shared parameters; a module with two names counts once.

    `functional_call` would replace a module's parameter once per name, and restore the wrong one (PyTorch issue
    164759).
    """
    places = {
        f"{prefix}.{leaf}" if prefix else leaf: parameter
        for prefix, module in network.named_modules()  # each module once
        for leaf, parameter in module._parameters.items()
        if parameter is not None
    }
    if len(places) == len({id(parameter) for parameter in places.values()}):
        return dict(parameters)
    given = {id(places[name]): value for name, value in parameters.items() if name in places}
    tied = {name: given[id(parameter)] for name, parameter in places.items() if id(parameter) in given}
    return {**tied, **parameters}


def _key(name: str, taken: Collection[str]) -> str:
    """A unique name without dots: `a.b__c` and `a__b.c` must differ."""
    key = name.replace(".", "__")
    while key in taken:
        key += "_"
    return key
