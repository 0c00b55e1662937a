"""What one process and several processes both compute, to be compared."""

import torch
from loops import loop
from small import learned_parameters

import metakm
from metakm.distributed.processes import ALONE

CASES = [
    *({"algo": algo, "meta_batch": 3} for algo in metakm.available_strategies()),
    {"algo": "km", "meta_batch": 4, "learn_inner_lr": True, "grad_clip": 0.01, "task_chunk": 1},
    {"algo": "maml", "meta_batch": 1, "bn_mode": "running", "first_order": True},  # one process has no task
]
RUN_FLAGS = "--algo km --ways 3 --queries 2 --backbone conv4-4-stride --meta-batch 3 --val-tasks 5 --eval-tasks 7"
RUN = [*RUN_FLAGS.split(), "--bn-mode", "running", "--iterations", "6", "--val-every", "2", "--device", "cpu"]


def train(case, processes=ALONE):
    """Losses and accuracies of two iterations, the last meta-gradient, and the model then."""
    trained = loop(**case, processes=processes)
    steps = [tuple(trained.step()) for _ in range(2)]
    learned = [*learned_parameters(trained.learner.strategy).values(), *trained.learner.rates]
    gradient = torch.cat([p.grad.flatten() for p in learned])
    return steps, gradient, vector(trained.model_state())


def vector(model):
    """All numbers of a model's state."""
    return torch.cat([t.flatten() for t in model.values()])
