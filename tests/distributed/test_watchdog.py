"""Processes that look after each other; here they are threads of one, joined by pairs of sockets."""

import socket
import time

import pytest

from metakm.distributed import watchdog as watch
from metakm.distributed.watchdog import LostProcess, Peer, Watch

BEAT = 0.02


class Ended(BaseException):
    """In place of the end of the process."""


@pytest.fixture(autouse=True)
def impatience(monkeypatch):
    monkeypatch.setattr(watch, "BEAT_SECONDS", BEAT)
    monkeypatch.setattr(watch, "SILENT_BEATS", 40)


@pytest.fixture
def group(monkeypatch):
    """Makes the watches of processes 0, 1, ..., whom each lost, and the connections of the others to process 0."""
    monkeypatch.setattr(watch.os, "_exit", lambda _: _end())
    monkeypatch.setattr(watch.threading, "excepthook", lambda _: None)
    made, ends = [], []

    def make(size, silent=()):
        pairs = {rank: socket.socketpair() for rank in range(1, size)}
        lost = [[] for _ in range(size)]
        watches = {0: Watch(0, {rank: pair[0] for rank, pair in pairs.items()}, lost[0].append)}
        for rank, pair in pairs.items():
            if rank not in silent:
                watches[rank] = Watch(rank, {0: pair[1]}, lost[rank].append)
        made.extend(watches.values())
        ends.extend(pair[1] for pair in pairs.values())
        return watches, lost, [pair[1] for pair in pairs.values()]

    yield make
    for each in (*made, *ends):
        each.close()


def _end():
    raise Ended


def wait_for(condition):
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(BEAT)


def test_whoever_dies_is_named_to_all_the_others(group):
    _, lost, connections = group(4, silent=[2])
    time.sleep(10 * BEAT)
    assert lost == [[], [], [], []]
    connections[1].close()
    wait_for(lambda: lost[0] and lost[1] and lost[3])
    assert lost == [[LostProcess(2, "it closed its connection, probably killed")]] * 2 + [
        [],
        lost[0],
    ]


def test_a_silent_process_is_lost_and_a_busy_one_is_not(group):
    _, lost, _ = group(2)
    until = time.monotonic() + 2 * watch.SILENT_BEATS * BEAT
    while time.monotonic() < until:
        sum(range(1000))  # never gives its turn away
    assert lost == [[], []]
    _, lost, _ = group(2, silent=[1])
    wait_for(lambda: lost[0])
    assert lost[0] == [LostProcess(1, "no sign of life for 0.8 seconds")]


def test_who_leaves_is_not_lost(group):
    watches, lost, _ = group(3)
    watches[1].close()
    watches[0].close()
    time.sleep(30 * BEAT)
    assert lost == [[], [], []]


def test_the_error_that_ends_a_process_is_passed_on_after_a_grace(group):
    watches, lost, _ = group(3)
    watches[1].close(OSError("no space\nleft"))
    time.sleep(watch.GRACE_BEATS / 2 * BEAT)
    assert lost == [[], [], []]
    wait_for(lambda: lost[0] and lost[2])
    assert lost[0] == [LostProcess(1, "it ended by OSError: no space left", True)]
    assert lost[2] == [LostProcess(1, "it ended by OSError: no space left")]


def test_an_error_that_all_meet_is_no_loss(group):
    watches, lost, _ = group(3)
    for each in watches.values():
        each.close(ValueError("of all"))
    time.sleep(2 * watch.GRACE_BEATS * BEAT)
    assert lost == [[], [], []]


def test_process_0_counts_what_all_have_done(group):
    watches, _, _ = group(3)
    for each in watches.values():
        each.begin_count()
    for done in (2, 3):
        watches[2].count(done)
    wait_for(lambda: watches[0].count(0) == 5)
    assert watches[0].count(1) == 6
    watches[1].begin_count()
    watches[1].count(7)
    time.sleep(5 * BEAT)
    assert watches[0].count(1) == 7, "not of the next count"
    watches[0].begin_count()
    assert watches[0].count(0) == 7, "nor of the last one"


def test_a_failure_of_torch_is_left_to_the_watch(group):
    watches, lost, connections = group(2, silent=[1])
    connections[0].close()
    with pytest.raises(RuntimeError, match="peer"), watches[0].guard_collective():
        raise RuntimeError("Connection closed by peer")
    assert lost[0], "the process would have ended before the error"


def test_time_that_this_process_was_stopped_does_not_count():
    here, there = socket.socketpair()
    peer = Peer(1, here)
    time.sleep(1.5 * watch.SILENT_BEATS * BEAT)
    assert peer.listen() is None
    for _ in range(watch.SILENT_BEATS - 2):
        assert peer.listen() is None
    Peer(0, there).send(tally=(1, 2))
    assert peer.listen() is None
    assert (peer.silent, peer.tally) == (0, (1, 2))
    for pair in (here, there):
        pair.close()


def test_a_loss_ends_the_others_within_a_minute(monkeypatch):
    monkeypatch.undo()
    beats = watch.SILENT_BEATS + watch.GRACE_BEATS + 2  # two to pass it on
    assert beats * watch.BEAT_SECONDS + watch.SHUTDOWN_SECONDS < 60
