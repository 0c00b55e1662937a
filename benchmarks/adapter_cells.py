"""One cell of adapters.py: one method, with one candidate of rate and epochs, on one draw of images."""

from __future__ import annotations

import copy
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from adapter_data import Images, draw
from adapter_methods import CONTESTANTS, Adapted, build
from torch import Tensor, nn

from metakm.models.pretrained import Preprocessing, Pretrained, replace_classifier
from metakm.photos.features import frozen_features
from metakm.photos.head import solve_head
from metakm.photos.store import PhotoStore, normalise
from metakm.photos.training import BATCH, HEAD_RATE, Budget, Trainer, TrainingPlan

FEWEST_STEPS = 3
"""An epoch of few images has this many steps."""


class Candidate(NamedTuple):
    """The factor of the method's rates, and how often each image is seen."""

    factor: float
    epochs: int


CANDIDATES = (Candidate(0.3, 4), Candidate(1, 4), Candidate(1, 10), Candidate(3, 10))
"""Rate times epochs rises by about three from each to the next."""


class Cell(NamedTuple):
    """What is run. `shots` is a number or `all`, `number` that of a draw or `tune`."""

    dataset: str
    shots: str
    number: str
    method: str
    candidate: int


class Result(NamedTuple):
    """What came of it.

    Attributes:
        right, right_half: which queries are classified rightly, `[n]`, before the pack was stored, and from a pack in
            half precision.
        bytes_full, bytes_half: of the file.
        fit_seconds, image_ms: CPU time: to fit, the head that all start from included; and for an image,
            merged, in batches of 32.
    """

    right: Tensor
    right_half: Tensor
    trained: int
    trained_head: int
    bytes_full: int
    bytes_half: int
    steps: int
    fit_seconds: float
    image_ms: float


@dataclass
class Task:
    """A draw, on the base with a classifier of its classes that is the best one for frozen features of the support."""

    network: nn.Module
    classifier: str
    preprocessing: Preprocessing
    support: PhotoStore
    queries: PhotoStore
    features: Tensor
    seed: int
    head_seconds: float


def make_task(base: Pretrained, images: Images, shots: str, number: str, ways: int) -> Task:
    """Draw the images. All that is trained starts from the same head, and sees the same views in the same order."""
    side = images.pixels.shape[1]
    preprocessing = Preprocessing(side, base.preprocessing.mean, base.preprocessing.std)
    drawn = draw(images, shots, number, ways)
    support, queries = (images.store(numbers, preprocessing) for numbers in (drawn.support, drawn.queries))
    queries.labels = torch.tensor([support.classes.index(queries.classes[label]) for label in queries.labels])
    own = Pretrained(base.name, copy.deepcopy(base.network), preprocessing, base.classifier)
    replace_classifier(own.network, own.classifier, len(support.classes))
    seed = 1000 if number == "tune" else int(number)
    began = time.process_time()
    features = frozen_features(own, support, seed, augment=True)
    task = Task(own.network, own.classifier, preprocessing, support, queries, features, seed, 0.0)
    fit_of(task, Adapted(own.network, own.classifier), TrainingPlan(0.0, 0.0, 0.0, Budget(0, BATCH))).start()
    task.head_seconds = time.process_time() - began
    return task


def fit_of(task: Task, adapted: Adapted, plan: TrainingPlan) -> Trainer:
    """The loop that all methods share: that of `metakm fit`."""
    return Trainer(
        adapted.network, adapted.classifier, plan, task.support, task.preprocessing, range(len(task.support)), (),
        task.features, seed=task.seed, last_step=plan.budget.steps,
    )  # fmt: skip


def run_cell(task: Task, method: str, candidate: Candidate) -> Result:
    """Fit and classify."""
    adapted = build(method, task.network, task.classifier, task.seed)
    plan = plan_of(method, candidate, len(task.support))
    began = time.process_time()
    trainer = fit_of(task, adapted, plan)
    if method == "head":
        trainer.start()
    trainer.run()
    seconds = task.head_seconds + time.process_time() - began
    trained, head = adapted.trained()
    right, image_ms = classify(adapted, task)
    with tempfile.TemporaryDirectory() as folder:
        full, half = Path(folder, "full.safetensors"), Path(folder, "half.safetensors")
        adapted.write(full, half=False)
        adapted.write(half, half=True)
        sizes = full.stat().st_size, half.stat().st_size
        adapted.read(half)
    right_half = right if task.seed == 1000 else classify(adapted, task)[0]
    return Result(right, right_half, trained, head, *sizes, plan.budget.steps, seconds, image_ms)


def plan_of(method: str, candidate: Candidate, photos: int) -> TrainingPlan:
    """Rates and steps of a method; the head alone is solved for, and takes none."""
    if method == "head":
        return TrainingPlan(0.0, 0.0, 0.0, Budget(0, BATCH), solve_head)
    rates = CONTESTANTS[method]
    batch = min(BATCH, photos)
    steps = candidate.epochs * max(FEWEST_STEPS, round(photos / batch))
    return TrainingPlan(
        candidate.factor * rates.rate, candidate.factor * rates.norm_rate, candidate.factor * HEAD_RATE,
        Budget(steps, batch),
    )  # fmt: skip


@torch.no_grad()
def classify(adapted: Adapted, task: Task) -> tuple[Tensor, float]:
    """Which queries are right, `[n]`, and milliseconds of CPU time for each."""
    network, store = adapted.merged(), task.queries
    predicted, seconds = [], 0.0
    for first in range(0, len(store), BATCH):
        images = normalise(store.pixels(range(first, min(first + BATCH, len(store)))), task.preprocessing)
        began = time.process_time()
        predicted.append(network(images).argmax(dim=1))
        seconds += time.process_time() - began
    return torch.cat(predicted) == store.labels, 1000 * seconds / len(store)


def as_hex(right: Tensor) -> str:
    """Booleans as hexadecimal digits, four to a digit."""
    return np.packbits(right.numpy()).tobytes().hex()


def from_hex(text: str, count: int) -> Tensor:
    """Inverse of `as_hex`."""
    return torch.from_numpy(np.unpackbits(np.frombuffer(bytes.fromhex(text), np.uint8), count=count)).bool()
