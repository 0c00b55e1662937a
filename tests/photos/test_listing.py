"""Folders of photos: what is a class, what is left out, what is refused."""

import unicodedata

import numpy as np
import pytest
import torch
from photo_cases import COLOURS, make_photos, photo

import metakm
from metakm import UserError
from metakm.photos.fit_command import main as fit_main
from metakm.photos.listing import list_folder, list_images

pytestmark = pytest.mark.float32


def test_classes_are_folders_and_what_systems_make_is_left_out_by_name(shop):
    (shop / ".ipynb_checkpoints").mkdir()
    photo((1, 2, 3), 0).save(shop / ".ipynb_checkpoints" / "a.png")
    for name in (".DS_Store", "Thumbs.db", "notes.txt"):
        (shop / "blau" / name).write_text("x")
    (shop / "stray.png").write_bytes((shop / "blau" / "0.png").read_bytes())
    (shop / "blau" / "deep").mkdir()
    photo((30, 40, 190), 9).save(shop / "blau" / "deep" / "9.PNG")
    found = list_folder(shop)
    assert {name: len(files) for name, files in found.classes.items()} == {"birne grün": 4, "blau": 5, "red apple": 4}
    assert {path.name: reason for path, reason in found.skipped} == {
        ".ipynb_checkpoints": "a hidden or system file",
        ".DS_Store": "a hidden or system file",
        "Thumbs.db": "a hidden or system file",
        "notes.txt": "not an image by its name",
        "stray.png": "not in a class's folder",
    }


def test_a_link_to_a_folder_above_does_not_loop(shop):
    (shop / "blau" / "again").symlink_to(shop / "blau")
    assert len(list_folder(shop).classes["blau"]) == 4
    assert len(list_images([shop / "blau", shop / "red apple" / "0.png"])) == 5
    assert len(list_images([shop / "gone", shop / "red apple" / "0.png"])) == 2, "it is named where it is read"
    with pytest.raises(UserError, match=r"got .*gone, which does not exist"):
        list_images([shop / "gone"])


def refused(folder, capsys, base, *flags):
    """The one message of a fit that writes nothing."""
    out = folder.parent / "out"
    assert fit_main([str(folder), "--base", base, "--out", str(out / "a.safetensors"), *flags]) == 2
    error = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error")]
    assert not out.exists()
    assert len(error) == 1
    return error[0]


def test_too_little_to_fit_is_refused(shop, capsys, base, tmp_path):
    one = make_photos(tmp_path / "one")
    for name in ("blau", "red apple"):
        (one / name).rename(tmp_path / name)
    assert "Expected at least two classes to tell apart, got 1 (birne grün)" in refused(one, capsys, base)
    (tmp_path / "empty").mkdir()
    assert "Expected at least two classes to tell apart, got 0" in refused(tmp_path / "empty", capsys, base)
    assert "Expected a folder with one folder of photos per class" in refused(tmp_path / "nowhere", capsys, base)
    assert "got photos; sort them into folders" in refused(shop / "blau", capsys, base)
    (shop / "none").mkdir()
    assert "Expected an image in each class, got none in 'none'" in refused(shop, capsys, base)
    (shop / "none" / "a.jpg").write_text("broken")
    (shop / "blau" / "b.jpg").write_text("broken, too, but not the only one")
    message = refused(shop, capsys, base)
    assert "Expected a readable image in each class, got none in 'none'" in message
    assert "none/a.jpg" in message


def test_folders_of_folders_are_refused(tmp_path, capsys, base):
    for kind in ("fruit", "dairy"):
        make_photos(tmp_path / "shop" / kind)
    message = refused(tmp_path / "shop", capsys, base)
    assert "got folders of folders (such as dairy/birne grün)" in message


def test_names_that_differ_in_case_alone_are_refused(shop, capsys, base):
    make_photos(shop)
    (shop / "blau").rename(shop / "Red Apple")
    assert "differ in more than case, got Red Apple and red apple" in refused(shop, capsys, base)


def test_names_that_differ_in_unicode_form_alone_are_refused_and_otherwise_composed(shop, capsys, base):
    decomposed = unicodedata.normalize("NFD", "birne grün")
    (shop / "birne grün").rename(shop / decomposed)
    fitted = metakm.fit(shop, base=base, method="head", validation="none")
    assert list(fitted.classes_) == ["birne grün", "blau", "red apple"]
    assert fitted.score(shop / decomposed, [decomposed] * 4) == 1
    make_photos(shop)
    assert "differ in more than the Unicode form of their letters" in refused(shop, capsys, base)


