"""What a run survives: processes that are killed at any moment, disks that are full."""

import errno
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

import metakm
from metakm.run.__main__ import main

pytestmark = pytest.mark.float32

ROOT = Path(__file__).resolve().parents[2]
SMALL = "--ways 3 --queries 2 --backbone conv4-4-stride --meta-batch 2 --val-tasks 2 --eval-tasks 4 --device cpu"


@pytest.fixture(autouse=True)
def environment(cache, monkeypatch):
    monkeypatch.setenv("METAKM_CACHE", str(cache))


def program(*arguments):
    """Run a Python program in a process of its own; its output."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, *map(str, arguments)], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
def test_five_kills_at_random_moments_end_in_the_same_checkpoint_as_an_unbroken_run():
    """`python benchmarks/kill_chain.py` does it twenty times."""
    assert "5 kills: the same checkpoint" in program(ROOT / "benchmarks" / "kill_chain.py", "--kills", "5")


@pytest.mark.slow
def test_a_kill_at_any_line_of_a_write_leaves_the_old_or_the_new_file(tmp_path):
    lines = [line.split() for line in program(Path(__file__).with_name("killed_writes.py"), tmp_path).splitlines()]
    assert {name for name, *_ in lines} == WRITTEN.keys() - {"result.csv"}
    for name, kills, replaced in lines:
        assert int(kills) > 15, name
        assert 0 < int(replaced) < int(kills), f"{name}: kills fell before and after the renaming"


# Files of a run of 3 iterations and how often each is written; the last checkpoint comes after the last validation.
WRITTEN = {
    "config.json": 1,
    "result.csv": 2,
    "checkpoint.pt": 5,
    "curve.csv": 5,
    "tasks.csv": 1,
    "curve.png": 1,
    "weights.safetensors": 1,
}


@pytest.fixture(scope="session")
def unbroken(tmp_path_factory, cache):
    """The accuracies of a run that nothing befell."""
    out = tmp_path_factory.mktemp("unbroken")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("METAKM_CACHE", str(cache))
        assert run(out) == 0
    return (folder(out) / "tasks.csv").read_text()


def run(out, *extra):
    return main([*f"{SMALL} --iterations 3 --val-every 1 --out".split(), str(out), *extra])


def folder(out):
    return out / "glyphs-3w1s" / "km" / "seed0"


@pytest.mark.parametrize(
    ("name", "wanted"), [*((name, 1) for name in WRITTEN), *((n, times) for n, times in WRITTEN.items() if times > 1)]
)
def test_a_disk_that_fills_up_at_any_file_ends_with_a_message_and_a_run_to_resume(
    tmp_path, monkeypatch, capsys, unbroken, name, wanted
):
    """At the first write of the file, or at the last bytes of its last write."""
    kept, opened = tempfile.mkstemp, {}
    count = 0

    def remember(*arguments, **options):
        handle, path = kept(*arguments, **options)
        opened[handle] = options["prefix"]
        return handle, path

    def full(handle):
        nonlocal count
        count += opened[handle] == f".{name}."
        if count == wanted and opened[handle] == f".{name}.":
            raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("metakm.io.files.tempfile.mkstemp", remember)
        patch.setattr("metakm.io.files.os.fsync", full)
        assert run(tmp_path) == 1
    error = capsys.readouterr().err
    assert error.splitlines()[-1].startswith("error: [Errno 28] No space left on device")
    assert "--resume" in error.splitlines()[-1]
    assert "Traceback" not in error
    assert not list(folder(tmp_path).glob(".*"))
    assert run(tmp_path, "--resume") == 0
    assert (folder(tmp_path) / "tasks.csv").read_text() == unbroken


def test_the_leftover_of_a_killed_writer_goes_with_the_next_write_and_others_stay(tmp_path):
    path = tmp_path / "a[b]*.txt"
    dead = tmp_path / ".a[b]*.txt.abcd_f12.partial"
    others = [".a.txt.abcdefgh.partial", ".a[b]*.txt.abcdefgh", ".a[b]*.txt.long_suffix.partial", "mine.partial"]
    for leftover in (dead, *(tmp_path / name for name in others)):
        leftover.write_text("half")
    metakm.io.files.write_text(path, "new")
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([path.name, *others])


def test_a_file_that_another_writer_still_writes_is_left_to_it(tmp_path):
    path = tmp_path / "a.txt"
    with metakm.io.files.atomic_write(path) as slow:
        slow.write(b"slow")
        metakm.io.files.write_text(path, "quick")
        assert path.read_text() == "quick"
        assert len(list(tmp_path.iterdir())) == 2
    assert path.read_text() == "slow"
    assert len(list(tmp_path.iterdir())) == 1


def test_a_temporary_file_that_a_clean_up_took_before_it_was_locked_is_made_again(tmp_path, monkeypatch):
    lock, taken = metakm.io.files.fcntl.flock, []

    def race(handle, operation):
        if not taken:
            taken.extend(tmp_path.iterdir())
            taken[0].unlink()
        lock(handle, operation)

    monkeypatch.setattr("metakm.io.files.fcntl.flock", race)
    metakm.io.files.write_text(tmp_path / "a.txt", "text")
    assert len(taken) == 1
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]


def test_a_file_system_without_locks_is_written_and_not_cleaned(tmp_path, monkeypatch):
    def unsupported(*_):
        raise OSError(errno.ENOTSUP, "not supported")

    monkeypatch.setattr("metakm.io.files.fcntl.flock", unsupported)
    (tmp_path / ".a.txt.abcdefgh.partial").write_text("half")
    metakm.io.files.write_text(tmp_path / "a.txt", "text")
    assert sorted(p.name for p in tmp_path.iterdir()) == [".a.txt.abcdefgh.partial", "a.txt"]
