"""Small ConvNets as torchvision and timm write them, without a classifier, and a conversion's oracle."""

import functools

import pytest
import torch
import torchvision.models as tv
from torch import nn
from torch.func import functional_call
from torchvision.models.convnext import CNBlockConfig
from torchvision.models.efficientnet import MBConvConfig
from torchvision.models.mobilenetv3 import InvertedResidualConfig
from torchvision.models.regnet import BlockParams
from torchvision.models.resnet import BasicBlock, Bottleneck

from metakm.models.pretrained import network_of_library

NORM = functools.partial(nn.BatchNorm2d, eps=0.1)  # keeps derivatives of few pixels in range


def write_weights(name, path):
    """Save weights of a library's network, with running statistics that are not those of a new one."""
    torch.manual_seed(1)
    network, _ = network_of_library(name, None)
    network.train()(torch.rand(8, 3, 64, 64))
    torch.save(network.state_dict(), path)
    return path


def without(network, name):
    """`network` without its classifier."""
    *path, last = name.split(".")
    setattr(network.get_submodule(".".join(path)), last, nn.Identity())
    return network


class Hardsigmoid(nn.Module):
    """As torch's, which has no second derivative."""

    def forward(self, x):
        return (x + 3).clamp(0, 6) / 6


def mobilenet_v3():
    row = functools.partial(InvertedResidualConfig, width_mult=1.0)
    settings = [row(8, 3, 8, 8, True, "RE", 2, 1), row(8, 5, 16, 16, True, "HS", 2, 1)]
    return without(tv.MobileNetV3(settings, 16, num_classes=3, norm_layer=NORM, dropout=0.0), "classifier.3")


def twice_differentiable(network):
    """`network` with a hard sigmoid that has second derivatives."""
    for module in list(network.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.Hardsigmoid):
                setattr(module, name, Hardsigmoid())
    return network


def efficientnet():
    settings = [MBConvConfig(1, 3, 1, 8, 8, 1, 1, 1), MBConvConfig(4, 3, 2, 8, 16, 2, 1, 1)]
    network = tv.EfficientNet(settings, 0.0, stochastic_depth_prob=0.0, norm_layer=NORM)
    network.features[0][0] = nn.Conv2d(3, settings[0].input_channels, 3, 2, 1, bias=False)
    return without(network, "classifier.1")


def vgg():
    network = tv.VGG.__new__(tv.VGG)  # whose constructor makes a classifier of 100 million weights
    nn.Module.__init__(network)
    layers = [nn.Conv2d(3, 8, 3, padding=1), NORM(8), nn.ReLU(True), nn.MaxPool2d(2), nn.Conv2d(8, 4, 3, padding=1)]
    network.features, network.avgpool = nn.Sequential(*layers), nn.AdaptiveAvgPool2d(2)
    network.classifier = nn.Sequential(nn.Linear(16, 12), nn.ReLU(True), nn.Dropout(0.0), nn.Linear(12, 8))
    return network


def regnet():
    params = BlockParams(depths=[1, 1], widths=[8, 16], group_widths=[4, 8], bottleneck_multipliers=[1.0, 1.0],
                         strides=[2, 2], se_ratio=0.25)  # fmt: skip
    return without(tv.RegNet(params, stem_width=8, norm_layer=NORM), "fc")


def resnet():
    network = tv.ResNet(BasicBlock, [2, 1, 1, 1], norm_layer=NORM)
    network.layer3 = network.layer4 = nn.Identity()
    return without(network, "fc")


def resnext():
    network = tv.ResNet(Bottleneck, [1, 1, 1, 1], groups=4, width_per_group=4, norm_layer=NORM,
                        replace_stride_with_dilation=[True, False, False])  # fmt: skip
    network.layer3 = network.layer4 = nn.Identity()
    return without(network, "fc")


TORCHVISION = {
    "resnet": resnet,
    "resnext": resnext,
    "mobilenet_v2": lambda: without(tv.MobileNetV2(width_mult=0.1, dropout=0.0, norm_layer=NORM,
        inverted_residual_setting=[[1, 8, 1, 1], [4, 16, 2, 2]]), "classifier.1"),
    "mobilenet_v3": mobilenet_v3,
    "shufflenet_v2": lambda: without(tv.ShuffleNetV2([1, 2, 1], [8, 16, 32, 64, 32]), "fc"),
    "squeezenet": lambda: without(tv.SqueezeNet("1_1", dropout=0.0), "classifier.1"),
    "densenet": lambda: without(tv.DenseNet(4, (2, 2), 8, bn_size=2), "classifier"),
    "mnasnet": lambda: without(tv.MNASNet(0.1, dropout=0.0), "classifier.1"),
    "efficientnet": efficientnet,
    "regnet": regnet,
    "vgg_bn": vgg,
    "convnext": lambda: without(tv.ConvNeXt([CNBlockConfig(8, 16, 1), CNBlockConfig(16, None, 1)]), "classifier.2"),
}  # fmt: skip
TIMM = ("test_resnet", "test_efficientnet", "test_efficientnet_gn", "test_byobnet", "test_convnext", "test_nfnet")


def plain(name):
    """A network by name, whose random layers are off; running statistics as if it were trained."""
    if name in TIMM:
        timm = pytest.importorskip("timm")
        network = timm.create_model(name, num_classes=0)
    else:
        network = TORCHVISION[name]()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eps = 0.1
            nn.init.uniform_(module.running_mean, -0.1, 0.1)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    with torch.no_grad():
        for parameter in network.parameters():  # nothing stays at zero or one, where a mistake might not show
            parameter.add_(0.02 * torch.randn_like(parameter))
    return network


def alone(network, parameters, images):
    """Features `[T, n, F]`, task after task, of parameters `[T, ...]`."""
    tasks = range(len(images))
    own = [{name: p[t] for name, p in parameters.items()} for t in tasks]
    return torch.stack([functional_call(network, own[t], (images[t],), tie_weights=False) for t in tasks])


def assert_equal(found, expected, tolerance=1e-10):
    """Equal to rounding, relative to the largest number of each tensor."""
    for name in expected:
        scale = max(1.0, float(expected[name].detach().abs().max()))
        error = float((found[name] - expected[name]).detach().abs().max())
        assert error <= tolerance * scale, f"{name}: {error} of {scale}"
