"""Learning rates chosen by --tune, and those that the presets take."""

from pathlib import Path

from test_paper_tables import recorded, row, write

from metakm.experiments import scratch, table, transfer
from metakm.experiments.lines import read_experiments
from metakm.experiments.rates import layout_rates, tried

RESULTS = Path(__file__).parents[2] / "results" / "experiments"


def tuned(val_accuracy, rate, iterations=100, **changes):
    return recorded(accuracy=None, val_accuracy=val_accuracy, learning_rate=rate, iterations=iterations, **changes)


def test_the_best_of_the_longest_runs_is_chosen():
    runs = [tuned(0.5, 0.1), tuned(0.6, 0.3), tuned(0.4, 1.0), tuned(0.45, 0.1, 400), tuned(0.55, 0.3, 400)]
    (rows,) = tried(runs).values()
    assert [one.learning_rate for one in rows] == [0.3, 0.1, 0.3, 0.1, 1.0]


def test_of_equal_runs_the_smaller_rate_is_chosen_in_any_order():
    runs = [tuned(0.5, 0.3), tuned(0.5, 0.1)]
    for some in (runs, runs[::-1]):
        assert next(iter(tried(some).values()))[0].learning_rate == 0.1


def test_each_method_network_preset_and_dataset_has_its_own_choice():
    runs = [
        tuned(0.5, 0.1),
        tuned(0.4, 0.3, method="sn"),
        tuned(0.4, 1.0, preset="short"),
        tuned(0.1, 3.0, dataset="x"),
        tuned(0.9, 0.01, network="resnet50"),
    ]
    assert sorted(rows[0].learning_rate for rows in tried(runs).values()) == [0.01, 0.1, 0.3, 1.0, 3.0]


def test_tested_and_unfinished_runs_choose_nothing():
    runs = [recorded(accuracy=0.6), tuned(None, 0.1, status="failed"), tuned(0.5, 0.1, status="running")]
    assert tried(runs) == {}
    assert layout_rates(runs).listings[0].items == ("No finished run with --tune was found.",)


def test_the_command_marks_the_chosen_run(tmp_path, capsys):
    rows = [row("km", None, learning_rate=rate, val_accuracy=val) for rate, val in ((0.1, 0.5), (0.3, 0.6))]
    assert table.main(["rates", str(write(tmp_path, *rows)), "--format", "csv"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].endswith(',km,resnet32,0.3,1,"10,000",8,60.00,chosen')
    assert lines[2].endswith(',km,resnet32,0.1,1,"10,000",8,50.00,')


def test_the_presets_of_scratch_take_what_the_committed_runs_choose():
    runs, problems = read_experiments(RESULTS)
    assert not problems
    chosen = {choice: rows[0] for choice, rows in tried(runs).items() if choice.experiment == "scratch"}
    assert {choice.preset for choice in chosen} == {"quick", "short"}
    for choice, best in chosen.items():
        flags = ["--preset", choice.preset, "--methods", choice.method]
        made = scratch.method_config(scratch.parse(scratch.PRESETS, "test", flags), "scratch", choice.method)
        assert (made.learning_rate, made.residual_start) == (best.learning_rate, best.residual_start), choice


def test_the_presets_of_transfer_take_what_the_committed_runs_choose():
    runs, _ = read_experiments(RESULTS)
    chosen = {choice: rows[0] for choice, rows in tried(runs).items() if choice.experiment.startswith("transfer-")}
    assert {choice.dataset for choice in chosen} == {"flowers-96px", "grocery-store-96px"}
    for choice, best in chosen.items():
        flags = ["--preset", choice.preset, "--dataset", choice.experiment.removeprefix("transfer-")]
        made = transfer.method_config(transfer.parse(transfer.PRESETS, "test", flags), choice.method)
        assert made.learning_rate == best.learning_rate, choice
