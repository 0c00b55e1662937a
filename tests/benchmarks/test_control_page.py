"""`benchmarks/control_page.py`: KM, the control and ANIL, task by task."""

import csv
from pathlib import Path

import control_page
import numpy as np
import pytest

import metakm

RESULTS = Path(__file__).parents[2] / "results"


def accuracies(folder):
    with (folder / "seed0" / "tasks.csv").open() as file:
        return np.array([100 * float(row["accuracy"]) for row in csv.DictReader(file)])


def test_the_committed_page_is_that_of_its_rows():
    page = (RESULTS / "control" / "README.md").read_text()
    assert page == control_page.page_text(RESULTS / "control", RESULTS / "table3")
    setting = "mini-imagenet-5w5s"
    of_control = accuracies(RESULTS / "control" / setting / "modulated-anil")
    gap = accuracies(RESULTS / "table3" / setting / "km") - of_control
    assert f"| {gap.mean():+.2f} ± {1.96 * gap.std(ddof=1) / len(gap) ** 0.5:.2f} (1) |" in page
    assert f"| {of_control.mean():.2f} ± " in page


def test_a_folder_without_the_control_is_refused(tmp_path):
    with pytest.raises(metakm.UserError, match=r"Expected rows of modulated-anil below .*, got none"):
        control_page.main(tmp_path, RESULTS / "table3")
    assert not list(tmp_path.iterdir())
