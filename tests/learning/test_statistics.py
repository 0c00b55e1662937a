import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import stats

from metakm import UserError
from metakm.learning.statistics import (
    PairedDifference,
    combined_interval,
    interval_over_seeds,
    interval_over_tasks,
    paired_difference,
    seeds_to_tell,
)

pytestmark = pytest.mark.filterwarnings("ignore:Precision loss occurred")  # scipy's own, where values are equal
accuracies = st.floats(0, 1).map(lambda value: round(value, 4))


def half_width(test):
    interval = test.confidence_interval(0.95)
    return (interval.high - interval.low) / 2


def test_seeds_by_hand():
    # mean 0.9, sample std 0.02, t(0.975, 2) = 4.302653
    values = np.array([0.88, 0.90, 0.92])
    assert interval_over_seeds(values) == pytest.approx(4.302653 * 0.02 / np.sqrt(3), rel=1e-6)
    # two values 0.1 apart: std 0.1 / sqrt(2), t(0.975, 1) = 12.706205
    assert interval_over_seeds(np.array([0.4, 0.5])) == pytest.approx(12.706205 * 0.05, rel=1e-6)


def test_one_seed_has_no_interval():
    assert interval_over_seeds(np.array([0.9])) is None
    paired = paired_difference(np.array([[0.5, 0.75]]), np.array([[0.25, 0.25]]))
    assert paired.mean == 0.375
    assert paired.tasks_ci95 == pytest.approx(1.96 * 0.125)  # differences 0.25 and 0.5: std 0.25 / sqrt(2)
    assert paired.seeds_ci95 is None


def test_datasets_in_turn_are_strata():
    """Against the spread of simulated means: 2 datasets, far apart, 3 tasks of the one for 2 of the other."""
    generator = np.random.default_rng(0)
    drawn = generator.normal(0.5, 0.1, (20_000, 5))
    drawn[:, 1::2] += 0.4
    widths = [interval_over_tasks(accuracies, 2) for accuracies in drawn[:2000]]
    assert np.sqrt(np.mean(np.square(widths))) == pytest.approx(1.96 * drawn.mean(axis=1).std(), rel=0.03)
    assert interval_over_tasks(drawn[0]) > 2 * interval_over_tasks(drawn[0], 2)
    by_hand = 1.96 * np.sqrt(3 * drawn[0, ::2].var(ddof=1) + 2 * drawn[0, 1::2].var(ddof=1)) / 5
    assert interval_over_tasks(drawn[0], 2) == pytest.approx(by_hand)
    assert interval_over_tasks(drawn[0, :3], 2) == interval_over_tasks(drawn[0, :3]), "one task has no spread"
    pair = paired_difference(drawn[None, 0], np.zeros((1, 5)), 2)
    assert pair.tasks_ci95 == interval_over_tasks(drawn[0], 2)


def test_one_task_has_no_interval_over_tasks():
    paired = paired_difference(np.array([[0.5], [0.75]]), np.array([[0.25], [0.25]]))
    assert paired.mean == 0.375
    assert paired.tasks_ci95 is None
    assert paired.seeds_ci95 == pytest.approx(12.706205 * 0.125, rel=1e-6)
    assert paired.ci95 == paired.seeds_ci95


def test_zero_variance_has_zero_width():
    equal = np.full((3, 5), 0.75)
    assert interval_over_seeds(equal[0]) == 0
    assert interval_over_tasks(equal[0]) == 0
    assert paired_difference(equal, equal - 0.5) == (0.5, 0.0, 0.0, 0.0, 2.0)


