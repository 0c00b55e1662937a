"""Layouts of Table III, one file each; importing this package registers the built-in ones."""

from metakm.registry import import_modules
from metakm.table.layouts.full import layout_comparisons
from metakm.table.layouts.registry import lay_out, register_table_layout, table_layouts

import_modules(__name__)

__all__ = ["lay_out", "layout_comparisons", "register_table_layout", "table_layouts"]
