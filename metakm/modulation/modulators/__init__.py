"""Networks that modulate a kernel, one file each; importing this package registers the built-in ones."""

from metakm.modulation.modulators.channel import ChannelModulator
from metakm.modulation.modulators.kernel import (
    Activation,
    Initialisation,
    KernelModulator,
    KernelModulators,
    Start,
    kernel_scale,
    start_scale,
)
from metakm.modulation.modulators.low_rank import LowRank
from metakm.modulation.modulators.registry import available_modulators, modulator_class, register_modulator
from metakm.registry import import_modules

import_modules(__name__)

__all__ = [
    "Activation",
    "ChannelModulator",
    "Initialisation",
    "KernelModulator",
    "KernelModulators",
    "LowRank",
    "Start",
    "available_modulators",
    "kernel_scale",
    "modulator_class",
    "register_modulator",
    "start_scale",
]
