"""Adaptation strategies; importing this package registers the built-in ones."""

from metakm.strategies import anil, bn, boil, km, maml, meta_sgd, protonet, prototype_heads, reptile  # noqa: F401 (registration)
from metakm.strategies.base import Classifier, InnerLoop, SharedParameters, Strategy, call_with
from metakm.strategies.parameter_subset import DirectStrategy
from metakm.strategies.registry import available_strategies, load_plugin, make_strategy, register_strategy

__all__ = [
    "Classifier",
    "DirectStrategy",
    "InnerLoop",
    "SharedParameters",
    "Strategy",
    "available_strategies",
    "call_with",
    "load_plugin",
    "make_strategy",
    "register_strategy",
]
