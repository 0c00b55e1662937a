"""The configuration of one run."""

from metakm.config.execution import ExecutionOptions
from metakm.config.field_types import all_flat_types
from metakm.config.protocol import PresetName
from metakm.config.run_config import EXECUTION_FIELDS, NAMED_IN_ROW, RunConfig, options_of

__all__ = [
    "EXECUTION_FIELDS",
    "NAMED_IN_ROW",
    "ExecutionOptions",
    "PresetName",
    "RunConfig",
    "all_flat_types",
    "options_of",
]
