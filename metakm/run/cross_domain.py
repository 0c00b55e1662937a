"""A run tested on other data than its own: what must fit, and the row that says so."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from metakm.config import RunConfig
from metakm.data.registry import dataset_entry
from metakm.errors import UserError
from metakm.fields import require_writable_folder
from metakm.learning.evaluation import Evaluation
from metakm.models.registry import ImageShape
from metakm.presets import changes_from_preset
from metakm.run import provenance
from metakm.run.folder import RunFolder
from metakm.run.loading import TrainedRun
from metakm.run.row import ResultRow
from metakm.strategies.registry import strategies_of_any_ways

OUT = Path("results/cross-domain")
_TEST = {"n_tasks": "eval_tasks", "test_queries": "test_queries", "test_inner_steps": "test_inner_steps"}
"""Columns of a row that say how it was tested, and the fields of a config that they are from."""
_DATA = ("image_size", "split", "split_seed")
"""Fields of a config that belong to its dataset."""


def require_trained_ways(run: TrainedRun, ways: int | None) -> None:
    """Refuse ways that the head was not trained for.

    Raises:
        UserError: names the strategy, and those whose head takes any number.
    """
    own, algo = run.config.ways, run.config.algo
    if ways not in (None, own) and not run.strategy.any_ways:
        raise UserError(
            f"Expected --ways {own}, for which the head of {algo!r} was trained, got {ways}; leave --ways out, or take "
            f"a run of {', '.join(strategies_of_any_ways())}, whose heads take any number"
        )


def require_shape(shape: ImageShape, run: TrainedRun, config: RunConfig) -> None:
    """Refuse images of another shape than the run was trained on.

    Raises:
        UserError: says by which flags they would fit.
    """
    if shape == run.image_shape:
        return
    said = f"Expected images of {list(run.image_shape)}, which the run was trained on, got {list(shape)}"
    if config.dataset == run.config.dataset and config.image_size == run.config.image_size:
        raise UserError(f"{said}; name the run's data by --data-root")
    flags = [] if shape[0] == run.image_shape[0] else ["--grey"]
    if shape[1:] != run.image_shape[1:]:
        if not dataset_entry(config.dataset).resized:
            raise UserError(f"{said} of {config.dataset}, which has this size alone; take a run on images of its size")
        flags.append(f"--image-size {run.image_shape[1]}")
    raise UserError(f"{said} of {config.dataset}; add {' '.join(flags)}")


@dataclasses.dataclass(frozen=True)
class CrossDomainRow:
    """Where the row of a run that is tested on another dataset goes, and what it takes over from the run's own row.

    Args:
        out: a folder for such rows; each is in a folder named for its run, then for the setting that is tested.
        config: the run's, with what is tested in the place of its own.
        tested_as: what else was done differently, such as grey.

    Raises:
        UserError: on construction, for a run that is not finished, a folder that cannot be written, or a row there of
            another number of tasks, test queries or inner steps.
    """

    run: TrainedRun
    config: RunConfig
    tested_as: tuple[str, ...]
    out: Path
    _own: dict[str, Any] = dataclasses.field(init=False, repr=False)

    def __post_init__(self) -> None:
        own = RunFolder(self.run.folder).read_row()
        if own is None or own["status"] != "done":
            raise UserError(
                f"Expected a finished run to test on {self.config.dataset}, got {self.run.folder} with "
                f"{'no row' if own is None else 'status ' + own['status']}; finish it by --resume"
            )
        object.__setattr__(self, "_own", own)
        there = RunFolder(self.path).read_row()
        test = {name: getattr(self.config, field) for name, field in _TEST.items()}
        test["test_queries"] = self.config.queries_of("test")
        if there is not None:
            there["test_queries"] = there["test_queries"] or there["queries"]
        if there is not None and any(there[name] != value for name, value in test.items()):
            listed = " and ".join(", ".join(f"{name} {values[name]}" for name in _TEST) for values in (there, test))
            raise UserError(f"Expected a test like that in {self.path}, got another ({listed}); choose another --out")
        require_writable_folder(self.path, "out")

    @property
    def path(self) -> Path:
        """Folder of the row."""
        run_id: str = self._own["run_id"]
        return self.out / run_id / "-".join((self.config.setting, *self.tested_as))

    def write(self, measured: dict[str, Any], tested: Evaluation) -> ResultRow:
        """Write result.csv and tasks.csv, in the place of earlier ones."""
        folder = RunFolder(self.path)
        both = provenance.both({name: self._own[name] for name in provenance.ORIGIN}, measured)
        row = ResultRow(**{**self._own, **measured, **both, **self._columns()})
        folder.write_tasks(tested.accuracies)
        folder.write_row(row)
        return row

    def _columns(self) -> dict[str, Any]:
        """Those that neither the training nor the test has as they are; changes are those of the run's own preset."""
        own = self.run.config
        setting = {name: getattr(own, name) for name in ("dataset", "ways", "shots", *_DATA)}
        return {
            "run_id": f"{self._own['run_id']}-on-{self.path.name}",
            "changes": json.dumps(changes_from_preset(dataclasses.replace(self.config, **setting))),
            "trained_on": own.setting,
            "trained_split_hash": self._own["split_hash"],
            "tested_as": " ".join(self.tested_as),
        }
