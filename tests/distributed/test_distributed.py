"""Two processes compute what one computes; in float64, started by torchrun."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from distributed_cases import CASES, RUN, train, vector

from metakm.cli.signals import StopRequest
from metakm.distributed.processes import ALONE, Processes
from metakm.run.command_line import parse
from metakm.run.runner import Run

TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone"]
# Adam makes steps of up to 1e-10 from the rounding noise (1e-17) in the gradient of biases that a norm cancels.
ROUNDING = 1e-9
HERE = Path(__file__).parent


@pytest.fixture(scope="module", autouse=True)
def environment(cache):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("METAKM_CACHE", str(cache))
        patch.setenv("OMP_NUM_THREADS", "1")
        patch.setenv("PYTHONPATH", f"{HERE.parents[1]}:{HERE.parent}")
        yield


@pytest.fixture(scope="module")
def outcome(tmp_path_factory):
    """What the two processes of distributed_worker.py found, what they printed, and their folder."""
    folder = tmp_path_factory.mktemp("two")
    command = [*TORCHRUN, str(HERE / "distributed_worker.py"), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in (0, 1)], done, folder


@pytest.mark.parametrize("number", range(len(CASES)), ids=[str(case) for case in CASES])
def test_two_processes_learn_what_one_learns(outcome, number):
    found = [rank["cases"][number] for rank in outcome[0]]
    steps, gradient, model = train(CASES[number])
    np.testing.assert_allclose(found[0][0], steps, rtol=1e-12)
    assert (found[0][1] - gradient).norm() < 1e-11 * gradient.norm()  # the steepest starts amplify rounding tenfold
    torch.testing.assert_close(found[0][2], model, rtol=1e-12, atol=ROUNDING)
    assert found[0][0] == found[1][0], "all processes are told the same loss"
    assert torch.equal(found[0][2], found[1][2]), "the processes drift apart"


def test_a_stop_that_one_process_hears_stops_all_after_the_same_iteration(outcome):
    assert [rank["interrupted"] for rank in outcome[0]] == [(130, 2), (130, 2)]


def test_a_run_resumed_by_two_processes_ends_as_an_unbroken_one_of_one_process(outcome, tmp_path):
    ranks, _, folder = outcome
    assert [rank["resumed"][0] for rank in ranks] == [0, 0]
    alone = Run(parse([*RUN, "--out", str(tmp_path)]), StopRequest())
    assert alone.execute() == 0
    for rank in ranks:
        torch.testing.assert_close(rank["resumed"][1], vector(alone.loop.model_state()), rtol=1e-12, atol=ROUNDING)
    two = folder / "run" / "glyphs-3w1s" / "km" / "seed0"
    for name in ("tasks.csv", "curve.csv"):
        expected, got = (
            pd.read_csv(path / name).drop(columns="seconds", errors="ignore") for path in (alone.folder.path, two)
        )
        np.testing.assert_allclose(got, expected, rtol=1e-12)
    row = pd.read_csv(two / "result.csv").iloc[0]
    assert (row.status, row.device, row.n_tasks) == ("done", "2 x cpu", 7)
    assert {path.name for path in two.iterdir()} == {path.name for path in alone.folder.path.iterdir()}


def test_only_the_first_process_prints(outcome):
    _, done, _ = outcome
    assert done.stderr.count("Interrupted after 2 iterations") == 1
    assert done.stdout.count("meta-test accuracy") == 1


def test_the_meta_tests_progress_counts_the_tasks_of_all_processes(outcome):
    _, done, _ = outcome
    counts = [line.split(":")[0] for line in done.stderr.splitlines() if line.startswith("meta-test ")]
    assert counts == ["meta-test 7/7"]


def test_a_users_mistake_is_printed_once_and_is_code_2_for_all(outcome):
    ranks, done, _ = outcome
    assert [rank["mistake"] for rank in ranks] == [2, 2]
    assert done.stderr.count("Expected --ways to be at least 2, got 1") == 1
    assert [rank["disagreement"] for rank in ranks] == ["of the second"] * 2, "also one that one process alone meets"


@pytest.mark.slow
def test_ctrl_c_on_torchrun_leaves_a_run_to_resume(tmp_path):
    command = [*TORCHRUN, "-m", "metakm.run", *RUN, "--iterations", "2000", "--out", str(tmp_path)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True) as process:
        for line in process.stderr:
            if line.startswith("iteration 4"):
                os.killpg(process.pid, signal.SIGINT)
                break
        error = process.stderr.read()
    assert error.count("Interrupted after") == 1
    folder = tmp_path / "glyphs-3w1s" / "km" / "seed0"
    assert pd.read_csv(folder / "result.csv").status[0] == "interrupted"
    assert not (folder / "run.lock").exists()


@pytest.mark.parametrize(("tasks", "size"), [(7, 3), (3, 7), (4, 2), (0, 2), (1, 1)])
def test_parts_are_all_tasks_once_and_nearly_equal(tasks, size):
    parts = [Processes(rank, size).shard(tasks) for rank in range(size)]
    assert [task for part in parts for task in part] == list(range(tasks))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_one_process_alone_waits_for_nobody():
    assert ALONE.gather("x") == ["x"]
    assert ALONE.sum(1.5, 2.0) == (1.5, 2.0)
    assert (ALONE.any(True), ALONE.any(False), ALONE.broadcast("x")) == (True, False, "x")
