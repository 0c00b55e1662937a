"""What distinguishes one kind of run from another: what it measures, says and writes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from metakm.run.curve import CurvePoint
from metakm.run.row import CsvRow, Status

Accuracies = npt.NDArray[np.float64]


class RunKind(ABC):
    """The part of `metakm.run.training_run.TrainingRun` that each kind of run defines."""

    stage: ClassVar[str] = ""
    """How the names of training, validation and test begin, such as `meta-`."""
    test_unit: ClassVar[str] = "image"
    validates_first: ClassVar[bool] = False
    """Whether there is a validation before the first iteration."""
    remedy: ClassVar[str] = ""
    """What to try with a checkpoint that does not fit, before starting again."""

    @abstractmethod
    def validation_accuracy(self) -> float:
        """Accuracy on the validation part, after the iterations so far."""

    @abstractmethod
    def test_accuracies(self, progress: Callable[[int], None]) -> Accuracies:
        """Accuracy of each test task or image, `[test_total]`; raises what `progress` raises."""

    @property
    @abstractmethod
    def test_total(self) -> int:
        """Test tasks or images; 0: this run is not tested."""

    @abstractmethod
    def announcement(self) -> str:
        """What the run is about to do, in lines, after its id."""

    @abstractmethod
    def row(self, status: Status, tested: Accuracies | None) -> CsvRow:
        """The run's row as of now."""

    @abstractmethod
    def summary(self, row: dict[str, Any], ending: str) -> str:
        """One line for standard output, once the run is done."""

    def how_to_reproduce(self) -> str:
        """The command that reproduces a failure, as the end of a sentence; empty where there is none to give."""
        return ""

    def write_results(self, tested: Accuracies | None) -> None:
        """Write the files beside the row, once the run is done."""
        del tested

    def keep(self, point: CurvePoint) -> None:
        """Take note of a validation."""
        del point

    def own_state(self) -> dict[str, Any]:
        """What else belongs in a checkpoint."""
        return {}

    def load_own_state(self, state: dict[str, Any]) -> None:
        """Inverse of `own_state`."""
        del state
