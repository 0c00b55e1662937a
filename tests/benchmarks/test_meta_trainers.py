"""`benchmarks/meta_trainers.py`: one budget for all, refusals in the plan, no row twice, and the page."""

import shutil

import budgeted_runs
import meta_trainers
import pytest
from photographs import flower_files, grocery_files, write_files
from plain_networks import write_weights
from runs import write_run

from metakm.errors import UserError
from metakm.io.csv_file import read_csv
from metakm.run.folder import RunFolder

pytestmark = pytest.mark.float32
NETWORK = "timm:test_efficientnet"


@pytest.fixture
def made(monkeypatch):
    """The settings of the runs that were started; an iteration takes half a second, and accuracies are made up."""
    started = []

    def seconds(config):
        if (config.algo, config.train) == ("maml", "km"):
            raise UserError("Expected another strategy")
        return 0.5

    def run(config):
        started.append(config)
        accuracies = [0.5, 0.5 + len(started) / 10]
        write_run(config.folder, config.algo, accuracies, dataset="glyphs", ways=15, iterations=config.iterations)
        lines = [f"{iteration},{accuracy}" for iteration, accuracy in ((0, 0.5), (96, 0.7), (120, 0.6), (121, ""))]
        (config.folder / "curve.csv").write_text("\n".join(["iteration,val_accuracy", *lines]) + "\n")
        return 0

    monkeypatch.setattr(budgeted_runs, "seconds_an_iteration", seconds)
    monkeypatch.setattr(budgeted_runs, "run_process", run)
    monkeypatch.setattr(budgeted_runs, "_build", lambda *_: None)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    return started


def test_the_plan_has_what_fits_and_the_page_has_each_pair_once(tmp_path, made):
    some = ["--algo", "protonet", "maml", "--train", "norm", "km", "--out", str(tmp_path / "out")]
    assert meta_trainers.main([*some, "--core-seconds", "60"]) == 0
    plan = read_csv(tmp_path / "out" / "plan.csv")
    assert [(row["train"], row["algo"], row["iterations"], row["refused"]) for row in plan] == [
        ("norm", "protonet", "120", ""), ("norm", "maml", "120", ""), ("km", "protonet", "120", ""),
        ("km", "maml", "", "Expected another strategy"),
    ]  # fmt: skip
    assert [(c.train, c.algo, c.iterations, c.val_every) for c in made] == [
        ("norm", "protonet", 120, 24), ("norm", "maml", 120, 24), ("km", "protonet", 120, 24),
    ]  # fmt: skip
    page = (tmp_path / "out" / "README.md").read_text()
    assert "fit into 60 s of CPU" in page
    rows = [line for line in page.splitlines() if line.startswith("|")]
    assert rows[0] == "| strategy | norm | km |"
    assert rows[2].startswith("| `protonet` | 55.00 ± ")
    assert " (96 of 120) | 65.00 ± " in rows[2]
    assert rows[3].startswith("| `maml` | 60.00 ± ")
    assert rows[3].endswith(" (96 of 120) | refused |")
    commands = [line for line in page.splitlines() if "metakm.run" in line]
    for config, line in zip(made, commands, strict=True):
        assert f"--out results/pretrained/meta-trainers/{config.train} " in f"{line} "


def test_a_plan_of_another_budget_is_refused(tmp_path, made, capsys):
    some = ["--algo", "protonet", "--train", "norm", "--out", str(tmp_path)]
    assert meta_trainers.main([*some, "--core-seconds", "60"]) == 0
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    for more in ([], ["--page"]):
        assert meta_trainers.main([*some, "--core-seconds", "90", *more]) == 2
        assert "Expected a plan for --core-seconds 90, got one for 60" in capsys.readouterr().err
    assert meta_trainers.main([*some, "--core-seconds", "60", "--meta-batch", "4"]) == 2
    assert "Expected a plan for the flags '--meta-batch 4', got one for '' in" in capsys.readouterr().err
    for flags, message in ((["--algo", "cavia"], "--algo"), (["--train", "all"], "--train")):
        assert meta_trainers.main([*some, *flags]) == 2
        assert message in capsys.readouterr().err
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    assert len(made) == 1


def test_data_that_are_not_there_are_no_refusal(tmp_path, monkeypatch, capsys):
    pytest.importorskip("timm", reason="timm is not installed")
    monkeypatch.setenv("METAKM_DATA", str(tmp_path / "none"))
    assert meta_trainers.main(["--out", str(tmp_path / "out")]) == 2
    assert "Expected flowers-102-64px.tar.xz or flowers-102 in" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_the_committed_page_is_that_of_its_rows(tmp_path):
    committed = meta_trainers.Options().out
    if not committed.is_dir():
        pytest.skip("meta-trainers were not measured yet")
    copy = tmp_path / "copy"
    shutil.copytree(committed, copy)
    assert meta_trainers.main(["--page", "--out", str(copy)]) == 0
    assert (copy / "README.md").read_text() == (committed / "README.md").read_text()


@pytest.mark.slow
def test_each_pair_has_a_row_or_a_reason(tmp_path, cache, monkeypatch, capfd):
    pytest.importorskip("timm", reason="timm is not installed")
    monkeypatch.setenv("METAKM_CACHE", str(cache))
    write_files(tmp_path / "data", {**flower_files(each=4), **grocery_files(each=4)})
    monkeypatch.setenv("METAKM_DATA", str(tmp_path / "data"))
    weights = write_weights(NETWORK, tmp_path / "net.pt")
    out = tmp_path / "out"
    small = (
        f"--backbone {NETWORK} --weights {weights} --image-size 32 --ways 3 --queries 2 --val-tasks 2 --eval-tasks 4"
    )
    flags = [*small.split(), "--quiet", "--core-seconds", "0.3", "--out", str(out)]
    flags += ["--algo", "protonet", "maml", "--train", "norm", "km"]
    assert meta_trainers.main(flags) == 0
    plan = read_csv(out / "plan.csv")
    assert [(line["train"], line["algo"], bool(line["refused"])) for line in plan] == [
        ("norm", "protonet", False), ("norm", "maml", False), ("km", "protonet", False), ("km", "maml", True),
    ]  # fmt: skip
    page = (out / "README.md").read_text()
    for line in plan[:3]:
        row = RunFolder(out / line["train"] / "flowers+grocery-store-3w1s" / line["algo"] / "seed0").read_row()
        assert row["iterations"] == max(1, int(0.3 / float(line["core_seconds_an_iteration"])))
        assert f"{100 * row['accuracy']:.2f} ± {100 * row['ci95']:.2f} (" in page
        assert f" of {row['iterations']})" in page
    assert page.count("refused |") == 1
    capfd.readouterr()
    assert meta_trainers.main(flags) == 0, "the second call"
    assert capfd.readouterr().out.count("already done") == 3
    assert (out / "README.md").read_text() == page
