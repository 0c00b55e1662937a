from dataclasses import replace
from urllib.error import URLError

import pandas as pd
import pytest
import safetensors.torch
import torch
import torchvision

from metakm.errors import UserError
from metakm.experiments import chosen_rates, scratch, transfer
from metakm.experiments.batches import IMAGENET, Normalisation
from metakm.experiments.networks import cifar_classifier, pretrained
from metakm.experiments.training import Training
from metakm.models.lite_residual import LiteResidual, insert_lite_residuals
from metakm.modulation import read_pack

pytestmark = pytest.mark.float32


@pytest.fixture
def weights(tmp_path):
    torch.manual_seed(5)
    path = tmp_path / "backbone.pt"
    torch.save(cifar_classifier(32, 4).state_dict(), path)
    return path


@pytest.fixture
def quick(data_root, tmp_path, weights):
    return [
        *("--data", str(data_root / "cifar10"), "--out", str(tmp_path / "out"), "--weights", str(weights)),
        *("--image-size", "8", "--epochs", "1", "--batch", "32", "--device", "cpu"),
    ]


def config(**changes):
    return replace(transfer.PRESETS["quick"], **{"weights": "random", **changes})


def trained_parts(method):
    subject = transfer.method_setup(config(), method, ["a", "b"], "task")
    names = [name for name, p in subject.model.named_parameters() if p.requires_grad]
    return {
        "classifier": any(n.startswith("fc.") for n in names),
        "implicit": any("norm" in n for n in names),
        "explicit": any("parametrizations" in n and "original" not in n for n in names),
        "convolutions": any(n.endswith("original") or (".conv" in n and n.endswith("conv1.weight")) for n in names),
    }


@pytest.mark.parametrize(
    ("method", "parts"),
    [
        ("tbl-1", {"classifier"}),
        ("implicit", {"implicit"}),
        ("explicit", {"explicit"}),
        ("nc", {"implicit", "classifier"}),
        ("tkm-1", {"explicit", "classifier"}),
        ("implicit-explicit", {"implicit", "explicit"}),
        ("tkm-2", {"implicit", "explicit", "classifier"}),
        ("tbl-2", {"implicit", "classifier", "convolutions"}),
    ],
)
def test_each_method_trains_its_parts(method, parts):
    assert {name for name, there in trained_parts(method).items() if there} == parts


def test_tkm2_of_resnet50_trains_the_papers_share():
    """Mean full model over mean trained parameters, over the four datasets: the paper's 75X."""
    classes = {"aircraft": 100, "cars": 196, "flowers": 102, "food": 101}
    full, trained = [], []
    for count in classes.values():
        with torch.device("meta"):
            model = torchvision.models.resnet50(num_classes=count)
        full.append(sum(p.numel() for p in model.parameters()))
    subject = transfer.method_setup(config(backbone="resnet50", norm="group"), "tkm-2", ["c"] * 2, "task")
    without = sum(p.numel() for n, p in subject.model.named_parameters() if p.requires_grad and "fc" not in n)
    trained = [without + 2049 * count for count in classes.values()]
    assert sum(full) / sum(trained) == pytest.approx(75.15, abs=0.005)


def test_rows_and_packs(quick, tmp_path, weights):
    assert transfer.main([*quick, "--methods", "tkm-2", "tbl-2"]) == 0
    out = tmp_path / "out" / "transfer-cifar10"
    rows = {m: pd.read_csv(out / m / "seed0" / "experiment.csv").iloc[0] for m in ("tkm-2", "tbl-2")}
    pack = out / "tkm-2" / "seed0" / "pack.safetensors"
    assert rows["tkm-2"].pack_bytes == pack.stat().st_size
    assert rows["tkm-2"].trainable_parameters == 7_944
    assert read_pack(pack).classes == tuple(f"class{i}" for i in range(10))
    assert pd.isna(rows["tbl-2"].pack_bytes)
    state = torch.load(out / "tkm-2" / "seed0" / "checkpoint.pt", weights_only=True)["loop"]["model"]
    base = torch.load(weights, weights_only=True)
    kept = "backbone.conv.parametrizations.weight.original"
    assert torch.equal(state[kept], base["backbone.conv.weight"])  # frozen, and from the file


def test_a_scratch_checkpoint_and_safetensors_are_weights_too(tmp_path):
    state = cifar_classifier(32, 4).state_dict()
    torch.save({"loop": {"model": state}}, tmp_path / "checkpoint.pt")
    safetensors.torch.save_file(state, tmp_path / "w.safetensors")
    for name in ("checkpoint.pt", "w.safetensors"):
        model = pretrained("resnet32", str(tmp_path / name), classes=7).model
        assert torch.equal(model.backbone.conv.weight, state["backbone.conv.weight"])
        assert model.fc.out_features == 7


