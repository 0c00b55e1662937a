"""How and where a run is executed, which does not change what it computes; alike for every kind of run."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import get_type_hints

from metakm.errors import UserError
from metakm.fields import flag
from metakm.io.files import expanded


@dataclass(frozen=True, kw_only=True)
class ExecutionOptions:
    """Flags that a resumed run may change."""

    device: str = "auto"
    """auto, cpu, cuda or cuda:<n>. auto is the first GPU if there is one, else the CPU."""
    data_root: Path | None = None
    """Folder with the data. Without it: the environment variable METAKM_DATA, else the user's cache folder."""
    out: Path = Path("results")
    """Folder for results; each run has a folder of its own in it."""
    resume: bool = False
    """Continue from the checkpoint; the results equal those of an uninterrupted run. A finished run stays as it is, unless metakm.run is given more --iterations (docs/training.md)."""
    overwrite: bool = False
    """Replace an earlier run in the run folder. Without it an earlier run is never touched."""
    dry_run: bool = False
    """Print the config, parameter counts and an estimate of time and memory, write nothing, and stop."""
    log_dir: Path | None = None
    """Folder for TensorBoard event files of loss, accuracies and ms per iteration, in <log-dir>/<run id>/; needs tensorboard."""
    quiet: bool = False
    """Show no progress on standard error; errors and the result are still printed."""
    json: bool = False
    """For scripts: standard output has one JSON object per line, for progress, each validation and the result, and nothing else."""

    def __post_init__(self) -> None:
        _take_values(self)
        if self.resume and self.overwrite:
            raise UserError("Expected --resume or --overwrite, got both; drop one of them")


def _take_values(config: ExecutionOptions) -> None:
    """Make paths of strings, with ~ as the home, and 1.0 of 1 where a field is a float; in derived classes, too."""
    for name, kind in get_type_hints(type(config)).items():
        value = getattr(config, name)
        if kind == tuple[Path, ...]:
            value = tuple(expanded(p, flag(name)) for p in ((value,) if isinstance(value, str | Path) else value))
        elif kind in (Path, Path | None) and isinstance(value, str | Path):
            value = expanded(value, flag(name))
        elif kind is float and type(value) is int:  # 1 and 1.0 are one value, with one run id
            value = float(value)
        object.__setattr__(config, name, value)


def how_to_resume(options: ExecutionOptions) -> str:
    """How to change the command of a run so that it continues."""
    change = "replace --overwrite by --resume in" if options.overwrite else "add --resume to"
    return f"{change} the same command"


SHARED_EXECUTION_FIELDS = frozenset(field.name for field in dataclasses.fields(ExecutionOptions))
