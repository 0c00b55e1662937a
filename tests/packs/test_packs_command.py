"""`python -m metakm.packs`."""

import pytest
import torch
import torchvision
from convnets import Mixed

from metakm.modulation import modulate, save_pack
from metakm.packs.__main__ import main

pytestmark = pytest.mark.float32


def rows(text):
    """The values of a table's two columns by the row's name."""
    return {line[:20].strip(): line[20:].replace(" %", "").split() for line in text.splitlines()[1:]}


def test_plan_of_resnet50_is_the_papers_arithmetic_from_files(capsys):
    assert main(["plan", "--base", "resnet50", "--tasks", "100", "--classes", "125"]) == 0
    found = rows(capsys.readouterr().out)
    assert found["base network, MB"] == ["94.05", "94.00"]  # 4 * 23,508,032 = 94,032,128 bytes, and names and shapes
    assert found["tasks"] == ["100", "100"]
    assert found["a network each, MB"] == ["9405", "9400"]
    measured, published = (float(value) for value in found["base and packs, MB"])
    assert published == 226
    values = 7_466 + 53_120 + 2_049 * 125
    assert measured == pytest.approx(94.05 + 100 * 4 * values / 1e6, rel=0.02)
    assert float(found["pack / base"][0]) == pytest.approx(100 * 4 * values / 94.05e6, rel=0.03)
    assert found["times smaller"][1] == "41.7"


def test_plan_of_another_network_averages_the_packs(capsys):
    flags = "plan --base shufflenet_v2_x0_5 --tasks 10 --norm batch --classes"
    packs = []
    for classes in ("10", "1000", "10 1000"):
        assert main([*flags.split(), *classes.split()]) == 0
        found = rows(capsys.readouterr().out)
        packs.append(float(found["pack of a task, MB"][0]))
    assert packs[2] == pytest.approx((packs[0] + packs[1]) / 2, abs=0.011)
    assert packs[1] - packs[0] == pytest.approx(4 * 990 * 1025 / 1e6, abs=0.011)
    model = torchvision.models.shufflenet_v2_x0_5(num_classes=10)
    base = sum(t.numel() * t.element_size() for n, t in model.state_dict().items() if not n.startswith("fc."))
    assert float(found["base network, MB"][0]) == pytest.approx(base / 1e6, rel=0.05)  # names and shapes


def test_inspect_prints_what_a_pack_holds(tmp_path, capsys):
    torch.manual_seed(0)
    path = tmp_path / "birds.safetensors"
    pack = save_pack(modulate(Mixed()), path, "birds", ["owl", "wren", "kite"], {"accuracy": 0.5})
    assert main(["inspect", str(path)]) == 0
    printed = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert printed["task"] == "birds"
    assert printed["base"] == pack.base
    assert printed["classes"] == "3: owl, wren, kite"
    assert printed["metrics"] == "accuracy 0.5"
    assert printed["layers"] == "4: stem, grouped, depthwise, pointwise"
    assert printed["values"] == f"classifier 39, modulators {2 * (49**2 + 9**2 + 3**2 + 1) + 4:,}, norms 1,073"
    assert printed["size"] == f"{path.stat().st_size:,} bytes"
    save_pack(modulate(Mixed(), layers=()), path)
    assert main(["inspect", str(path)]) == 0
    printed = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert (printed["task"], printed["modulation"], printed["layers"]) == ("(not named)", "none", "none")


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("inspect nothing", "error: Expected a pack, got no file nothing"),
        ("plan --base resnet49", "did you mean 'resnet"),
        ("plan --tasks 0", "Expected at least 1 task of at least 2 classes, got 0"),
        ("plan --base squeezenet1_1 --norm batch", "classifier to name a submodule, got 'fc'"),
        ("plan --base squeezenet1_1 --classifier classifier", "model with nn.BatchNorm2d layers, got SqueezeNet"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(command, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(command.split()) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert (captured.err.count("\n"), captured.out) == (1, "")
