"""One trial: meta-training with its values, then its accuracy on meta-validation. No meta-test, no row."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd

from metakm.cli.progress import Progress
from metakm.cli.signals import Stoppable, stop_on_request
from metakm.config import RunConfig
from metakm.device import resolve_device
from metakm.errors import UserError
from metakm.io.files import write_text
from metakm.learning.divergence import DivergedError
from metakm.learning.memory import TooLittleMemoryError
from metakm.learning.outer_loop import OuterLoop
from metakm.run import provenance
from metakm.run.build import build_learner, make_sampler, require_fitting
from metakm.run.checkpoint import data_state, load_checkpoint, restoring, save_checkpoint
from metakm.run.earlier_run import warm_start
from metakm.run.folder import RunFolder
from metakm.run.history import History

VALIDATION = "validation.csv"
TrialEnding = Literal["done", "pruned", "diverged", "out of memory", "refused"]
"""How a trial ended; refused: its values do not go together."""
AccuraciesBySteps = dict[int, npt.NDArray[np.float64]]  # [tasks] by inner steps


class TrialOutcome(NamedTuple):
    """How a trial ended; `accuracies` are empty unless it is done."""

    state: TrialEnding
    seconds: float
    accuracies: AccuraciesBySteps
    note: str = ""

    @property
    def best_steps(self) -> int:
        """The inner steps with the best mean accuracy, the fewest of equals."""
        return max(self.accuracies, key=lambda steps: (self.accuracies[steps].mean(), -steps))


class TrialRun:
    """Trains one trial in its folder, from its checkpoint if there is one.

    Args:
        tasks: meta-validation tasks of the measurement at the end.
        test_steps: inner steps to measure with.

    Raises:
        UserError: the checkpoint is damaged, or of other data.
    """

    def __init__(self, config: RunConfig, folder: RunFolder, tasks: int, test_steps: Sequence[int]) -> None:
        self.config, self.folder, self.tasks, self.test_steps = config, folder, tasks, test_steps
        self.samplers = {split: make_sampler(config, split) for split in ("train", "val")}
        require_fitting(config, self.samplers)
        dataset = self.samplers["train"].dataset
        learner = build_learner(config, dataset.image_shape, dataset.n_episode_classes)
        warm_start(learner, config, {"val": self.samplers["val"].dataset})
        self._split_hashes = {split: sampler.dataset.split_hash for split, sampler in self.samplers.items()}
        self.loop = OuterLoop(learner, self.samplers["train"], config, resolve_device(config.device))
        self.history = History(provenance.origin(self.loop.device))
        if folder.checkpoint.exists():
            self._load()
        folder.write_config(config.to_json())

    def run(self, stop: Stoppable, should_prune: Callable[[int, float], bool], name: str) -> TrialOutcome | None:
        """Train and measure; None when asked to stop, with the state saved.

        Args:
            should_prune: called with a validation's iteration and accuracy, maybe twice; whether to give it up.
            name: of the trial, for the progress.
        """
        try:
            if self._train(stop, should_prune, name):
                return TrialOutcome("pruned", self.history.train_seconds, {})
            return None if stop.requested else self._measure(stop)
        except DivergedError as error:
            return TrialOutcome("diverged", self.history.train_seconds, {}, str(error))
        except TooLittleMemoryError as error:
            return TrialOutcome("out of memory", self.history.train_seconds, {}, str(error))
        except StopIteration:
            return None

    def _train(self, stop: Stoppable, should_prune: Callable[[int, float], bool], name: str) -> bool:
        """Whether the trial was given up."""
        config, loop = self.config, self.loop
        if self.history.curve:  # the run may have been killed before this was called with the last
            last = self.history.curve[-1]
            if should_prune(last.iteration, last.val_accuracy):
                return True
        with Progress(name, config.iterations, loop.iteration, quiet=config.quiet) as progress:
            while loop.iteration < config.iterations and not stop.requested:
                result, _ = self.history.step(loop)
                progress.advance(1, result.loss, result.accuracy)
                if loop.iteration % config.val_every == 0 and loop.iteration < config.iterations:
                    point = self.history.validate(loop.iteration, self._validation_accuracy)
                    self._save()
                    if should_prune(point.iteration, point.val_accuracy):
                        return True
                elif self.history.save_due:
                    self._save()
        self._save()
        return False

    def _validation_accuracy(self) -> float:
        return float(self.loop.accuracies(self.samplers["val"], self.config.val_tasks).mean())

    def _measure(self, stop: Stoppable) -> TrialOutcome:
        """Raises StopIteration when asked to stop."""
        began = time.monotonic()
        accuracies = {steps: self._accuracies(steps, stop) for steps in self.test_steps}
        seconds = self.history.train_seconds + time.monotonic() - began
        outcome = TrialOutcome("done", seconds, accuracies)
        table = pd.DataFrame({str(steps): values for steps, values in accuracies.items()})
        write_text(self.folder.path / VALIDATION, table.to_csv(index_label="task"))
        self.history.validate(self.loop.iteration, lambda: float(accuracies[outcome.best_steps].mean()))
        self.folder.write_curve(self.history.curve)
        return outcome

    def _accuracies(self, steps: int, stop: Stoppable) -> npt.NDArray[np.float64]:
        return self.loop.accuracies(self.samplers["val"], self.tasks, stop_on_request(stop, lambda _: None), steps)

    def _save(self) -> None:
        save_checkpoint(self.folder.checkpoint, self.config, self._state())
        self.folder.write_curve(self.history.curve)
        self.history.saved()

    def _state(self) -> dict[str, Any]:
        return {**self.history.state(), **data_state(self._split_hashes), "loop": self.loop.state()}

    def _load(self) -> None:
        path = self.folder.checkpoint
        state = load_checkpoint(path, self.config)
        with restoring(path, state, self._split_hashes, self.config.algo):
            self.history.load_state(state)
            self.loop.load_state(state["loop"])


def read_accuracies(folder: Path, steps: int) -> npt.NDArray[np.float64]:
    """Meta-validation accuracies `[tasks]` of a trial that is done, with these inner steps.

    Raises:
        UserError: no such file, or one that no trial writes.
    """
    path = folder / VALIDATION
    try:
        return pd.read_csv(path)[str(steps)].to_numpy(dtype=np.float64)
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"Expected the accuracies of a trial in {path}, got {error}; restore it") from error
