"""Adaptation strategies; importing this package registers the built-in ones."""

from metakm.registry import import_modules, load_plugin
from metakm.strategies.base import Strategy
from metakm.strategies.interfaces import InnerLoop
from metakm.strategies.network import Classifier, SharedParameters, call_with
from metakm.strategies.parameter_subset import DirectStrategy
from metakm.strategies.registry import available_strategies, make_strategy, register_strategy

import_modules(__name__)

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
