"""Layers that mix the tasks of a batch are refused by name, wherever they could run."""

import pytest
import torch
from small import random_episodes
from torch import nn

import metakm
from metakm.learning.inner_loop import evaluate_episodes, meta_loss
from metakm.presets import preset_config
from metakm.run.build import build_learner
from metakm.strategies.anil import ANIL

INNER = {"inner_lr": 0.1, "inner_steps": 2}


class Flat(nn.Module):
    """A plain torch network: the tasks are more images to it."""

    out_features = 6

    def __init__(self, norm):
        super().__init__()
        self.net = nn.Sequential(nn.Conv2d(1, 6, 3, 2), norm, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())

    def forward(self, images):
        return self.net(images.flatten(0, 1)).unflatten(0, images.shape[:2])


class BatchRenorm(nn.Module):
    """Some package's own layer, which keeps running statistics as torch's batch norm does."""

    def __init__(self, channels):
        super().__init__()
        self.momentum = 0.1
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))

    def forward(self, x):
        return x - x.mean(dim=(0, 2, 3), keepdim=True)


class Frozen(BatchRenorm):
    """As torchvision's: running statistics that never change, and so no momentum."""

    def __init__(self, channels):
        super().__init__(channels)
        del self.momentum

    def forward(self, x):
        return x - self.running_mean[:, None, None]


class OwnBatchNorm(nn.BatchNorm2d):
    """As timm's BatchNormAct2d."""


MIXING = {
    "torch.nn.modules.batchnorm.BatchNorm2d": nn.BatchNorm2d,
    "torch.nn.modules.batchnorm.SyncBatchNorm": nn.SyncBatchNorm,
    "OwnBatchNorm": OwnBatchNorm,
    "BatchRenorm": BatchRenorm,
}
APART = {
    "group": lambda: nn.GroupNorm(2, 6),
    "instance": lambda: nn.InstanceNorm2d(6, track_running_stats=True),
    "dropout": lambda: nn.Dropout(0.0),
    "frozen": lambda: Frozen(6),
    "evaluation": lambda: nn.BatchNorm2d(6).eval(),
}


def batch(tasks):
    """The first tasks of three."""
    episodes = random_episodes()
    return type(episodes)(**{name: value[:tasks] for name, value in vars(episodes).items()})


@pytest.mark.parametrize("algo", ["anil", "protonet", "maml"])
@pytest.mark.parametrize("name", MIXING)
def test_a_plain_batch_norm_is_refused_by_its_name(name, algo):
    with pytest.raises(metakm.UserError, match=rf"backbone\.net\.1: .*{name} in training mode"):
        metakm.make_strategy(algo, Flat(MIXING[name](6)), ways=4)


@pytest.mark.parametrize("run", [meta_loss, evaluate_episodes])
@pytest.mark.parametrize("training", [True, False])
def test_a_strategy_made_by_its_class_is_refused_before_it_adapts(training, run):
    strategy = ANIL(Flat(nn.BatchNorm2d(6, track_running_stats=training)), 4).train(training)
    with pytest.raises(metakm.UserError, match=r"backbone\.net\.1: torch"):
        run(strategy, random_episodes(), **INNER)
    if not training:  # the mode in which `adapt` runs
        images, labels = random_episodes().support_images[0] / 2, random_episodes().support_labels[0]
        with pytest.raises(metakm.UserError, match=r"backbone\.net\.1: torch"):
            metakm.adapt(strategy, images, labels, **INNER)


@pytest.mark.parametrize("kind", APART)
@pytest.mark.parametrize("run", [meta_loss, evaluate_episodes])
def test_what_is_not_refused_keeps_the_tasks_apart(kind, run):
    strategy = metakm.make_strategy("anil", Flat(APART[kind]()), ways=4)
    torch.testing.assert_close(run(strategy, batch(1), **INNER).logits[0], run(strategy, batch(3), **INNER).logits[0])


def test_batch_norm_in_evaluation_mode_is_refused_once_training_wakes_it():
    strategy = metakm.make_strategy("anil", Flat(nn.BatchNorm2d(6).eval()), ways=4)
    with pytest.raises(metakm.UserError, match="in training mode"):
        meta_loss(strategy.train(), random_episodes(), **INNER)


def test_a_run_refuses_it_before_it_starts():
    @metakm.register_strategy("asleep")
    class Asleep(ANIL):
        def __init__(self, backbone, ways):
            super().__init__(backbone, ways)
            self.more = nn.BatchNorm1d(3).eval()  # training mode wakes it

    with pytest.raises(metakm.UserError, match="more: torch"):
        build_learner(preset_config(algo="asleep"), (1, 28, 28))