def test_paired_by_hand():
    # by task the differences over both seeds are 0.1, 0.2, 0.3; means by seed 0.65 and 0.55 against 0.4 and 0.4
    first = np.array([[0.55, 0.65, 0.75], [0.45, 0.55, 0.65]])
    second = np.array([[0.4, 0.4, 0.4], [0.4, 0.4, 0.4]])
    mean, tasks_ci95, seeds_ci95, residual_ci95, freedom = paired_difference(first, second)
    assert mean == pytest.approx(0.2)
    assert tasks_ci95 == pytest.approx(1.96 * 0.1 / np.sqrt(3))
    assert seeds_ci95 == pytest.approx(12.706205 * 0.05, rel=1e-6)  # t(0.975, 1) sqrt((0.005 + 0) / 2)
    assert freedom == pytest.approx(1), "one of them does not vary"
    assert residual_ci95 == pytest.approx(0, abs=1e-9)


def test_intervals_add_in_quadrature_and_one_stands_for_itself():
    assert combined_interval(3.0, 4.0) == 5.0
    assert combined_interval(None, 4.0) == 4.0
    assert combined_interval(3.0, None) == 3.0
    assert combined_interval(None, None) is None
    assert combined_interval(3.0, 4.0, 3.0) == 4.0, "what both contain counts once"
    assert combined_interval(1.0, 1.0, 2.0) == 0.0
    assert combined_interval(None, 4.0, None) == 4.0


def test_the_combined_interval_holds_the_mean_where_the_larger_does_not():
    """Seeds and tasks matter alike, and neither interval knows of the other's part."""
    generator, repeats, seeds, tasks = np.random.default_rng(0), 4000, 5, 50
    of_seed = generator.standard_normal((repeats, seeds, 1)) * np.sqrt(seeds)
    of_task = generator.standard_normal((repeats, 1, tasks)) * np.sqrt(tasks)
    zero = np.zeros((seeds, tasks))
    found = [paired_difference(one, zero) for one in of_seed + of_task]
    larger = np.mean([abs(d.mean) <= max(d.seeds_ci95, d.tasks_ci95) for d in found])
    both = np.mean([abs(d.mean) <= d.ci95 for d in found])
    assert larger < 0.93 < 0.94 < both < 0.97


@pytest.mark.parametrize(
    ("seeds", "of_seed", "of_task", "residual"),
    [(3, 0.0, 3, 9), (3, 0.3, 3, 9), (3, 0.6, 0, 9), (3, 0.1, 2, 20), (2, 0.3, 3, 9), (5, 0.3, 3, 9)],
)
def test_the_combined_interval_of_few_seeds_holds_the_difference_in_95_of_100_cases(seeds, of_seed, of_task, residual):
    """Two strategies with effects of their own seeds and a residual, on tasks that are the same for both."""
    generator, tasks, held = np.random.default_rng(1), 60, []
    for _ in range(1500):
        common = generator.normal(0, 5, tasks)
        first, second = (
            common + generator.normal(0, of_seed, (seeds, 1)) + generator.normal(0, residual, (seeds, tasks))
            for _ in range(2)
        )
        found = paired_difference(first + generator.normal(0, of_task, tasks), second)
        held.append(abs(found.mean) <= found.ci95)
    assert 0.935 < np.mean(held) < 0.975


@pytest.mark.parametrize("seeds", [2, 3, 5])
def test_a_strategy_that_does_not_vary_between_seeds_leaves_the_interval_wide_enough(seeds):
    """Such as a pretrained network that is not trained."""
    generator, held = np.random.default_rng(0), []
    for _ in range(1500):
        fixed = generator.normal(0, 5, 60)
        trained = fixed + generator.normal(0, 1, (seeds, 1)) + generator.normal(0, 9, (seeds, 60))
        found = paired_difference(trained, np.tile(fixed, (seeds, 1)))
        held.append(abs(found.mean) <= found.ci95)
    assert 0.93 < np.mean(held) < 0.975


@settings(deadline=None, max_examples=60)
@given(arrays(np.float64, st.integers(2, 9), elements=accuracies))
def test_seeds_equal_scipy(values):
    assume(values.std() > 0)  # scipy gives NaN
    assert interval_over_seeds(values) == pytest.approx(half_width(stats.ttest_1samp(values, 0)), abs=1e-12)


