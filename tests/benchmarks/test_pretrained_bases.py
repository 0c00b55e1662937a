"""`benchmarks/pretrained.py`: tasks, features, rows that go on where they stopped, and the page."""

import time
from pathlib import Path

import fit_seconds
import numpy as np
import pretrained
import pretrained_data
import pytest
import torch
from pretrained import Bench, scores
from pretrained_page import page_lines

from metakm.data import FewShotDataset
from metakm.errors import UserError
from metakm.io.csv_file import read_csv
from metakm.models.pretrained import LITE0, Preprocessing, Pretrained

pytestmark = pytest.mark.float32
ROOT = Path(__file__).parents[2]


class Colours(torch.nn.Module):
    """Mean colours, and a classifier that nobody asks."""

    def __init__(self, keep):
        super().__init__()
        self.keep, self.fc = keep, torch.nn.Linear(3, 2)
        torch.nn.init.zeros_(self.fc.weight)
        torch.nn.init.zeros_(self.fc.bias)

    def forward(self, images):
        return self.fc(images.mean((2, 3)) * torch.tensor(self.keep))


def dataset(name, side):
    """24 classes of 22 grey-red images, told apart by their red alone."""
    generator = np.random.default_rng(len(name))
    labels = np.repeat(np.arange(24), 22)
    images = generator.integers(90, 110, (len(labels), 3, side, side))
    images[:, 0] = 10 * labels[:, None, None]
    return FewShotDataset.from_arrays(images.astype(np.uint8), labels, name=name, split="test")


@pytest.fixture
def bench(tmp_path, monkeypatch):
    keep = {"blind": (0.0, 1.0, 1.0), "seeing": (1.0, 1.0, 1.0)}
    monkeypatch.setattr(
        pretrained,
        "load_base",
        lambda name: Pretrained(name, Colours(keep[name]).eval(), Preprocessing(8, (0.0,) * 3, (1.0,) * 3), "fc"),
    )
    bases = {LITE0: "blind", "few": "seeing"}
    return lambda **more: Bench(
        tmp_path, bases, {LITE0: ["flowers", "cifar10"], "few": ["flowers"]}, sides=(8,), shots=(1, 5),
        methods=("centroid", "ridge", "probe"), tasks=4, load=dataset, **more,
    )  # fmt: skip


def test_rows_go_on_where_they_stopped_and_the_page_has_them_all(bench):
    first = bench()
    assert len(list(first.cells())) == 3 * 2 * (2 + 2 + 2)
    done = [row for row, _ in zip(first.run(), range(5), strict=False)]
    assert len(done) == 5
    second = bench()
    assert len(second.rows) >= 5
    assert all(row["method"] for row in second.run())
    assert not second.left()
    assert not list(second.run(seconds=0))
    assert second.status() == "36 of 36 cells are done"
    rows = {(r["base"], r["source"], r["ways"], r["shots"], r["method"]): r for r in second.rows}
    assert len(rows) == len(second.rows) == 36
    few, plain = (rows[base, "flowers", "16", "5", "centroid"] for base in ("few", LITE0))
    assert float(few["accuracy"]) > 0.7 > 0.3 > float(plain["accuracy"])
    assert few["episodes_hash"] == plain["episodes_hash"]
    assert all(float(row["solve_seconds"]) >= 0 and row["fit_seconds"] == "" for row in second.rows)
    assert scores(few).mean() == pytest.approx(float(few["accuracy"]), abs=1e-6)
    assert len(scores(few)) == 4
    page = page_lines(second.rows)
    assert sum(line.startswith("| few | ridge") for line in page) == 2
    assert any("ImageNet's weights have seen these kinds of things" in line for line in page)
    assert "## CIFAR-10, enlarged: 10-way, 8 px" in page


def test_the_page_compares_with_the_closest_plain_method_in_pairs(bench):
    made = bench()
    list(made.run())
    cells = {(r["base"], r["source"], r["ways"], r["shots"], r["method"]): float(r["accuracy"]) for r in made.rows}
    best = max(cells[LITE0, "flowers", "5", "1", method] for method in made.methods)
    line = next(line for line in page_lines(made.rows) if line.startswith("| few | centroid"))
    assert f"({100 * (cells['few', 'flowers', '5', '1', 'centroid'] - best):+.1f}" in line


def test_a_plain_method_with_few_lucky_tasks_does_not_hide_one_with_many():
    def row(base, method, right):
        return {
            "base": base, "source": "cifar10", "side": "96", "ways": "5", "shots": "1", "method": method,
            "right": right, "tasks": str(len(right.split())), "accuracy": "0", "ci95": "0", "episodes_hash": "",
            "seen": "",
        }  # fmt: skip

    rows = [row(LITE0, "ridge", "10 40 20 30"), row(LITE0, "norm", "10 41"), row("few", "ridge", "20 50 15 10")]
    line = next(line for line in page_lines(rows) if line.startswith("| few"))
    assert "(-2.5 ± " in line, "over the four tasks of ridge; over the two of norm it is 19 points"
    rows[0]["episodes_hash"] = "other"
    with pytest.raises(UserError, match="Expected rows of the same tasks"):
        page_lines(rows)


