"""Searches on glyphs: what they try, leave behind, and are after a kill."""

import dataclasses
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

import metakm
from metakm.learning.divergence import DivergedError
from metakm.learning.outer_loop import OuterLoop
from metakm.learning.statistics import paired_difference
from metakm.presets import preset_config
from metakm.run.__main__ import main as run
from metakm.run.command_line import parse
from metakm.run.folder import RunFolder
from metakm.run.loading import read_config
from metakm.search.__main__ import main
from metakm.table.collect import read_runs

pytest.importorskip("optuna")

from metakm.search import plan, worker
from metakm.search.importance import importances_png
from metakm.search.options import parse_search
from metakm.search.page import _following
from metakm.search.plan import make_plan
from metakm.search.records import Record
from metakm.search.studies import Studies
from metakm.search.trial import TrialOutcome

pytestmark = pytest.mark.float32

TINY = (
    "--ways 3 --test-queries 2 --backbone conv4-8-stride --meta-batch 1 --val-tasks 4 --tasks 6 --test-steps 1 3 "
    "--device cpu --quiet"
)
SPACE = """
meta_lr = {low = 1e-3, high = 1e-1, log = true}
inner_steps = [1, 2]
queries = {low = 1, high = 3}
zero_head = [false, true]
"""


@pytest.fixture(autouse=True)
def environment(cache, monkeypatch):
    monkeypatch.setenv("METAKM_CACHE", str(cache))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="module")
def space(tmp_path_factory):
    path = tmp_path_factory.mktemp("space") / "space.toml"
    path.write_text(SPACE)
    return str(path)


def flags(space, out, *more, trials=3, iterations=4):
    own = ["--space", str(space), "--out", str(out), "--trials", str(trials), "--iterations", str(iterations)]
    return [*own, "--val-every", "2", *TINY.split(), *more]


def table(out):
    """The trials by strategy and number, without what depends on the machine."""
    read = pd.read_csv(out / "search.csv").sort_values(["algo", "trial"], ignore_index=True)
    return read.drop(columns="seconds")


@pytest.fixture(scope="module")
def searched(tmp_path_factory, space, cache):
    """A search of two strategies that nothing cut off, km-proto following; do not change it."""
    out = tmp_path_factory.mktemp("searched") / "out"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("METAKM_CACHE", str(cache))
        assert main(["--algo", "km", "anil", "km-proto", *flags(space, out)]) == 0
    return out


def test_every_strategy_has_the_same_trials_of_the_same_iterations(searched):
    found = table(searched)
    values = ["meta_lr", "inner_steps", "queries", "zero_head"]
    anil, km = (found[found["algo"] == algo].reset_index(drop=True) for algo in ("anil", "km"))
    assert list(km["trial"]) == list(anil["trial"]) == [0, 1, 2]
    pd.testing.assert_frame_equal(km[values], anil[values])  # the same seed proposes the same to each
    assert len(km.drop_duplicates(values)) == 3
    assert km["meta_lr"][0] == 3e-3  # the preset's own
    assert found["meta_lr"].between(1e-3, 1e-1).all()
    for algo in ("km", "anil"):
        assert {read_config(searched / "trials" / algo / str(n)).iterations for n in range(3)} == {4}


def test_the_accuracy_is_the_best_of_the_test_steps_on_the_same_validation_tasks(searched):
    for _, trial in table(searched).iterrows():
        measured = pd.read_csv(searched / "trials" / trial["algo"] / str(trial["trial"]) / "validation.csv")
        means = {steps: measured[str(steps)].mean() for steps in (1, 3)}
        assert len(measured) == 6
        assert trial["accuracy"] == pytest.approx(max(means.values()))
        assert trial["accuracy"] == trial[f"accuracy_{trial['test_steps']}"]


def test_a_trial_leaves_its_settings_curve_and_checkpoint_and_no_row(searched):
    files = {path.name for path in (searched / "trials" / "km" / "0").iterdir()}
    assert files == {"config.json", "curve.csv", "checkpoint.pt", "validation.csv"}
    assert read_runs(searched).runs == ()
    assert read_runs(searched).problems == ()