def test_weights_are_taken_from_a_run_of_scratch(data_root, tmp_path):
    flags = ["--data-root", str(data_root), "--out", str(tmp_path), "--image-size", "8", "--epochs", "1"]
    assert scratch.main([*flags, "--methods", "full", "--batch", "64", "--train-images", "0", "--device", "cpu"]) == 0
    path = tmp_path / "scratch" / "full" / "seed0" / "checkpoint.pt"
    trained = torch.load(path, weights_only=True)["loop"]["model"]
    model = pretrained("resnet32", str(path), classes=7).model
    assert torch.equal(model.backbone.conv.weight, trained["backbone.conv.weight"])


def test_wrong_weights_are_refused(tmp_path):
    torch.save(cifar_classifier(20, 4).state_dict(), tmp_path / "other.pt")
    (tmp_path / "noise.pt").write_bytes(b"no weights")
    torch.save([1, 2], tmp_path / "list.pt")
    for name, said in (
        ("other.pt", "give the weights of the same network"),
        ("noise.pt", "damaged"),
        ("list.pt", "Expected a state dict"),
        ("gone.pt", "got no file"),
    ):
        with pytest.raises(UserError, match=said):
            pretrained("resnet32", str(tmp_path / name), classes=2)
    with pytest.raises(UserError, match="no pretrained weights are known"):
        pretrained("resnet32", "pretrained", classes=2)


def test_without_a_network_the_weights_are_asked_for(monkeypatch):
    def unreachable(*_args, **_kwargs):
        raise URLError("no network")

    monkeypatch.setattr(torchvision.models.ResNet50_Weights, "get_state_dict", unreachable)
    with pytest.raises(UserError, match="give the file as --weights"):
        pretrained("resnet50", "pretrained", classes=2)


def test_a_lite_residual_starts_without_effect():
    model = cifar_classifier(8, 3).eval()
    images = torch.rand(2, 3, 9, 9)
    before = model(images)
    insert_lite_residuals(model)
    torch.testing.assert_close(model(images), before, rtol=0, atol=0)
    with pytest.raises(UserError, match="conv2"):
        insert_lite_residuals(torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3)))


def test_each_inverted_residual_block_gets_a_lite_residual():
    short = replace(transfer.PRESETS["short"], weights="random")
    setup = transfer.method_setup(short, "ttl", ["a", "b"], "task")
    found = [module for module in setup.model.modules() if isinstance(module, LiteResidual)]
    assert [type(residual.main).__name__ for residual in found] == ["InvertedResidual"] * 15
    plain = transfer.method_setup(short, "tbl-2", ["a", "b"], "task").model
    images = torch.rand(2, 3, 50, 50)
    torch.testing.assert_close(setup.model.eval()(images), plain.eval()(images))
    trained = {name for name, p in setup.model.named_parameters() if p.requires_grad}
    for name, _ in setup.model.named_parameters():
        own = any(f".{part}." in name for part in ("grouped", "norm1", "pointwise", "norm2"))
        bias = name.endswith("bias") and "bn" in name
        assert (name in trained) == (own or bias or name.startswith("classifier.")), name


