"""The paper's Tables I and II and Fig. 5 out of rows of experiments."""

import csv
import io
import json
import os
from pathlib import Path

import numpy as np
import pytest

from metakm.errors import UserError
from metakm.experiments import fig5, scratch, table
from metakm.experiments import transfer as transfer_experiment
from metakm.experiments.layout import layout_paper
from metakm.experiments.lines import RecordedExperiment, lines_of, read_experiments
from metakm.experiments.memory_figure import memory_of_tasks
from metakm.experiments.paper import FIG5_CLAIMS, TABLE1_CLAIMS, TABLE2_CLAIMS
from metakm.experiments.row import ExperimentRow
from metakm.learning.statistics import paired_difference

GOLDEN = Path(__file__).parents[1] / "golden"


def row(method="km", accuracy=0.6, seed=0, experiment="scratch", **changes):
    values = {
        "run_id": f"{experiment}-{method}-seed{seed}",
        "status": "done",
        "experiment": experiment,
        "method": method,
        "dataset": "cifar10-16px",
        "network": "resnet32",
        "seed": seed,
        "preset": "quick",
        "image_size": 16,
        "n_train": 10000,
        "epochs": 8,
        "batch": 64,
        "optimiser": "sgd",
        "learning_rate": 0.03,
        "iterations": 1248,
        "trainable_parameters": 7944,
        "total_parameters": 469176,
        "pack_bytes": None,
        "train_accuracy": 0.5,
        "val_accuracy": 0.55,
        "accuracy": accuracy,
        "ci95": 0.01,
        "n_test": 10000,
        "train_seconds": 1.5,
        "ms_per_iteration": 2.5,
        "training_memory_mb": 100.0,
        "device": "cpu",
        "threads": "1",
        "torch_version": "2.15.0",
        "metakm_version": "0.1.0",
        "git_commit": "c0ffee",
        "split_hash": "5p117",
        "started_at": "2026-11-20T12:00:00+00:00",
    }
    return ExperimentRow(**{**values, **changes})


PUBLISHED = {
    "preset": "paper", "epochs": 200, "image_size": 32, "n_train": 50_000, "batch": 128, "learning_rate": 0.1,
}  # fmt: skip


def recorded(*args, **changes):
    """A run without a config.json, as `write` makes them."""
    one = row(*args, **changes)
    return RecordedExperiment(one, (("config.json", "missing"),), (("network", one.network),))


def write(folder, *rows, config=None):
    for one in rows:
        path = folder / str(len(list(folder.glob("*")))) / ExperimentRow.FILE
        path.parent.mkdir(parents=True)
        path.write_text(one.to_csv())
        if config is not None:
            path.with_name("config.json").write_text(json.dumps({"seed": one.seed, **config}))
    return folder


@pytest.fixture
def folder(tmp_path):
    scratch = [
        row("full", 0.8, trainable_parameters=464154, total_parameters=464154),
        *(row("km", accuracy, seed) for seed, accuracy in enumerate((0.60, 0.64))),
        *(row("bl", accuracy, seed, trainable_parameters=2922) for seed, accuracy in enumerate((0.40, 0.42))),
        row("sn", 0.625, learning_rate=0.3),
        row("ld", None, status="failed", ci95=None, n_test=0),
        row("tbn", None, ci95=None, n_test=0),
    ]
    transfer = [
        row(m, a, experiment="transfer-flowers", dataset="flowers", network="resnet50", pack_bytes=p)
        for m, a, p in (("tbl-1", 0.5, 700123), ("tkm-2", 0.75, 1340999), ("tbl-2", 0.76, None))
    ]
    variants = {"default": 0.6, "sin": 0.605, "relu": 0.3, "diagonal": 0.45, "depth-50": 0.2}
    ablation = [row(m, a, experiment="ablation") for m, a in variants.items()]
    return write(tmp_path / "results", *scratch, *transfer, *ablation)


