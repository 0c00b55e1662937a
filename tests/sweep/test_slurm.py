"""Sweeps on a real SLURM, started here: jobs that fail, are cancelled, killed, preempted or timed out."""

import json
import os
import pickle
import re
import signal
import threading
from pathlib import Path

import pandas as pd
import pytest
import submitit
import torch
from slurm_cluster import ACCOUNTING_COMMANDS, Cluster, missing
from submitit.core.utils import JobPaths

from metakm.sweep.__main__ import main
from metakm.sweep.job import JobOutcome, RunJob
from metakm.sweep.options import parse_sweep
from metakm.sweep.plan import expand, make_plan
from metakm.sweep.pool import Pool, SubmissionError, _slurm_parameters
from metakm.sweep.slurm import SlurmQueue, outcome_of

pytestmark = [
    pytest.mark.float32,
    pytest.mark.skipif(bool(missing()), reason=f"SLURM is not installed: {', '.join(missing())}"),
]

FLAGS = "glyphs --shots 1 --ways 3 --queries 2 --backbone conv4-8-stride --meta-batch 2 --val-tasks 4"
FLAGS += " --eval-tasks 6 --iterations 200 --val-every 100 --device cpu --executor slurm --poll-seconds 1"

TIMED_OUT = "reached its time limit, and was not requeued"
OUT_OF_MEMORY = "out of memory; ask for more with --slurm mem=..."
KILLED = "its process was killed, as when memory runs out"

HELD = """
import os, signal, time
from pathlib import Path
import metakm
from metakm.strategies.anil import ANIL

@metakm.register_strategy("held")
class Held(ANIL):
    def predict(self, adapted, encoded):
        here, job = Path(__file__).parent, os.environ.get("SLURM_JOB_ID")
        if (here / f"fail-{job}").exists():
            raise ZeroDivisionError("out of sorts")
        if (here / f"deaf-{job}").exists():
            signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR2})
        if (here / "hold").exists():
            time.sleep(0.1)
        return super().predict(adapted, encoded)
"""


def started(cluster):
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()


@pytest.fixture(scope="session")
def slurm(tmp_path_factory):
    yield from started(Cluster(tmp_path_factory.mktemp("slurm")))


@pytest.fixture(scope="session")
def accounted_slurm(tmp_path_factory):
    yield from started(Cluster(tmp_path_factory.mktemp("accounted"), accounting=True))


@pytest.fixture(params=[False, True], ids=["without accounting", "with accounting"])
def cluster(request, monkeypatch):
    if request.param and (lacking := missing(ACCOUNTING_COMMANDS)):
        pytest.skip(f"the accounting of SLURM is not installed: {', '.join(lacking)}")
    yield from cleared(request.getfixturevalue("accounted_slurm" if request.param else "slurm"), monkeypatch)


def cleared(cluster, monkeypatch):
    """Commands of SLURM mean this cluster; afterwards it has no jobs."""
    monkeypatch.setenv("SLURM_CONF", str(cluster.conf))
    yield cluster
    cluster.ask("scancel", f"--user={os.getuid()}")
    cluster.until(lambda: not cluster.ask("squeue", "--noheader"))


class Sweep:
    """A sweep of the strategy `held`, which waits while the file `hold` is there; and its jobs."""

    def __init__(self, cluster, folder):
        self.cluster, self.folder, self.hold = cluster, folder, folder / "hold"
        (folder / "held.py").write_text(HELD)

    def arguments(self, seeds, algo="held"):
        plugin = ["--plugin", str(self.folder / "held.py")] if algo == "held" else []
        return [*FLAGS.split(), "--algo", algo, "--seeds", str(seeds), *plugin, "--out", str(self.folder / "out")]

    def path(self, seed):
        return self.folder / "out" / "glyphs-3w1s" / "held" / f"seed{seed}"

    def row(self, seed):
        return pd.read_csv(self.path(seed) / "result.csv").iloc[0]

    def process(self, seed):
        """Of a run that has started to train, and its job."""
        self.cluster.until(lambda: (self.path(seed) / "checkpoint.pt").exists(), seconds=120)
        pid = json.loads((self.path(seed) / "run.lock").read_text())["pid"]
        environment = dict(entry.partition("=")[::2] for entry in Path(f"/proc/{pid}/environ").read_text().split("\0"))
        return pid, environment["SLURM_JOB_ID"]

    def resumed(self, seed, jobs):
        """Once a run is in other hands than in those of its process in `jobs`."""
        lock = self.path(seed) / "run.lock"
        self.cluster.until(lambda: lock.exists() and f'"pid": {jobs[seed][0]},' not in lock.read_text(), seconds=60)

    def until(self, job_id, state, seconds=60):
        self.cluster.until(lambda: self.state(job_id) == state, seconds)

    def state(self, job_id, field="%T"):
        return self.cluster.ask("squeue", "--noheader", "--states=all", f"--jobs={job_id}", f"--format={field}").strip()

    def start_again(self, job_id):
        """SLURM lets a job that was queued again wait for two minutes, unless told."""

        def running():
            if self.state(job_id, "%r") == "BeginTime":
                self.cluster.ask("scontrol", "update", f"JobId={job_id}", "StartTime=now")
            return self.state(job_id) == "RUNNING"

        self.until(job_id, "PENDING")
        self.cluster.until(running)


