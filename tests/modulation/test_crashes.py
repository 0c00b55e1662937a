"""Training in processes of their own, whose exit code says whether memory was corrupted.

PyTorch 2.14.1 writes beyond its buffers in the weight gradient of strided 1x1 convolutions in channels-last.
"""

import subprocess
import sys

import pytest

LAYERS = """
import torch
from torch import nn
from metakm.modulation import ChannelModulator, KernelModulator, merge, modulate
torch.manual_seed(0)
layers = lambda: [
    nn.Conv2d(3, 16, 1, stride=2), nn.Conv2d(3, 16, 1), nn.Conv2d(3, 16, 1, stride=3, padding=1),
    nn.Conv2d(3, 6, 1, stride=(1, 2), groups=3), nn.Conv2d(3, 9, 3, stride=2, groups=3), nn.Conv2d(3, 16, 2, stride=2),
    nn.Conv2d(3, 16, 4, padding=1), nn.Conv2d(3, 16, 3, dilation=2), nn.Conv2d(3, 16, (1, 3), stride=2),
]
for modulator in (KernelModulator, ChannelModulator):
    for layer in layers():
        features = layer(torch.rand(1, 3, 64, 64)).numel()
        plain = nn.Sequential(layer, nn.Flatten(), nn.Linear(features, 2))
        model = modulate(plain, classifier="2", modulator=modulator)
        for _ in range(20):
            model(torch.rand(2, 3, 64, 64)).square().sum().backward()
        merged = merge(model).requires_grad_()
        for _ in range(20):
            merged(torch.rand(2, 3, 64, 64)).square().sum().backward()
"""
STRATEGIES = """
import torch, metakm
from torch import nn
def strided(width):
    layers, channels = [nn.Conv2d(3, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU()], width
    for _ in range(2):
        layers += [nn.Conv2d(channels, 2 * channels, 1, stride=2), nn.BatchNorm2d(2 * channels), nn.ReLU()]
        channels *= 2
    return metakm.carry_tasks(nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten()), (3, 64, 64))
for backbone, channels, size, tasks in ((lambda: strided(8), 3, 64, 1), (lambda: strided(4), 3, 32, 3)):
    torch.manual_seed(0)
    images = torch.randint(0, 256, (20, channels, size, size), dtype=torch.uint8).numpy()
    data = metakm.FewShotDataset.from_arrays(images, [i // 4 for i in range(20)])
    sampler = metakm.EpisodeSampler(data, ways=5, shots=1, queries=2, seed=0)
    for algo in ("km", "maml"):
        strategy = metakm.make_strategy(algo, backbone=backbone(), ways=5)
        for i in range(20):
            batch = sampler.batch(index=i, tasks=tasks)
            metakm.meta_loss(strategy, batch, inner_lr=0.05, inner_steps=1).loss.backward()
"""
EXPERIMENTS = """
import torch
from metakm.experiments import scratch
from metakm.ops.conv2d import fastest_memory_format
torch.manual_seed(0)
for method in ("sn", "ld"):
    model = scratch.method_setup(method, 0).model
    form = fastest_memory_format(model)
    for _ in range(20):
        model(torch.rand(4, 3, 32, 32).contiguous(memory_format=form)).square().sum().backward()
"""
SCRIPTS = {"layers": LAYERS, "strategies": STRATEGIES, "experiments": EXPERIMENTS}


@pytest.mark.parametrize("name", SCRIPTS)
def test_twenty_steps_end_in_order(name):
    done = subprocess.run([sys.executable, "-c", SCRIPTS[name]], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