def test_the_page_has_the_winner_its_lead_and_the_command_that_runs_it(searched):
    page = (searched / "README.md").read_text()
    found = table(searched)
    own = found[found["algo"] == "km"].sort_values(["accuracy", "trial"], ascending=[False, True])
    best, second = own.iloc[0], own.iloc[1]
    section = page.split("## km\n")[1].split("## anil")[0]
    assert f"Best: trial {best['trial']}, {100 * best['accuracy']:.2f} ±" in section
    a, b = (
        pd.read_csv(searched / "trials/km" / str(t["trial"]) / "validation.csv")[str(t["test_steps"])].to_numpy()
        for t in (best, second)
    )
    paired = paired_difference(100 * a[None], 100 * b[None])
    assert f"- {paired.mean:.2f} ± {paired.tasks_ci95:.2f} points above" in section
    run, follower = (parse(shlex.split(line)[3:]) for line in re.findall(r"^    (python .*)$", section, re.MULTILINE))
    assert (run.algo, run.meta_lr, run.queries) == ("km", best["meta_lr"], best["queries"])
    assert (run.inner_steps, run.shared.zero_head) == (best["inner_steps"], best["zero_head"])
    assert (run.test_inner_steps, run.iterations, run.out) == (best["test_steps"], 4, Path("results"))
    assert (follower.algo, follower.meta_lr, follower.shared.zero_head) == ("km-proto", best["meta_lr"], False)


def test_a_follower_takes_the_winners_own_options_by_its_own_names():
    best = Record("km", 0, "done", 0.5, 0.1, 5, {}, 1.0, {"meta_lr": 0.01, "km.depth": 3, "zero_head": True})
    found = _following(preset_config(algo="km-proto"), best)
    assert (found.meta_lr, found.options.depth, found.test_inner_steps) == (0.01, 3, 5)


def test_there_is_one_summary_row_a_strategy_with_the_winners_command(searched):
    summary, trials = pd.read_csv(searched / "summary.csv"), pd.read_csv(searched / "search.csv")
    assert sorted(summary["algo"]) == ["anil", "km"]
    page = (searched / "README.md").read_text()
    for _, row in summary.iterrows():
        own = trials[trials["algo"] == row["algo"]].set_index("trial")
        best = own.loc[row["trial"]]
        assert (row["trials"], row["measured"]) == (3, own["accuracy"].notna().sum())
        assert row["seconds"] == pytest.approx(own["seconds"].sum(), abs=0.1)
        assert row["accuracy"] == best["accuracy"] == own["accuracy"].max()
        assert (row["ci95"], row["test_steps"]) == (best["ci95"], best["test_steps"])
        assert parse(shlex.split(row["command"])[3:]).meta_lr == best["meta_lr"]
        accuracy = f"{100 * row['accuracy']:.2f} ± {100 * row['ci95']:.2f}"
        assert (
            f"| `{row['algo']}` | 3 | {row['measured']} | {row['seconds']:.0f} | {accuracy} | {row['test_steps']} |"
            in page
        )


def test_the_command_of_the_page_makes_the_same_search(searched, space):
    (line,) = re.findall(r"^    (python -m metakm\.search .*)$", (searched / "README.md").read_text(), re.MULTILINE)
    options, rest = parse_search(shlex.split(line)[3:])
    expected = parse_search(["--algo", "km", "anil", "km-proto", *flags(space, searched)])
    assert (options, rest) == expected
    assert make_plan(options, rest).command == line


def test_a_strategy_without_an_inner_loop_does_not_vary_its_rate(space, tmp_path):
    assert main(["--algo", "protonet", *flags(space, tmp_path, trials=1, iterations=2)]) == 0
    page = (tmp_path / "README.md").read_text()
    assert "Not varied: `inner_steps` (this strategy adapts nothing in an inner loop)." in page
    assert "inner_steps" not in pd.read_csv(tmp_path / "search.csv").columns
    (tmp_path / "inner.toml").write_text("inner_lr = [0.1, 0.2]")
    options, rest = parse_search(["--algo", "protonet", *flags(str(tmp_path / "inner.toml"), tmp_path / "new")])
    with pytest.raises(metakm.UserError, match="a space that protonet can vary, got none of its fields left"):
        make_plan(options, rest)


def test_a_strategy_that_classifies_does_not_vary_the_inner_steps_of_training(space, tmp_path):
    options, rest = parse_search(["--algo", "baseline", "simpleshot", *flags(space, tmp_path)])
    baseline, simpleshot = make_plan(options, rest).searches
    assert set(baseline.space) == set(simpleshot.space) == {"meta_lr", "queries"}
    assert baseline.dropped["inner_steps"] == "this strategy is trained without an inner loop"
    assert simpleshot.dropped["inner_steps"] == "this strategy adapts nothing in an inner loop"