@pytest.mark.parametrize("name", ["table1", "table2", "fig5"])
def test_the_text_is_the_golden_one(folder, name, capsys):
    assert table.main([name, str(folder)]) == 0
    found, path = capsys.readouterr().out, GOLDEN / f"paper_{name}.txt"
    if os.environ.get("METAKM_GOLDEN"):
        path.write_text(found)
    assert found == path.read_text()


def test_the_ratio_is_to_full_training_on_the_same_schedule(folder):
    runs, _ = read_experiments(folder)
    other = recorded("km", 0.5, epochs=200)
    grids = layout_paper("table1", [*runs, other]).grids
    cells = {(g.title, line[0]): dict(zip(g.header, line, strict=True)) for g in grids for line in g.lines}
    recovered = {k: v["Recovered"] for k, v in cells.items() if k[1] == "km"}
    assert sorted(recovered.values()) == ["", "0.78"]  # 62 / 80, and no full run of 200 epochs


def claims_of(folder):
    runs, problems = read_experiments(folder)
    assert not problems
    return dict(layout_paper("table1", runs).grids[-1].lines)


def test_without_the_images_intervals_of_both_lines_add_up(folder):
    said = claims_of(folder)
    # t(0.975, 1) = 12.706 times std 2.828 / sqrt(2) = 25.41, and 12.71 for bl
    assert said["km above bl"] == "+21.00 ± 28.41, within noise"
    assert said["km above sn"] == "-0.50 ± 25.43, within noise"  # km's own interval over two seeds, sn's 1 point
    assert said["full above km"] == "+18.00 ± 25.43, within noise"
    assert said["km above ld"] == "not measured"


def with_images(folder, method, *right):
    """Runs of a method, one for each seed, that classified these images correctly."""
    for seed, text in enumerate(right):
        one = row(method, text.count("1") / len(text), seed, n_test=len(text), ci95=0.1)
        path = folder / f"{method}{seed}" / ExperimentRow.FILE
        path.parent.mkdir(parents=True)
        path.write_text(one.to_csv())
        path.with_name("right.txt").write_text(text + "\n")


def test_differences_are_paired_over_images(tmp_path):
    with_images(tmp_path, "km", "1111" * 25)
    with_images(tmp_path, "bl", "1110" * 25)
    with_images(tmp_path, "sn", "1101" * 10 + "1111" * 15)
    said = claims_of(tmp_path)
    # std of 25 differences of 1 and 75 of 0: 0.4352; 1.96 * 4.352 points
    assert said["km above bl"] == "+25.00 ± 8.53, one seed"
    assert said["km above sn"] == "+10.00 ± 5.91, one seed"


def test_seeds_and_images_add_up(tmp_path):
    with_images(tmp_path, "km", "1111" * 25, "1111" * 23 + "1110" * 2)
    with_images(tmp_path, "bl", "0000" * 25, "0000" * 23 + "0010" * 2)
    runs, _ = read_experiments(tmp_path)
    found = paired_difference(
        *(100 * np.stack([run.right for run in runs if run.row.method == method]) for method in ("km", "bl"))
    )
    assert found.mean == 98
    assert found.ci95 > max(found.seeds_ci95, found.tasks_ci95)
    assert claims_of(tmp_path)["km above bl"] == f"+98.00 ± {found.ci95:.2f}, above"


@pytest.mark.parametrize("text", ["10", "1" * 99 + "2", "é" * 100])
def test_a_damaged_record_of_images_is_named(tmp_path, text):
    with_images(tmp_path, "km", "1" * 100)
    (tmp_path / "km0" / "right.txt").write_text(text)
    runs, (problem,) = read_experiments(tmp_path)
    assert not runs
    assert problem.startswith("km0/experiment.csv: Expected")
    assert "right.txt" in problem


def test_each_claim_is_about_methods_that_exist():
    from metakm.experiments import ablation, scratch, transfer

    for claims, names in (
        (TABLE1_CLAIMS, {*scratch.TABLE1, "km-channel"}),
        (TABLE2_CLAIMS, {*transfer.COMBINATIONS, "tbl-2", "ttl"}),
        (FIG5_CLAIMS, set(ablation.VARIANTS)),
    ):
        assert {name for claim in claims for name in (claim.first, claim.second)} <= names


