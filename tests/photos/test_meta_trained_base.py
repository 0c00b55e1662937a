"""`metakm fit` on a base that was meta-trained: closed form, folds that decide, packs, and bases that do not fit."""

import dataclasses
import json

import pytest
import torch
from photo_cases import make_photos
from plain_networks import write_weights

import metakm
from metakm.errors import UserError
from metakm.models.pretrained import load_pretrained
from metakm.modulation import read_pack, write_pack
from metakm.modulation.base_pack import base_pack, load_base, task_tensors
from metakm.modulation.norms import is_norm
from metakm.photos.fit_command import main as fit_main
from metakm.photos.head import solve_centroid, solve_ridge

pytestmark = pytest.mark.float32
pytest.importorskip("timm")

NETWORK = "timm:test_efficientnet"


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return write_weights(NETWORK, tmp_path_factory.mktemp("weights") / "net.pt")


@pytest.fixture(scope="module")
def pack(weights, tmp_path_factory):
    """The network with other norms, as a base."""
    trained = load_pretrained(NETWORK, weights).network
    with torch.no_grad():
        for module in trained.modules():
            if is_norm(module):
                module.weight.mul_(1.1)
    facts = {"base": NETWORK, "weights": str(weights), "size": 32}
    path = tmp_path_factory.mktemp("pack") / "few.safetensors"
    write_pack(base_pack(load_pretrained(NETWORK, weights), task_tensors(trained, "norm"), "norm", facts), path)
    return path


def test_one_photo_a_class_takes_class_means_without_training_and_says_so(pack, weights, tmp_path, capsys):
    photos, new = make_photos(tmp_path / "one", 1), make_photos(tmp_path / "new", 2, first=50)
    flags = ["--base", str(pack), "--weights", str(weights), "--out", str(tmp_path / "shop.safetensors")]
    assert fit_main([str(photos), *flags]) == 0
    assert "No photos were held out, so the classifier is class means" in capsys.readouterr().out
    written = read_pack(tmp_path / "shop.safetensors")
    assert (written.photos["method"], written.photos["preprocessing"]["size"]) == ("centroid", 32)
    assert {*written.tensors} == {"classifier.weight", "classifier.bias"}
    assert (written.photos["base"], written.photos["settings"]["weights"]) == (pack.name, weights.name)
    with pytest.raises(UserError, match=rf"Expected base \(--base\) for a pack whose base is {pack.name}, got none"):
        metakm.load_classifier(tmp_path / "shop.safetensors", weights=weights)
    loaded = metakm.load_classifier(tmp_path / "shop.safetensors", weights=weights, base=str(pack))
    paths = sorted(new.glob("*/*.png"))
    assert loaded.score(paths, [path.parent.name for path in paths]) > 0.6
    assert loaded.threshold == 0.0


def test_folds_decide_whether_adaptation_helps(pack, weights, shop, tmp_path, capsys):
    out = tmp_path / "shop.safetensors"
    assert fit_main([str(shop), "--base", str(pack), "--weights", str(weights), "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    compared = [line.split()[0] for line in printed.splitlines() if "negative log-likelihood" in line]
    assert sorted(compared) == ["centroid", "norm", "ridge"]
    taken = read_pack(out).photos["method"]
    assert taken == compared[0]
    assert ("did not help" in printed) == (taken != "norm" or "left as it was" in printed)
    assert read_pack(out).photos["settings"]["method"] == "few-shot"


def test_a_plain_base_is_fitted_as_before(weights, shop):
    fitted = metakm.fit(shop, base=NETWORK, weights=weights, size=32, validation="none")
    assert fitted.pack.photos["method"] == fitted.pack.photos["settings"]["method"] == "norm"


def test_the_base_is_the_network_with_what_was_trained(pack, weights):
    base, plain = load_base(str(pack), weights), load_pretrained(NETWORK, weights)
    assert (base.few_shot, plain.few_shot, base.preprocessing.size) == (True, False, 32)
    before, after = plain.network.state_dict(), base.network.state_dict()
    norms = {f"{n}.weight" for n, m in plain.network.named_modules() if is_norm(m)}
    assert {name for name in before if not torch.equal(before[name], after[name])} == norms
    assert all(parameter.requires_grad for parameter in base.network.parameters())


def test_a_classifier_of_another_base_is_refused(pack, weights, tmp_path):
    metakm.fit(make_photos(tmp_path / "one", 1), base=str(pack), weights=weights).save(tmp_path / "a.safetensors")
    with pytest.raises(UserError, match="Expected the base network of the pack"):
        metakm.load_classifier(tmp_path / "a.safetensors", base=NETWORK, weights=weights)


@pytest.mark.parametrize("case", ["classifier", "folder", "weights", "python"])
def test_what_is_no_base_ends_with_one_message_and_nothing_written(case, pack, weights, shop, tmp_path, capsys):
    base, more = str(pack), ["--weights", str(weights)]
    if case == "classifier":
        base = str(tmp_path / "shop.safetensors")
        metakm.fit(shop, base=str(pack), weights=weights, method="centroid", validation="none").save(base)
    elif case == "folder":
        base = str(shop)
    elif case == "weights":
        more = []
    else:
        found = read_pack(pack)
        base = str(tmp_path / "bad.safetensors")
        facts = {**found.meta_trained, "base": f"{tmp_path}/net.py:Net"}
        write_pack(dataclasses.replace(found, meta_trained=facts), base)
        (tmp_path / "net.py").write_text(f"open({json.dumps(str(tmp_path / 'ran'))}, 'w')")
    capsys.readouterr()
    out = tmp_path / "out.safetensors"
    assert fit_main([str(shop), "--base", base, *more, "--out", str(out)]) == 2
    assert capsys.readouterr().err.count("error:") == 1
    assert not out.exists()
    assert not (tmp_path / "ran").exists()


def test_class_means_are_of_features_of_length_one_and_answer_by_cosine():
    generator = torch.Generator().manual_seed(0)
    features = torch.rand(9, 5, generator=generator, dtype=torch.float64) * torch.arange(1, 10)[:, None]
    labels, weights = torch.arange(3).repeat(3), torch.tensor([1.0, 2.0, 0.5] * 3)
    weight, bias = solve_centroid(features, labels, weights, 3)
    unit = features / features.norm(dim=1, keepdim=True)
    means = torch.stack([(unit[labels == k] * weights[labels == k, None]).sum(0) for k in range(3)])
    cosines = unit @ (means / means.norm(dim=1, keepdim=True)).T
    assert torch.equal((features @ weight.T + bias).argmax(1), cosines.argmax(1))
    torch.testing.assert_close(unit @ weight.T * features.norm(dim=1).mean(), 10 * cosines)


@pytest.mark.parametrize("photos", [4, 12])
def test_ridge_solves_the_weighted_least_squares_on_both_sides_of_the_number_of_features(photos):
    generator = torch.Generator().manual_seed(0)
    features = torch.rand(photos, 6, generator=generator, dtype=torch.float64)
    labels, weights = torch.arange(photos) % 2, torch.rand(photos, generator=generator, dtype=torch.float64) + 0.5
    weight, _ = solve_ridge(features, labels, weights, 2)
    found = (weight * features.norm(dim=1).mean() / 10).requires_grad_()
    unit = features / features.norm(dim=1, keepdim=True)
    wanted = 2.0 * torch.nn.functional.one_hot(labels, 2) - 1
    loss = (weights[:, None] * (unit @ found.T - wanted) ** 2).sum() + (found**2).sum()
    (slope,) = torch.autograd.grad(loss, found)
    assert slope.abs().max() < 1e-9
