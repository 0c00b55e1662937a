"""A small network in a file, and folders of photos that it can tell apart."""

import numpy as np
from PIL import Image

NETWORK = """
import torch
from torch import nn


def pooled(network, x):
    return network.norm2(network.conv2(network.norm1(network.conv1(x)).relu())).relu().mean((2, 3))


class Small(nn.Module):
    input_size = 32

    def __init__(self):
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.conv1 = nn.Conv2d(3, 12, 5, stride=2, bias=False)
            self.norm1 = nn.BatchNorm2d(12)
            self.conv2 = nn.Conv2d(12, 16, 1, bias=False)
            self.norm2 = nn.BatchNorm2d(16)
            self.fc = nn.Linear(16, 7)

    def forward(self, x):
        x = self.norm1(self.conv1(x)).relu()
        return self.fc(self.norm2(self.conv2(x)).relu().mean((2, 3)))


class Dropping(Small):
    def forward(self, x):
        x = nn.functional.dropout(self.norm1(self.conv1(x)).relu(), 0.2, self.training)
        return self.fc(self.norm2(self.conv2(x)).relu().mean((2, 3)))


class Behind(Small):
    def forward(self, x):
        return super().forward(x).relu()


class Fixed(Small):
    def forward(self, x):
        return self.fc(x.view(len(x), 16, 300).mean(2))  # 40x40


class Tuple(Small):
    def forward(self, x):
        logits = super().forward(x)
        return (logits, logits) if self.training else logits


class Unused(Small):
    def __init__(self):
        super().__init__()
        self.projection = nn.Linear(16, 7)


class HeadFirst(Unused):
    def forward(self, x):
        x = pooled(self, x)
        return self.fc(x + self.projection(x).mean(1, keepdim=True))


class Pixels(Small):
    def forward(self, x):
        x = self.norm1(self.conv1(x)).relu()
        return self.fc(self.norm2(self.conv2(x)).relu().permute(0, 2, 3, 1)).mean((1, 2))


class NotANumber(Small):
    def __init__(self):
        super().__init__()
        with torch.no_grad():
            self.norm2.bias.fill_(float("nan"))


class Other(Small):
    def __init__(self):
        super().__init__()
        with torch.no_grad():
            self.conv1.weight.mul_(1.5)
"""
COLOURS = {"red apple": (200, 30, 20), "birne grün": (40, 180, 60), "blau": (30, 40, 190)}


def photo(colour, seed, size=(40, 36)):
    generator = np.random.default_rng(seed)
    noise = generator.integers(-30, 31, (size[1], size[0], 3))
    return Image.fromarray((np.array(colour) + noise).clip(0, 255).astype(np.uint8))


def make_photos(folder, count=4, first=0):
    for name, colour in COLOURS.items():
        (folder / name).mkdir(parents=True, exist_ok=True)
        for number in range(first, first + count):
            photo(colour, number).save(folder / name / f"{number}.png")
    return folder
