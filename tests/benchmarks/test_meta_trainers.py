"""`benchmarks/meta_trainers.py`: one budget for all, refusals in the plan, no row twice, and the page."""

import sys
from pathlib import Path

import pytest
from photographs import flower_files, grocery_files, write_files
from plain_networks import write_weights

from metakm.io.csv_file import read_csv
from metakm.run.folder import RunFolder

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

import meta_trainers

pytestmark = pytest.mark.float32
NETWORK = "timm:test_efficientnet"


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
        assert f"{100 * row['accuracy']:.2f} ± {100 * row['ci95']:.2f} ({row['iterations']})" in page
    assert page.count("refused |") == 1
    capfd.readouterr()
    assert meta_trainers.main(flags) == 0, "the second call"
    assert capfd.readouterr().out.count("already done") == 3
    assert (out / "README.md").read_text() == page
