"""Several processes, and so several devices, for one run: each takes its part of the tasks, and gradients are summed.

`torchrun --nproc-per-node 2 -m metakm.run ...` starts as many processes and numbers them by environment variables. All
hold the same parameters. The meta-gradient is a mean over tasks, so with P_r the tasks of process r out of T::

    grad = sum_r [ (1/T) sum_{t in P_r} grad L_t ]

is the same on every process up to the order of the sum, and so are all steps that follow from it. CPU tensors travel by
gloo, GPU tensors by NCCL. Process 0 alone writes files and prints.
"""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import nn

_T = TypeVar("_T")


class Processes:
    """The processes of one run, of which this one has number `rank` of `size`.

    All methods but `part` wait for all processes: each must call them, in the same order. With one process they do
    nothing.
    """

    def __init__(self, rank: int = 0, size: int = 1) -> None:
        self.rank, self.size = rank, size

    @property
    def first(self) -> bool:
        """Whether this is the process that writes and prints."""
        return self.rank == 0

    def part(self, tasks: int) -> range:
        """Which of the tasks 0..tasks-1 are this process's: consecutive, none twice, sizes apart by at most 1."""
        return range(tasks * self.rank // self.size, tasks * (self.rank + 1) // self.size)

    def sum_gradients(self, parameters: Sequence[nn.Parameter]) -> None:
        """Replace each `grad` by its sum over the processes; None counts as 0, and stays where all have None."""
        if self.size == 1:
            return
        here = torch.tensor([p.grad is not None for p in parameters], dtype=torch.int32)
        dist.all_reduce(here)
        used = [p for p, count in zip(parameters, here.tolist(), strict=True) if count]
        grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in used]
        flat = torch.cat([g.reshape(-1) for g in grads])
        dist.all_reduce(flat)
        totals = torch.split(flat, [g.numel() for g in grads])
        for parameter, grad, total in zip(used, grads, totals, strict=True):
            parameter.grad = grad.copy_(total.view_as(grad))

    def sum(self, *values: float) -> tuple[float, ...]:
        """The sum of each value over the processes."""
        if self.size == 1:
            return values
        total = torch.tensor(values, dtype=torch.float64)
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
        dist.all_gather_object(values, value)
        return values

    def from_first(self, value: _T) -> _T:
        """The value of process 0; its tensors arrive on the CPU."""
        if self.size == 1:
            return value
        file = io.BytesIO()
        if self.first:
            torch.save(value, file)
        box = [file.getvalue()]
        dist.broadcast_object_list(box)
        received: _T = torch.load(io.BytesIO(box[0]), map_location="cpu", weights_only=False)  # our own process's
        return received

    def agreed(self, *kinds: type[Exception]) -> contextlib.AbstractContextManager[None]:
        """Raise on every process the error of one of these kinds that any of them raises within the block."""
        return _Agreed(self, kinds)


class _Agreed(contextlib.AbstractContextManager[None]):
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
def joined() -> Iterator[Processes]:
    """The processes that torchrun has started; `ALONE` without it. To be entered once in the life of a process."""
    size = _number("WORLD_SIZE", 1)
    if size == 1:
        yield ALONE
        return
    dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo")
    try:
        yield Processes(dist.get_rank(), size)
    finally:
        dist.destroy_process_group()


@contextlib.contextmanager
def only_first_prints() -> Iterator[None]:
    """Within the block other processes than number 0 print nothing. An exception that leaves it is printed by all."""
    if _number("RANK", 0) == 0:
        yield
        return
    with (
        open(os.devnull, "w") as nothing,  # noqa: PTH123 (not a path of ours)
        contextlib.redirect_stdout(nothing),
        contextlib.redirect_stderr(nothing),
    ):
        yield


def local_device(name: str) -> str:
    """The device of this process where `--device` is `name`: of several processes on GPUs each has its own."""
    several_gpus = _number("LOCAL_WORLD_SIZE", 1) > 1 and torch.cuda.is_available()
    return f"cuda:{_number('LOCAL_RANK', 0)}" if several_gpus and name in ("auto", "cuda") else name


def processes_here() -> int:
    """How many processes of the run share this machine's memory."""
    return _number("LOCAL_WORLD_SIZE", 1)


def _number(variable: str, default: int) -> int:
    """A number that torchrun has set."""
    return int(os.environ[variable]) if dist.is_torchelastic_launched() else default
