"""torchrun's processes are killed, and the link between two hosts is cut; in float64, with 4 seconds of patience."""

import contextlib
import os
import re
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from distributed_cases import RUN, vector
from two_hosts import missing, two_hosts

from metakm.cli.signals import StopRequest
from metakm.run.command_line import parse
from metakm.run.runner import Run

HERE = Path(__file__).parent
WORKER = str(HERE / "lost_worker.py")
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]


@pytest.fixture(autouse=True)
def environment(cache, monkeypatch):
    monkeypatch.setenv("METAKM_CACHE", str(cache))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("PYTHONPATH", f"{HERE.parents[1]}:{HERE.parent}")


def finish(arguments):
    """Run in this process, alone."""
    run = Run(parse(arguments), StopRequest())
    assert run.execute() == 0
    return run


def assert_same_outcome(resumed, unbroken):
    models = [vector(run.loop.model_state()) for run in (resumed, unbroken)]
    torch.testing.assert_close(*models, rtol=1e-12, atol=1e-9)
    for name in ("tasks.csv", "curve.csv"):
        tables = [pd.read_csv(run.folder.path / name) for run in (resumed, unbroken)]
        np.testing.assert_allclose(*(table.drop(columns="seconds", errors="ignore") for table in tables), rtol=1e-12)


def errors(output):
    """The lines of ours that say error, without those that torchrun repeats in its report; no traceback is of ours."""
    assert "/metakm/" not in re.sub(r"/metakm/[^ ]*seed0", "", output), output
    return [line for line in output.splitlines() if line.startswith("error: ")]


def interrupted(out):
    """The folder of a run whose row says so, and in which nobody works."""
    folder = out / "glyphs-3w1s" / "km" / "seed0"
    assert pd.read_csv(folder / "result.csv").status[0] == "interrupted"
    return folder


@pytest.mark.slow
def test_a_killed_process_ends_the_others_and_a_restart_goes_on(tmp_path):
    flags = [*RUN, "--out", str(tmp_path / "killed")]
    command = [*TORCHRUN, "--max-restarts", "1", WORKER, "0:1:3,1:0:5", *flags, "--overwrite"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200)
    assert done.returncode == 1
    first, second = errors(done.stderr)
    assert re.fullmatch(
        r"error: lost process 1 on \S+ \(it closed its connection, probably killed\); torchrun restarts the run from "
        "its last checkpoint",
        first,
    )
    assert re.fullmatch(
        r"error: lost process 0 on \S+ \(it closed its connection, probably killed\); "
        "to continue from the last checkpoint, replace --overwrite by --resume in the same command",
        second,
    )
    assert "resumes at iteration 2" in done.stderr
    interrupted(tmp_path / "killed")  # written by process 1, as process 0 was killed
    resumed = finish([*flags, "--resume"])
    assert_same_outcome(resumed, finish([*RUN, "--out", str(tmp_path / "whole")]))


@pytest.mark.slow
def test_a_single_process_that_was_killed_goes_on_after_a_restart(tmp_path):
    command = [*TORCHRUN[:-1], "1", "--max-restarts", "1", WORKER, "0:0:3", *RUN, "--out", str(tmp_path / "killed")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    assert "resumes at iteration 2" in done.stderr
    resumed, unbroken = (tmp_path / "killed", finish([*RUN, "--out", str(tmp_path / "whole")]).folder.path)
    resumed /= unbroken.relative_to(tmp_path / "whole")
    assert (resumed / "tasks.csv").read_bytes() == (unbroken / "tasks.csv").read_bytes()


class Reader(threading.Thread):
    """Collects what a process prints."""

    def __init__(self, process):
        super().__init__()
        self.process, self.text = process, ""
        self.start()

    def run(self):
        for line in self.process.stdout:
            self.text += line

    def wait_for(self, text):
        deadline = time.monotonic() + 100
        while text not in self.text:
            assert self.is_alive(), self.text
            assert time.monotonic() < deadline, self.text
            time.sleep(0.05)


@pytest.mark.slow
@pytest.mark.skipif(missing() != "", reason=missing())
def test_a_killed_process_or_a_cut_link_ends_both_hosts(tmp_path):
    arguments = [WORKER, "0:1:3", *RUN, "--iterations", "2000", "--out", str(tmp_path)]
    with two_hosts(f"metakm-{os.getpid()}") as hosts, contextlib.ExitStack() as undo:
        started = {host: hosts.torchrun(host, "--max-restarts", "1", *arguments) for host in ("a", "b")}
        for process in started.values():
            undo.callback(hosts.kill, process)
        printed = {host: Reader(process) for host, process in started.items()}
        printed["a"].wait_for("iteration 6:")
        hosts.cut()
        began = time.monotonic()
        codes = [process.wait(60) for process in started.values()]
        seconds = time.monotonic() - began
        for reader in printed.values():
            reader.join()
    assert codes == [1, 1]
    assert seconds < 30
    killed, silent = "it closed its connection, probably killed", "no sign of life for 4 seconds"
    restart = "torchrun restarts the run from its last checkpoint"
    resume = "to continue from the last checkpoint, add --resume to the same command"
    assert errors(printed["a"].text) == [
        f"error: lost process 1 on host-b ({killed}); {restart}",
        f"error: lost process 1 on host-b ({silent}); {resume}",
    ]
    assert errors(printed["b"].text) == [f"error: lost process 0 on host-a ({silent}); {resume}"]
    assert "resumes at iteration 2" in printed["a"].text
    folder = interrupted(tmp_path)
    assert torch.load(folder / "checkpoint.pt", weights_only=True)["loop"]["iteration"] >= 6
    assert not (folder / "run.lock").exists()