@pytest.mark.parametrize("form", ["csv", "json", "markdown", "latex"])
def test_other_formats_hold_the_same_cells(folder, form, capsys):
    assert table.main(["table1", str(folder), "--format", form]) == 0
    text = capsys.readouterr().out
    if form == "csv":
        found = list(csv.DictReader(io.StringIO(text)))
        assert next(r for r in found if r["Measured"] == "bl")["Trainable"] == "2,922"
    elif form == "json":
        assert next(r for r in json.loads(text) if r.get("Measured") == "sn")["Learning rate"] == "0.3"
    else:
        assert "77.60" in text


def drawn_axes(folder, monkeypatch):
    """The axes of Fig. 5."""
    figures = []
    monkeypatch.setattr(fig5, "figure_bytes", lambda figure, *_, **__: figures.append(figure))
    fig5.fig5_picture(read_experiments(folder)[0])
    return figures[0].axes


def test_fig5_is_drawn(folder, tmp_path, monkeypatch):
    """Each variant is a bar of its accuracy in its panel, with the whiskers of the table."""
    panels = {
        axes.get_title(loc="left"): {
            label.get_text(): (round(bar.get_height(), 6), round(float(np.ptp(whisker[:, 1])), 6))
            for label, bar, whisker in zip(
                axes.get_xticklabels(), axes.patches, axes.containers[0][2][0].get_segments(), strict=True
            )
        }
        for axes in drawn_axes(folder, monkeypatch)
    }
    assert panels["A: activation"] == {"tanh": (60, 2), "sin": (60.5, 2), "ReLU": (30, 2)}
    assert panels["B: initialisation"] == {"identity": (60, 2), "diagonal": (45, 2)}
    assert panels["C: layers"] == {"2": (60, 2), "50": (20, 2)}
    monkeypatch.undo()
    assert table.main(["fig5", str(folder), "--plot", str(tmp_path / "fig5.png")]) == 0
    assert (tmp_path / "fig5.png").read_bytes()[:4] == b"\x89PNG"


def test_the_memory_of_tasks_is_one_base_and_a_pack_for_each(tmp_path):
    size = {"total_parameters": 1_000_000, "trainable_parameters": 5_000}
    write(
        tmp_path,
        transfer("tkm-1", 0.8, pack_bytes=30_000, **size),
        transfer("ttl", 0.8, **{**size, "trainable_parameters": 100_000, "total_parameters": 1_100_000}),
        transfer("tbl-2", 0.9, **{**size, "trainable_parameters": 1_000_000}),
    )
    lines, _ = lines_of(read_experiments(tmp_path)[0])
    assert memory_of_tasks(lines, 1) == pytest.approx({"tkm-1": 4.03, "ttl": 4.4, "tbl-2": 4.0})
    assert memory_of_tasks(lines, 100) == pytest.approx({"tkm-1": 7.0, "ttl": 44.0, "tbl-2": 400.0})
    assert table.main(["table2", str(tmp_path), "--plot", str(tmp_path / "p.svg")]) == 0
    text = (tmp_path / "p.svg").read_text()
    assert [name in text for name in ("tbl-2: 400 MB", "ttl: 44 MB", "tkm-1: 7 MB", "flowers")] == [True] * 4


def test_an_empty_folder_says_what_to_run(tmp_path, capsys):
    (tmp_path / "none").mkdir()
    assert table.main(["table2", str(tmp_path / "none")]) == 0
    assert "python -m metakm.experiments.transfer" in capsys.readouterr().out
    for name in ("fig5", "table2"):
        assert table.main([name, str(tmp_path / "none"), "--plot", str(tmp_path / "p.png")]) == 2
    assert table.main(["table1", str(tmp_path / "none"), "--plot", str(tmp_path / "p.png")]) == 2
    assert table.main(["table1", str(tmp_path / "gone")]) == 2


