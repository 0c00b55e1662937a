"""Small episodes and strategies that tests share."""

from types import SimpleNamespace

import torch

import metakm
from metakm.options import option_types
from metakm.strategies.baseline import Baseline
from metakm.strategies.cavia import CAVIA
from metakm.strategies.finetune import Finetune
from metakm.strategies.prototype_heads import PrototypeHead
from metakm.strategies.registry import strategy_class, takes_train_classes

WITHOUT_STEPS = ("protonet", "r2d2", "simpleshot")
"""Strategies that learn a task in closed form, of any number of classes."""
CLASS_TRAINING = ("baseline", "baseline++", "finetune", "simpleshot")
"""Strategies whose outer loss is that of classifying the training classes, without adaptation."""
TRAIN_CLASSES = 12


def strategies_with(option):
    """Names of the strategies that have an option, such as `first_order`."""
    return [name for name in metakm.available_strategies() if option in option_types(strategy_class(name).options)]


def random_episodes(tasks=3, ways=4, shots=2, queries=3, channels=1, size=14, seed=0):
    """Noise with a class-dependent offset, so that adaptation has something to learn."""
    generator = torch.Generator().manual_seed(seed)
    prototype = torch.rand(tasks, ways, channels, size, size, generator=generator)

    def half(n):
        labels = torch.arange(ways).repeat_interleave(n).expand(tasks, -1)
        images = torch.rand(tasks, ways * n, channels, size, size, generator=generator)
        return images + prototype.gather(1, labels[:, :, None, None, None].expand_as(images)), labels

    support_images, support_labels = half(shots)
    query_images, query_labels = half(queries)
    return SimpleNamespace(
        support_images=support_images,
        support_labels=support_labels,
        query_images=query_images,
        query_labels=query_labels,
        classes=(torch.arange(ways) + 5 * torch.arange(tasks).unsqueeze(1) + seed) % TRAIN_CLASSES,
    )


def small_strategy(algo, ways=4, seed=0, downsample="stride", bn_mode="transductive", size=14, filters=3, **options):
    """A strategy on a small Conv4 whose norm affine is not at its start, so that no gradient is zero by symmetry."""
    torch.manual_seed(seed)
    backbone = metakm.Conv4(1, filters, downsample, image_size=size, bn_mode=bn_mode)
    if takes_train_classes(strategy_class(algo)):
        options = {"train_classes": TRAIN_CLASSES} | options
    strategy = metakm.make_strategy(algo, backbone, ways, **options)
    with torch.no_grad():
        for name, parameter in strategy.named_parameters():
            if "norm" in name:
                parameter.add_(0.3 * torch.randn_like(parameter))
    return strategy


def learned_parameters(strategy):
    """By name: all but a head that each task starts anew, and CAVIA's context, which starts at zero."""
    unread = ("adapted.phi",) if isinstance(strategy, CAVIA) else ()
    if isinstance(strategy, PrototypeHead | Baseline | Finetune):
        unread = ("head.weight", "head.bias", "adapted.weight", "adapted.bias")
    return {name: p for name, p in strategy.named_parameters() if not name.endswith(unread)}


def gradients(strategy, loss):
    """By parameter name; zero where the loss does not depend on a parameter."""
    parameters = dict(strategy.named_parameters())
    grads = torch.autograd.grad(loss, list(parameters.values()), materialize_grads=True)
    return dict(zip(parameters, grads, strict=True))


def assert_close(actual, expected, tolerance=1e-10):
    """Each gradient, relative to the norm of the whole."""
    assert actual.keys() == expected.keys()
    scale = torch.cat([g.flatten() for g in expected.values()]).norm()
    assert scale > 1e-4
    for name, value in expected.items():
        assert (actual[name] - value).norm() <= tolerance * scale, name
