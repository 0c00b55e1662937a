"""Data-parallel training of one run over several processes: each takes a shard of the tasks; gradients are summed.

`torchrun --nproc-per-node 2 -m metakm.run ...` starts the processes and numbers them through environment variables. All
of them hold the same parameters. The meta-gradient is a mean over tasks, so with P_r the tasks of process r out of T::

    grad = sum_r [ (1/T) sum_{t in P_r} grad L_t ]

is the same on every process up to the order of the sum, and so is every step that follows. CPU tensors are sent with
gloo, GPU tensors with NCCL. Only process 0 writes files and prints. When a process or a host is lost, the others exit:
see `metakm/distributed/watchdog.py`.
"""

from __future__ import annotations

import contextlib
import io
import os
import socket
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from types import TracebackType
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous

from metakm.distributed.rendezvous import (
    RENDEZVOUS_SECONDS,
    Rendezvous,
    gather_peers,
    has_started,
    mark_started,
)
from metakm.distributed.shutdown import ShutdownHandler
from metakm.distributed.torchrun import from_torchrun, print_anyway, restarts
from metakm.distributed.watchdog import Watch
from metakm.errors import UserError, one_line

# torch's timeout for a collective, long because a process may wait for another's download. `Watch` detects lost ones.
PATIENCE = timedelta(days=30)
_T = TypeVar("_T")


@dataclass(frozen=True)
class _Links:
    """What connects this process to the others."""

    store: Store  # torchrun's, which outlives a restart
    rendezvous: Rendezvous
    watch: Watch
    shutdown: ShutdownHandler