def test_the_page_names_the_presets_values_that_are_not_tried(tmp_path):
    (tmp_path / "inner.toml").write_text("inner_lr = {low = 0.03, high = 3.0, log = true}\ninner_steps = [1, 3]")
    arguments = ["--algo", "cavia", "baseline", "protonet", "--queries", "2"]
    options, rest = parse_search([*arguments, *flags(str(tmp_path / "inner.toml"), tmp_path / "out")])
    with pytest.raises(metakm.UserError, match="a space that protonet can vary"):
        make_plan(options, rest)
    arguments.remove("protonet")
    more = ["--test-steps", "1", "5"]
    assert (
        main([*arguments, *flags(str(tmp_path / "inner.toml"), tmp_path / "out", *more, trials=1, iterations=1)]) == 0
    )
    cavia, baseline = (tmp_path / "out" / "README.md").read_text().split("## cavia\n")[1].split("## baseline\n")
    said = "Not tried, as they lie outside the space and the test steps: the preset's"
    assert f"{said} `inner_lr` 20, `inner_steps` 5." in cavia
    assert f"{said} `test_inner_steps` 100." in baseline
    assert table(tmp_path / "out").set_index("algo")["inner_lr"]["baseline"] == 0.5  # the preset's lies in the space


def test_meta_test_is_never_drawn_from(space, tmp_path, monkeypatch):
    import metakm.run.build as build

    splits = []
    load = build.load_dataset

    def watched(*arguments, split, **more):
        splits.append(split)
        return load(*arguments, split=split, **more)

    monkeypatch.setattr(build, "load_dataset", watched)
    assert main(["--algo", "anil", *flags(space, tmp_path, trials=1, iterations=2)]) == 0
    assert set(splits) == {"train", "val"}


def test_a_finished_search_has_nothing_to_do_and_stays_as_it_is(searched, space):
    before = (searched / "search.csv").read_bytes()  # with the seconds of all trials
    assert main(["--algo", "anil", *flags(space, searched)]) == 0
    assert (searched / "search.csv").read_bytes() == before
    assert "## km\n" in (searched / "README.md").read_text()  # the page of one call has the strategies of all


def test_a_search_that_was_killed_goes_on_to_the_same_trials(searched, space, tmp_path):
    out = tmp_path / "out"
    arguments = ["--algo", "km", "anil", "km-proto", *flags(space, out)]
    environment = {**os.environ, "PYTHONPATH": str(Path(metakm.__file__).parent.parent)}
    slowed = (
        "import sys, time; from metakm.learning.outer_loop import OuterLoop; from metakm.search.__main__ import main\n"
        "step = OuterLoop.step\n"
        "def slow(self):\n"
        "    time.sleep(60 if self.iteration == 3 and self.config.meta_lr != 3e-3 else 0)\n"
        "    return step(self)\n"
        "OuterLoop.step = slow; sys.exit(main(sys.argv[1:]))"
    )
    process = subprocess.Popen([sys.executable, "-c", slowed, *arguments], env=environment)
    half_done = out / "trials" / "km" / "1" / "checkpoint.pt"  # written at iteration 2
    deadline = time.monotonic() + 60
    while not half_done.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(0.3)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert half_done.exists()
    with (out / "journal.log").open("ab") as file:
        file.write(b'{"op_code":5,"wor')  # as a kill in the midst of a line would leave it
    steps = []
    step = OuterLoop.step
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(OuterLoop, "step", lambda self: steps.append(self.iteration) or step(self))
        assert main(arguments) == 0
    assert steps[0] == 2  # from the checkpoint, not from the start
    pd.testing.assert_frame_equal(table(out), table(searched))


def test_values_that_do_not_go_together_end_a_trial_and_not_the_search(tmp_path, monkeypatch):
    path, built = tmp_path / "space.toml", plan.require_buildable

    def refuse_one(config):
        if config.meta_lr == 0.2:
            raise metakm.UserError("these do not go together")
        built(config)

    path.write_text("meta_lr = [0.1, 0.2]")
    monkeypatch.setattr(worker, "require_buildable", refuse_one)
    assert main(["--algo", "anil", *flags(path, tmp_path / "out", trials=6, iterations=2)]) == 0
    found = table(tmp_path / "out")
    assert set(found.state[found.meta_lr == 0.2]) == {"refused"}
    assert "refused" not in set(found.state[found.meta_lr == 0.1])
    assert "refused" in (tmp_path / "out" / "README.md").read_text()


