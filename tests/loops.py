"""Outer loops in float64 that tests share."""

import torch
from small import random_episodes, small_strategy

from metakm.data import Episodes
from metakm.distributed.processes import ALONE
from metakm.learning.outer_loop import OuterLoop
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
    return OuterLoop(small_strategy(algo, bn_mode=bn_mode), sampler or Sampler(), config(**changes), CPU, processes)
