"""`benchmarks/growth.py`: its straight lines, its points, and one picture for each quantity."""

import growth
import pytest

pytestmark = pytest.mark.float32


def test_a_line_and_the_point_that_is_farthest_from_it():
    assert growth.line([1, 2, 4], [5, 7, 11]) == pytest.approx((3, 2, 0), abs=1e-9)
    intercept, slope, away = growth.line([0, 1, 2], [1.0, 4.0, 1.0])
    assert (intercept, slope, away) == pytest.approx((2, 0, 1))


def test_a_point_is_measured_with_its_own_sizes(monkeypatch):
    seen, real = [], growth.metakm.meta_loss

    def meta_loss(strategy, episodes, *, inner_lr, inner_steps):
        filters = next(strategy.parameters()).shape[0]
        seen.append((tuple(episodes.support_images.shape), inner_steps, filters))
        return real(strategy, episodes, inner_lr=inner_lr, inner_steps=inner_steps)

    monkeypatch.setattr(growth.metakm, "meta_loss", meta_loss)
    milliseconds, _ = growth.measure("maml", growth.Point(tasks=2, steps=3, ways=4, side=14, filters=6), rounds=2)
    assert seen == [((2, 4, 1, 14, 14), 3, 6)] * 3
    assert milliseconds > 0


def test_a_picture_for_each_quantity(tmp_path):
    rows = [
        {"quantity": name, "value": str(value), "algo": algo, "median_ms": str(value), "grown_mb": "3"}
        for name, quantity in growth.QUANTITIES.items()
        for algo in growth.ALGORITHMS
        for value in quantity.values
    ]
    growth.draw(rows, tmp_path)
    assert {path.stem for path in tmp_path.iterdir()} == {f"growth_{name}" for name in growth.QUANTITIES}
