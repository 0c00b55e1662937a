"""Backbones and the layers they are made of."""

from metakm.models.conv4 import Conv4
from metakm.models.layers import BatchNorm2d, Conv2d, Linear
from metakm.models.resnet import CifarResNet

__all__ = ["BatchNorm2d", "CifarResNet", "Conv2d", "Conv4", "Linear"]
