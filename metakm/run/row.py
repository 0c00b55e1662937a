"""The row of one run: its columns, in order."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, get_args, get_type_hints

from metakm.errors import UserError, unknown_name
from metakm.io.csv_file import csv_text, read_csv
from metakm.io.files import expanded

if TYPE_CHECKING:
    from typing_extensions import Self

Status = Literal["running", "interrupted", "failed", "done"]


class CsvRow:
    """A frozen dataclass whose fields are the columns of a table: int, str, bool, or float, with None for a gap.

    FILE: name of a run's file of one row; FINISHED: the numbers that a finished run must have; FORMER: columns of
    older files, which are ignored.
    """

    FILE: ClassVar[str]
    FINISHED: ClassVar[tuple[str, ...]]
    FORMER: ClassVar[frozenset[str]] = frozenset()

    @classmethod
    def columns(cls) -> tuple[str, ...]:
        """The columns, in order."""
        return tuple(field.name for field in fields(cls))  # type: ignore[arg-type]

    def to_csv(self) -> str:
        """Header and row."""
        values = {name: getattr(self, name) for name in self.columns()}
        missing = {name: None for name, value in values.items() if isinstance(value, float) and math.isnan(value)}
        return csv_text([values | missing], self.columns())

    @classmethod
    def files_below(cls, folder: str | Path) -> tuple[Path, list[Path]]:
        """A folder of results, with ~ as the user's home, and every file of such a row below it, sorted.

        Raises:
            UserError: it is not a folder.
        """
        folder = expanded(folder, "the folder of results")
        if not folder.is_dir():
            raise UserError(f"Expected a folder of results, got {folder}; give the --out of your runs")
        return folder, sorted(folder.rglob(cls.FILE))

    @classmethod
    def read(cls, path: Path) -> Self:
        """The row in a file of one row.

        Raises:
            UserError: a file that cannot be read, with another number of rows, or with cells that are no such row.
        """
        lines = read_csv(path)
        if len(lines) != 1:
            raise UserError(f"Expected one row, got {len(lines)}; give each run its own folder")
        return cls.from_cells(lines[0])

    @classmethod
    def from_cells(cls, cells: Mapping[str, str]) -> Self:
        """Inverse of `to_csv` for one line, given as the text of each column.

        A column with a default may be missing: it was added after this row was written; its default is assumed.

        Raises:
            UserError: a missing or unknown column, or a text that is no value of the column's type.
        """
        defaults = {field.name: field.default for field in fields(cls)}  # type: ignore[arg-type]
        cells = {name: text for name, text in cells.items() if name not in cls.FORMER}
        for name in cells:
            if name not in defaults:
                raise UserError(f"Expected the columns of a run's row, got {name!r}; is the file another program's?")
        for name, default in defaults.items():
            if name not in cells and default is MISSING:
                raise UserError(f"Expected a column {name!r}, got none; is this the row of a run?")
        hints = get_type_hints(cls)
        return cls(**{name: _value(name, text, hints[name]) for name, text in cells.items()})


@dataclass(frozen=True, kw_only=True)
class ResultRow(CsvRow):
    """One run. Accuracies are fractions; None is a number that was not measured, an empty cell in the file."""

    FILE: ClassVar[str] = "result.csv"
    FINISHED: ClassVar[tuple[str, ...]] = ("accuracy", "ci95")

    run_id: str
    status: Status
    algo: str
    dataset: str
    ways: int
    shots: int
    queries: int
    seed: int
    preset: str
    backbone: str
    bn_mode: str
    first_order: bool
    inner_lr: float
    inner_steps: int
    test_inner_steps: int
    meta_batch: int
    meta_lr: float
    iterations: int
    adapted_parameters: int
    total_parameters: int
    val_accuracy: float | None  # meta-validation accuracy of the model that was tested, see `select`
    accuracy: float | None  # mean over the meta-test tasks
    ci95: float | None  # half-width of the 95 % interval of that mean over tasks
    n_tasks: int
    train_seconds: float  # wall time of meta-training, validation included
    ms_per_iteration: float | None  # mean wall time of a meta-training iteration, validation excluded
    peak_memory_mb: float  # largest resident set of the process, or allocation on the GPU; 10^6 bytes
    device: str  # this and the next four: `a + b` for a run that was resumed with another
    threads: str
    torch_version: str
    metakm_version: str
    git_commit: str
    split_hash: str
    episodes_hash: str  # of the meta-test episodes
    started_at: str  # UTC, ISO 8601
    test_queries: int = 0  # of each class in meta-validation and meta-test; 0: `queries`
    select: str = "best"  # which model was tested: the best on meta-validation, or the last
    changes: str | None = None  # JSON: the settings that differ from the preset's; None: not recorded (older runs)
    init_weights: str = ""  # fingerprint of the weights that the run started from; empty: by its seed
    stopped: str = ""  # after how many iterations the training was stopped early, and why; empty: it had all of them
    trained_on: str = ""  # setting of the meta-training, if tested on another dataset, such as mini-imagenet-5w1s
    tested_as: str = ""  # what the test did differently: grey, head (adapted alone)
    trained_split_hash: str = ""  # of the data of the meta-training, if tested on another dataset


COLUMNS = ResultRow.columns()


def _value(name: str, text: str, hint: Any) -> Any:
    """The value that `to_csv` wrote as `text`."""
    try:
        if text == "" and type(None) in get_args(hint):
            return None
        if int in (hint, *get_args(hint)):
            return int(text)
        if hint is bool:
            return {"True": True, "False": False}[text]
        if float in (hint, *get_args(hint)):
            return _finite(text)
    except (KeyError, ValueError) as error:
        raise UserError(f"Expected column {name} to be {hint}, got {text!r}; was the file changed?") from error
    if hint == Status and text not in get_args(Status):
        raise unknown_name(f"column {name}", text, get_args(Status))
    if not text.isprintable():
        raise UserError(f"Expected column {name} to be printable, got {text!r}; was the file changed?")
    return text


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(text)
    return value
