"""What the Triton kernels compute beside PyTorch in float64: prints relative errors by case, as JSON.

`python kernel_cases.py cpu` wants TRITON_INTERPRET=1, which runs the kernels without a GPU; `cuda` compiles them.
"""

import itertools
import json
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent.parent))
from small import random_episodes, small_strategy

import metakm
from metakm.ops import conv2d as convolution
from metakm.ops import modulator_mlp as modulator
from metakm.ops import norm_relu_pool as normalisation
from metakm.ops.conv2d import Geometry
from metakm.ops.modulator_mlp import two_layer_mlp
from metakm.ops.norm_relu_pool import batch_norm_relu
from metakm.ops.triton import conv2d as convolution_kernels

DEVICE = torch.device(sys.argv[1])
GEOMETRIES = {  # groups, channels, filters of each, images, height, width, kernel, geometry
    "narrow": (2, 4, 8, 3, 7, 6, (3, 3), ((1, 1), (1, 1), (1, 1))),
    "one-channel": (3, 1, 16, 2, 9, 9, (3, 3), ((2, 2), (1, 1), (1, 1))),
    "whole-blocks": (2, 64, 64, 3, 4, 4, (3, 3), ((1, 1), (1, 1), (1, 1))),
    "strided": (2, 32, 32, 2, 5, 5, (3, 3), ((2, 2), (1, 1), (1, 1))),
    "pointwise": (2, 16, 8, 2, 5, 5, (1, 1), ((2, 2), (0, 0), (1, 1))),
    "uneven": (1, 64, 80, 2, 6, 5, (3, 1), ((2, 1), (0, 1), (1, 2))),
}
NORMS = {  # pooling, channels, height, width, mean of the images
    "whole": (False, 4, 2, 3, 0.0),
    "pooled": (True, 70, 4, 6, 0.0),
    "pooled-odd": (True, 4, 5, 3, 3.0),
    "one-window": (True, 4, 2, 2, 0.0),
    "far-from-zero": (True, 4, 6, 6, 300.0),
}
MODULATORS = {"3x3": (9, 4, 5, 2), "5x5": (25, 3, 3, 2), "1x1": (1, 8, 3, 1)}  # k, filters, channels, tasks
STRATEGIES = [("km", "pool", 16), ("maml", "stride", 14)]


def error(actual, expected):
    actual, expected = actual.detach().double().cpu(), expected.detach().double().cpu()
    if actual.shape != expected.shape:
        return f"{list(actual.shape)} instead of {list(expected.shape)}"
    return float((actual - expected).norm() / expected.norm())


def channels_last(x):
    return x.contiguous(memory_format=torch.channels_last)


def convolutions():
    for name, (groups, channels, filters, n, height, width, kernel, numbers) in GEOMETRIES.items():
        geometry = Geometry(*numbers, groups)
        x = torch.randn(n, groups * channels, height, width, dtype=torch.float64)
        weight = torch.randn(groups * filters, channels, *kernel, dtype=torch.float64)
        y = torch.conv2d(x, weight, None, *geometry)
        grad = torch.randn_like(y)
        for_x, for_w, _ = torch.ops.aten.convolution_backward(
            grad, x, weight, None, *geometry[:3], False, (0, 0), groups, (True, True, False)
        )
        x, weight, grad = (t.to(DEVICE, torch.float32) for t in (x, weight, grad))
        for layout, w in (("contiguous", weight), ("channels-last", channels_last(weight))):
            of = f"convolution {name} {layout}"
            yield f"{of} value", error(convolution_kernels.convolution(channels_last(x), w, geometry), y)
            yield f"{of} input", error(convolution_kernels.input_gradient(grad, w, x.shape, geometry), for_x)
            yield f"{of} weight", error(convolution_kernels.weight_gradient(x, grad, w.shape, geometry), for_w)


def second_derivatives(function, arguments, which):
    """The value, its gradients, and the gradients of those that `which` names, for a test of the whole graph."""
    y = function(*arguments)
    firsts = torch.autograd.grad((y**3).sum(), arguments, create_graph=True)
    return [y, *firsts, *torch.autograd.grad(sum((firsts[i] ** 2).sum() for i in which), arguments)]


def both(function, arguments, which):
    """In float32, which takes the kernels, and in float64, which does not."""
    results = []
    for device, dtype in ((DEVICE, torch.float32), ("cpu", torch.float64)):
        own = [a.detach().to(device, dtype).requires_grad_() for a in arguments]
        results.append(second_derivatives(function, own, which))
    return max(error(a, b) for a, b in zip(*results, strict=True))


