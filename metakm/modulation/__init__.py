"""Kernel modulation: small networks that adapt every convolution kernel of a ConvNet."""

from metakm.modulation.attach import modulate
from metakm.modulation.channel import ChannelModulator
from metakm.modulation.kernel import KernelModulator, KernelModulators
from metakm.modulation.norms import replace_norm
from metakm.modulation.report import TrainableReport, count_trainable, trainable_report

__all__ = [
    "ChannelModulator",
    "KernelModulator",
    "KernelModulators",
    "TrainableReport",
    "count_trainable",
    "modulate",
    "replace_norm",
    "trainable_report",
]