def test_first_order_excludes_annealing_in_a_trial(tmp_path):
    path = tmp_path / "space.toml"
    path.write_text("first_order = [true, false]\nsecond_order_from = [0.0, 0.5]")
    assert main(["--algo", "maml", *flags(path, tmp_path / "out", trials=8, iterations=2)]) == 0
    found = table(tmp_path / "out")
    assert set(found.state) <= {"done", "pruned"}
    assert {True, False} == set(found.first_order)
    assert found.second_order_from[found.first_order].isna().all()


def test_a_trial_starts_from_the_run_that_is_named(tmp_path, space):
    own = f"--algo anil --dataset glyphs {TINY.partition(' --tasks')[0]} --iterations 1 --eval-tasks 2 --val-every 1"
    assert run([*own.split(), "--out", str(tmp_path / "runs"), "--device", "cpu", "--quiet"]) == 0
    earlier = tmp_path / "runs" / "glyphs-3w1s" / "anil" / "seed0"
    seen = []

    def step(loop):
        seen.append({name: tensor.clone() for name, tensor in loop.learner.state_dict().items()})
        raise DivergedError("enough")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(OuterLoop, "step", step)
        more = ["--init-from", str(earlier)]
        assert main(["--algo", "anil", *flags(space, tmp_path / "out", *more, trials=1)]) == 0
    trained = metakm.load_run(earlier).learner.state_dict()
    assert all(torch.equal(trained[name], tensor) for name, tensor in seen[0].items() if name in trained)