class Processes:
    """The processes of one run; this one is number `rank` of `size`.

    `sum_gradients` and the methods below it wait for all processes: each must call them, in the same order. With one
    process they do nothing.

    Attributes:
        restarted: whether torchrun has restarted the processes after the run had started.
    """

    def __init__(self, rank: int = 0, size: int = 1, links: _Links | None = None, store: Store | None = None) -> None:
        self.rank, self.size, self._links, self._store = rank, size, links, store
        self.restarted = store is not None and has_started(store) if links is None else links.rendezvous.restarted

    @property
    def first(self) -> bool:
        """Whether this is the process that writes and prints."""
        return self.rank == 0

    def shard(self, tasks: int) -> range:
        """This process's share of the tasks 0..tasks-1: consecutive, disjoint, sizes differ by at most 1."""
        return range(tasks * self.rank // self.size, tasks * (self.rank + 1) // self.size)

    def mark_started(self) -> None:
        """Record that the run has started, so that a restart resumes it."""
        if self._store is not None:
            mark_started(self._store)

    def on_peer_lost(self, write: Callable[[], object]) -> None:
        """Call `write`, from another thread, before this process exits because another one was lost."""
        if self._links is not None:
            self._links.shutdown.write = write

    @contextlib.contextmanager
    def share_progress(self, total: int, progress: Callable[[int], None]) -> Iterator[Callable[[int], None]]:
        """Report to `progress` what all processes have done, while each counts its own work within the block.

        No process waits for another. At the end of the block `progress` is given what is left of `total`.
        """
        if self._links is None:
            yield progress
            return
        watch, seen = self._links.watch, 0
        watch.begin_count()

        def advance(done: int) -> None:
            nonlocal seen
            before, seen = seen, watch.count(done)
            progress(seen - before)

        yield advance
        if seen < total:
            with contextlib.suppress(StopIteration):  # too late to stop
                progress(total - seen)

    def sum_gradients(self, parameters: Sequence[nn.Parameter]) -> None:
        """Replace each `grad` by its sum over the processes; None counts as 0, and stays None if all have None."""
        if self.size == 1:
            return
        here = torch.tensor([p.grad is not None for p in parameters], dtype=torch.int32)
        with self._collective():
            dist.all_reduce(here)
        used = [p for p, count in zip(parameters, here.tolist(), strict=True) if count]
        grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in used]
        flat = torch.cat([g.reshape(-1) for g in grads])
        with self._collective():
            dist.all_reduce(flat)
        totals = torch.split(flat, [g.numel() for g in grads])
        for parameter, grad, total in zip(used, grads, totals, strict=True):
            parameter.grad = grad.copy_(total.view_as(grad))

    def sum(self, *values: float) -> tuple[float, ...]:
        """The sum of each value over the processes."""
        if self.size == 1:
            return values
        total = torch.tensor(values, dtype=torch.float64)
        with self._collective():
            dist.all_reduce(total)
        return tuple(total.tolist())

    def any(self, condition: bool) -> bool:
        """Whether the condition holds on any process."""
        return self.sum(float(condition))[0] > 0

    def gather(self, value: _T) -> list[_T]:
        """The values of all processes, in their order."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        with self._collective():
            dist.all_gather_object(values, value)
        return values

    def broadcast(self, value: _T) -> _T:
        """The value of process 0; its tensors arrive on the CPU."""
        if self.size == 1:
            return value
        file = io.BytesIO()
        if self.first:
            torch.save(value, file)
        box = [file.getvalue()]
        with self._collective():
            dist.broadcast_object_list(box)
        received: _T = torch.load(io.BytesIO(box[0]), map_location="cpu", weights_only=False)  # our own process's
        return received

    def raise_together(self, *kinds: type[Exception]) -> contextlib.AbstractContextManager[None]:
        """Raise on every process the error of one of these kinds that any of them raises within the block."""
        return _RaiseTogether(self, kinds)

    def _collective(self) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext() if self._links is None else self._links.watch.guard_collective()


class _RaiseTogether(contextlib.AbstractContextManager[None]):
    def __init__(self, processes: Processes, kinds: tuple[type[Exception], ...]) -> None:
        self.processes, self.kinds = processes, kinds

    def __exit__(
        self, _kind: type[BaseException] | None, error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        if self.processes.size == 1 or not (error is None or isinstance(error, self.kinds)):
            return
        own = [(number, str(error)) for number, kind in enumerate(self.kinds) if isinstance(error, kind)]
        for raised in self.processes.gather(own):
            for number, message in raised:
                raise self.kinds[number](message) from error


ALONE = Processes()


@contextlib.contextmanager
def join_processes(again: str = "repeat the same command") -> Iterator[Processes]:
    """The processes that torchrun has started; a single one without it. Enter it once in a process.

    Args:
        again: what the user should do after a process is lost.

    Raises:
        UserError: the processes do not find each other within 2 minutes.
    """
    size = from_torchrun("WORLD_SIZE", 1)
    if size == 1:
        yield Processes(store=_store()) if restarts() else ALONE
        return
    rank = from_torchrun("RANK", 0)
    try:
        links = _rendezvous(rank, size, again)
    except UserError as error:
        if rank != 0:  # each process knows its own reason
            print_anyway(f"error: process {rank} on {socket.gethostname()}: {error}")
        raise
    try:
        _connect(links, rank, size)
        yield Processes(rank, size, links, links.store)
    except BaseException as error:
        links.watch.close(error)
        raise
    else:
        links.watch.close()
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


def _store() -> Store:
    """That of torchrun, which outlives a restart."""
    try:
        store: Store = next(rendezvous("env://", timeout=timedelta(seconds=RENDEZVOUS_SECONDS)))[0]
    except RuntimeError as error:
        said = one_line(error)
        raise UserError(
            f"Expected to reach torchrun on {os.environ['MASTER_ADDR']}, got {said}; check that the host accepts "
            "connections from this one"
        ) from error
    return store


def _rendezvous(rank: int, size: int, again: str) -> _Links:
    store = _store()
    found, connections = gather_peers(store, rank, size, from_torchrun("GROUP_RANK", 0))
    shutdown = ShutdownHandler(rank, found, again)
    return _Links(store, found, Watch(rank, connections, shutdown), shutdown)


def _connect(links: _Links, rank: int, size: int) -> None:
    store = PrefixStore(links.rendezvous.key, links.store)
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    with links.watch.guard_collective():
        dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=PATIENCE)