def test_the_answer_in_place_of_a_class_is_no_class(shop, capsys, base):
    (shop / "blau").rename(shop / "(none of these)")
    assert "Expected a class name other than '(none of these)'" in refused(shop, capsys, base)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--folds", "1"], "Expected --folds to be at least 2, got 1"),
        (["--size", "8"], "Expected --size to be at least 32, got 8"),
        (["--seed", "-1"], "Expected --seed to be from 0"),
        (["--method", "nrom"], "did you mean 'norm'?"),
        (["--method", "auto", "--validation", "none"], "to be folds or part for --method auto, got none"),
        (["--device", "gpu"], "Expected --device to be auto, cpu, or cuda of this machine, got 'gpu'"),
        (["--base", "timm:resnet18x"], "for example resnet18"),
        (["--weights", "nothing.pt"], "Expected a file of weights, got no file nothing.pt"),
    ],
)
def test_a_wrong_flag_is_one_message(flags, message, shop, capsys, base):
    if "timm" in flags[1]:
        pytest.importorskip("timm", reason="timm is not installed")
    assert message in refused(shop, capsys, base, *flags)


def test_out_is_a_pack(shop, base, capsys):
    assert fit_main([str(shop), "--base", base, "--out", "a.zip"]) == 2
    assert "Expected --out to be a .safetensors file" in capsys.readouterr().err


def test_python_is_refused_as_the_command_is(shop, base):
    with pytest.raises(UserError, match=r"a setting of fit to be one of .* did you mean 'seed'"):
        metakm.fit(shop, base=base, sed=1)
    with pytest.raises(UserError, match="Expected one label per photo, got none for 2 photos"):
        metakm.fit(["a.jpg", "b.jpg"], base=base)
    with pytest.raises(UserError, match="Expected no labels with a folder"):
        metakm.fit(shop, ["a"], base=base)
    with pytest.raises(UserError, match="Expected a path, a PIL image or an array"):
        metakm.fit([3, 4], ["a", "b"], base=base)
    fitted = metakm.fit(shop, base=base, method="head")
    with pytest.raises(UserError, match="Expected at least one photo, got none"):
        fitted.predict([])
    with pytest.raises(UserError, match="Expected one label per photo, got 1 for 4 photos"):
        fitted.score(shop / "blau", ["blau"])
    with pytest.raises(UserError, match=r"Expected an image as uint8 \[H, W, 3\], got float32"):
        fitted.predict(photo_as_floats())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"method": "nrom"}, "Expected --method to be one of .* did you mean 'norm'"),
        ({"validation": "fold"}, "Expected --validation to be one of .* did you mean 'folds'"),
        ({"precision": "half"}, "Expected --precision to be one of fp16, full, got 'half'"),
        ({"folds": "3"}, "Expected --folds to be a whole number, got '3'"),
        ({"size": 64.0}, "Expected --size to be a whole number, got 64.0"),
        ({"seed": True}, "Expected --seed to be a whole number, got True"),
    ],
)
def test_a_wrong_setting_is_refused_before_anything_starts(settings, message):
    with pytest.raises(UserError, match=message):
        metakm.fit("nowhere", base="nothing", **settings)


def test_what_is_no_photos_is_refused():
    for images in (None, {"a": None, "b": None}, {"a": "a.jpg", "b": "b.jpg"}):
        with pytest.raises(UserError, match="Expected a folder, or lists of photos, got"):
            metakm.fit(images)


@pytest.mark.parametrize("kind", [torch.tensor, np.array, list])
def test_labels_may_be_numbers(kind, base):
    photos = [photo(c, i) for i, c in enumerate(COLOURS.values()) for _ in range(2)]
    labels = kind([7, 7, 1, 1, 3, 3])
    fitted = metakm.fit(photos, labels, base=base, method="head", validation="none")
    assert list(fitted.classes_) == ["1", "3", "7"]
    assert fitted.score(photos, labels) == 1


def photo_as_floats():
    return np.zeros((4, 4, 3), dtype=np.float32)
