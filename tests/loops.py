"""Outer loops in float64 that tests share."""

import torch
from small import random_episodes, small_strategy

from metakm.data import Episodes
from metakm.distributed.processes import ALONE
from metakm.learning.learner import Learner
from metakm.learning.outer_loop import OuterLoop
from metakm.options import SHARED
from metakm.presets import preset_config

CPU = torch.device("cpu")


class Sampler:
    """Float64 episodes; the sampler proper gives float32."""

    dataset = type("Dataset", (), {"image_shape": (1, 14, 14)})

    def batch(self, index, tasks):
        made = [random_episodes(tasks=1, seed=i) for i in range(index, index + tasks)]
        joined = {k: torch.cat([getattr(m, k) for m in made]) for k in vars(made[0])}
        return Episodes(**joined, index=range(index, index + tasks))


def config(**changes):
    base = preset_config(
        ways=4,
        shots=2,
        queries=3,
        meta_batch=4,
        inner_lr=0.4,
        inner_steps=2,
        iterations=10,
        grad_clip=0.0,
        task_chunk=4,
    )
    return base.replaced(**changes)


def loop(algo="km", sampler=None, bn_mode="transductive", processes=ALONE, **changes):
    found = config(**changes)
    learner = learner_of(small_strategy(algo, bn_mode=bn_mode), found)
    return OuterLoop(learner, sampler or Sampler(), found, CPU, processes)


def learner_of(strategy, config):
    return Learner(
        strategy,
        inner_lr=config.inner_lr,
        inner_steps=config.inner_steps,
        test_inner_steps=config.test_inner_steps,
        **{name: value for name, value in config.flat().items() if name in SHARED},
    )