@pytest.fixture
def sweep(slurm, cache, tmp_path, monkeypatch):
    monkeypatch.setenv("METAKM_CACHE", str(cache))
    monkeypatch.setenv("OMP_NUM_THREADS", "7")  # of the machine that the sweep is on, not of the jobs
    for cluster in cleared(slurm, monkeypatch):
        yield Sweep(cluster, tmp_path)


@pytest.fixture
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class Director(threading.Thread):
    """What befalls the jobs of a sweep while it runs; an error in it ends the sweep."""

    def __init__(self, play):
        super().__init__(daemon=True)
        self.play, self.error, self.over = play, None, False

    def run(self):
        try:
            self.play()
        except Exception as error:
            self.error = error
            if not self.over:
                os.kill(os.getpid(), signal.SIGINT)

    def __enter__(self):
        self.start()
        return self

    def __exit__(self, kind, *_):
        self.over = True
        if kind is None:
            self.join(10)
            assert not self.is_alive(), "the sweep ended before its time"
        if self.error is not None:
            raise self.error


def endings(text):
    """Word and reason of each run that is not done, by its seed."""
    found = re.findall(r"^(\w+) +glyphs-3w1s-\w+-quick-seed(\d)-\w+ *(.*)$", text, flags=re.MULTILINE)
    return {int(seed): (word, reason) for word, seed, reason in found}


@pytest.mark.slow
@pytest.mark.usefixtures("one_thread")
def test_a_sweep_names_what_befell_its_jobs_and_the_same_command_goes_on(sweep, capfd):
    sweep.hold.touch()
    ended = []  # seeds: preempted, came to the limit, came to it and did not hear of it; SLURM chooses whom it preempts

    def play():
        jobs = {seed: sweep.process(seed) for seed in range(6)}
        ids = {seed: job_id for seed, (_, job_id) in jobs.items()}
        (sweep.folder / f"fail-{ids[0]}").touch()
        sweep.cluster.ask("scancel", ids[1])
        os.kill(jobs[2][0], signal.SIGKILL)
        for seed, state in ((0, "COMPLETED"), (1, "CANCELLED"), (2, "FAILED")):
            sweep.until(ids[seed], state)
        sweep.cluster.ask("sbatch", "--partition=urgent", "--cpus-per-task=6", "--output=/dev/null", "--wrap=sleep 1")
        sweep.cluster.until(lambda: any(sweep.state(ids[seed]) == "PENDING" for seed in (3, 4, 5)))
        ended.extend(sorted((3, 4, 5), key=lambda seed: sweep.state(ids[seed]) != "PENDING"))
        preempted, limited, deaf = (ids[seed] for seed in ended)
        (sweep.folder / f"deaf-{deaf}").touch()
        for job_id, left in ((limited, 80), (deaf, 1)):  # SLURM looks twice a minute, and warns 90 s ahead
            sweep.cluster.ask("scontrol", "update", f"JobId={job_id}", f"EndTime=now+{left}")
        sweep.start_again(preempted)
        sweep.start_again(limited)
        sweep.until(deaf, "TIMEOUT")
        sweep.resumed(ended[1], jobs)  # in a job that is being started, srun can lose two minutes to the restart
        sweep.cluster.restart_controller()
        sweep.hold.unlink()

    with Director(play):
        code = main([*sweep.arguments(6), "--cpus-per-task", "1"])
    assert code == 1
    output, error = capfd.readouterr()
    assert endings(output) == {
        0: ("failed", "ZeroDivisionError: out of sorts"),
        1: ("interrupted", "cancelled"),
        2: ("failed", KILLED),
        ended[2]: ("interrupted", TIMED_OUT),
    }
    assert "2 done, 2 failed, 2 interrupted" in output
    assert "sacct" not in error
    assert "Traceback" not in error

    assert [sweep.row(seed).threads for seed in ended[:2]] == [1, 1], "as allocated"
    assert sweep.row(1).status == "interrupted", "a cancelled run saves its state"

    plan = make_plan(expand(*parse_sweep(sweep.arguments(6))))
    assert [planned.state for planned in plan].count("to resume") == 4
    for planned in plan:  # here, which spares four starts of Python
        assert RunJob(planned.config, sweep.folder / "stop")().kind == "done"


