"""The options of a search, from which its flags and help derive. Flags of `metakm.run` are passed to every trial."""

from __future__ import annotations

import dataclasses
import math
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from metakm.cli.flags import read_some_options
from metakm.config import all_flat_types
from metakm.data import available_datasets
from metakm.errors import UserError, unknown_name
from metakm.fields import flag as flag_of
from metakm.fields import off_flag, require
from metakm.sweep.options import check_flags

PROG = "python -m metakm.search"
_PER_TRIAL = ("seed", "out", "resume", "overwrite", "dry_run", "json", "log_dir", "eval_tasks", "patience")


@dataclass(frozen=True, kw_only=True)
class SearchOptions:
    """Choose hyper-parameters of strategies on meta-validation.

    python -m metakm.search --space SPACE [OPTIONS] [OPTIONS of metakm.run]

    The same command continues a search; --trials and --seconds may be raised.

    Several processes can share one search. The meta-test is never used.

    Options of metakm.run, such as --iterations 500, apply to every trial.
    """

    space: str
    """What to vary: table3-characters, table3-photographs, or a TOML file in which each field of a run has [choices] or {low=, high=, log=}."""  # noqa: E501
    algo: tuple[str, ...] = ("maml", "anil", "km")
    """Strategies. km-proto next to km is not searched: it takes the values of km's winner."""
    dataset: str = "glyphs"
    """Dataset."""
    ways: int | None = None
    """Classes per episode. Default: 20 for characters, 5 for photographs."""
    shots: int = 1
    """Support images per class."""
    trials: int = 20
    """Trials per strategy, including pruned and diverged ones. The first has the values of the preset, if they lie in the space."""  # noqa: E501
    seconds: float = 0.0
    """Training seconds per strategy, over all calls, after which none of its trials starts. 0: no limit."""
    tasks: int = 200
    """Meta-validation tasks to measure a trained trial on, the same for all."""
    test_steps: tuple[int, ...] = (5, 10, 20, 50)
    """Numbers of inner steps to measure a trained trial with; the best is kept."""
    seed: int = 0
    """Seed of the proposals, and of the weights and episodes of every trial."""
    out: Path | None = None
    """Folder for the search. Default: search/<dataset>-<ways>w<shots>s."""

    def __post_init__(self) -> None:
        for field, low in {"trials": 1, "tasks": 2}.items():
            require(getattr(self, field) >= low, field, f"at least {low}", getattr(self, field))
        require(math.isfinite(self.seconds) and self.seconds >= 0, "seconds", "0 or more", self.seconds)
        for field in ("algo", "test_steps"):
            if not getattr(self, field):
                raise UserError(f"Expected {flag_of(field)} to name at least one, got none; name one")
        for steps in self.test_steps:
            require(0 <= steps <= 10_000, "test_steps", "from 0 to 10000", steps)
        if self.dataset not in available_datasets():
            raise unknown_name("--dataset", self.dataset, available_datasets())


def parse_search(arguments: Sequence[str]) -> tuple[SearchOptions, list[str]]:
    """The options of the search, and the arguments for every trial.

    Raises:
        UserError: an unknown name or flag, or a value out of range.
    """
    options, rest = read_some_options(SearchOptions, PROG, arguments)
    check_flags(rest, SearchOptions, _PER_TRIAL)
    return options, rest


def search_command(options: SearchOptions, rest: Sequence[str]) -> str:
    """The shell command of a search; the inverse of `parse_search`."""
    words = PROG.split()
    for field in dataclasses.fields(options):
        value = getattr(options, field.name)
        if value != field.default:
            words += [flag_of(field.name), *map(str, value if isinstance(value, tuple) else [value])]
    return shlex.join([*words, *rest])


def fields_given(rest: Sequence[str]) -> frozenset[str]:
    """The fields of a run whose flags were given."""
    words = {argument.partition("=")[0].replace("_", "-") for argument in rest}
    return frozenset(name for name in all_flat_types() if {flag_of(name), off_flag(name)} & words)
