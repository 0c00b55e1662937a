"""Paired comparisons: by hand, beside the claims, and refused."""

import numpy as np
import pytest
from runs import table_of, write_run

from metakm import UserError
from metakm.table.pairing import comparisons_between
from metakm.table.rendering import render_comparisons, render_table
from metakm.table.selection import main_table, select_strategies
from metakm.table.setting import TABLE3


def test_paired_comparison_by_hand(tmp_path):
    # by task the differences over both seeds are 10, 20, 30 points; means by seed 65 and 55 against 40 and 40
    for seed, ours in enumerate([[0.55, 0.65, 0.75], [0.45, 0.55, 0.65]]):
        write_run(tmp_path / f"km{seed}", "km", ours, seed)
        write_run(tmp_path / f"anil{seed}", "anil", [0.4, 0.4, 0.4], seed)
    ((c,), refused) = comparisons_between(table_of(tmp_path).cells, "km", "anil")
    assert refused == ()
    assert (c.seeds, c.caveats) == ((0, 1), ())
    assert c.difference == pytest.approx(20)
    assert c.tasks_ci95 == pytest.approx(1.96 * 10 / np.sqrt(3))
    assert c.seeds_ci95 == pytest.approx(12.706205 * 5, rel=1e-6)
    assert c.verdict == "within noise"  # beyond the interval over tasks, within that over seeds
    # anil does not vary: 3.182 * 7.071 / sqrt(4) = 11.25 < sqrt(20^2 - 11.32^2) = 16.49 < 4.303 * 7.071 / sqrt(3)
    assert c.seeds_to_tell == 4
    text = render_comparisons((c,), (), table_of(tmp_path))
    assert "within noise; about 4 seeds needed" in text


def test_why_cells_are_not_compared_is_said_in_a_selection_too(tmp_path):
    write_run(tmp_path / "km", "km", seed=0)
    write_run(tmp_path / "anil", "anil", seed=0, row={"episodes_hash": "others"})
    table = table_of(tmp_path)
    for shown in (table, main_table(table), select_strategies(table, ["km"])):
        assert any(note.startswith("not compared: Expected km") for note in shown.notes)
    assert not select_strategies(table, ["anil"]).notes


@pytest.mark.parametrize(
    ("shift", "verdict", "mark"), [(0.2, "above", ">"), (-0.2, "below", "<"), (0, "within noise", "~")]
)
def test_km_is_marked_beside_the_claim(tmp_path, shift, verdict, mark):
    anil = np.array([0.5, 0.52, 0.48, 0.5])
    for seed in (0, 1):
        write_run(tmp_path / f"anil{seed}", "anil", anil, seed)
        write_run(tmp_path / f"km{seed}", "km", anil + shift + np.array([0.01, -0.01, 0, 0]), seed)
    table = table_of(tmp_path)
    (claim,) = [claim for claim in table.claims if claim.measured]
    assert (claim.peer, claim.setting, claim.claimed) == ("anil", TABLE3[0], True)
    assert claim.measured[0].verdict == verdict
    text = render_table(table)
    assert f"(tasks) {mark}ANIL" in text
    assert f"{verdict} (not the published protocol)" in text


def test_one_seed_does_not_tell(tmp_path):
    anil = np.array([0.5, 0.52, 0.48, 0.5])
    write_run(tmp_path / "anil", "anil", anil)
    write_run(tmp_path / "km", "km", anil + 0.2 + np.array([0.01, -0.01, 0, 0]))
    table = table_of(tmp_path)
    (claim,) = [claim for claim in table.claims if claim.measured]
    assert (claim.measured[0].verdict, claim.measured[0].seeds_to_tell) == ("one seed", None)
    full, compact = render_table(table), render_table(table, layout="compact")
    assert "(tasks) >ANIL" not in full
    assert "one seed (not the published protocol)" in full
    assert "+20.00 +- 0.80 (1)" in compact


def test_the_papers_claims_are_those_of_its_text(tmp_path):
    claimed = {(claim.peer, claim.setting) for claim in table_of(tmp_path).claims if claim.claimed}
    assert claimed == {*(("anil", setting) for setting in TABLE3), ("maml", TABLE3[0]), ("maml", TABLE3[3])}


