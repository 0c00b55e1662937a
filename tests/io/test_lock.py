"""The lock on a run folder: between threads, between processes, after kill -9, and where there are no locks."""

import errno
import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest

from metakm.io.lock import InUseError, Lock, holder

HOLD = "import sys, pathlib, metakm.io.lock as m; m.Lock(pathlib.Path(sys.argv[1])).acquire(); print('held'); input()"


def test_the_second_is_refused_and_told_of_the_first(tmp_path):
    first, second = Lock(tmp_path / "run.lock"), Lock(tmp_path / "run.lock")
    first.acquire()
    with pytest.raises(InUseError, match=f"process {os.getpid()} on {socket.gethostname()} since 20") as refused:
        second.acquire()
    assert str(tmp_path) in str(refused.value)
    assert f"process {os.getpid()}" in holder(tmp_path / "run.lock")
    with pytest.raises(InUseError):
        first.acquire()
    first.release()
    assert list(tmp_path.iterdir()) == []
    assert holder(tmp_path / "run.lock") is None
    second.acquire()
    first.release()
    assert holder(tmp_path / "run.lock") is not None, "only the holder gives the lock back"
    second.release()


def test_a_process_holds_the_lock_until_it_is_killed(tmp_path):
    path = tmp_path / "run.lock"
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout.readline() == "held\n"
        with pytest.raises(InUseError, match=f"process {process.pid} on"):
            Lock(path).acquire()
        process.send_signal(signal.SIGKILL)
    assert path.exists()
    assert holder(path) is None
    lock = Lock(path)
    lock.acquire()
    assert json.loads(path.read_text())["pid"] == os.getpid()
    lock.release()


def test_never_two_at_once_though_the_file_comes_and_goes(tmp_path, monkeypatch):
    monkeypatch.setattr("metakm.io.lock.PAUSE_SECONDS", 0.0001)
    inside, most, turns = 0, 0, 0

    def work():
        nonlocal inside, most, turns
        for _ in range(200):
            lock = Lock(tmp_path / "run.lock")
            try:
                lock.acquire()
            except InUseError:
                continue
            inside += 1
            most, turns = max(most, inside), turns + 1
            time.sleep(0.0001)
            inside -= 1
            lock.release()

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == 1
    assert turns > 4
    assert list(tmp_path.iterdir()) == []


def test_a_file_removed_between_opening_and_locking_is_not_taken_for_the_lock(tmp_path, monkeypatch):
    path, flock, removed = tmp_path / "run.lock", fcntl.flock, []

    def late(descriptor, operation):
        if not removed:
            removed.append(path.unlink())
        return flock(descriptor, operation)

    monkeypatch.setattr("metakm.io.lock.fcntl.flock", late)
    lock = Lock(path)
    lock.acquire()
    assert json.loads(path.read_text())["pid"] == os.getpid()
    lock.release()


def write(path, pid, host):
    path.write_text(json.dumps({"pid": pid, "host": host, "since": "2026-01-01T00:00:00+00:00"}))


@pytest.fixture
def without_locks(monkeypatch):
    def flock(_descriptor, _operation):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("metakm.io.lock.fcntl.flock", flock)


@pytest.mark.usefixtures("without_locks")
def test_without_locks_a_living_process_and_one_of_another_machine_keep_the_folder(tmp_path):
    path = tmp_path / "run.lock"
    for pid, host in ((os.getpid(), socket.gethostname()), (1, "elsewhere")):
        write(path, pid, host)
        with pytest.raises(InUseError, match=f"process {pid} on {host} since 2026"):
            Lock(path).acquire()
        assert holder(path) == f"process {pid} on {host} since 2026-01-01T00:00:00+00:00"


@pytest.mark.usefixtures("without_locks")
@pytest.mark.parametrize("pid", [2**22 + 1, 2**80])
def test_without_locks_a_process_that_is_gone_does_not_keep_the_folder(tmp_path, pid):
    path = tmp_path / "run.lock"
    write(path, pid, socket.gethostname())
    assert holder(path) is None
    lock = Lock(path)
    lock.acquire()
    lock.release()
    assert not path.exists()


@pytest.mark.parametrize("content", [b"", b"nonsense", b"[]", b'{"pid": 1}', b'{"pid": null, "host": 1, "since": 1}'])
def test_text_that_cannot_be_read_names_no_one_and_blocks_no_one(tmp_path, content):
    path = tmp_path / "run.lock"
    path.write_bytes(content)
    assert holder(path) is None
    lock = Lock(path)
    lock.acquire()
    path.write_bytes(content)
    with pytest.raises(InUseError, match="another process"):
        Lock(path).acquire()
    lock.release()


def test_any_other_error_is_passed_on(tmp_path, monkeypatch):
    def flock(_descriptor, _operation):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr("metakm.io.lock.fcntl.flock", flock)
    with pytest.raises(OSError, match="Input/output"):
        Lock(tmp_path / "run.lock").acquire()
