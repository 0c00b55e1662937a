"""Published results: the rows of the paper's Table III, and what its text claims about them.

`published.csv` holds the values that are legible in our copy of the paper, whose mini-ImageNet column breaks off
before the paper's own ANIL and KM. [8] is Finn et al. 2017, [10] Raghu et al. 2020, as the paper numbers them.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from functools import cache
from importlib import resources

from metakm.table.setting import TABLE3, Setting


@dataclass(frozen=True)
class Published:
    """One published accuracy, in percent."""

    method: str
    setting: Setting
    accuracy: float
    plus_minus: float
    meaning: str  # of plus_minus
    source: str


# Sec. IV-C: "higher accuracy than the ANIL model on all tasks", and than MAML in two cases.
KM_CLAIMED_ABOVE = frozenset({("anil", s) for s in TABLE3} | {("maml", TABLE3[0]), ("maml", TABLE3[3])})


@cache
def published_results() -> tuple[Published, ...]:
    """All published accuracies, in the paper's order of methods."""
    text = resources.files(__package__).joinpath("published.csv").read_text(encoding="utf-8")
    return tuple(
        Published(
            line["method"],
            Setting(line["dataset"], int(line["ways"]), int(line["shots"])),
            float(line["accuracy"]),
            float(line["plus_minus"]),
            line["meaning"],
            line["source"],
        )
        for line in csv.DictReader(text.splitlines())
    )