@pytest.mark.usefixtures("one_thread")
def test_ctrl_c_cancels_jobs_that_wait(sweep, capfd):
    def play():
        sweep.cluster.until(lambda: len(sweep.cluster.ask("squeue", "--noheader").splitlines()) == 2)
        os.kill(os.getpid(), signal.SIGINT)

    with Director(play):
        code = main([*sweep.arguments(2, "anil"), "--slurm", "begin=now+1hour"])
    assert code == 130
    output, error = capfd.readouterr()
    assert endings(output) == dict.fromkeys((0, 1), ("interrupted", "cancelled"))
    assert error.endswith("Interrupted. Repeat the same command to continue.\n")


class Jobs:
    """Batch jobs of a few shell commands, watched as those of a sweep are."""

    def __init__(self, cluster, folder):
        self.cluster, self.folder, self.queue, self.jobs = cluster, folder, SlurmQueue(0.3), {}

    def send(self, name, script, *flags):
        """Start a job and wait for it to run."""
        log = JobPaths(self.folder, job_id="%j").stderr
        (self.folder / "script").write_text(f"#!/bin/bash\n{script}\n")
        command = ["sbatch", "--parsable", "--cpus-per-task=1", f"--output={log}", *flags, str(self.folder / "script")]
        self.jobs[name] = submitit.SlurmJob(self.folder, self.cluster.ask(*command).strip())
        self.queue.track(self[name], name)

    def __getitem__(self, name):
        return self.jobs[name].job_id

    def until_running(self):
        def state(name):
            return self.cluster.ask("squeue", "--noheader", "--states=all", f"--jobs={self[name]}", "--format=%T")

        self.cluster.until(lambda: not any("PENDING" in state(name) for name in self.jobs))

    def outcomes(self):
        """Of all, once each has ended."""
        found = {}

        def all_ended():
            new = {name for name, job in self.jobs.items() if name not in found and self.queue.has_ended(job)}
            found.update({name: self.queue.outcome(self.jobs[name]) for name in new})
            return len(found) == len(self.jobs)

        self.cluster.until(all_ended)
        return found


@pytest.fixture
def jobs(cluster, tmp_path):
    return Jobs(cluster, tmp_path)


def test_the_end_of_a_job_has_a_name(jobs, capsys):
    jobs.send("again", "sleep 60")
    jobs.until_running()
    jobs.queue.poll()
    jobs.cluster.ask("scontrol", "requeue", jobs["again"])
    jobs.cluster.until(lambda: "BeginTime" in jobs.cluster.ask("squeue", "--noheader", "--format=%r"))
    jobs.send("exit", "exit 3")
    jobs.send("killed", "kill -9 $$")
    jobs.send("killed below srun", "srun bash -c 'kill -9 $$'")
    jobs.send("crashed", "srun bash -c 'kill -SEGV $$'")
    jobs.send("memory", "srun bash -c 'tail <(head -c 300M /dev/zero; sleep 30)'", "--mem=100")
    jobs.send("cancelled", "scancel $SLURM_JOB_ID; sleep 30")
    jobs.send("nothing", "true")
    jobs.send("held", "scontrol requeuehold $SLURM_JOB_ID; sleep 30")
    jobs.cluster.until(lambda: "held" in jobs.cluster.ask("squeue", "--noheader", "--format=%r").lower())
    jobs.queue.poll()
    jobs.queue.cancel([jobs["again"], jobs["held"]])
    assert jobs.outcomes() == {
        "exit": JobOutcome("failed", "exit code 3"),
        "killed": JobOutcome("failed", KILLED),
        "killed below srun": JobOutcome("failed", KILLED),
        "crashed": JobOutcome("failed", "its process was ended by SIGSEGV"),
        "memory": JobOutcome("failed", OUT_OF_MEMORY),
        "cancelled": JobOutcome("interrupted", "cancelled"),
        "nothing": JobOutcome("failed", "ended without a result"),
        "held": JobOutcome("interrupted", "cancelled"),
        "again": JobOutcome("interrupted", "cancelled"),
    }
    said = capsys.readouterr().err
    assert "again: requeued by SLURM (BeginTime)\n" in said
    assert re.search(r"^held: (held|requeued) by SLURM \(.*held.*\)$", said, flags=re.MULTILINE)


