"""Choices of how a backbone is trained, separate from its layers so that a config needs no torch."""

from __future__ import annotations

from typing import Literal

BatchNormMode = Literal["transductive", "support", "running", "frozen"]
"""Where batch statistics come from; see `metakm.models.BatchNorm2d`."""

TrainedPart = Literal["full", "norm", "km", "both"]
"""What of a backbone the outer loop trains: everything, its norms' scales and shifts, kernel modulators, or both."""