@pytest.mark.parametrize(
    ("text", "more", "said"),
    [
        ("queries = [1, 2]", ["--test-queries", "0"], "Expected --test-queries with a space that varies queries"),
        ('"cavia.layer" = [0, 9]', ["--algo", "cavia"], "9 norm layers"),
        ("meta_lr = [0.1, 0.2]", ["--patience", "3"], "--patience"),
        ("patience = [1, 2]", [], "got patience, which must be the same for all trials"),
    ],
)
def test_what_would_end_a_search_in_the_middle_is_refused_before_it_starts(tmp_path, capsys, text, more, said):
    path = tmp_path / "space.toml"
    path.write_text(text)
    algo = [] if "--algo" in more else ["--algo", "anil"]
    assert main([*algo, *flags(path, tmp_path / "out", *more)]) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_ctrl_c_stops_between_iterations_and_says_how_to_go_on(searched, space, tmp_path, capsys):
    out = tmp_path / "out"
    step = OuterLoop.step

    def interrupted(self):
        if self.iteration == 2:
            os.kill(os.getpid(), signal.SIGINT)
        return step(self)

    arguments = ["--algo", "km", "anil", *flags(space, out)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(OuterLoop, "step", interrupted)
        assert main(arguments) == 130
    assert "Repeat the same command to continue." in capsys.readouterr().err
    assert list(table(out)["state"]) == ["running"]
    assert main(arguments) == 0
    pd.testing.assert_frame_equal(table(out), table(searched))


@pytest.mark.slow
def test_two_processes_share_a_search_and_no_trial_is_done_twice(space, tmp_path):
    out = tmp_path / "out"
    arguments = ["--algo", "anil", *flags(space, out, trials=4)]
    environment = {**os.environ, "PYTHONPATH": str(Path(metakm.__file__).parent.parent)}
    with subprocess.Popen([sys.executable, "-m", "metakm.search", *arguments], env=environment) as other:
        while not (out / "trials" / "anil" / "0").exists() and other.poll() is None:
            time.sleep(0.02)
        assert main(arguments) == 0
        assert other.wait(60) == 0
    found = table(out)
    assert list(found["trial"]) == [0, 1, 2, 3]
    assert "running" not in set(found["state"])


PLUGIN = """
import metakm
from metakm.strategies.anil import ANIL
from metakm.options import Options

@metakm.register_strategy("searched-plugin", options=Options)
class Mine(ANIL):
    pass
"""


def test_a_strategy_of_a_plugin_is_searched_in_its_part_of_the_space(space, tmp_path, capsys):
    (tmp_path / "mine.py").write_text(PLUGIN)
    more = ["--plugin", str(tmp_path / "mine.py"), "--queries", "2"]
    out = tmp_path / "out"
    assert main(["--algo", "searched-plugin", *flags(space, out, *more, trials=2, iterations=1)]) == 0
    page = (out / "README.md").read_text()
    assert "Not varied: `zero_head` (this strategy has no such option)." in page
    assert "Not varied: `queries` (fixed on the command line)." in page
    assert f"--plugin {tmp_path / 'mine.py'}" in page
    assert set(table(out)["state"]) == {"done"}
    assert not {"zero_head", "queries"} & set(table(out).columns)
    (tmp_path / "mine.py").write_text(PLUGIN + "# once more\n")
    assert main(["--algo", "searched-plugin", *flags(space, out, *more, trials=3, iterations=1)]) == 2
    assert "got different settings: files mine.py" in capsys.readouterr().err


def test_a_strategy_that_cannot_learn_is_refused_before_the_first_trial(space, tmp_path, capsys):
    path = tmp_path / "mine.py"
    path.write_text(
        PLUGIN.replace("    pass", "    def outer_loss(self, *_, **__):\n        raise ValueError('no loss')")
    )
    assert main(["--algo", "searched-plugin", *flags(space, tmp_path / "out", "--plugin", str(path), trials=1)]) == 2
    assert "to learn from a task, got ValueError: no loss" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_trial_that_diverges_counts_and_the_search_goes_on(space, tmp_path, monkeypatch):
    step = OuterLoop.step

    def diverging(self):
        if self.config.meta_lr == 3e-3:
            raise DivergedError("not finite")
        return step(self)

    monkeypatch.setattr(OuterLoop, "step", diverging)
    assert main(["--algo", "anil", *flags(space, tmp_path, trials=2, iterations=1)]) == 0
    assert list(table(tmp_path)["state"]) == ["diverged", "done"]
    assert "Best: trial 1" in (tmp_path / "README.md").read_text()


def test_trials_that_fall_behind_are_pruned_and_the_importances_are_drawn(space, tmp_path, monkeypatch):
    accuracy = OuterLoop.accuracies

    def rigged(self, *arguments):
        """The smaller the rate the better."""
        return 1 - self.config.meta_lr + 0 * accuracy(self, *arguments)

    monkeypatch.setattr(OuterLoop, "accuracies", rigged)
    assert main(["--algo", "anil", *flags(space, tmp_path, trials=9, iterations=3)]) == 0
    found = table(tmp_path)
    assert set(found["state"]) == {"done", "pruned"}
    for number, trial in found.iterrows():
        earlier = found[(found["trial"] < number) & (found["state"] == "done")]["meta_lr"]
        behind = len(earlier) >= 5 and trial["meta_lr"] > earlier.median()
        assert trial["state"] == ("pruned" if behind else "done")
    best = found.loc[found["accuracy"].idxmax()]
    assert f"Best: trial {best['trial']}" in (tmp_path / "README.md").read_text()
    assert (tmp_path / "importances.png").read_bytes().startswith(b"\x89PNG")


def test_the_bars_of_a_strategy_are_its_importances(monkeypatch):
    drawn = []
    monkeypatch.setattr("metakm.search.importance.figure_bytes", lambda figure: drawn.append(figure) or b"")
    importances_png({"km": {"meta_lr": 0.75, "inner_steps": 0.25}, "anil": {"queries": 1.0}})
    found = {
        axes.get_title(): {
            label.get_text(): bar.get_width() for label, bar in zip(axes.get_yticklabels(), axes.patches, strict=True)
        }
        for axes in drawn[0].axes
    }
    assert found == {"km": {"inner_steps": 0.25, "meta_lr": 0.75}, "anil": {"queries": 1.0}}
    assert [(axes.get_xlabel(), axes.get_xlim()) for axes in drawn[0].axes] == [("importance", (0, 1))] * 2


def test_no_trial_starts_after_the_seconds_are_spent(space, tmp_path):
    assert main(["--algo", "anil", *flags(space, tmp_path, "--seconds", "1e-6", iterations=1)]) == 0
    assert len(table(tmp_path)) == 1
    assert np.isfinite(pd.read_csv(tmp_path / "search.csv")["seconds"]).all()


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--trials", "0"], "--trials to be at least 1"),
        (["--tasks", "1"], "--tasks to be at least 2"),
        (["--iterations", "0"], "--iterations to be at least 1"),
        (["--algo", "kmm"], "did you mean 'km'?"),
        (["--dataset", "glyfs"], "did you mean 'glyphs'?"),
        (["--resume"], "--resume is set by this command"),
        (["--inner-lrr", "1"], "did you mean '--inner-lr'?"),
        (["--space", "nowhere.toml"], "nowhere.toml"),
        (["--queries", "9", "--meta-lr", "1", "--inner-steps", "1", "--zero-head"], "none of its fields left"),
    ],
)
def test_bad_input_is_refused_before_anything_is_written(space, tmp_path, capsys, more, said):
    arguments = ["--space", space, "--ways", "3", "--out", str(tmp_path / "out"), *more]
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert said in error
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("more", [["--iterations", "5"], ["--tasks", "8"], ["--seed", "1"], ["--meta-batch", "2"]])
def test_a_folder_with_another_search_is_refused(searched, space, capsys, more):
    assert main(["--algo", "km", *flags(space, searched), *more]) == 2
    error = capsys.readouterr().err
    assert "another --out" in error
    assert more[0].strip("-").replace("-", "_") in error


