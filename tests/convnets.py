"""ConvNets of every kind that `modulate` must serve, small, and a perturbation that stands for training."""

import torch
import torch.nn.functional as F
import torchvision
from torch import nn

from metakm import CifarResNet
from metakm.strategies import Classifier


class Mixed(nn.Module):
    """Grouped, dilated, depthwise, 1x1, 7x7, oblong and biased convolutions; all three kinds of norm."""

    def __init__(self, classes=3):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 7, stride=2, padding=3)
        self.norm1 = nn.BatchNorm2d(8)
        self.grouped = nn.Conv2d(8, 8, 3, padding=2, dilation=2, groups=2, bias=False)
        self.norm2 = nn.GroupNorm(2, 8)
        self.depthwise = nn.Conv2d(8, 8, (1, 3), padding=(0, 1), groups=8)
        self.norm3 = nn.LayerNorm([8, 8, 8])
        self.pointwise = nn.Conv2d(8, 12, 1)
        self.linear = nn.Linear(12, 12)
        self.fc = nn.Linear(12, classes)

    def forward(self, x):
        x = F.relu(self.norm1(self.stem(x)))
        x = F.relu(self.norm2(self.grouped(x)))
        x = F.relu(self.norm3(self.depthwise(x)))
        return self.fc(self.linear(self.pointwise(x).mean((2, 3))))


def cifar_resnet(depth=8, classes=4):
    return Classifier(CifarResNet(depth, bn_mode="running"), classes)


def mobilenet(classes=5):
    return torchvision.models.mobilenet_v3_small(num_classes=classes, dropout=0.0)


def resnet18(classes=5):
    return torchvision.models.resnet18(num_classes=classes)


CASES = {  # name: (builder, the classifier's name)
    "mixed": (Mixed, "fc"),
    "cifar_resnet": (cifar_resnet, "head"),
    "mobilenet": (mobilenet, "classifier"),
}


def images(n=4):
    return torch.randn(n, 3, 16, 16)


@torch.no_grad()
def perturb(model, scale=0.05):
    """Move all that is trainable, and the running statistics, as training would."""
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.add_(scale * torch.randn_like(parameter))
    for name, buffer in model.named_buffers():
        if name.endswith(("running_mean", "running_var")):
            buffer.add_(scale * torch.rand_like(buffer))
    return model


def train(model, steps=2):
    """A few steps of SGD with momentum and weight decay over all parameters."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=0.01)
    model.train()
    for _ in range(steps):
        optimizer.zero_grad()
        logits = model(images())
        F.cross_entropy(logits, torch.arange(len(logits)) % logits.shape[1]).backward()
        optimizer.step()
    return model