def test_a_damaged_row_is_told_not_used(folder, capsys):
    (folder / "0" / ExperimentRow.FILE).write_text("run_id\nx\n")
    assert table.main(["table1", str(folder), "--strict"]) == 1
    captured = capsys.readouterr()
    assert "0/experiment.csv" in captured.out
    assert "not read" in captured.err


def test_runs_whose_modulators_start_elsewhere_are_two_lines(tmp_path):
    write(tmp_path, row("km", 0.6, start="exact"), row("km", 0.5, seed=1, start="paper"), config={"start": "auto"})
    measured = layout_paper("table1", read_experiments(tmp_path)[0]).grids[-2]
    assert [line[0] for line in measured.lines] == ["km, start exact", "km, start paper"]


def test_an_unusual_residual_start_is_named(tmp_path):
    write(tmp_path, row("km", 0.6, residual_start=0.2), row("bl", 0.5), config={"residual_start": 0.2})
    measured = layout_paper("table1", read_experiments(tmp_path)[0]).grids[-2]
    assert [line[0] for line in measured.lines] == ["bl, residual_start 0.2", "km, residual_start 0.2"]


def test_the_ratio_is_left_out_where_full_has_two_lines(tmp_path):
    write(tmp_path, row("full", 0.8), row("full", 0.5, learning_rate=0.3), row("km", 0.4))
    measured = layout_paper("table1", read_experiments(tmp_path)[0]).grids[-2]
    assert [line[5] for line in measured.lines] == ["", "", ""]


def test_a_method_of_somebody_elses_is_the_last_line(tmp_path):
    write(tmp_path, row("mine", 0.8), row("tbn", 0.5))
    measured = layout_paper("table1", read_experiments(tmp_path)[0]).grids[-2]
    assert [line[0] for line in measured.lines] == ["tbn", "mine"]


@pytest.mark.parametrize(
    "changed",
    [{"epochs": 5}, {"image_size": 16}, {"n_train": 10_000}, {"batch": 64}, {"optimiser": "adam"}, {"preset": "short"}],
)
def test_the_published_schedule_has_nothing_changed(tmp_path, changed):
    write(tmp_path, row("km", 0.8, **PUBLISHED), row("km", 0.5, **{**PUBLISHED, **changed}))
    assert not_published(tmp_path) == [False, True]


def test_a_setting_that_the_row_does_not_have_counts_too(tmp_path):
    for schedule in ("steps", "cosine"):
        write(tmp_path / schedule, row("km", 0.8, **PUBLISHED), config={"schedule": schedule})
    assert not_published(tmp_path) == [False, True]


@pytest.mark.parametrize(
    ("method", "row_changes", "config"),
    [
        ("km", {"learning_rate": 5.0}, {}),
        ("km", {"residual_start": 0.2}, {}),
        ("km", {}, {"weight_decay": 0.3}),
        ("km", {}, {"momentum": 0.5}),
        ("ld", {"learning_rate": 3.0}, {"momentum": 0.9}),
        ("ld", {"learning_rate": 0.1}, {}),
    ],
)
def test_a_method_that_is_trained_otherwise_is_not_published(tmp_path, method, row_changes, config):
    settings = {"momentum": 0.9, "weight_decay": 1e-4, "schedule": "steps"}
    write(tmp_path, row("bl", 0.5, **PUBLISHED), config=settings)
    assert not_published(tmp_path) == [False]
    write(tmp_path, row(method, 0.8, **{**PUBLISHED, **row_changes}), config={**settings, **config})
    assert not_published(tmp_path) == [True]


def test_the_presets_of_the_paper_are_published(tmp_path):
    """As far as their rows tell."""
    for experiment, method, made in (
        *(("scratch", m, scratch.method_config(scratch.PRESETS["paper"], "scratch", m)) for m in scratch.TABLE1),
        *(
            ("transfer-aircraft", m, transfer_experiment.method_config(transfer_experiment.PRESETS["paper"], m))
            for m in ("tkm-2", "tbl-2")
        ),
    ):
        told = {*vars(row())} - {"experiment", "method", "seed", "start"}
        values = {name: value for name, value in made.to_json().items() if name in told}
        one = row(method, 0.5, experiment=experiment, n_train=50_000, **values)
        write(tmp_path / experiment, one, config=made.to_json())
    assert not_published(tmp_path / "scratch") == [False]
    assert not_published(tmp_path / "transfer-aircraft", "table2") == [False]


