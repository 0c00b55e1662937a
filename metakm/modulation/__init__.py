"""Kernel modulation: small networks that adapt every convolution kernel of a ConvNet."""

from metakm.modulation.attachment import modulate
from metakm.modulation.export import export_onnx
from metakm.modulation.merging import merge
from metakm.modulation.modulators import (
    ChannelModulator,
    KernelModulator,
    KernelModulators,
    available_modulators,
    register_modulator,
)
from metakm.modulation.norms import replace_norm
from metakm.modulation.pack import load_pack, make_pack, save_pack, swap
from metakm.modulation.pack_file import Pack, read_pack, write_pack
from metakm.modulation.resident_packs import ResidentPacks
from metakm.modulation.trainable import TrainableReport, count_trainable, trainable_report

__all__ = [
    "ChannelModulator",
    "KernelModulator",
    "KernelModulators",
    "Pack",
    "ResidentPacks",
    "TrainableReport",
    "available_modulators",
    "count_trainable",
    "export_onnx",
    "load_pack",
    "make_pack",
    "merge",
    "modulate",
    "read_pack",
    "register_modulator",
    "replace_norm",
    "save_pack",
    "swap",
    "trainable_report",
    "write_pack",
]
