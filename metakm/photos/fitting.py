"""From photographs to a classifier: hold photos out, train, calibrate, train on all."""

from __future__ import annotations

import copy
import hashlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor

from metakm.errors import UserError
from metakm.models.pretrained import Preprocessing, Pretrained, replace_classifier
from metakm.modulation.pack import make_pack, swap
from metakm.photos.calibration import STORED_TEMPERATURE, STORED_THRESHOLD, rejection_threshold
from metakm.photos.checkpoint import Checkpoint
from metakm.photos.classifier import PhotoClassifier, photos_header
from metakm.photos.features import frozen_features
from metakm.photos.methods import CLOSED, COSINES, MethodName, attach
from metakm.photos.options import FitSettings, MethodChoice, as_header
from metakm.photos.selection import HeldOut, best_of, comparison, judge
from metakm.photos.store import PhotoStore
from metakm.photos.training import Course, Fit, budget, plan_for
from metakm.photos.validation import HeldOutSplit, plan_splits

CANDIDATES: dict[MethodChoice, tuple[MethodName, ...]] = {
    "auto": ("head", "norm", "km", "both", "lora"),
    "few-shot": ("centroid", "ridge", "norm"),
}


@dataclass(frozen=True)
class FitReport:
    """How a fit went.

    Attributes:
        held_out: the answers of the method taken to photos it did not see; None where none was held out.
        course: of the final fit, on all photos.
        comparison: what `auto` found, a line a method.
    """

    store: PhotoStore
    settings: FitSettings
    held_out: HeldOut | None
    course: Course
    comparison: list[str]
    seconds: float


@dataclass
class Fitting:
    """A fit as a sequence of parts, each of which is in the checkpoint once it is done.

    Args:
        advance: called after each step with (its loss or None, steps in all); may raise to end the fit.
    """

    base: Pretrained
    preprocessing: Preprocessing
    store: PhotoStore
    settings: FitSettings
    checkpoint: Checkpoint
    advance: Callable[[float | None, Fit], None] = field(default=lambda *_: None)

    def __post_init__(self) -> None:
        self.began = time.monotonic()
        self.splits = plan_splits(self.store.labels, self.settings.validation, self.settings.folds, self.settings.seed)
        chosen = self.settings.method
        self.methods = CANDIDATES.get(chosen) or (cast(MethodName, chosen),)
        if chosen == "auto" and not self.splits:
            raise UserError("Expected photos to hold out for --method auto, got one of each class; choose a method")
        replace_classifier(self.base.network, self.base.classifier, len(self.store.classes))
        augment = self.settings.augment
        self.bank = frozen_features(self.base, self.preprocessing, self.store, self.settings.seed, augment=augment)

    @property
    def steps(self) -> int:
        """Of all parts, at most."""
        every = range(len(self.store))
        sizes = [len(split.train) for split in self.splits]
        trained = [method for method in self.methods if method not in CLOSED]
        held = len(trained) * sum(budget(size).steps for size in sizes)
        one = trained and (self.splits or self.methods[0] in trained)
        return held + (budget(len(every)).steps if one else 0)

    def run(self) -> PhotoClassifier:
        """All parts."""
        found = {method: held for method in self.methods if (held := self._judged(method)) is not None}
        best = best_of(found) if found else None
        method = best.method if best is not None else self.methods[0]
        everything = HeldOutSplit(list(range(len(self.store))), [])
        network, course = self._part(f"{method}/all", method, everything, best.mark if best is not None else None)
        scale, threshold = STORED_TEMPERATURE, 0.0 if method in COSINES else STORED_THRESHOLD
        metrics = {"images": float(len(self.store))}
        if best is not None:
            scale, threshold = best.temperature, rejection_threshold(best.probabilities, best.labels)
            metrics |= {"accuracy": best.accuracy, "nll": best.nll, "held_out": float(len(best.numbers))}
        pack = make_pack(network, "", self.store.classes, metrics, self.settings.precision)
        if pack.precision == "fp16":
            swap(network, pack)  # predict as the file will
        pack.photos.update(
            photos_header(self.base, self.preprocessing, method, scale, threshold, as_header(self.settings))
        )
        classifier = PhotoClassifier(pack, network, self.preprocessing)
        compared = comparison(found, best) if best is not None and len(found) > 1 else []
        classifier.report_ = FitReport(self.store, self.settings, best, course, compared, time.monotonic() - self.began)
        return classifier

    def _judged(self, method: MethodName) -> HeldOut | None:
        courses = [self._part(f"{method}/{number}", method, split, None)[1] for number, split in enumerate(self.splits)]
        return judge(method, self.splits, courses, self.store.labels) if courses else None

    def _part(
        self, name: str, method: MethodName, split: HeldOutSplit, mark: int | None
    ) -> tuple[torch.nn.Module, Course]:
        """Train on a split, or take what the checkpoint has of it."""
        network = attach(copy.deepcopy(self.base.network), self.base.classifier, method, self.settings.seed)
        plan = plan_for(method, len(split.train))
        steps = plan.budget.marks()[-1 if mark is None else mark]
        fit = Fit(
            network, self.base.classifier, plan, self.store, self.preprocessing, split.train, split.held_out,
            self.bank, seed=self.settings.seed, augment=self.settings.augment, last_step=steps,
        )  # fmt: skip
        if name in self.checkpoint.done:
            fit.load_state(self.checkpoint.done[name])
            return network.eval(), fit.course
        if self.checkpoint.current is not None and self.checkpoint.current[0] == name:
            fit.load_state(self.checkpoint.current[1])
        else:
            fit.start()
        self.advance(None, fit)

        def after_step(loss: float) -> None:
            self.checkpoint.update(name, fit)
            try:
                self.advance(loss, fit)
            except BaseException:
                self.checkpoint.update(name, fit, now=True)
                raise

        fit.run(after_step)
        state = fit.state()
        self.checkpoint.finish(name, {**state, "optimizer": None})
        return network, fit.course


def fit_key(settings: FitSettings, store: PhotoStore) -> str:
    """What the parts of a fit depend on, as a hash: the settings, the photos' files and their pixels' sums."""
    digest = hashlib.sha256(json.dumps(as_header(settings), sort_keys=True).encode())
    for photo, label in zip(store.photos, store.labels.tolist(), strict=True):
        digest.update(f"{label} {photo if not hasattr(photo, 'size') else ''}\n".encode())
    for number in range(len(store)):
        digest.update(store.pixels([number]).numpy().tobytes())
    return digest.hexdigest()


def class_photos(photos: Sequence[Any], labels: Sequence[Any] | Tensor) -> Mapping[str, list[Any]]:
    """Photos by the text of their label."""
    found: dict[str, list[Any]] = {}
    for photo, label in zip(photos, labels, strict=True):
        found.setdefault(str(label), []).append(photo)
    return found