@pytest.mark.parametrize(
    ("state", "fields", "result", "expected"),
    [
        ("COMPLETED", {}, JobOutcome("failed", "of its own"), JobOutcome("failed", "of its own")),
        ("FAILED", {"ExitCode": "1:0"}, JobOutcome("failed", "of its own"), JobOutcome("failed", "of its own")),
        ("FAILED", {"ExitCode": "1:0"}, JobOutcome("interrupted"), JobOutcome("failed", "exit code 1")),
        ("COMPLETED", {"PreemptTime": "None"}, JobOutcome("interrupted"), JobOutcome("interrupted", "by a signal")),
        ("TIMEOUT", {"ExitCode": "0:15"}, JobOutcome("failed"), JobOutcome("interrupted", TIMED_OUT)),
        ("OUT_OF_MEMORY", {"ExitCode": "0:125"}, None, JobOutcome("failed", OUT_OF_MEMORY)),
    ],
)
def test_what_a_run_left_counts_where_slurm_knows_no_reason(state, fields, result, expected, tmp_path):
    assert outcome_of(state, fields, tmp_path / "absent", result) == expected


def test_a_job_whose_node_fails_and_one_that_ends_in_its_time_of_grace(jobs):
    jobs.send("grace", "srun bash -c \"trap 'exit 0' TERM; sleep 60 & wait\"", "--partition=grace", "--no-requeue")
    jobs.until_running()
    jobs.jobs["grace"].paths.result_pickle.write_bytes(pickle.dumps(("success", JobOutcome("interrupted"))))
    jobs.cluster.ask("sbatch", "--partition=urgent", "--cpus-per-task=8", "--output=/dev/null", "--wrap=true")
    assert jobs.outcomes() == {"grace": JobOutcome("preempted", "and not requeued by SLURM")}
    del jobs.jobs["grace"]
    jobs.send("node", "sleep 60", "--no-requeue")
    jobs.until_running()
    jobs.cluster.ask("scontrol", "update", f"NodeName={jobs.cluster.host}", "State=DOWN", "Reason=test")
    assert jobs.outcomes() == {"node": JobOutcome("interrupted", "its node failed")}
    jobs.cluster.until(lambda: "idle" in jobs.cluster.ask("sinfo", "--noheader", "--format=%T"))


@pytest.mark.slow
def test_a_controller_that_restarts_is_waited_for(jobs, capsys):
    options, rest = parse_sweep([*FLAGS.split(), "--algo", "anil"])
    pool = Pool(options, jobs.folder / "logs")
    assert pool.executor, "SLURM answers"
    jobs.send("waits", "sleep 60")
    jobs.until_running()
    jobs.cluster.end("slurmctld")
    with pytest.raises(SubmissionError, match="Unable to contact slurm controller") as caught:
        pool.submit(expand(options, rest)[0], 0)
    assert caught.value.silent
    assert "Unable to contact" in jobs.queue.poll()
    jobs.queue.cancel([jobs["waits"]])
    assert not jobs.queue.has_ended(jobs.jobs["waits"])
    jobs.cluster.start_controller()
    assert jobs.outcomes() == {"waits": JobOutcome("interrupted", "cancelled")}
    said = capsys.readouterr().err
    assert said.count("SLURM does not answer; will try again: slurm_load_jobs error: Unable to contact") == 1


def test_a_job_that_the_controller_has_forgotten(jobs):
    cluster = jobs.cluster
    jobs.send("gone", "scancel $SLURM_JOB_ID; sleep 30")
    cluster.until(lambda: "CANCELLED" in cluster.ask("scontrol", "show", "job", jobs["gone"]))
    if cluster.accounting:
        cluster.until(lambda: "CANCELLED" in cluster.ask("sacct", "-nX", f"--jobs={jobs['gone']}", "--format=State"))
    cluster.restart_controller(forget=True)
    unknown = JobOutcome("failed", "SLURM no longer knows the job")
    assert jobs.outcomes() == {"gone": JobOutcome("interrupted", "cancelled") if cluster.accounting else unknown}


def test_a_job_has_the_threads_that_it_was_allocated(jobs):
    given = {"as many as it gets": [], "as many as asked for": ["--cpus-per-task", "3"]}
    for name, flags in given.items():
        options, _ = parse_sweep(["glyphs", "--executor", "slurm", *flags])
        jobs.send(name, "\n".join([*_slurm_parameters(options)["slurm_setup"], "srun env"]), "--cpus-per-task=3")
    jobs.outcomes()
    for name in given:
        environment = jobs.jobs[name].stderr()
        assert "\nOMP_NUM_THREADS=3\n" in environment
        assert "\nSLURM_CPUS_PER_TASK=3\n" in environment, "srun would bind the run to fewer"