@pytest.mark.parametrize("more", [["--test-queries", "3"], ["--bn-mode", "running"], ["--inner-lr", "0.5"]])
def test_a_further_strategy_has_the_flags_of_the_first(searched, space, capsys, more):
    before = (searched / "search.json").read_bytes()
    assert main([*flags(space, searched), "--algo", "maml", *more]) == 2
    error = capsys.readouterr().err
    assert "Expected the search in" in error
    assert more[0].strip("-").replace("-", "_") in error
    assert (searched / "search.json").read_bytes() == before


def test_a_flag_that_gives_the_default_of_a_field_is_recorded_too(space, tmp_path):
    planned = make_plan(
        *parse_search(["--algo", "km", *flags(space, tmp_path), "--train", "full", "--split-seed", "0"])
    )
    recorded = planned.protocol()["flags"]
    assert {name: recorded[name] for name in ("train", "split_seed")} == {"train": "full", "split_seed": 0}


@pytest.mark.parametrize("split", ["train", "val"])
def test_a_search_does_not_go_on_over_other_data(searched, space, split):
    planned = make_plan(*parse_search(["--algo", "km", *flags(space, searched)]))
    other = dataclasses.replace(planned, split_hashes={**planned.split_hashes, split: "0" * 16})
    with pytest.raises(metakm.UserError, match=rf"split_hash {split} \w{{16}} \(now 0{{16}}\)"):
        Studies(other)


def test_a_search_from_before_the_data_were_recorded_goes_on(searched, space, tmp_path):
    shutil.copytree(searched, tmp_path, dirs_exist_ok=True)
    path = tmp_path / "search.json"
    path.write_text(json.dumps({k: v for k, v in json.loads(path.read_text()).items() if k != "split_hash"}))
    assert Studies(make_plan(*parse_search(["--algo", "km", *flags(space, tmp_path)]))).out == tmp_path


def test_optuna_is_asked_for_where_it_is_not_installed(space, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    assert main(flags(space, tmp_path / "out")) == 2
    assert "pip install 'metakm[search]'" in capsys.readouterr().err


def test_a_damaged_protocol_is_named(tmp_path, space, capsys):
    (tmp_path / "search.json").write_text("{")
    assert main(["--algo", "km", *flags(space, tmp_path)]) == 2
    assert "search.json" in capsys.readouterr().err


def test_a_trial_that_ends_while_another_process_looks_for_one_is_not_claimed_again(space, tmp_path, monkeypatch):
    plan = make_plan(*parse_search(["--algo", "anil", *flags(space, tmp_path / "out", trials=2)]))
    (search,), first, second = plan.searches, Studies(plan), Studies(plan)
    claimed, locked = first.claim(search), RunFolder.locked

    def late(folder):
        """The trial ends between the look at its state and the claim of its folder."""
        monkeypatch.setattr(RunFolder, "locked", locked)
        first.finish(claimed, TrialOutcome("diverged", 1.0, {}))
        claimed.folder.release()
        return locked(folder)

    monkeypatch.setattr(RunFolder, "locked", late)
    other = second.claim(search)
    assert (claimed.number, other.number) == (0, 1)
    other.folder.release()
