"""Kernel modulation: small networks that adapt every convolution kernel of a ConvNet."""

from metakm.modulation.kernel import KernelModulator, KernelModulators

__all__ = ["KernelModulator", "KernelModulators"]
