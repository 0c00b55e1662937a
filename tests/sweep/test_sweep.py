"""Sweeps: what they expand to, what they find done, what they start, and how they end."""

import dataclasses
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import cloudpickle
import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from runs import numbers
from submitit.helpers import DelayedSubmission

import metakm
from metakm.cli.signals import StopRequest
from metakm.device import cores
from metakm.io.lock import Lock
from metakm.learning.memory import TooLittleMemoryError
from metakm.learning.outer_loop import OuterLoop
from metakm.learning.phases import Phase
from metakm.presets import preset_config
from metakm.report.__main__ import main as make_report
from metakm.run import __main__ as one_run
from metakm.run.folder import RunFolder
from metakm.sweep.__main__ import main
from metakm.sweep.estimate import Cost, seconds_left
from metakm.sweep.job import JobOutcome, RunJob
from metakm.sweep.messages import outcome_text
from metakm.sweep.options import SweepOptions, parse_sweep
from metakm.sweep.plan import Planned, expand, inspect, make_plan
from metakm.sweep.pool import Pool, SubmissionError
from metakm.sweep.slurm import outcome_of
from metakm.sweep.status import Pace, status_text
from metakm.sweep.sweeper import Sweeper
from metakm.table.__main__ import main as make_table

pytestmark = [
    pytest.mark.float32,
    pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning:submitit.local.debug"),  # its log handlers
]

TINY_FLAGS = "--ways 3 --queries 2 --backbone conv4-8-stride --meta-batch 2 --val-tasks 4 --eval-tasks 6 --device cpu"
TINY = TINY_FLAGS.split()
GLYPHS = ["glyphs", "--shots", "1", *TINY, "--iterations", "4", "--val-every", "2"]
DEBUG = ["--executor", "debug"]


@pytest.fixture(autouse=True)
def environment(cache, monkeypatch):
    monkeypatch.setenv("METAKM_CACHE", str(cache))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


def configs(*arguments):
    return expand(*parse_sweep(arguments))


def folder(out, algo, seed):
    return Path(out) / "glyphs-3w1s" / algo / f"seed{seed}"


def snapshot(path):
    return {p: p.read_bytes() for p in path.rglob("*") if p.is_file()}


def states(text):
    """The state of each run in a plan, by strategy and seed."""
    found = re.findall(r"^(.+?) +glyphs-3w1s-(\w+)-quick-seed(\d)-", text, flags=re.MULTILINE)
    return {(algo, int(seed)): state for state, algo, seed in found}


def interrupt_at(patch, iteration):
    """Ctrl-C in the midst of a run."""
    step = OuterLoop.step

    def interrupted(self):
        if self.iteration == iteration:
            os.kill(os.getpid(), signal.SIGINT)
        return step(self)

    patch.setattr(OuterLoop, "step", interrupted)


def test_table3_is_all_strategies_and_settings_seed_by_seed():
    expected = [
        preset_config("table3", algo, dataset, ways, shots, seed=seed, resume=True)
        for seed in range(3)
        for dataset, ways in (("omniglot", 20), ("mini-imagenet", 5))
        for shots in (1, 5)
        for algo in ("maml", "anil", "km")
    ]
    assert configs("table3") == expected
    assert {config.preset for config in configs("table3", "--preset", "paper")} == {"paper"}


