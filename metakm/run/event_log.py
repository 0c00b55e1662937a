"""A run's progress for other programs: TensorBoard event files, and JSON lines on standard output.

The same figures as a table are in the run folder's curve.csv.
"""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Iterator, Mapping
from typing import Any

from metakm.config import ExecutionOptions
from metakm.errors import UserError
from metakm.fields import require_writable_folder
from metakm.run.curve import CurvePoint


class EventLog:
    """Writes what `--log-dir` and `--json` ask for; without them it does nothing.

    TensorBoard's files are in `<log_dir>/<run_id>/`; a resumed run continues in a new file there, and what was
    logged after the checkpoint is marked as replaced. They are appended to, as TensorBoard does, and so the only
    files that may end in half a record when a process is killed; TensorBoard reads up to it.

    Args:
        stage: how the names of training, validation and test begin.
        files: False writes none, whatever the options ask for.

    Raises:
        UserError: `--log-dir` without tensorboard installed, or a folder that cannot be written.
    """

    def __init__(self, options: ExecutionOptions, run_id: str, stage: str = "meta-", *, files: bool = True) -> None:
        self.json, self.stage = options.json, stage
        self.folder = options.log_dir / run_id if files and options.log_dir is not None else None
        self._writer: Any = None
        self._reached = 0  # iterations of the training so far
        if self.folder is not None:
            _summary_writer()
            require_writable_folder(self.folder, "log_dir")

    @contextlib.contextmanager
    def writing(self, step: int) -> Iterator[None]:
        """Keep TensorBoard's file open; earlier events of this run from iteration `step` on no longer count."""
        self._reached = max(0, step - 1)
        if self.folder is not None:
            self._writer = _summary_writer()(str(self.folder), purge_step=step)
        try:
            yield
        finally:
            if self._writer is not None:
                self._writer.close()

    def log_iteration(self, iteration: int, loss: float, accuracy: float, seconds: float) -> None:
        """One meta-training iteration, to TensorBoard alone."""
        self._reached = iteration
        figures = {"loss": loss, "accuracy": accuracy, "ms_per_iteration": 1000 * seconds}
        self._scalars(f"{self.stage}train", iteration, figures)

    def log_progress(self, figures: Mapping[str, Any]) -> None:
        """Where meta-training or meta-test stands, now and then (see `Progress`), as a JSON line alone."""
        self.print_json("progress", figures)

    def log_validation(self, point: CurvePoint) -> None:
        """One point of the learning curve."""
        if point.validated:
            self._scalars(f"{self.stage}val", point.iteration, {"accuracy": point.val_accuracy})
        self.print_json("validation", point._asdict())

    def log_result(self, row: Mapping[str, Any]) -> None:
        """The run's row, whatever its status; TensorBoard has its test at the iteration reached."""
        if row["accuracy"] is not None:
            self._scalars(f"{self.stage}test", self._reached, {"accuracy": row["accuracy"]})
        self.print_json("result", row)

    def print_json(self, event: str, values: Mapping[str, Any]) -> None:
        """Print one JSON object on standard output, if asked to."""
        if self.json:
            known = {name: None if _is_nan(value) else value for name, value in values.items()}
            print(json.dumps({"event": event, **known}, allow_nan=False), flush=True)  # noqa: T201

    def _scalars(self, group: str, iteration: int, figures: Mapping[str, float]) -> None:
        if self._writer is not None:
            for name, value in figures.items():
                self._writer.add_scalar(f"{group}/{name}", value, iteration)


def _is_nan(value: object) -> bool:
    return isinstance(value, float) and math.isnan(value)


def _summary_writer() -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter  # an optional part, and slow to import
    except ImportError as error:
        raise UserError(
            f"Expected tensorboard for --log-dir, got {error}; run `pip install 'metakm[tensorboard]'`, or drop "
            "--log-dir (curve.csv in the run folder has the learning curve)"
        ) from error
    return SummaryWriter
