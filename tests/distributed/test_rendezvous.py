"""Processes find each other by torchrun's store, also where it has traces of processes before them."""

import json
import socket
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from torch.distributed import HashStore

from metakm.distributed import processes
from metakm.distributed import rendezvous as meeting
from metakm.distributed.processes import join_processes
from metakm.distributed.rendezvous import gather_peers, mark_started
from metakm.errors import UserError


@pytest.fixture(autouse=True)
def here(monkeypatch):
    monkeypatch.setenv("MASTER_ADDR", "localhost")


def meet_all(store, size=3):
    """What each process learns; the nodes are 0, 0, 1, 1, ..."""
    with ThreadPoolExecutor(size) as pool:
        found = list(pool.map(lambda rank: gather_peers(store, rank, size, rank // 2), range(size)))
    assert [sorted(connections) for _, connections in found] == [list(range(1, size))] + [[0]] * (size - 1)
    for rank in range(1, size):
        found[rank][1][0].sendall(bytes([rank]))
        assert found[0][1][rank].recv(1) == bytes([rank]), "the connection is of another process"
    for _, connections in found:
        for connection in connections.values():
            connection.close()
    assert all(each == found[0][0] for each, _ in found)
    return found[0][0]


def test_all_learn_the_same():
    found = meet_all(HashStore())
    assert (found.nodes, found.hosts, found.restarted) == ([0, 0, 1], [socket.gethostname()] * 3, False)


def test_traces_of_earlier_processes_do_not_mislead():
    store = HashStore()
    with socket.create_server(("localhost", 0)) as gone:
        port = gone.getsockname()[1]
    store.set("metakm/where", json.dumps([port, "old"]))
    first = meet_all(store)
    assert not first.restarted, "they had not begun their run"
    mark_started(store)
    second = meet_all(store)
    assert second.restarted
    assert second.key != first.key


def test_a_single_process_learns_that_it_was_restarted(monkeypatch):
    told = {"TORCHELASTIC_RUN_ID": "one", "WORLD_SIZE": "1", "TORCHELASTIC_MAX_RESTARTS": "1"}
    for name, value in told.items():
        monkeypatch.setenv(name, value)
    store = HashStore()
    monkeypatch.setattr(processes, "_store", lambda: store)
    for restarted in (False, True):
        with join_processes() as alone:
            assert (alone.size, alone.restarted) == (1, restarted)
            alone.mark_started()


def test_strangers_are_sent_away():
    store, met = HashStore(), []
    first = threading.Thread(target=lambda: met.append(gather_peers(store, 0, 2, 0)))
    first.start()
    port, key = json.loads(store.get("metakm/where"))
    for words in (b"GET / HTTP/1.1\n", b'{"key": "guessed", "rank": 1, "host": "x", "node": 0}\n', b"[]\n", b""):
        with socket.create_connection(("localhost", port)) as stranger:
            stranger.sendall(words)
    _, connections = gather_peers(store, 1, 2, 0)
    first.join()
    assert key not in ("", "guessed")
    for connection in (*connections.values(), *met[0][1].values()):
        connection.close()


def test_who_does_not_come_is_named(monkeypatch):
    monkeypatch.setattr(meeting, "RENDEZVOUS_SECONDS", 0.3)
    with pytest.raises(UserError, match="Expected 3 processes, got none with the rank 1, 2 within 0 seconds"):
        gather_peers(HashStore(), 0, 3, 0)
    store = HashStore()
    with socket.create_server(("localhost", 0)) as gone:
        port = gone.getsockname()[1]
    store.set("metakm/where", json.dumps([port, "old"]))
    with pytest.raises(UserError, match=r"Expected to reach process 0 on localhost, got .*refused"):
        gather_peers(store, 1, 3, 0)
