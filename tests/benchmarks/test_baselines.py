"""`benchmarks/baselines.py`: one budget for all, rows that go on where they stopped, and their page."""

import os
import shlex
import shutil
import signal
import threading
import time
from functools import partial

import baselines
import budgeted_runs
import pytest
from baselines_page import PUBLISHED
from budgeted_runs import run_each

from metakm.io.csv_file import read_csv
from metakm.run.folder import RunFolder

pytestmark = pytest.mark.float32
TINY = "--dataset glyphs --backbone conv4-4-stride --ways 3 --queries 2 --val-tasks 2 --eval-tasks 4 --quiet"


@pytest.fixture(autouse=True)
def environment(cache, monkeypatch):
    monkeypatch.setenv("METAKM_CACHE", str(cache))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


def flags(out, *more, core_seconds="0.2"):
    return [*TINY.split(), "--core-seconds", core_seconds, "--out", str(out), *more]


@pytest.fixture(scope="module")
def protonet(tmp_path_factory, cache):
    """A folder with protonet's row; do not change it."""
    out = tmp_path_factory.mktemp("protonet")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("METAKM_CACHE", str(cache))
        assert baselines.main(flags(out, "--algo", "protonet", "--shots", "1")) == 0
    return out


def test_rows_have_the_iterations_that_fit_the_budget_and_are_not_run_twice(protonet, tmp_path, capfd):
    shutil.copytree(protonet, tmp_path, dirs_exist_ok=True)
    before = read_csv(tmp_path / "plan.csv")
    assert baselines.main(flags(tmp_path, "--algo", "protonet", "baseline++", "--shots", "1")) == 0
    assert capfd.readouterr().out.count("already done") == 1
    plan = read_csv(tmp_path / "plan.csv")
    assert plan[:1] == before
    assert [(line["algo"], line["shots"]) for line in plan] == [("protonet", "1"), ("baseline++", "1")]
    rows = [RunFolder(tmp_path / "glyphs-3w1s" / line["algo"] / "seed0").read_row() for line in plan]
    for line, row in zip(plan, rows, strict=True):
        assert (
            int(line["iterations"]) == max(1, int(0.2 / float(line["core_seconds_an_iteration"]))) == row["iterations"]
        )
        assert (row["status"], row["preset"], row["backbone"]) == ("done", "table3", "conv4-4-stride")
    capfd.readouterr()
    assert baselines.main(flags(tmp_path, "--algo", "protonet", "--shots", "1", "5", "--status")) == 0
    first, second = capfd.readouterr().out.splitlines()
    assert f"{plan[0]['iterations']} iterations, done, {100 * rows[0]['accuracy']:.2f} %" in first
    assert second.endswith("5-shot: not measured yet")


def test_the_page_has_each_row_with_its_budget_and_command_beside_published_ones(protonet):
    page = (protonet / "README.md").read_text()
    row = RunFolder(protonet / "glyphs-3w1s" / "protonet" / "seed0").read_row()
    (plan,) = read_csv(protonet / "plan.csv")
    cells = ("`protonet`", "1", f"{100 * row['accuracy']:.2f} ± {100 * row['ci95']:.2f}", "`conv4-4-stride`")
    budget = (str(row["meta_batch"]), f"{row['iterations']:,}", f"{float(plan['core_seconds_an_iteration']):.2f}")
    assert f"| {' | '.join((*cells, *budget))} |" in page.replace(" |  |", " |")
    assert f"--iterations {row['iterations']}" in page
    assert "--out results/baselines" in page
    assert all(f"| {p.method} | {p.one_shot:g} | {p.five_shot:g} | {p.network} |" in page for p in PUBLISHED)


def test_the_committed_page_is_that_of_its_rows(tmp_path):
    committed = baselines.Options().out
    if not committed.is_dir():
        pytest.skip("baselines were not measured yet")
    copy = tmp_path / "copy"
    shutil.copytree(committed, copy)
    assert baselines.main(["--page", "--out", str(copy)]) == 0
    assert (copy / "README.md").read_text() == (committed / "README.md").read_text()


def test_a_plan_of_another_budget_is_refused(protonet, capsys):
    before = sorted(path.stat().st_mtime_ns for path in protonet.rglob("*"))
    assert baselines.main(flags(protonet, "--algo", "protonet", "--shots", "1", core_seconds="9")) == 2
    assert "Expected a plan for --core-seconds 9, got one for 0.2" in capsys.readouterr().err
    assert baselines.main(flags(protonet, "--algo", "protonet", "--shots", "1", "--meta-batch", "2")) == 2
    assert "Expected a plan for the flags" in capsys.readouterr().err
    assert sorted(path.stat().st_mtime_ns for path in protonet.rglob("*")) == before


def test_a_run_that_fails_does_not_keep_the_next_ones_from_running():
    calls = []

    def run(name, code):
        calls.append(name)
        return code

    for codes, code, called in (((0, 1, 0), 1, 3), ((0, 130, 0), 130, 2), ((1, 2, 0), 2, 2), ((0, 0), 0, 2)):
        calls.clear()
        assert run_each(partial(run, name, each) for name, each in enumerate(codes)) == code
        assert len(calls) == called


def test_after_ctrl_c_a_run_has_the_time_to_save(tmp_path, monkeypatch):
    child = "import pathlib, signal, sys, time; signal.signal(signal.SIGINT, lambda *_: None); "
    child += f"pathlib.Path({str(tmp_path / 'up')!r}).touch(); time.sleep(1.5); "
    child += f"pathlib.Path({str(tmp_path / 'saved')!r}).touch()"
    monkeypatch.setattr(budgeted_runs, "command", lambda _: shlex.join(["python", "-c", child]))

    def interrupt():
        while not (tmp_path / "up").exists():
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGINT)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # which a shell may have set to be ignored
    threading.Thread(target=interrupt).start()
    try:
        with pytest.raises(KeyboardInterrupt):
            budgeted_runs.run_process(None)
    finally:
        signal.signal(signal.SIGINT, before)
    assert (tmp_path / "saved").exists()
