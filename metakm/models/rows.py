"""Rows: images of T tasks on one axis, `[n*T, ...]`, image 0 of every task, then image 1 of every task, and so on."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Any

from torch import Tensor
from torch.utils._pytree import tree_map

_rows: ContextVar[tuple[int, int]] = ContextVar("metakm_rows", default=(1, 0))


@contextlib.contextmanager
def rows_of(tasks: int, rows: int) -> Iterator[None]:
    """Within the block, there are so many rows, which belong to `tasks` tasks in turn."""
    token = _rows.set((tasks, rows))
    try:
        yield
    finally:
        _rows.reset(token)


def tasks_here() -> int:
    """Of how many tasks the rows are; 1 outside of `rows_of`."""
    return _rows.get()[0]


def rows_here() -> int:
    """How many rows there are, of all tasks; 0 outside of `rows_of`."""
    return _rows.get()[1]


def side_by_side(rows: Tensor) -> Tensor:
    """`[n*T, C, ...]` to `[n, T*C, ...]`."""
    tasks = tasks_here()
    return rows if tasks == 1 else rows.reshape(len(rows) // tasks, tasks * rows.shape[1], *rows.shape[2:])


def as_rows(features: Tensor) -> Tensor:
    """Inverse of `side_by_side`."""
    tasks = tasks_here()
    return features if tasks == 1 else features.reshape(len(features) * tasks, -1, *features.shape[2:])


def repeat_for_rows(values: Tensor, rank: int, rows: int) -> Tensor:
    """Values of `rank` axes that all rows share, as they are; or `[T, ...]` to `[rows, ...]`."""
    return values if values.dim() == rank else values.repeat(rows // len(values), *[1] * rank)


def select_rows(arguments: Any, part: slice, rows: int) -> Any:
    """The arguments of a call with `part` of every tensor that has all `rows`; others, such as constants, stay."""

    def select(value: Any) -> Any:
        return value[part] if isinstance(value, Tensor) and value.shape[:1] == (rows,) else value

    return tree_map(select, arguments)