def norms():
    for (name, (pool, channels, height, width, mean)), which in itertools.product(
        NORMS.items(), [(0,), (1,), (2,), (0, 1, 2)]
    ):
        x = channels_last(mean + torch.randn(5, channels, height, width))
        gamma, beta = torch.randn(channels), torch.randn(channels)
        gamma[0] = 0.0
        found = both(lambda *a, pool=pool: batch_norm_relu(*a, 1e-5, pool=pool), [x, gamma, beta], which)
        yield f"norm {name} {which}", found


def not_finite():
    """What is not finite in an image must reach every output of its channel, not vanish in ReLU or at a border."""
    one, zero = torch.ones(4, device=DEVICE), torch.zeros(4, device=DEVICE)
    for value, pool in itertools.product((float("nan"), float("inf")), (False, True)):
        x = torch.randn(3, 4, 7, 7, device=DEVICE)
        x[1, 2, 6, 4] = value
        y = batch_norm_relu(x, one, zero, 1e-5, pool=pool)
        yield f"norm {value} {pool}", float(not (y[:, 2].isnan().all() and not y[:, :2].isnan().any()))


def expanded():
    """Affine parameters and cotangents that are one number in memory."""
    for which in (1, 2):
        found = []
        for device, dtype in ((DEVICE, torch.float32), ("cpu", torch.float64)):
            torch.manual_seed(0)
            x = torch.randn(3, 4, 6, 6).to(device, dtype).requires_grad_()
            beta, gamma = (torch.full((1,), v, device=device, dtype=dtype).expand(4) for v in (0.3, 1.2))
            affine = [gamma.requires_grad_(), beta.requires_grad_()]
            firsts = torch.autograd.grad(
                (batch_norm_relu(x, *affine, 1e-5, pool=True) ** 3).sum(), [x, *affine], create_graph=True
            )
            found.append(torch.autograd.grad(firsts[which].sum(), x)[0])
        yield f"norm expanded {which}", error(*found)


def refused():
    """What PyTorch refuses must not be read beyond its end."""
    x, one = torch.ones(2, 4, 2, 2, device=DEVICE), torch.ones(4, device=DEVICE)
    plain = Geometry((1, 1), (0, 0), (1, 1), 1)
    for name, call in {
        "channels": lambda: convolution.convolve(x, torch.ones(6, 3, 1, 1, device=DEVICE), plain),
        "size": lambda: convolution.convolve(x, torch.ones(6, 4, 3, 3, device=DEVICE), plain),
        "affine": lambda: batch_norm_relu(x, one[:3], one, 1e-5),
        "window": lambda: batch_norm_relu(x[..., :1, :1], one, one, 1e-5, pool=True),
    }.items():
        try:
            call()
            yield f"refused {name}", "it was taken"
        except ValueError:
            yield f"refused {name}", 0.0


def modulators():
    for (name, (k, filters, channels, tasks)), which in itertools.product(
        MODULATORS.items(), [(0,), (1,), (2,), (0, 1, 2)]
    ):
        columns = 0.5 * torch.randn(k, filters * channels)
        first, second = (torch.eye(k) + 0.3 * torch.randn(tasks, k, k) for _ in range(2))
        found = both(lambda *a, n=filters: two_layer_mlp(*a, n), [columns, first, second], which)
        yield f"modulator {name} {which}", found


def meta_gradients():
    for algo, downsample, size in STRATEGIES:
        gradients = []
        for device, dtype in ((DEVICE, torch.float32), ("cpu", torch.float64)):
            torch.set_default_dtype(torch.float64)
            strategy = small_strategy(algo, ways=2, downsample=downsample, size=size).to(device, dtype)
            episodes = random_episodes(tasks=2, ways=2, shots=2, queries=2, size=size)
            for key, value in vars(episodes).items():
                setattr(episodes, key, value.to(device, dtype if "images" in key else torch.int64))
            torch.set_default_dtype(torch.float32)
            result = metakm.meta_loss(strategy, episodes, inner_lr=0.4, inner_steps=1)
            found = torch.autograd.grad(result.loss, list(strategy.parameters()), materialize_grads=True)
            gradients.append(torch.cat([g.detach().double().cpu().flatten() for g in found]))
        yield f"meta-gradient {algo}", error(*gradients)


def seeded(part):
    """The cases of a part, whose numbers do not depend on what the parts before it drew."""
    torch.manual_seed(0)
    yield from part()


if __name__ == "__main__":
    if DEVICE.type == "cpu":
        for module in (convolution, normalisation, modulator):
            module.has_kernels = lambda x: x.dtype == torch.float32
    parts = (convolutions, norms, not_finite, expanded, refused, modulators, meta_gradients)
    sys.stdout.write(json.dumps(dict(itertools.chain.from_iterable(map(seeded, parts)))))