def test_a_difference_between_its_larger_interval_and_both_together_is_not_separated(tmp_path):
    # by task 5 and 15 points over both seeds, by seed 10 -+ x: 1.96 * 5 over tasks, 12.706 x over seeds
    for name, half, verdict in (("one", 0.0001, "above"), ("both", 0.005, "within noise")):
        for seed, shift in enumerate((half, -half)):
            write_run(tmp_path / name / f"km{seed}", "km", np.array([0.45, 0.55]) + shift, seed)
            write_run(tmp_path / name / f"anil{seed}", "anil", [0.4, 0.4], seed)
        ((c,), _) = comparisons_between(table_of(tmp_path / name).cells, "km", "anil")
        assert c.difference == pytest.approx(10)
        assert c.tasks_ci95 == pytest.approx(1.96 * 5)
        assert c.seeds_ci95 == pytest.approx(12.706205 * 100 * half, rel=1e-6)
        assert max(c.tasks_ci95, c.seeds_ci95) < c.difference
        assert c.ci95 == pytest.approx(np.sqrt(c.tasks_ci95**2 + c.seeds_ci95**2))
        assert c.verdict == verdict


def refusal(folder, first="km", second="anil"):
    with pytest.raises(UserError) as caught:
        comparisons_between(table_of(folder).cells, first, second)
    return str(caught.value)


def test_other_episodes_are_refused_in_any_seed(tmp_path):
    for seed in (0, 1):
        write_run(tmp_path / f"km{seed}", "km", seed=seed)
        write_run(
            tmp_path / f"anil{seed}", "anil", seed=seed, row={"episodes_hash": f"episodes-omniglot-20w1s{'x' * seed}"}
        )
    assert (
        "to have one episodes_hash, got episodes-omniglot-20w1s: km0, km1, anil0; episodes-omniglot-20w1sx: anil1"
        in (refusal(tmp_path))
    )
    table = table_of(tmp_path)
    assert table.comparisons == ()
    assert any(note.startswith("not compared: Expected km (quick") for note in table.notes)


def test_pairs_need_tasks_seeds_and_one_protocol(tmp_path):
    write_run(tmp_path / "km", "km")
    write_run(tmp_path / "anil", "anil", seed=1)
    assert "to have a seed in common, got [0] and [1]" in refusal(tmp_path)
    write_run(tmp_path / "anil0", "anil")
    (tmp_path / "anil0" / "tasks.csv").unlink()
    assert "Expected tasks.csv beside anil0/result.csv, got none" in refusal(tmp_path)
    write_run(tmp_path / "maml", "maml", precision="bf16")
    assert "with one protocol in Omniglot 20-way 1-shot" in refusal(tmp_path, "km", "maml")
    assert "did you mean 'anil'" in refusal(tmp_path, "km", "anli")


def test_named_rows_are_compared_across_protocols_with_caveats(tmp_path):
    write_run(tmp_path / "km", "km")
    write_run(tmp_path / "km1", "km", seed=1)
    write_run(tmp_path / "bf16", "km", precision="bf16", row={"git_commit": "beef"})
    names = "km (quick, eval-tasks 4, precision bf16)", "km (quick, eval-tasks 4)"
    ((c,), _) = comparisons_between(table_of(tmp_path).cells, *names)
    assert (c.difference, c.tasks_ci95, c.verdict) == (0, 0, "within noise")
    assert c.caveats == (
        f"protocols differ: {names[0]} against {names[1]}",
        f"seeds of {names[1]} without a partner: 1",
        "git_commit: beef against c0ffee",
    )


def test_a_preset_that_changed_between_two_strategies_is_a_caveat(tmp_path):
    for algo, iterations in (("km", 500), ("anil", 800)):
        write_run(tmp_path / algo, algo, iterations=iterations, row={"changes": "{}"})
    (comparison,) = comparisons_between(table_of(tmp_path).cells, "km", "anil")[0]
    assert "the preset's value of iterations: 500 against 800" in comparison.caveats


def test_one_refused_setting_does_not_hide_another(tmp_path):
    write_run(tmp_path / "km", "km")
    write_run(tmp_path / "anil", "anil")
    write_run(tmp_path / "km5", "km", shots=5)
    found, (reason,) = comparisons_between(table_of(tmp_path).cells, "km", "anil")
    assert len(found) == 1
    assert reason.startswith("Expected km and anil with one protocol in Omniglot 20-way 5-shot, got km (quick")
