"""Kernel modulation: small networks that adapt every convolution kernel of a ConvNet."""

from metakm.modulation.attach import modulate
from metakm.modulation.channel import ChannelModulator
from metakm.modulation.export import export_onnx
from metakm.modulation.kernel import KernelModulator, KernelModulators
from metakm.modulation.merge import merge
from metakm.modulation.norms import replace_norm
from metakm.modulation.pack import Pack, read_pack, write_pack
from metakm.modulation.report import TrainableReport, count_trainable, trainable_report
from metakm.modulation.swapping import load_pack, make_pack, save_pack, swap

__all__ = [
    "ChannelModulator",
    "KernelModulator",
    "KernelModulators",
    "Pack",
    "TrainableReport",
    "count_trainable",
    "export_onnx",
    "load_pack",
    "make_pack",
    "merge",
    "modulate",
    "read_pack",
    "replace_norm",
    "save_pack",
    "swap",
    "trainable_report",
    "write_pack",
]
