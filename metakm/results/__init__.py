"""Rows, statistics and curves. Knows nothing of torch modules."""

from metakm.results.curve import CurvePoint, curve_csv, curve_png
from metakm.results.folder import RunFolder
from metakm.results.row import COLUMNS, ResultRow, Status
from metakm.results.statistics import interval_over_tasks

__all__ = ["COLUMNS", "CurvePoint", "ResultRow", "RunFolder", "Status", "curve_csv", "curve_png", "interval_over_tasks"]