@settings(deadline=None, max_examples=60)
@given(arrays(np.float64, st.tuples(st.just(2), st.integers(2, 5), st.integers(2, 6)), elements=accuracies))
def test_paired_equals_scipy(pair):
    first, second = pair
    assume(first.mean(axis=1).std() > 0 and second.mean(axis=1).std() > 0)
    mean, tasks_ci95, seeds_ci95, *_ = paired_difference(first, second)
    by_seed = stats.ttest_ind(first.mean(axis=1), second.mean(axis=1), equal_var=False)
    assert mean == pytest.approx(first.mean() - second.mean(), abs=1e-12)
    assert seeds_ci95 == pytest.approx(half_width(by_seed), abs=1e-12)
    assert tasks_ci95 == pytest.approx(1.96 * stats.sem((first - second).mean(axis=0)), abs=1e-12)


@pytest.mark.parametrize(("first", "second"), [((2, 3), (2, 4)), ((2, 3), (3, 3)), ((3,), (3,)), ((0, 3), (0, 3))])
def test_what_cannot_be_paired_is_refused(first, second):
    with pytest.raises(UserError, match=r"Expected accuracies \[S, n\] of the same seeds and tasks, got"):
        paired_difference(np.zeros(first), np.zeros(second))


@pytest.mark.parametrize("spread", [0.5, 2.0, 6.0])
def test_so_many_seeds_of_the_same_spread_tell(spread):
    """With that many seeds the combined interval leaves out zero, with one fewer it does not."""
    tasks, few = 0.3, np.array([1 - spread, 1, 1 + spread])

    def over_seeds(values):
        return paired_difference(values[:, None], np.zeros((len(values), 1))).seeds_ci95

    needed = seeds_to_tell(PairedDifference(1.0, tasks, over_seeds(few), None, 1.0), 3)

    def width(n):
        values = np.resize([1.0, -1.0], n)
        values = (values - values.mean()) / np.std(values, ddof=1) * np.std(few, ddof=1)
        return combined_interval(over_seeds(values), tasks)

    assert width(needed) < 1 <= width(needed - 1)


def test_seeds_cannot_tell_what_the_tasks_leave_open():
    assert seeds_to_tell(PairedDifference(1.0, 1.1, 2.0, None), 3) is None
    assert seeds_to_tell(PairedDifference(1.0, 0.5, None, None), 1) is None
    assert seeds_to_tell(PairedDifference(0.001, None, 50.0, None), 3) is None, "more than 1,000"


def test_more_seeds_shrink_the_part_of_the_interval_over_tasks_that_is_not_the_tasks_own():
    """Effects of seed, task and residual with known variances: three seeds foretell the interval of S."""
    rng = np.random.default_rng(0)
    s, t, r, n = 0.3, 4.0, 19.0, 600

    def widths(seeds):
        effects = rng.normal(0, s, (seeds, 1)) + rng.normal(0, t, n) + rng.normal(0, r, (seeds, n))
        return paired_difference(effects, np.zeros_like(effects))

    few, many = ([widths(seeds) for _ in range(60)] for seeds in (3, 12))
    residual = np.mean([each.residual_ci95**2 for each in few])
    assert residual == pytest.approx(1.96**2 * r**2 / (3 * n), rel=0.02)
    foretold = np.mean([each.tasks_ci95**2 for each in few]) - residual + residual * 3 / 12
    assert foretold == pytest.approx(np.mean([each.tasks_ci95**2 for each in many]), rel=0.05)
    # 1.21 - 1 + (t(0.975, 2 S - 2) 1.248)^2 / S < 1, where 1.248 is 2 sqrt(3) / t(0.975, 4)
    assert seeds_to_tell(PairedDifference(1.0, 1.1, 2.0, 1.0), 3) == 9
