"""What a run of any kind must know of its config."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from metakm.config.execution import ExecutionOptions


class Identified(Protocol):
    """What a checkpoint belongs to."""

    def identity(self) -> dict[str, Any]:
        """The JSON values that determine the results of the run."""

    def may_change(self, earlier: Mapping[str, Any]) -> frozenset[str]:
        """Fields of the identity of an earlier run that may be others when that run is resumed."""

    def defaults(self) -> dict[str, Any]:
        """Defaults of fields that an older run's identity lacks."""


class AnyRunConfig(Identified, Protocol):
    """The config of a run of any kind."""

    @property
    def execution(self) -> ExecutionOptions:
        """How and where it is executed."""

    @property
    def run_id(self) -> str:
        """A readable name."""

    def to_json(self) -> dict[str, Any]:
        """All fields as JSON values."""