def not_published(folder, name="table1"):
    """Of each setup, whether its claims are said not to be about the published schedule, the published ones first."""
    titles = [grid.title for grid in layout_paper(name, read_experiments(folder)[0]).grids]
    said = [title for title in titles if title.startswith("The paper's claims")]
    return sorted(title.endswith("not the published schedule") for title in said)


def test_a_former_column_is_ignored(tmp_path):
    names, values = row().to_csv().splitlines()
    (tmp_path / ExperimentRow.FILE).write_text(f"{names},peak_memory_mb\n{values},1234.5\n")
    assert read_experiments(tmp_path) == ([recorded()], [])


def test_a_second_run_of_a_seed_is_left_out():
    lines, left_out = lines_of([recorded("km", 0.6), recorded("km", 0.7)])
    assert [line.mean for line in lines] == [60.0]
    assert "second run of seed 0" in left_out[0]


def test_a_row_survives_its_file(tmp_path):
    one = row(pack_bytes=12345, ms_per_iteration=None)
    assert read_experiments(write(tmp_path, one)) == ([recorded(pack_bytes=12345, ms_per_iteration=None)], [])
    with pytest.raises(UserError, match="folder"):
        read_experiments(tmp_path / "gone")


def transfer(method, accuracy, seed=0, **changes):
    return row(method, accuracy, seed, experiment="transfer-flowers", dataset="flowers", **changes)


def test_runs_that_differ_in_more_than_their_seed_are_never_pooled(tmp_path):
    """Other weights are another schedule, with its settings in the title and its own claims."""
    shared = {"norm": "group", "weight_decay": 0.0, "out": "here", "methods": ["nc"]}
    write(tmp_path, transfer("tkm-2", 0.8), transfer("nc", 0.7), config={**shared, "weights": "pretrained"})
    write(tmp_path, transfer("tkm-2", 0.4, seed=1), config={**shared, "weights": "random", "out": "there"})
    runs, problems = read_experiments(tmp_path)
    grids = {grid.title: grid for grid in layout_paper("table2", runs).grids}
    accuracies = {t.rpartition(", ")[2]: [line[6] for line in g.lines] for t, g in grids.items() if "measured (" in t}
    assert accuracies == {"weights pretrained)": ["70.00 ± 1.00", "80.00 ± 1.00"], "weights random)": ["40.00 ± 1.00"]}
    assert not problems


def test_two_lines_of_one_method_are_named_apart_and_not_compared(tmp_path):
    write(tmp_path, row("bl", 0.4), row("km", 0.6), config={"weight_decay": 0.0, "schedule": "steps"})
    write(tmp_path, row("km", 0.5, seed=1), config={"weight_decay": 0.1, "schedule": "steps"})
    measured, claims = layout_paper("table1", read_experiments(tmp_path)[0]).grids[-2:]
    assert [line[0] for line in measured.lines] == ["bl", "km, weight_decay 0.0", "km, weight_decay 0.1"]
    assert dict(claims.lines)["km above bl"] == "not compared: km has several lines"


def test_a_second_rate_is_shown_in_fig5_and_decides_no_claim(tmp_path):
    rows = [row("default", 0.6, experiment="ablation"), row("sin", 0.5, experiment="ablation")]
    rows.append(row("sin", 0.4, experiment="ablation", learning_rate=0.1))
    measured, claims = layout_paper("fig5", read_experiments(write(tmp_path, *rows))[0]).grids
    assert [line[1] for line in measured.lines[:3]] == ["tanh", "sin, 0.03", "sin, 0.1"]
    assert dict(claims.lines)["sin close to default"] == "not compared: sin has several lines"
    assert table.main(["fig5", str(tmp_path), "--plot", str(tmp_path / "p.svg")]) == 0
    assert "sin, 0.1" in (tmp_path / "p.svg").read_text()
