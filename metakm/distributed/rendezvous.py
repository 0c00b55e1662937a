"""How the processes that torchrun has started find each other, at the start and after each restart.

The store of torchrun outlives the processes that it restarts, and what gloo left in it then misleads their successors.
So process 0 writes there, over what its predecessor wrote, where it listens and a new random key; the others connect,
and try again if it was the predecessor's. The key then is the prefix of all that torch itself keeps in the store.
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

MEETING_SECONDS = 120.0  # importing torch from a network's disk may take long
_ANSWER_SECONDS = 5.0
_PAUSE_SECONDS = 0.2
_WHERE, _BEGUN = "metakm/where", "metakm/begun"


@dataclass(frozen=True)
class Meeting:
    """What all processes of a run know of each other.

    Args:
        key: of this start alone.
        restarted: whether torchrun has started the processes again after they had begun their run.
        hosts: name of each process's host, by rank; nodes: its number, which torchrun has given it.
    """

    key: str
    restarted: bool
    hosts: list[str]
    nodes: list[int]


def meet(store: Store, rank: int, size: int, node: int) -> tuple[Meeting, dict[int, socket.socket]]:
    """Wait for all processes; return also the connections, of process 0 to each other one and of those to it.

    Raises:
        UserError: they do not find each other within 2 minutes.
    """
    if rank == 0:
        return _receive_all(store, size, node)
    meeting, connection = _visit(store, {"rank": rank, "host": socket.gethostname(), "node": node})
    return meeting, {0: connection}


def mark_begun(store: Store) -> None:
    """Leave word for the processes after a restart that the run has begun."""
    store.set(_BEGUN, "yes")


def _receive_all(store: Store, size: int, node: int) -> tuple[Meeting, dict[int, socket.socket]]:
    key = secrets.token_hex(8)
    hosts, nodes = {0: socket.gethostname()}, {0: node}
    connections: dict[int, socket.socket] = {}
    deadline = time.monotonic() + MEETING_SECONDS
    with _listener() as listener:
        store.set(_WHERE, json.dumps([listener.getsockname()[1], key]))
        while missing := sorted({*range(1, size)} - {*connections}):
            listener.settimeout(max(0.0, deadline - time.monotonic()))
            try:
                connection, _ = listener.accept()
            except (TimeoutError, BlockingIOError) as error:
                raise UserError(
                    f"Expected {size} processes, got none with the rank {', '.join(map(str, missing))} within "
                    f"{MEETING_SECONDS:.0f} seconds; see what they print, and whether their hosts reach this one"
                ) from error
            if (visitor := _visitor(connection, key)) is not None:
                rank, hosts[rank], nodes[rank] = visitor
                connections[rank] = connection
    ranks = range(size)
    meeting = Meeting(key, store.check([_BEGUN]), [hosts[r] for r in ranks], [nodes[r] for r in ranks])
    for connection in connections.values():
        _write(connection, dataclasses.asdict(meeting))
    return meeting, connections


def _visitor(connection: socket.socket, key: str) -> tuple[int, str, int] | None:
    """Rank, host and node of the process that has connected; None, and the end of the connection, for a stranger."""
    try:
        connection.settimeout(_ANSWER_SECONDS)
        visitor = _read(connection)
        if visitor["key"] == key:
            return int(visitor["rank"]), str(visitor["host"]), int(visitor["node"])
    except (OSError, ValueError, LookupError, TypeError):
        pass
    connection.close()
    return None


def _visit(store: Store, visitor: dict[str, Any]) -> tuple[Meeting, socket.socket]:
    address, deadline = os.environ["MASTER_ADDR"], time.monotonic() + MEETING_SECONDS
    while True:
        try:
            port, key = json.loads(store.get(_WHERE))
            with contextlib.ExitStack() as undo:
                connection = socket.create_connection((address, port), timeout=_ANSWER_SECONDS)
                undo.callback(connection.close)
                _write(connection, {**visitor, "key": key})
                connection.settimeout(max(0.0, deadline - time.monotonic()))
                meeting = Meeting(**_read(connection))
                undo.pop_all()
                return meeting, connection
        except (OSError, ValueError, RuntimeError) as error:  # nobody listens there any more, or has written where
            if time.monotonic() > deadline:
                raise UserError(
                    f"Expected to reach process 0 on {address}, got {error}; see what it prints, and whether its "
                    "host takes connections from this one"
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
