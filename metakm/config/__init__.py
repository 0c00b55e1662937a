"""The configuration of one run."""

from metakm.config.execution import ExecutionOptions
from metakm.config.json_values import all_flat_types, flat_types
from metakm.config.protocol import PresetName, Schedule
from metakm.config.run_config import EXECUTION_FIELDS, NAMED_IN_ROW, RunConfig, options_of

__all__ = [
    "EXECUTION_FIELDS",
    "NAMED_IN_ROW",
    "ExecutionOptions",
    "PresetName",
    "RunConfig",
    "Schedule",
    "all_flat_types",
    "flat_types",
    "options_of",
]
