"""What a pack of `metakm fit` says of itself: its task, and its model card; and what it does not: where files lie."""

import pytest
import torch

import metakm
from metakm.models.pretrained import load_pretrained
from metakm.modulation import ResidentPacks, read_pack
from metakm.packs.card import model_card
from metakm.packs.hub import push
from metakm.photos.fit_command import main as fit_main

pytestmark = pytest.mark.float32


def test_the_task_has_the_name_of_the_file_or_the_folder_unless_it_is_given(shop, base, tmp_path):
    out = tmp_path / "fruit.safetensors"
    flags = [str(shop), "--base", base, "--method", "head", "--validation", "none", "--out", str(out)]
    for more, task in ([], "fruit"), (["--task", "colours"], "colours"):
        assert fit_main([*flags, *more]) == 0
        assert read_pack(out).task == task
    for more, task in ({}, "shop"), ({"task": "colours"}, "colours"):
        assert metakm.fit(shop, base=base, method="head", validation="none", **more).pack.task == task


def test_packs_of_several_fits_are_resident_under_their_tasks_and_calibrated_by_their_temperatures(shop, base):
    pretrained = load_pretrained(base)
    fits = [metakm.fit(shop, base=base, method=m, task=m) for m in ("norm", "both")]
    resident = ResidentPacks(pretrained.network, [fitted.pack for fitted in fits])
    assert resident.tasks == ("norm", "both")
    photos = [shop / "blau" / "0.png", shop / "red apple" / "1.png"]
    logits = resident(fits[0].inputs(photos), tasks=["norm", "both"])
    for row, fitted in enumerate(fits):
        found = torch.softmax(logits[row].double() / fitted.temperature, 0)
        expected = torch.from_numpy(fitted.predict_proba(photos)[row])
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)


def test_the_header_and_what_is_pushed_have_no_path_of_this_machine(shop, base, tmp_path):
    weights = tmp_path / "net.pt"
    torch.save(load_pretrained(base).network.state_dict(), weights)
    fitted = metakm.fit(shop, base=base, weights=weights, method="head", validation="none")
    assert (fitted.pack.photos["base"], fitted.pack.photos["settings"]["weights"]) == ("net.py:Small", "net.pt")
    fitted.save(tmp_path / "a.safetensors")
    push(tmp_path / "a.safetensors", str(tmp_path / "hub"))
    for file in (tmp_path / "hub").iterdir():
        assert str(tmp_path.parent.parent).encode() not in file.read_bytes()
    with pytest.raises(metakm.UserError, match=r"Expected base \(--base\)"):
        metakm.load_classifier(tmp_path / "a.safetensors")
    again = metakm.load_classifier(tmp_path / "a.safetensors", base=base, weights=weights)
    assert list(again.classes_) == list(fitted.classes_)


@pytest.mark.parametrize(
    ("method", "parts"),
    [
        ("head", "the classifier of"),
        ("norm", "the classifier and norm parameters of"),
        ("both", "the classifier, kernel modulators and norm parameters of"),
        ("lora", "the classifier and modulators of"),
        ("full", "the whole network of"),
    ],
)
def test_the_card_says_what_the_pack_holds_and_how_photos_are_classified(method, parts, shop, base):
    card = model_card(metakm.fit(shop, base=base, method=method, validation="none").pack, 1)
    assert parts in card
    assert "metakm predict pack.safetensors" in card
    assert 'metakm.load_classifier("pack.safetensors")' in card
    assert "load_pack" not in card
