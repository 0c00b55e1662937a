"""What each process of test_distributed.py does, started by torchrun; it leaves what it found in <folder>/<rank>.pt."""

import sys
from pathlib import Path

import torch
from distributed_cases import CASES, RUN, train, vector

from metakm.distributed.processes import join_processes
from metakm.distributed.torchrun import only_first_prints
from metakm.errors import UserError
from metakm.run.__main__ import main
from metakm.run.command_line import parse
from metakm.run.runner import Run


class StopOnTheLast:
    """A stop that only the last process hears of, on the fourth time of asking."""

    def __init__(self, processes):
        self.processes, self.asked = processes, 0

    @property
    def requested(self):
        self.asked += 1
        return self.processes.rank == self.processes.size - 1 and self.asked >= 4


class NoStop:
    requested = False


def disagree(processes):
    """The error that process 0 meets when process 1 alone makes a mistake."""
    try:
        with processes.raise_together(KeyError, UserError):
            if not processes.first:
                raise UserError("of the second")
    except UserError as error:
        return str(error)


def work(folder):
    found = {"mistake": main(["--ways", "1"])}
    with join_processes() as processes, only_first_prints():
        found["size"] = processes.size
        found["disagreement"] = disagree(processes)
        found["cases"] = [train(case, processes) for case in CASES]
        arguments = [*RUN, "--out", str(folder / "run")]
        run = Run(parse(arguments), StopOnTheLast(processes), processes)
        found["interrupted"] = (run.execute(), run.loop.iteration)
        run = Run(parse([*arguments, "--resume"]), NoStop(), processes)
        found["resumed"] = (run.execute(), vector(run.loop.model_state()))
    torch.save(found, folder / f"{processes.rank}.pt")


if __name__ == "__main__":
    torch.set_default_dtype(torch.float64)
    work(Path(sys.argv[1]))
