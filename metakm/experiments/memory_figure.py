"""The memory that N tasks of Table II take as a picture: one base and N packs, or N networks."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from metakm.errors import UserError
from metakm.experiments.lines import Line, RecordedExperiment, line_names, lines_of, setup_titles
from metakm.io.figure import figure_bytes, new_figure
from metakm.table.output import PictureFormat

MOST_TASKS = 100
_FLOAT_BYTES = 4


def memory_of_tasks(lines: Sequence[Line], tasks: int) -> dict[str, float]:
    """MB that hold `tasks` tasks of one network, by method.

    They are the base's parameters once, in float32, and for each task its pack or, where a method has none, what it
    trains. Where that is the whole network there is no base. The base is what the method that trains least leaves as it
    is; running statistics are not counted.
    """
    base = _FLOAT_BYTES * max(line.first.total_parameters - line.first.trainable_parameters for line in lines)
    found = {}
    for name, line in zip(line_names(lines), lines, strict=True):
        row = line.first
        own = _FLOAT_BYTES * row.trainable_parameters if row.pack_bytes is None else row.pack_bytes
        found[name] = (tasks * own + (0 if row.trainable_parameters == row.total_parameters else base)) / 1e6
    return found


def memory_picture(runs: Iterable[RecordedExperiment], form: PictureFormat = "png") -> bytes:
    """The picture as a file's bytes: a panel for each setup, memory against the number of tasks, both logarithmic.

    Raises:
        UserError: no finished run.
    """
    lines, _ = lines_of(run for run in runs if run.row.experiment.split("-")[0] == "transfer")
    setups = setup_titles({line.setup for line in lines})
    if not setups:
        raise UserError("Expected finished runs to draw, got none; run python -m metakm.experiments.transfer first")
    figure = new_figure(figsize=(5 * len(setups), 4.2), layout="constrained")  # which finds matplotlib
    from matplotlib.ticker import LogFormatter  # slow to import, and only needed for a picture

    numbers = range(1, MOST_TASKS + 1)
    for axes, (setup, title) in zip(figure.subplots(1, len(setups), squeeze=False)[0], setups.items(), strict=True):
        own = [line for line in lines if line.setup == setup]
        memory = [memory_of_tasks(own, tasks) for tasks in numbers]
        for name in sorted(memory[-1], key=memory[-1].__getitem__, reverse=True):
            axes.plot(numbers, [each[name] for each in memory], label=f"{name}: {memory[-1][name]:,.0f} MB")
        axes.set(xscale="log", yscale="log", xlabel="tasks", ylabel="memory, MB")
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter(LogFormatter())
            axis.set_minor_formatter(LogFormatter(minor_thresholds=(2, 0.5)))
        axes.set_title(title, loc="left", fontsize="small", wrap=True)
        axes.legend(title=f"{MOST_TASKS} tasks", fontsize="small")
        axes.grid(alpha=0.3)
    return figure_bytes(figure, form, dpi=150)
