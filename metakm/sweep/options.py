"""The options of a sweep, from which its flags and help derive. Flags of `metakm.run` are passed to every run."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import tyro

from metakm.cli.flags import list_given, read_some_options
from metakm.config import all_flat_types
from metakm.data import available_datasets
from metakm.errors import UserError, did_you_mean, unknown_name
from metakm.fields import flag as flag_of
from metakm.fields import off_flag, require
from metakm.io.files import expanded
from metakm.registry import load_plugin

TABLE3_DATASETS = ("omniglot", "mini-imagenet")
Names = Annotated[tuple[str, ...], tyro.conf.arg(help_behavior_hint="(default: none)")]
ExecutorName = Literal["local", "debug", "slurm"]
_PER_RUN = ("seed", "resume", "overwrite")  # fields of a run that the sweep itself sets


@dataclass(frozen=True, kw_only=True)
class SweepOptions:
    """Run strategies x settings x seeds: those missing or interrupted.

    python -m metakm.sweep [table3 | DATASET] [OPTIONS] [OPTIONS of metakm.run]

    table3: omniglot 20-way and mini-imagenet 5-way, 1 and 5 shots, --preset table3.

    Options of metakm.run, such as --preset paper, apply to every run.
    """

    algo: tuple[str, ...] = ("maml", "anil", "km")
    """Strategies."""
    dataset: Names = ()
    """Datasets, unless the first argument names one."""
    ways: int | None = None
    """Classes per episode. Default: 20 for characters, 5 for photographs."""
    shots: tuple[int, ...] = (1, 5)
    """Support images per class."""
    seeds: int = 3
    """Number of seeds, counted from 0."""
    dry_run: bool = False
    """Show the plan with time estimates measured on this machine, and stop. Writes no results; may decode data."""
    status: bool = False
    """Show the progress of the sweep and when it will be done, from the files of its runs, and stop."""
    executor: ExecutorName = "local"
    """local: processes on this machine; slurm: jobs on a cluster; debug: one after another in this process."""
    jobs: int | None = None
    """Runs at a time. Without it: one for each GPU, or one, on local; all on slurm."""
    cpus_per_task: int | None = None
    """CPU cores of a run. Without it: on local OMP_NUM_THREADS, or cores divided by jobs; on slurm its default."""
    gpus_per_node: int = 0
    """GPUs per run, on slurm."""
    partition: str = ""
    """Partition, on slurm."""
    time: int | None = None
    """Time limit of a slurm job in minutes; after that it is requeued and resumes. Without it: 240."""
    poll_seconds: int = 15
    """Seconds between two queries to slurm about the jobs."""
    slurm: Names = ()
    """Further sbatch options as NAME=VALUE, such as account=lab."""

    def __post_init__(self) -> None:
        least = {"seeds": 1, "jobs": 1, "cpus_per_task": 1, "gpus_per_node": 0, "time": 1, "poll_seconds": 1}
        for field, low in least.items():
            value = getattr(self, field)
            require(value is None or value >= low, field, f"at least {low}", value)
        for field in ("algo", "shots"):
            if not getattr(self, field):
                raise UserError(f"Expected {flag_of(field)} to name at least one, got none; name one")
        for name in self.dataset:
            if name not in available_datasets():
                raise unknown_name("--dataset", name, available_datasets())
        for option in self.slurm:
            if not option.partition("=")[0] or "=" not in option:
                raise UserError(f"Expected --slurm NAME=VALUE, got {option!r}; write it in this form")
        for field in ("partition", "gpus_per_node", "time", "slurm"):
            if self.executor != "slurm" and getattr(self, field):
                raise UserError(f"Expected {flag_of(field)} with --executor slurm, got --executor {self.executor}")
        if self.dry_run and self.status:
            raise UserError("Expected --dry-run or --status, got both; drop one of them")
        if self.executor == "debug" and (self.jobs or 1) > 1:
            raise UserError(f"Expected --jobs 1 with --executor debug, got {self.jobs}; debug runs one after another")


def parse_sweep(arguments: Sequence[str]) -> tuple[SweepOptions, list[str]]:
    """The options of the sweep, and the arguments for every run.

    Raises:
        UserError: an unknown name or flag, a value out of range, or no dataset.
    """
    for plugin in list_given(arguments, "plugin"):
        load_plugin(expanded(plugin, "--plugin"))  # whose datasets are known from here on
    first, flags = (arguments[0], arguments[1:]) if arguments and arguments[0][:1] != "-" else ("", arguments)
    if first and any(flag.partition("=")[0] == "--dataset" for flag in flags):
        raise UserError(f"Expected {first!r} or --dataset, got both; drop one of them")
    if first not in ("", "table3", *available_datasets()):
        raise unknown_name("sweep", first, ("table3", *available_datasets()))
    datasets = TABLE3_DATASETS if first == "table3" else (first,)
    named = ["--dataset", *datasets] if first else []
    options, rest = read_some_options(SweepOptions, "python -m metakm.sweep", [*named, *flags])
    if first == "table3" and not any(flag.partition("=")[0] == "--preset" for flag in rest):
        rest = ["--preset", "table3", *rest]
    check_flags(rest, SweepOptions, _PER_RUN)
    return options, rest


def check_flags(rest: Sequence[str], options: type[Any], set_here: Collection[str]) -> None:
    """Raise for a flag that neither the command nor a run has; the run's parser checks the rest.

    Args:
        options: the dataclass of the command's own flags.
        set_here: fields of a run that the command itself sets.
    """
    fields = {name: hint for name, hint in all_flat_types().items() if name not in set_here}
    of_run = {flag_of(name) for name in fields}
    off = {off_flag(name) for name, hint in fields.items() if hint is bool}  # where the preset has it on
    own = {flag_of(f.name) for f in dataclasses.fields(options)}
    for argument in rest:
        flag = argument.partition("=")[0].replace("_", "-")
        if flag in {flag_of(name) for name in set_here}:
            remedy = did_you_mean(flag, own, otherwise="; leave it out")
            raise UserError(f"{flag} is set by this command for each run{remedy}")
        if flag.startswith("--") and "." not in flag and flag not in of_run | off:  # --mine.x: maybe a plugin's
            hint = did_you_mean(flag, of_run | own, otherwise="; --help lists them")
            raise UserError(f"Expected a flag of this command or of metakm.run, got {flag!r}{hint}")
