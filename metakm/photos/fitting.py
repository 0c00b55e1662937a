"""From photographs to a classifier: hold photos out, train, calibrate, train on all."""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from typing import cast

import torch

from metakm.errors import UserError
from metakm.models.pretrained import Pretrained, replace_classifier
from metakm.modulation.pack import make_pack, swap
from metakm.modulation.partition import base_fingerprint
from metakm.photos.calibration import DEFAULT_TEMPERATURE, rejection_threshold
from metakm.photos.checkpoint import Checkpoint
from metakm.photos.classifier import PhotoClassifier, photos_header
from metakm.photos.features import frozen_features
from metakm.photos.methods import CLOSED_FORM, MethodName, attach
from metakm.photos.options import FitSettings, MethodChoice, as_header
from metakm.photos.selection import HeldOut, best_of, comparison, judge
from metakm.photos.store import PhotoStore
from metakm.photos.training import Trainer, TrainingState, budget, plan_for
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
        state: of the final fit, on all photos.
        comparison: what `auto` or `few-shot` found, one line per method.
    """

    store: PhotoStore
    settings: FitSettings
    held_out: HeldOut | None
    state: TrainingState
    comparison: list[str]
    seconds: float


@dataclass
class FitPipeline:
    """A fit as a sequence of parts, each of which is in the checkpoint once it is done.

    The features of the frozen base are in no checkpoint; a fit that resumes computes them again.

    Args:
        prepare: called after each batch of the base's features with ("features", images done, all); may raise to end
            the fit.
        advance: called with (None, trainer) where a part starts, goes on or was done before, and with (loss, trainer)
            after each step; may raise to end the fit.
    """

    base: Pretrained
    store: PhotoStore
    settings: FitSettings
    checkpoint: Checkpoint
    prepare: Callable[[str, int, int], None]
    advance: Callable[[float | None, Trainer], None]

    def __post_init__(self) -> None:
        self.splits = plan_splits(self.store.labels, self.settings.validation, self.settings.folds, self.settings.seed)
        chosen = self.settings.method
        self.methods = CANDIDATES.get(chosen) or (cast(MethodName, chosen),)
        if chosen == "auto" and not self.splits:
            raise UserError("Expected photos to hold out for --method auto, got one of each class; choose a method")
        replace_classifier(self.base.network, self.base.classifier, len(self.store.classes))

    @property
    def steps(self) -> int:
        """Of all parts, at most."""
        every = range(len(self.store))
        sizes = [len(split.train) for split in self.splits]
        trained = [method for method in self.methods if method not in CLOSED_FORM]
        held = len(trained) * sum(budget(size).steps for size in sizes)
        one = trained and (self.splits or self.methods[0] in trained)
        return held + (budget(len(every)).steps if one else 0)

    def run(self) -> PhotoClassifier:
        """All parts."""
        self.features = frozen_features(
            self.base, self.store, self.settings.seed, augment=self.settings.augment,
            progress=lambda done, total: self.prepare("features", done, total),
        )  # fmt: skip
        found = {method: held for method in self.methods if (held := self._judged(method)) is not None}
        best = best_of(found) if found else None
        method = best.method if best is not None else self.methods[0]
        everything = HeldOutSplit(list(range(len(self.store))), [])
        network, state = self._part(f"{method}/all", method, everything, best.evaluation if best is not None else None)
        scale, threshold = DEFAULT_TEMPERATURE, 0.0
        metrics = {"images": float(len(self.store))}
        if best is not None:
            scale, threshold = best.temperature, rejection_threshold(best.probabilities, best.labels)
            metrics |= {"accuracy": best.accuracy, "nll": best.nll, "held_out": float(len(best.numbers))}
        pack = make_pack(network, self.settings.task or "", self.store.classes, metrics, self.settings.precision)
        if pack.precision == "fp16":
            swap(network, pack)  # predict as the file will
        pack.photos.update(photos_header(self.base, method, scale, threshold, as_header(self.settings)))
        classifier = PhotoClassifier(pack, network, self.base.preprocessing)
        compared = comparison(found, best) if best is not None and len(found) > 1 else []
        classifier.report_ = FitReport(self.store, self.settings, best, state, compared, self.checkpoint.seconds)
        return classifier

    def _judged(self, method: MethodName) -> HeldOut | None:
        states = [self._part(f"{method}/{number}", method, split, None)[1] for number, split in enumerate(self.splits)]
        return judge(method, self.splits, states, self.store.labels) if states else None

    def _part(
        self, name: str, method: MethodName, split: HeldOutSplit, evaluation: int | None
    ) -> tuple[torch.nn.Module, TrainingState]:
        """Train on a split, or take what the checkpoint has of it."""
        network = attach(copy.deepcopy(self.base.network), self.base.classifier, method, self.settings.seed)
        plan = plan_for(method, len(split.train))
        steps = plan.budget.evaluation_steps()[-1 if evaluation is None else evaluation]
        trainer = Trainer(
            network, self.base.classifier, plan, self.store, self.base.preprocessing, split.train, split.held_out,
            self.features, seed=self.settings.seed, augment=self.settings.augment, last_step=steps,
        )  # fmt: skip
        if name in self.checkpoint.done:
            trainer.load_state_dict(self.checkpoint.done[name])
            self.advance(None, trainer)
            return network.eval(), trainer.state
        if self.checkpoint.current is not None and self.checkpoint.current[0] == name:
            trainer.load_state_dict(self.checkpoint.current[1])
        else:
            trainer.start()
        self.advance(None, trainer)

        def after_step(loss: float) -> None:
            self.checkpoint.update(name, trainer)
            try:
                self.advance(loss, trainer)
            except BaseException:
                self.checkpoint.update(name, trainer, now=True)
                raise

        trainer.run(after_step)
        state = {**trainer.state_dict(), "optimizer": None}
        self.checkpoint.finish(name, {**state, "tensors": None} if split.held_out else state)
        return network, trainer.state


def fit_key(settings: FitSettings, base: Pretrained, store: PhotoStore) -> str:
    """What the parts of a fit depend on, as a hash: metakm's version, the settings, the base's tensors, the photos."""
    tensors = base_fingerprint(base.network, False, base.classifier, "base")
    chosen = {name: value for name, value in as_header(settings).items() if name not in ("device", "task")}
    text = json.dumps([version("metakm"), chosen, tensors, store.digest], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()
