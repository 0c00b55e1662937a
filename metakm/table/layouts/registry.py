"""Layouts of Table III by name: built in, from the entry-point group `metakm.table_layouts`, or from a plugin file."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from metakm.errors import UserError, describe_error
from metakm.registry import Registry, full_name
from metakm.table.blocks import Table
from metakm.table.grids import Layout

TableLayout = Callable[[Table], Layout]
_L = TypeVar("_L", bound=TableLayout)

table_layouts: Registry[TableLayout] = Registry(
    "table layout", "metakm.table_layouts", adopt=lambda name, loaded: register_table_layout(name)(loaded)
)


def register_table_layout(name: str) -> Callable[[_L], _L]:
    """Function decorator: make a table layout known under `name`, for `python -m metakm.table --layout name`.

    The function takes a `metakm.table.blocks.Table` and returns a `metakm.table.grids.Layout`, which every format of
    `--format` can show. Neither needs torch.

    Raises:
        UserError: the name is taken.
    """

    def register(layout: _L) -> _L:
        table_layouts.add(name, layout)
        return layout

    return register


def lay_out(table: Table, name: str) -> Layout:
    """The table in the layout called `name`.

    Raises:
        UserError: an unknown name, or a plugin's layout that fails or returns something else than a layout.
    """
    function = table_layouts.get(name)
    try:
        layout = function(table)
    except Exception as error:
        if function.__module__.startswith("metakm.table."):
            raise
        raise UserError(f"Expected {full_name(function)} to lay out the table, got {describe_error(error)}") from error
    if not isinstance(layout, Layout):
        raise UserError(
            f"Expected {full_name(function)} to return a metakm.table.grids.Layout, got {type(layout).__name__}"
        )
    for grid in layout.grids:
        for line in grid.lines:
            if len(line) != len(grid.header):
                raise UserError(
                    f"Expected {full_name(function)} to give each line of the grid {grid.title!r} as many texts as its "
                    f"header has ({len(grid.header)}), got {len(line)}"
                )
    return layout
