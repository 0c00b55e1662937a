"""The flags of `metakm evaluate`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from metakm.cli.flags import list_given, read_options
from metakm.data.registry import available_datasets
from metakm.errors import UserError

Split = Literal["val", "test"]
Adapted = Literal["all", "head"]


@dataclass(frozen=True, kw_only=True)
class EvaluateOptions:
    """Test a trained run again, and compare with its row, or test it on other data.

    Only a meta-test on another --dataset writes anything: a row below --out.
    """

    run: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """Folder of the run: it has config.json, and weights.safetensors or checkpoint.pt."""
    split: Split = "test"
    """test: the meta-test tasks; val: the meta-validation tasks, for choosing --test-inner-steps. Not the --split of metakm.run."""  # noqa: E501
    dataset: str | None = None
    """Another dataset to draw the tasks from. Without it: the run's."""
    ways: int | None = None
    """Classes per task, if the strategy's head takes any number. Without it: the run's."""
    shots: int | None = None
    """Support images per class. Without it: the run's."""
    test_queries: int | None = None
    """Query images per class. Without it: the run's."""
    image_size: int | None = None
    """Side in pixels to which the images of another dataset are resized. Without it: that dataset's own."""
    adapt: Adapted = "all"
    """all: what the inner loop adapts in training; head: the head alone, which shows what adapting the rest contributes at the test."""  # noqa: E501
    grey: bool = False
    """Convert the test images to grey, repeated over the channels that the run was trained with."""
    out: Path | None = None
    """Folder for the row of a meta-test on another dataset: <out>/<run id>/<setting>/; an earlier one is replaced. Without it: results/cross-domain."""  # noqa: E501
    data_root: Path | None = None
    """Folder with the data. Without it: the run's own for its own dataset, else METAKM_DATA or the user's cache."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:<n>. auto is the first GPU if there is one, else the CPU."""
    eval_tasks: int | None = None
    """Number of tasks, counted from the first. Without it: the run's."""
    test_inner_steps: int | None = None
    """Inner steps. Without it: the run's."""
    task_chunk: int | None = None
    """Tasks in memory at once. Without it: the run's."""
    quiet: bool = False
    """No progress on standard error; errors and the result stay."""
    json: bool = False
    """For scripts: standard output has one JSON object per line, for progress and the result, and nothing else."""
    plugin: Annotated[tuple[Path, ...], tyro.conf.arg(help_behavior_hint="(default: none)")] = ()
    """Python files that register strategies, backbones or datasets; they run with your permissions. Name those of the run, too."""  # noqa: E501


def tested_as(options: EvaluateOptions) -> tuple[str, ...]:
    """What a row on another dataset says of the test."""
    return ("grey",) * options.grey + ("head",) * (options.adapt == "head")


def read_flags(arguments: Sequence[str] | None) -> EvaluateOptions:
    """The options from the command line; see `read_options`.

    Raises:
        UserError: also for several datasets, which only a training takes.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    named = [name for name in list_given(arguments, "dataset") if name in available_datasets()]
    if len(named) > 1:
        raise UserError(f"Expected one --dataset to test on, got {' '.join(named)}; test on one after the other")
    return read_options(EvaluateOptions, "python -m metakm evaluate", arguments)