def test_tiny_tl_trains_branches_biases_and_classifier():
    subject = transfer.method_setup(config(), "ttl", ["a", "b"], "task")
    for name, parameter in subject.model.named_parameters():
        branch = any(part in name for part in ("grouped", "pointwise", "conv2.norm"))
        bias = name.endswith("bias") and "norm" in name
        assert parameter.requires_grad == (branch or bias or name.startswith("fc.")), name
    assert sum(isinstance(m, LiteResidual) for m in subject.model.modules()) == 15


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--data", "nowhere"], "nowhere"),
        (["--weights", "gone.pt"], "gone.pt"),
        (["--backbone", "resnet33", "--data", "nowhere"], "resnet33"),
        (["--backbone", "resnet32", "--weights", "pretrained"], "no pretrained weights are known"),
    ],
)
def test_mistakes_are_told_in_one_line(quick, flags, said, capsys):
    assert transfer.main([*quick, "--methods", "tbl-1", *flags]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert "Traceback" not in error


def test_missing_data_are_named(tmp_path, capsys):
    flags = ["--preset", "paper", "--data-root", str(tmp_path), "--out", str(tmp_path / "out")]
    assert transfer.main(flags) == 2
    assert "fgvc-aircraft-2013b" in capsys.readouterr().err
    assert transfer.main(["--data-root", str(tmp_path), "--classes", "30"]) == 2
    assert "--classes" in capsys.readouterr().err


def test_the_paper_preset_is_table_2s():
    paper = transfer.PRESETS["paper"]
    assert (paper.epochs, paper.batch, paper.norm, paper.weights) == (50, 8, "group", "pretrained")
    rates = [
        transfer.method_config(replace(paper, dataset=d), "tkm-2").learning_rate
        for d in chosen_rates.TRANSFER_PUBLISHED
    ]
    assert rates == [16e-4, 8e-4, 2e-4, 2e-4]


def test_the_former_name_of_pretrained_weights_is_taken():
    assert config(preset="paper", weights="imagenet") == config(preset="paper", weights="pretrained")


def test_a_chosen_rate_is_that_of_preset_dataset_method_and_backbone(monkeypatch, tmp_path):
    monkeypatch.setitem(chosen_rates.TRANSFER_RATES, "short", {"flowers": {"nc": 0.5}})
    default = chosen_rates.TRANSFER_DEFAULT

    def rate(method, **changes):
        return transfer.method_config(replace(transfer.PRESETS["short"], **changes), method).learning_rate

    assert rate("nc", dataset="flowers") == 0.5
    assert rate("nc", dataset="flowers", data=tmp_path / "flowers") == default
    assert rate("nc", dataset="grocery-store") == rate("tbl-1", dataset="flowers") == default
    assert rate("nc", dataset="flowers", backbone="resnet50") == default
    assert rate("nc", dataset="flowers", learning_rate=0.1) == 0.1


@pytest.mark.parametrize(
    ("network", "said"),
    [
        ("torchvision:vit_b_16", "choose another --image-size or --backbone"),
        ("torchvision:googlenet", "Expected logits (2, 10)"),
    ],
)
def test_a_network_that_does_not_give_logits_is_refused(quick, tmp_path, capsys, network, said):
    flags = [*quick, "--backbone", network, "--weights", "random", "--image-size", "32", "--methods", "tbl-2"]
    assert transfer.main(flags) == 2
    error = capsys.readouterr().err
    assert said in error
    assert "Traceback" not in error
    assert not (tmp_path / "out").exists()


def test_what_a_network_cannot_have_is_refused_before_anything_runs(quick, tmp_path, capsys):
    flags = [*quick, "--backbone", "torchvision:mobilenet_v2", "--weights", "random", "--norm", "held"]
    assert transfer.main([*flags, "--methods", "tbl-1", "ttl"]) == 2
    assert "conv2" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_an_unknown_preset_is_refused(capsys):
    assert transfer.main(["--preset", "tuned"]) == 2
    assert "Expected --preset to be one of paper, quick, short, got 'tuned'" in capsys.readouterr().err


def library_config(**changes):
    return config(backbone="torchvision:mobilenet_v2", norm="held", image_size=32, **changes)


@pytest.mark.parametrize("method", ["tkm-2", "tbl-2"])
def test_a_librarys_network_keeps_its_statistics_and_its_normalisation(data_root, method):
    """Training moves what the method trains and no running statistics, which belong to the base."""
    data = transfer.load(library_config(data=data_root / "cifar10"))
    own = library_config(data=data_root / "cifar10", epochs=1, batch=4)
    subject = transfer.method_setup(own, method, data.class_names, "task")
    assert subject.normalisation == IMAGENET
    before = {name: tensor.clone() for name, tensor in subject.model.state_dict().items()}
    run = transfer.method_config(own, method)
    training = Training(
        subject.model, data, run, torch.device("cpu"), None, subject.normalisation, subject.hold_statistics
    )
    for _ in range(2):  # the classifier starts at zero, and nothing else moves in the first step
        training.step()
    moved = {name for name, tensor in subject.model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert "classifier.1.weight" in moved
    assert not any("running" in name or "num_batches" in name for name in moved)
    assert any(name.endswith("original") or name == "features.0.0.weight" for name in moved) == (method == "tbl-2")


def test_a_task_of_a_librarys_network_leaves_the_statistics_to_the_base(data_root, tmp_path):
    data = transfer.load(library_config(data=data_root / "cifar10"))
    subject = transfer.method_setup(library_config(), "tkm-2", data.class_names, "task")
    subject.model.eval()
    subject.save_pack(tmp_path / "pack.safetensors")
    pack = read_pack(tmp_path / "pack.safetensors")
    assert not any("running" in name for name in pack.tensors)
    assert pack.modulation["classifier"] == "classifier.1"


def test_lite0_is_normalised_by_a_half():
    pytest.importorskip("timm", reason="timm is not installed: pip install 'metakm[pretrained]'")
    network = pretrained("efficientnet-lite0", "random", classes=5)
    assert network.normalisation == Normalisation((0.5,) * 3, (0.5,) * 3)
    assert network.model(torch.rand(2, 3, 32, 32)).shape == (2, 5)
    assert network.model.get_submodule(network.classifier).out_features == 5


def test_an_unknown_network_is_refused():
    with pytest.raises(UserError, match="resnet33"):
        pretrained("resnet33", "random", classes=2)
