import pandas as pd
import pytest
import torch
from readers import nobody_reads

from metakm.errors import UserError
from metakm.experiments import ablation

pytestmark = pytest.mark.float32


def test_each_variant_changes_one_thing():
    modulators = {name: _first_modulator(name) for name in ablation.VARIANTS}
    assert {name: m.activation for name, m in modulators.items() if m.activation != "tanh"} == {
        "sin": "sin",
        "leaky-relu": "leaky_relu",
        "relu": "relu",
    }
    assert [name for name, m in modulators.items() if m.diagonal] == ["diagonal"]
    assert {name: len(m.layers) for name, m in modulators.items() if len(m.layers) != 2} == {
        f"depth-{depth}": depth for depth in (1, 5, 10, 20, 50)
    }
    orthogonal = modulators["orthogonal"].layers[0]
    torch.testing.assert_close(orthogonal @ orthogonal.T, torch.eye(9))


def _first_modulator(variant):
    return ablation.method_setup(variant, seed=0).model.backbone.conv.parametrizations.weight[0]


def test_all_variants_start_from_the_same_convolutions():
    weights = [
        ablation.method_setup(v, seed=0).model.backbone.conv.parametrizations.weight.original
        for v in ("default", "depth-5")
    ]
    assert torch.equal(*weights)


def test_a_variant_is_a_run(small, tmp_path):
    assert ablation.main([*small, "--methods", "diagonal", "--epochs", "1"]) == 0
    row = pd.read_csv(tmp_path / "out" / "ablation" / "diagonal" / "seed0" / "experiment.csv").iloc[0]
    assert (row.status, row.experiment, row.method) == ("done", "ablation", "diagonal")
    assert row.trainable_parameters == 2_922 + 31 * 2 * 9
    assert row.learning_rate == 0.03


def test_an_unknown_variant_is_named(small, capsys):
    assert ablation.main([*small, "--methods", "cosine"]) == 2
    assert "cosine" in capsys.readouterr().err
    with pytest.raises(UserError, match="default"):
        ablation.method_setup("defualt", seed=0)


def test_a_variant_is_done_although_nobody_reads_and_no_picture_can_be_drawn(small, tmp_path, monkeypatch):
    monkeypatch.setattr("metakm.run.folder.curve_png", lambda *_: 1 / 0)
    with nobody_reads():
        assert ablation.main([*small, "--methods", "diagonal", "--epochs", "1"]) == 0
        assert ablation.main([*small, "--methods", "diagonal", "--dry-run"]) == 0
    row = pd.read_csv(tmp_path / "out" / "ablation" / "diagonal" / "seed0" / "experiment.csv").iloc[0]
    assert row.status == "done"
