"""The modes of batch statistics, separate from the layers so that a config needs no torch."""

from __future__ import annotations

from typing import Literal

BatchNormMode = Literal["transductive", "support", "running", "frozen"]