def test_other_flags_go_to_every_run():
    flags = "--algo km anil km --dataset omniglot tiny-imagenet --shots 5 --seeds 2 --preset paper --inner_lr=0.3"
    made = configs(*flags.split(), "--iterations", "7", "--out", "there")
    assert [(c.algo, c.dataset, c.ways, c.seed) for c in made] == [
        (algo, dataset, ways, seed)
        for seed in (0, 1)
        for dataset, ways in (("omniglot", 20), ("tiny-imagenet", 5))
        for algo in ("km", "anil")
    ]
    assert {(c.preset, c.inner_lr, c.iterations, c.shots, str(c.out)) for c in made} == {("paper", 0.3, 7, 5, "there")}
    assert {c.ways for c in configs("omniglot", "--ways", "7")} == {7}
    off = ["--no-inner-lr-per-step", "--first-head-lr", "0"]
    fixed = configs("omniglot", "--preset", "table3", "--no-zero-head", "--no_learn_inner_lr", *off)
    assert {(c.preset, c.shared.zero_head, c.shared.learn_inner_lr) for c in fixed} == {("table3", False, False)}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "Expected table3, a dataset's name or --dataset, got none"),
        (["table4"], "did you mean 'table3'"),
        (["omniglott"], "did you mean 'omniglot'"),
        (["table3", "--dataset", "glyphs"], "got both"),
        (["--dataset", "glyfs"], "did you mean 'glyphs'"),
        (["glyphs", "--algo", "mmal"], "did you mean 'maml'"),
        (["glyphs", "--algo"], "Expected --algo to name at least one"),
        (["glyphs", "--seds", "3"], "did you mean '--seeds'"),
        (["glyphs", "--seed", "3"], "did you mean '--seeds'"),
        (["glyphs", "--overwrite"], "--overwrite is set by this command"),
        (["glyphs", "--mni"], "Expected a flag of this command or of metakm.run, got '--mni'"),
        (["glyphs", "--seeds", "0"], "Expected --seeds to be at least 1, got 0"),
        (["glyphs", "--executor", "slrum"], "did you mean 'slurm'"),
        (["glyphs", "--jobs", "-1"], "Expected --jobs to be at least 1"),
        (["glyphs", "--jobs", "100000"], "Expected jobs x threads to be at most"),
        (["glyphs", "--executor", "debug", "--jobs", "2"], "Expected --jobs 1"),
        (["glyphs", "--iterations", "-1"], "Expected --iterations to be at least 0"),
        (["glyphs", "--partition", "gpu"], "Expected --partition with --executor slurm"),
        (["glyphs", "--executor", "slurm", "--slurm", "account"], "Expected --slurm NAME=VALUE"),
        (["glyphs", "--executor", "slurm"], "Expected a cluster for --executor slurm"),
        (["glyphs", "--plugin", "missing.py"], "missing.py"),
    ],
)
def test_a_users_mistake_ends_with_one_message_and_code_2_and_writes_nothing(tmp_path, capsys, arguments, message):
    assert main([*arguments, "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert message in error.splitlines()[-1]
    assert "Traceback" not in error
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("more", [[], ["--status"], ["--dry-run"]])
def test_a_file_in_the_place_of_the_folder_is_refused(tmp_path, capsys, more):
    (tmp_path / "file").write_text("mine")
    for out in ("file", "file/below"):
        assert main(["glyphs", "--algo", "anil", "--out", str(tmp_path / out), *more]) == 2
        assert "Expected --out to be a folder, got" in capsys.readouterr().err
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize("arguments", [["--seeds", "many"], ["--jobs"], ["--iterations", "many"]])
def test_flags_that_do_not_parse_exit_with_2(arguments, capsys):
    with pytest.raises(SystemExit) as caught:
        main(["glyphs", *arguments])
    assert caught.value.code == 2
    assert "Traceback" not in capsys.readouterr().err


@pytest.fixture
def half_done(tmp_path, monkeypatch, capsys):
    """A sweep's flags and folder: km done and cut off, anil in use and of another config."""
    alone = [*TINY, "--val-every", "2", "--out", str(tmp_path), "--iterations"]
    assert one_run.main([*alone, "4", "--algo", "km"]) == 0
    assert one_run.main([*alone, "5", "--algo", "anil", "--seed", "1"]) == 0
    with monkeypatch.context() as patch:
        interrupt_at(patch, 2)
        assert one_run.main([*alone, "4", "--algo", "km", "--seed", "1"]) == 130
    lock = Lock(folder(tmp_path, "anil", 0) / "run.lock")
    lock.path.parent.mkdir()
    lock.acquire()
    capsys.readouterr()
    yield [*GLYPHS, "--algo", "km", "anil", "--seeds", "2", "--out", str(tmp_path)]
    lock.release()


def test_a_dry_run_shows_the_state_of_each_run_and_writes_nothing(half_done, tmp_path, capsys):
    before = snapshot(tmp_path)
    assert main([*half_done, "--seeds", "3", "--dry-run"]) == 0
    shown = capsys.readouterr().out
    assert states(shown) == {
        ("km", 0): "done",
        ("km", 1): "to resume",
        ("km", 2): "to do",
        ("anil", 0): "in use",
        ("anil", 1): "blocked",
        ("anil", 2): "to do",
    }
    assert "1 blocked, 1 done, 1 in use, 2 to do, 1 to resume; about 00:0" in shown
    assert f"process {os.getpid()} on" in shown
    assert "at iteration 3 of 4 about 00:0" in shown
    assert "choose another --out" in shown
    assert snapshot(tmp_path) == before


def test_a_sweep_resumes_skips_and_reports(half_done, tmp_path, capsys):
    done = snapshot(folder(tmp_path, "km", 0))
    assert main([*half_done, *DEBUG]) == 1, "one is blocked"
    output = capsys.readouterr()
    assert snapshot(folder(tmp_path, "km", 0)) == done
    assert states(output.out) == {("anil", 0): "in use", ("anil", 1): "blocked"}
    assert "1 blocked, 1 done, 1 done before, 1 in use" in output.out
    assert "resumes at iteration 3" in output.err
    assert inspect(configs(*half_done)[2]).state == "done"


def test_a_run_from_before_the_config_had_all_its_fields_is_done(planned):
    """Its run_id, which has a digest of all fields, is another."""
    plan, pool = planned
    assert RunJob(plan.config, pool.stop_file)().kind == "done"
    folder = plan.config.folder
    values = json.loads((folder / "config.json").read_text())
    row = (folder / "result.csv").read_text()
    (folder / "result.csv").write_text(row.replace(plan.config.run_id, f"{plan.config.run_id[:-8]}01dd16e5"))
    del values["first_head_lr"]
    (folder / "config.json").write_text(json.dumps(values))
    assert inspect(plan.config).state == "done"
    (folder / "config.json").write_text(json.dumps({**values, "iterations": 5}))
    assert inspect(plan.config).state == "blocked"


def test_images_are_decoded_in_the_size_that_the_runs_want(tmp_path, monkeypatch):
    cache = tmp_path / "cache"
    monkeypatch.setenv("METAKM_CACHE", str(cache))
    for split in ("train", "val", "test"):
        for kind in "abc":
            for number in range(3):
                path = tmp_path / "data" / split / f"{split}-{kind}" / f"{number}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.new("RGB", (8, 8)).save(path)
    flags = ["folder", "--shots", "1", *TINY, "--data-root", str(tmp_path / "data"), "--image-size", "32"]
    plan = make_plan(configs(*flags, "--algo", "anil", "--seeds", "1", "--out", str(tmp_path / "out")))
    assert [planned.state for planned in plan] == ["to do"]
    assert {np.load(path, mmap_mode="r").shape[2:] for path in cache.rglob("*.npy")} == {(32, 32)}


BROKEN = """
import metakm
from metakm.strategies.anil import ANIL

@metakm.register_strategy("broken")
class Broken(ANIL):
    def predict(self, adapted, encoded):
        if adapted is not self.adapted:
            raise ZeroDivisionError("out of sorts")
        return super().predict(adapted, encoded)
"""


def test_a_sweep_takes_the_dataset_of_a_plugin(tmp_path, capsys):
    (tmp_path / "mine.py").write_text(
        "import metakm\n"
        "@metakm.register_dataset('mine', title='Mine', family='characters', ways=3)\n"
        "def mine(split, roots):\n"
        "    return metakm.load_dataset('glyphs', split)\n"
    )
    plugin = ["--plugin", str(tmp_path / "mine.py"), "--dry-run", "--out", str(tmp_path / "out")]
    for dataset in (["mine"], ["--dataset", "mine"]):
        assert main([*dataset, *plugin, "--algo", "anil", "--seeds", "1", "--shots", "1"]) == 0
        assert "mine-3w1s-anil" in capsys.readouterr().out


OPTIONS = """
from dataclasses import dataclass
import metakm
from metakm.options import RateOptions
from metakm.strategies.anil import ANIL

@dataclass(frozen=True, kw_only=True)
class Own(RateOptions):
    blocks: int = 1

@metakm.register_strategy("own", options=Own)
class Mine(ANIL):
    def __init__(self, backbone, ways, blocks=1):
        super().__init__(backbone, ways)
"""


def test_a_job_reaches_another_process_with_the_options_of_a_plugin(tmp_path):
    (tmp_path / "own.py").write_text(OPTIONS)
    own = ["--algo", "own", "--plugin", str(tmp_path / "own.py"), "--own.blocks", "3"]
    (config,) = configs(*GLYPHS, *own, "--seeds", "1", "--out", str(tmp_path))
    code = (
        "import pickle, sys; config = pickle.load(sys.stdin.buffer).config; print(config.options.blocks, config.run_id)"
    )
    sent = cloudpickle.dumps(RunJob(config, tmp_path / "stop"))
    done = subprocess.run([sys.executable, "-c", code], input=sent, capture_output=True)
    assert done.stdout.decode().split() == ["3", config.run_id], done.stderr


def test_a_sweep_goes_on_past_a_failed_run_and_names_it(tmp_path, capsys):
    (tmp_path / "broken.py").write_text(BROKEN)
    sweep = [*GLYPHS, "--seeds", "1", "--plugin", str(tmp_path / "broken.py"), "--out", str(tmp_path / "out"), *DEBUG]
    assert main([*sweep, "--algo", "broken", "anil"]) == 1
    output = capsys.readouterr()
    assert states(output.out) == {("broken", 0): "failed"}
    assert "ZeroDivisionError: out of sorts" in output.out
    assert "1 done, 1 failed" in output.out
    assert not list((tmp_path / "out").rglob("run.lock"))


def test_data_that_are_missing_block_their_runs_alone(tmp_path, capsys):
    datasets = ["--dataset", "mini-imagenet", "glyphs", "--data-root", str(tmp_path), "--seeds", "1", "--algo", "anil"]
    assert main([*datasets, *GLYPHS[1:], "--out", str(tmp_path / "out"), *DEBUG]) == 1
    output = capsys.readouterr().out
    assert re.search(r"^blocked +mini-imagenet-3w1s-anil.*Expected", output, flags=re.MULTILINE)
    assert "1 blocked, 1 done" in output


def test_ctrl_c_stops_after_the_iteration_and_the_same_sweep_goes_on(tmp_path, monkeypatch, capsys):
    sweep = [*GLYPHS, "--algo", "anil", "--seeds", "2", *DEBUG, "--out"]
    assert main([*sweep, str(tmp_path / "whole")]) == 0
    with monkeypatch.context() as patch:
        interrupt_at(patch, 1)
        assert main([*sweep, str(tmp_path / "cut")]) == 130
    assert states(capsys.readouterr().out) == {("anil", 0): "interrupted", ("anil", 1): "not started"}
    assert pd.read_csv(folder(tmp_path / "cut", "anil", 0) / "result.csv").status[0] == "interrupted"
    assert main([*sweep, str(tmp_path / "cut")]) == 0
    for seed in (0, 1):
        assert numbers(folder(tmp_path / "cut", "anil", seed)) == numbers(folder(tmp_path / "whole", "anil", seed))


@pytest.fixture
def planned(tmp_path):
    """One run to do, in the plan of a sweep and in the pool of its debug executor."""
    arguments = [*GLYPHS, "--algo", "anil", "--seeds", "1", *DEBUG, "--out", str(tmp_path)]
    (config,) = configs(*arguments)
    return inspect(config), Pool(parse_sweep(arguments)[0], tmp_path / ".sweep")


def test_a_run_claimed_after_planning_is_no_failure(planned, tmp_path):
    plan, pool = planned
    folder = RunFolder(plan.config.folder)
    with folder.locked():
        pass  # the claim outlasts the block
    late = Sweeper([plan], pool, StopRequest())
    late.run()
    assert [outcome.kind for outcome in late.outcomes.values()] == ["in use"]
    outcome = RunJob(plan.config, tmp_path / "stop")()
    assert outcome.kind == "in use", "also where it was claimed after the job was sent"
    assert f"process {os.getpid()}" in outcome.note
    folder.release()
    with pytest.raises(ZeroDivisionError), folder.locked():
        1 / 0  # noqa: B018
    assert inspect(plan.config).state == "to do", "a claim that came to nothing is given back"


def test_a_run_done_by_another_sweep_after_planning_is_not_done_twice(planned):
    plan, pool = planned
    assert RunJob(plan.config, pool.stop_file)().kind == "done"
    before = snapshot(plan.config.folder)
    late = Sweeper([plan], pool, StopRequest())
    late.run()
    assert [outcome.kind for outcome in late.outcomes.values()] == ["done"]
    assert RunJob(plan.config, pool.stop_file)().kind == "done"
    assert snapshot(plan.config.folder) == before


def test_a_run_that_others_had_in_hand_is_looked_at_again_at_the_end(planned):
    plan, pool = planned
    used = plan._replace(state="in use")
    assert re.match(r"to do +glyphs-3w1s-anil.*\n1 to do$", outcome_text([used], {}))
    assert RunJob(plan.config, pool.stop_file)().kind == "done"
    assert outcome_text([used], {plan.config.run_id: JobOutcome("in use")}) == "1 done elsewhere"


def test_a_job_that_starts_after_the_stop_does_nothing(planned):
    plan, pool = planned
    pool.folder.mkdir()
    pool.stop([])
    assert RunJob(plan.config, pool.stop_file)() == JobOutcome("interrupted", "before it began")
    assert not plan.config.folder.exists()


def test_a_stop_before_the_first_job_ends_the_sweep(planned):
    plan, pool = planned
    sweeper = Sweeper([plan], pool, SimpleNamespace(requested=True))
    sweeper.run()
    assert sweeper.stopping
    assert sweeper.outcomes == {}
    assert not pool.folder.exists()


def test_a_second_stop_ends_the_sweep_at_once_and_tells_the_jobs_again(planned, monkeypatch):
    plan, pool = planned
    told = []

    class Endless:
        paths = SimpleNamespace(stderr="log")

        def done(self):
            os.kill(os.getpid(), signal.SIGTERM)
            return False

    monkeypatch.setattr(pool, "submit", lambda *_: Endless())
    monkeypatch.setattr(pool, "stop", lambda jobs: told.append(len(list(jobs))))
    with StopRequest() as stop, pytest.raises(KeyboardInterrupt):
        Sweeper([plan], pool, stop).run()
    assert told[-1] == 1


def test_seconds_left_count_training_validation_and_meta_test():
    config = preset_config(iterations=10, val_every=4, val_tasks=3, eval_tasks=5)
    cost = Cost(phases=[Phase(0, 6, 100.0), Phase(6, 10, 200.0)], task=1.0)
    assert seconds_left(Planned(config, "to do"), cost) == 600 + 800 + (1 + 3) * 3 + 5
    assert seconds_left(Planned(config, "to resume", iteration=4), cost) == 200 + 800 + 2 * 3 + 5
    assert seconds_left(Planned(config, "to resume", iteration=10), cost) == 3 + 5


def test_a_run_that_does_not_fit_into_memory_is_blocked_in_the_plan(monkeypatch, tmp_path, capsys):
    def too_large(_):
        raise TooLittleMemoryError("Out of memory with a single task at a time")

    monkeypatch.setattr(OuterLoop, "trial_seconds", too_large)
    assert main([*GLYPHS, "--algo", "anil", "--seeds", "1", "--dry-run", "--out", str(tmp_path)]) == 0
    output = capsys.readouterr().out
    assert states(output) == {("anil", 0): "blocked"}
    assert "single task at a time" in output


def test_a_dry_run_that_is_to_stop_tries_no_further_run(monkeypatch, tmp_path, capsys):
    tried = []

    def interrupted(loop):
        tried.append(loop.config.algo)
        os.kill(os.getpid(), signal.SIGINT)
        return 1.0

    monkeypatch.setattr(OuterLoop, "trial_seconds", interrupted)
    assert main([*GLYPHS, "--algo", "anil", "km", "--seeds", "1", "--dry-run", "--out", str(tmp_path)]) == 130
    assert tried == ["anil"]
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("jobs", "cpus", "inherited", "threads"), [(2, None, "", 4), (3, None, "", 2), (4, 2, "1", 2), (8, None, "1", 1)]
)
def test_the_cores_are_divided_among_the_jobs(monkeypatch, tmp_path, jobs, cpus, inherited, threads):
    monkeypatch.setattr("metakm.sweep.pool.cores", lambda: 8)
    monkeypatch.setenv("OMP_NUM_THREADS", inherited)
    assert Pool(SweepOptions(jobs=jobs, cpus_per_task=cpus), tmp_path).threads == threads
    with pytest.raises(metakm.UserError, match="at most 8, the cores"):
        Pool(SweepOptions(jobs=5, cpus_per_task=2), tmp_path)


def test_a_job_in_this_process_has_the_threads_asked_for(planned, tmp_path):
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        Sweeper([planned[0]], Pool(SweepOptions(executor="debug", cpus_per_task=1), tmp_path), StopRequest()).run()
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    assert pd.read_csv(planned[0].config.folder / "result.csv").threads[0] == 1


def test_local_jobs_know_how_many_share_the_machine(monkeypatch, tmp_path, planned):
    monkeypatch.setattr("metakm.sweep.pool.cores", lambda: 8)
    pool, seen = Pool(SweepOptions(jobs=3), tmp_path), []
    pool.executor = SimpleNamespace(submit=lambda _: seen.append(os.environ["METAKM_RUNS_HERE"]))
    pool.submit(planned[0].config, 0)
    assert seen == ["3"]
    assert "METAKM_RUNS_HERE" not in os.environ


def test_a_row_that_cannot_be_read_is_not_trained_over(planned):
    plan, pool = planned
    assert RunJob(plan.config, pool.stop_file)().kind == "done"
    folder = RunFolder(plan.config.folder)
    folder.checkpoint.unlink()
    folder.result.write_text(folder.result.read_text().replace("False", "FALSE"))
    before = snapshot(folder.path)
    again = inspect(plan.config)
    assert again.state == "blocked"
    assert "a row of an earlier run but no checkpoint.pt" in again.note
    assert RunJob(plan.config, pool.stop_file)().kind == "failed", "also where it came about after planning"
    assert snapshot(folder.path) == before


def test_each_place_has_its_own_gpu(monkeypatch, tmp_path, planned):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.setattr("metakm.sweep.pool.cores", lambda: 8)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,6")
    pool, sent = Pool(SweepOptions(), tmp_path), []
    assert pool.size == 2
    pool.executor = SimpleNamespace(submit=sent.append)
    config = dataclasses.replace(planned[0].config, device="auto")
    for slot in (0, 1):
        pool.submit(config, slot)
    for device in ("cuda", "cpu"):
        pool.submit(dataclasses.replace(config, device=device), 1)
    assert [job.config.device for job in sent] == ["cuda:0", "cuda:1", "cuda:1", "cpu"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")  # as submitit's local executor does
    pool.stop_file.touch()
    sent[0]()
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "4,6"


def test_runs_that_share_a_device_are_counted(monkeypatch, tmp_path):
    monkeypatch.setattr("metakm.sweep.pool.cores", lambda: 8)
    seen = []
    for gpus in (0, 1, 2):
        monkeypatch.setattr("torch.cuda.device_count", lambda gpus=gpus: gpus)
        pool = Pool(SweepOptions(jobs=5), tmp_path)
        for device in ("auto", "cuda:1", "cpu"):
            with pool.environment(device):
                seen.append(int(os.environ["METAKM_RUNS_HERE"]))
    assert seen == [5, 5, 5, 5, 5, 5, 3, 5, 5]


def test_what_slurm_is_asked_for(monkeypatch, tmp_path, planned):
    """A stand-in for the cluster's sbatch keeps the script that submitit hands to it."""
    take = f"cp $1 {tmp_path}/script; echo Submitted batch job 17"
    for name, script in (("srun", ""), ("squeue", ""), ("sbatch", take)):
        (tmp_path / name).write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    flags = "--executor slurm --partition gpu --time 90 --cpus-per-task 4 --gpus-per-node 1 --slurm account=lab"
    options, _ = parse_sweep(["glyphs", *flags.split()])
    pool = Pool(options, tmp_path / "logs")
    assert pool.size > 1000
    job = pool.submit(planned[0].config, 0)
    assert job.job_id == "17"
    script = (tmp_path / "script").read_text()
    for line in ("partition=gpu", "time=90", "cpus-per-task=4", "gpus-per-node=1", "account=lab", "job-name=metakm"):
        assert f"#SBATCH --{line}\n" in script
    assert "\nexport OMP_NUM_THREADS=4 " in script
    sent = DelayedSubmission.load(job.paths.submitted_pickle).function
    assert sent.config == planned[0].config
    assert sent.checkpoint().function == sent, "a job that came to its limit is queued again"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3")  # as the cluster assigns it
    pool.stop_file.touch()
    sent()
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "3"


def test_a_sweep_goes_on_past_a_job_that_the_cluster_does_not_take(monkeypatch, tmp_path, planned):
    refuse = "echo invalid partition specified: typo >&2; exit 1"
    for name, script in (("srun", ""), ("squeue", ""), ("sbatch", refuse)):
        (tmp_path / name).write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    options, _ = parse_sweep(["glyphs", "--executor", "slurm", "--partition", "typo"])
    plan = [planned[0], planned[0]._replace(config=dataclasses.replace(planned[0].config, seed=1))]
    sweeper = Sweeper(plan, Pool(options, tmp_path / "logs"), StopRequest())
    sweeper.run()
    assert [outcome.kind for outcome in sweeper.outcomes.values()] == ["failed", "failed"]
    assert all("invalid partition specified: typo" in outcome.note for outcome in sweeper.outcomes.values())


@pytest.mark.parametrize("accounted", ["RUNNING", "PENDING", "LAUNCH_FAILED"])
def test_accounting_that_lags_behind_does_not_end_a_sweep(tmp_path, accounted):
    forgotten = JobOutcome("failed", "SLURM no longer knows the job")
    assert outcome_of("GONE", {"JobState": accounted, "ExitCode": "0:0"}, tmp_path / "log", None) == forgotten
    own = JobOutcome("failed", "of its own")
    assert outcome_of("GONE", {"JobState": accounted}, tmp_path / "log", own) == own


def test_a_job_beyond_the_limit_of_a_cluster_waits_for_another_to_end(planned, monkeypatch):
    plan, pool = planned
    running, most = [], []

    class Job:
        paths = SimpleNamespace(stderr="log")

        def done(self):
            running.remove(self)
            return True

    def submit(*_):
        if len(running) == 2:
            raise SubmissionError("limit of 2 jobs")
        running.append(Job())
        most.append(len(running))
        return running[-1]

    monkeypatch.setattr(pool, "size", 9)
    monkeypatch.setattr(pool, "submit", submit)
    monkeypatch.setattr(pool, "outcome", lambda _: JobOutcome("interrupted"))
    monkeypatch.setattr(type(pool), "in_process", False)
    five = [plan._replace(config=dataclasses.replace(plan.config, seed=seed)) for seed in range(5)]
    sweeper = Sweeper(five, pool, StopRequest())
    sweeper.run()
    assert [outcome.kind for outcome in sweeper.outcomes.values()] == ["interrupted"] * 5
    assert max(most) == 2


class Ended:
    """A job that has ended."""

    paths = SimpleNamespace(stderr="log")

    def done(self):
        return True


def test_a_run_that_was_preempted_for_good_is_sent_again(planned, monkeypatch):
    plan, pool = planned
    outcomes = [JobOutcome("preempted"), JobOutcome("preempted"), JobOutcome("failed")]
    monkeypatch.setattr(pool, "submit", lambda *_: Ended())
    monkeypatch.setattr(pool, "outcome", lambda _: outcomes.pop(0))
    monkeypatch.setattr(type(pool), "in_process", False)
    sweeper = Sweeper([plan], pool, StopRequest())
    sweeper.run()
    assert [outcome.kind for outcome in sweeper.outcomes.values()] == ["failed"]
    assert not outcomes


@pytest.mark.parametrize("patience", [600, 0.0])
def test_runs_wait_while_a_cluster_does_not_answer_but_not_without_end(planned, monkeypatch, patience):
    plan, pool = planned
    tries = []

    def submit(*_):
        tries.append(1)
        if len(tries) < 3:
            raise SubmissionError("no answer", silent=True)
        return Ended()

    monkeypatch.setattr("metakm.sweep.sweeper.PATIENCE_SECONDS", patience)
    monkeypatch.setattr("metakm.sweep.sweeper.POLL_SECONDS", 0.01)
    monkeypatch.setattr(pool, "options", dataclasses.replace(pool.options, poll_seconds=1))
    monkeypatch.setattr(pool, "submit", submit)
    monkeypatch.setattr(pool, "outcome", lambda _: JobOutcome("in use"))
    sweeper = Sweeper([plan], pool, StopRequest())
    sweeper.run()
    expected = JobOutcome("in use") if patience else JobOutcome("failed", "no answer")
    assert list(sweeper.outcomes.values()) == [expected]
    assert len(tries) == (3 if patience else 1)


@pytest.mark.slow
def test_two_processes_killed_half_way_and_started_again_end_as_an_unbroken_sweep(tmp_path):
    """Ctrl-C to the whole group, as a terminal sends it, then kill -9 of the group, then to the end."""
    flags = ["glyphs", "--shots", "1", *TINY, "--iterations", "60", "--val-every", "10"]
    flags += ["--algo", "km", "anil", "maml", "--seeds", "2", "--out"]
    cut, runs = tmp_path / "cut", [(algo, seed) for seed in (0, 1) for algo in ("km", "anil", "maml")]
    jobs = str(min(2, cores()))
    command = [sys.executable, "-m", "metakm.sweep", *flags, str(cut), "--jobs", jobs]

    def start():
        return subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
        )

    with start() as process:
        while not (folder(cut, "km", 0) / "checkpoint.pt").exists():
            assert process.poll() is None
            time.sleep(0.02)
        os.killpg(process.pid, signal.SIGINT)
        output, error = process.communicate()
    assert process.returncode == 130
    assert "Traceback" not in error
    assert states(output)["km", 0] == "interrupted"
    assert states(output)["km", 1] == "not started"
    assert pd.read_csv(folder(cut, "km", 0) / "result.csv").status[0] == "interrupted"

    with start() as process:
        for line in process.stderr:
            if line.startswith("[1/"):
                assert ": done; " in line
                os.killpg(process.pid, signal.SIGKILL)
                break
    assert 1 <= sum(inspect(config).state == "done" for config in configs(*flags, str(cut))) < 6

    assert main([*flags, str(cut), *DEBUG]) == 0
    assert main([*flags, str(tmp_path / "whole"), *DEBUG]) == 0
    for algo, seed in runs:
        assert numbers(folder(cut, algo, seed)) == numbers(folder(tmp_path / "whole", algo, seed))
    assert not list(cut.rglob("run.lock"))

    table, report = tmp_path / "table.csv", tmp_path / "report.html"
    assert make_table([str(cut), "--format", "csv", "--out", str(table), "--strict"]) == 0
    assert all(f"{algo} (quick" in table.read_text() for algo, _ in runs)
    assert make_report([str(cut), "--out", str(report), "--episodes", "1"]) == 0
    assert "left out" not in report.read_text().lower()


def test_status_says_how_far_each_run_is_and_writes_nothing(half_done, tmp_path, capsys):
    before = snapshot(tmp_path)
    assert main([*half_done, "--seeds", "3", "--status"]) == 0
    *lines, last = capsys.readouterr().out.splitlines()
    assert snapshot(tmp_path) == before
    assert states("\n".join(lines)) == {
        ("km", 1): "to resume",
        ("km", 2): "to do",
        ("anil", 0): "in use",
        ("anil", 1): "blocked",
        ("anil", 2): "to do",
    }
    of_km = [line for line in lines if "-km-" in line]
    assert "iteration 3 of 4, 00:0" in of_km[0], "timed by its own checkpoint"
    assert "iteration 0 of 4, 00:0" in of_km[1], "timed by the other seeds"
    of_anil = [line for line in lines if "-anil-" in line]
    assert ["iteration 0 of 4, not timed yet" in line for line in of_anil] == [True, False, True], (
        "the second is blocked"
    )
    assert re.fullmatch(r"1 of 6 done; 00:0\d left \(until [\d-]+ [\d:]+\), plus 2 not timed yet", last)


def test_a_blocked_run_has_no_time_left(tmp_path, monkeypatch):
    plan = [Planned(preset_config(algo="km", seed=seed, out=tmp_path), "done") for seed in range(2)]
    monkeypatch.setattr("metakm.sweep.status.pace", lambda _: Pace(100, 50.0))
    plan[1] = plan[1]._replace(state="blocked", note="another run")
    line, last = status_text(plan, jobs=1).splitlines()
    assert line == f"blocked    {plan[1].config.run_id}  another run"
    assert last == "1 of 2 done"


def test_no_end_is_promised_where_nothing_has_been_timed(tmp_path):
    plan = [Planned(preset_config(algo="km", seed=seed, out=tmp_path), "to do") for seed in range(2)]
    assert status_text(plan, jobs=1).splitlines()[-1] == "0 of 2 done; the time left is not known yet"


def test_the_time_left_is_that_of_the_iterations_left(tmp_path, monkeypatch):
    """Two of ten runs are done; the others take as long as their seconds an iteration say, two at a time."""
    plan = [
        Planned(preset_config(algo=algo, seed=seed, iterations=100, out=tmp_path), "done" if seed == 0 else "to do")
        for seed in range(5)
        for algo in ("km", "anil")
    ]
    seconds = {"km": 50.0, "anil": 10.0}
    monkeypatch.setattr(
        "metakm.sweep.status.pace",
        lambda c: Pace(100, seconds[c.algo]) if c.seed == 0 else Pace(50, 50.0) if c.seed == 1 else None,
    )
    *_, last = status_text(plan, jobs=2).splitlines()
    # seed 1: 2 runs x 50 iterations x 1 s; seeds 2 to 4: 3 x (mean of 0.5 and 1 s, and of 0.1 and 1 s) x 100
    assert last.startswith("2 of 10 done; 04:")
    assert "04:" + f"{int((100 + 3 * (75 + 55)) / 2) - 240:02d} left" in last
    running = [planned._replace(state="in use" if planned.config.seed == 1 else planned.state) for planned in plan]
    assert status_text(running).splitlines()[-1] == last, "as many at a time as are running"
