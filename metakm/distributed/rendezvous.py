"""How the processes that torchrun has started find each other, at the start and after each restart.

torchrun's store outlives the processes that it restarts, and what gloo left there misleads the new ones. So process 0
overwrites its predecessor's entry with its own address and a new random key. The others connect to it, and try again if
they read the predecessor's entry. From then on, the key prefixes everything that torch itself keeps in the store.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import secrets
import socket
import time
from dataclasses import dataclass
from typing import Any

from torch.distributed.distributed_c10d import Store

from metakm.errors import UserError

RENDEZVOUS_SECONDS = 120.0  # importing torch from a network file system can be slow
_ANSWER_SECONDS = 5.0
_PAUSE_SECONDS = 0.2
_WHERE, _STARTED = "metakm/where", "metakm/begun"


@dataclass(frozen=True)
class Rendezvous:
    """What the processes of a run know about each other.

    Args:
        key: unique to this start.
        restarted: whether torchrun has restarted the processes after their run had started.
        hosts: host name of each process, by rank.
        nodes: torchrun's number of each process's node, by rank.
    """

    key: str
    restarted: bool
    hosts: list[str]
    nodes: list[int]


def gather_peers(store: Store, rank: int, size: int, node: int) -> tuple[Rendezvous, dict[int, socket.socket]]:
    """Wait for all processes. Also return the connections: from process 0 to each of the others, or from another to it.

    Raises:
        UserError: they do not find each other within 2 minutes.
    """
    if rank == 0:
        return _receive_all(store, size, node)
    rendezvous, connection = _join(store, {"rank": rank, "host": socket.gethostname(), "node": node})
    return rendezvous, {0: connection}


def mark_started(store: Store) -> None:
    """Record in the store, for the processes after a restart, that the run has started."""
    store.set(_STARTED, "yes")


def has_started(store: Store) -> bool:
    """Whether the run had started before a restart."""
    return store.check([_STARTED])


def _receive_all(store: Store, size: int, node: int) -> tuple[Rendezvous, dict[int, socket.socket]]:
    key = secrets.token_hex(8)
    hosts, nodes = {0: socket.gethostname()}, {0: node}
    connections: dict[int, socket.socket] = {}
    deadline = time.monotonic() + RENDEZVOUS_SECONDS
    with _listener() as listener:
        store.set(_WHERE, json.dumps([listener.getsockname()[1], key]))
        while missing := sorted({*range(1, size)} - {*connections}):
            listener.settimeout(max(0.0, deadline - time.monotonic()))
            try:
                connection, _ = listener.accept()
            except (TimeoutError, BlockingIOError) as error:
                raise UserError(
                    f"Expected {size} processes, got none with the rank {', '.join(map(str, missing))} within "
                    f"{RENDEZVOUS_SECONDS:.0f} seconds; see what they print, and whether their hosts reach this one"
                ) from error
            if (peer := _read_peer(connection, key)) is not None:
                rank, hosts[rank], nodes[rank] = peer
                connections[rank] = connection
    ranks = range(size)
    rendezvous = Rendezvous(key, has_started(store), [hosts[r] for r in ranks], [nodes[r] for r in ranks])
    for connection in connections.values():
        _write(connection, dataclasses.asdict(rendezvous))
    return rendezvous, connections


def _read_peer(connection: socket.socket, key: str) -> tuple[int, str, int] | None:
    """Rank, host and node of the process that has connected. A stranger's connection is closed, and None returned."""
    try:
        connection.settimeout(_ANSWER_SECONDS)
        peer = _read(connection)
        if peer["key"] == key:
            return int(peer["rank"]), str(peer["host"]), int(peer["node"])
    except (OSError, ValueError, LookupError, TypeError):
        pass
    connection.close()
    return None


def _join(store: Store, peer: dict[str, Any]) -> tuple[Rendezvous, socket.socket]:
    address, deadline = os.environ["MASTER_ADDR"], time.monotonic() + RENDEZVOUS_SECONDS
    while True:
        try:
            port, key = json.loads(store.get(_WHERE))
            with contextlib.ExitStack() as undo:
                connection = socket.create_connection((address, port), timeout=_ANSWER_SECONDS)
                undo.callback(connection.close)
                _write(connection, {**peer, "key": key})
                connection.settimeout(max(0.0, deadline - time.monotonic()))
                rendezvous = Rendezvous(**_read(connection))
                undo.pop_all()
                return rendezvous, connection
        except (OSError, ValueError, RuntimeError) as error:  # nothing listens there, or no address is stored yet
            if time.monotonic() > deadline:
                raise UserError(
                    f"Expected to reach process 0 on {address}, got {error}; see what it prints, and check that "
                    "its host accepts connections from this one"
                ) from error
        time.sleep(_PAUSE_SECONDS)


def _listener() -> socket.socket:
    if socket.has_dualstack_ipv6():
        return socket.create_server(("", 0), family=socket.AF_INET6, dualstack_ipv6=True)
    return socket.create_server(("", 0))


def _write(connection: socket.socket, values: dict[str, Any]) -> None:
    connection.sendall(json.dumps(values).encode() + b"\n")


def _read(connection: socket.socket) -> Any:
    with connection.makefile("rb", buffering=0) as file:  # what comes after the line is left for the watch
        return json.loads(file.readline())
