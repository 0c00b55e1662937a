"""Rows, statistics, tables and pictures. No model is run here: runs are known by their files."""

from metakm.results.blocks import Block, Claim, Row, Table, build_table
from metakm.results.cells import Cell, LeftOut, Protocol
from metakm.results.collect import Collection, Problem, RecordedRun, read_runs
from metakm.results.curve import CurvePoint, curve_csv, curve_png
from metakm.results.folder import RunFolder
from metakm.results.pairing import Comparison, comparisons_between
from metakm.results.published import Published, published_results
from metakm.results.row import COLUMNS, ResultRow, Status
from metakm.results.setting import TABLE3, Setting
from metakm.results.statistics import combined_interval, interval_over_seeds, interval_over_tasks, paired_difference

__all__ = [
    "COLUMNS",
    "TABLE3",
    "Block",
    "Cell",
    "Claim",
    "Collection",
    "Comparison",
    "CurvePoint",
    "LeftOut",
    "Problem",
    "Protocol",
    "Published",
    "RecordedRun",
    "ResultRow",
    "Row",
    "RunFolder",
    "Setting",
    "Status",
    "Table",
    "build_table",
    "combined_interval",
    "comparisons_between",
    "curve_csv",
    "curve_png",
    "interval_over_seeds",
    "interval_over_tasks",
    "paired_difference",
    "published_results",
    "read_runs",
]