def test_a_base_that_changed_under_its_name_is_refused(bench):
    made = bench()
    row = dict(next(made.run()))
    row["fingerprint"] = "another"
    made.rows = [row]
    with pytest.raises(UserError, match=r"Expected the base 'efficientnet-lite0' .* with fingerprint another"):
        next(made.run())
    assert made.rows == [row]


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ("--methods centriod", "did you mean 'centroid'?"),
        ("--tested flower", "Expected --tested to be one of"),
        ("--bases foo=bar", "Expected --bases as NAME=BASE=SOURCE,SOURCE, got 'foo=bar'"),
        ("--bases a=b=c=d", "Expected --bases as"),
        ("--bases a=b=", "Expected --bases as"),
        ("--bases foo=bar=cifar10,grocry", "did you mean 'grocery'?"),
    ],
)
def test_what_cannot_be_meant_is_one_message_and_writes_nothing(tmp_path, capsys, flags, said):
    for more in ([], ["--status"]):
        assert pretrained.main(["--out", str(tmp_path / "out"), *more, *flags.split()]) == 2
        found = capsys.readouterr()
        assert said in found.err
        assert (found.out, found.err.count("\n"), (tmp_path / "out").exists()) == ("", 1, False)


def test_the_status_counts_what_was_asked_for(tmp_path, capsys):
    flags = ["--methods", "centroid", "--tested", "grocery", "--sides", "96", "--bases", "mine=b=cifar10"]
    assert pretrained.main(["--out", str(tmp_path), "--status", *flags]) == 0
    cells = (2 + 2) * 2 * 4  # grocery for two bases, CIFAR-10 for the plain one and mine; two ways; four shots
    assert capsys.readouterr().out == f"0 of {cells} cells are done; left: centroid {cells}\n"


def test_the_committed_page_is_that_of_the_committed_rows():
    folder = Path(__file__).parents[2] / "results" / "pretrained"
    rows = read_csv(folder / "rows.csv")
    assert (folder / "README.md").read_text() == "\n".join(page_lines(rows)) + "\n"
    assert all(row["seen"] == pretrained_data.SOURCES[row["source"]].seen for row in rows)


def test_sources_are_test_classes_or_all(monkeypatch):
    def load(name, split, image_size):
        part = dataset(name, image_size)
        names = tuple(f"{split} {each}" for each in part.class_names)
        return FewShotDataset(name, split, part.images, names, part.offsets, False, part.split_hash)

    monkeypatch.setattr(pretrained_data, "load_dataset", load)
    assert pretrained_data.load_source("flowers", 4).n_classes == 24
    every = pretrained_data.load_source("all-flowers", 4)
    assert (every.n_classes, len(every.images)) == (72, 3 * 24 * 22)
    with pytest.raises(UserError, match="Expected source to be one of"):
        pretrained_data.load_source("flower", 4)


def test_tasks_are_the_same_for_all_methods_and_support_and_queries_differ():
    tasks, digest = pretrained_data.draw_tasks(dataset("a", 4), 5, 2, 3)
    again, same = pretrained_data.draw_tasks(dataset("a", 8), 5, 2, 3)
    assert digest == same
    for one, other in zip(tasks, again, strict=True):
        assert np.array_equal(one.support, other.support)
        assert len({*one.support, *one.queries}) == 5 * (2 + 10)
        assert np.array_equal(one.support.reshape(5, 2)[:, 0] // 22, one.queries.reshape(5, 10)[:, 0] // 22)


def test_a_fit_is_timed_from_photos_to_a_classifier_without_its_base(tmp_path, monkeypatch, capsys):
    loaded = []

    def slow(name):
        loaded.append(name)
        began = time.process_time()
        while time.process_time() < began + 0.2:
            pass
        return Pretrained(name, Colours((1.0, 1.0, 1.0)).eval(), Preprocessing(8, (0.0,) * 3, (1.0,) * 3), "fc")

    monkeypatch.setattr(fit_seconds, "load_base", slow)
    monkeypatch.setattr(fit_seconds, "load_source", dataset)
    flags = ["--out", str(tmp_path), "--ways", "4", "--sides", "32", "--repetitions", "2"]
    assert fit_seconds.main([*flags, "--methods", "centroid", "ridge"]) == 0
    rows = read_csv(tmp_path / "fit-seconds.csv")
    assert [(r["method"], r["photos"], r["side"], r["repetitions"]) for r in rows] == [
        ("centroid", "4", "32", "2"),
        ("ridge", "4", "32", "2"),
    ]
    assert all(0 < float(row["fit_seconds"]) < 0.2 for row in rows)
    assert len(loaded) == 6
    assert fit_seconds.main([*flags, "--methods", "rigde"]) == 2
    assert "did you mean 'ridge'?" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("line", "source", "ways", "side"),
    [
        ("| Flowers-102, 16-way | 96 px |", "flowers", "16", "96"),
        ("| Grocery Store, 20-way | 96 px |", "grocery", "20", "96"),
        ("| CIFAR-10 enlarged from 32 px, 10-way | 96 px |", "cifar10", "10", "96"),
    ],
)
def test_the_gains_of_the_documentation_are_those_of_the_rows(line, source, ways, side):
    rows = read_csv(ROOT / "results" / "pretrained" / "rows.csv")
    text = (ROOT / "docs" / "pretrained.md").read_text()
    (said,) = [each for each in text.splitlines() if each.startswith(line)]
    cells = []
    for shots in ("1", "5", "10", "25"):
        own = {
            (row["base"], row["method"]): scores(row)
            for row in rows
            if (row["source"], row["ways"], row["side"], row["shots"]) == (source, ways, side, shots)
        }
        ridge = own[pretrained.FEWSHOT, "ridge"]
        plain = [own[LITE0, method] for method in pretrained.SOLVERS]
        gains = [(ridge[: len(theirs)] - theirs[: len(ridge)]).mean() for theirs in plain]
        cells.append(f"{100 * ridge.mean():.1f} ({100 * min(gains):+.1f})")
    assert said == f"{line} {' | '.join(cells)} |"
