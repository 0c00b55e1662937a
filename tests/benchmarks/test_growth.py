"""`benchmarks/growth.py`: its straight lines, its points, and one picture for each quantity."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

import growth

pytestmark = pytest.mark.float32


def test_a_line_and_the_point_that_is_farthest_from_it():
    assert growth.line([1, 2, 4], [5, 7, 11]) == pytest.approx((3, 2, 0), abs=1e-9)
    intercept, slope, away = growth.line([0, 1, 2], [1.0, 4.0, 1.0])
    assert (intercept, slope, away) == pytest.approx((2, 0, 1))


def test_more_tasks_take_more_time_and_memory():
    small, large = (growth.measure("anil", growth.Point(tasks=n, ways=5, filters=8, steps=1), 3) for n in (1, 64))
    assert small[0] < large[0]
    assert small[1] < large[1]


def test_a_picture_for_each_quantity(tmp_path):
    rows = [
        {"quantity": name, "value": str(value), "algo": algo, "median_ms": str(value), "grown_mb": "3"}
        for name, quantity in growth.QUANTITIES.items()
        for algo in growth.ALGORITHMS
        for value in quantity.values
    ]
    growth.draw(rows, tmp_path)
    assert {path.stem for path in tmp_path.iterdir()} == {f"growth_{name}" for name in growth.QUANTITIES}
