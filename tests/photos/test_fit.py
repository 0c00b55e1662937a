"""`metakm.fit` and the commands, on a small network: every method, packs, calibration, resuming."""

import csv
import io
import json
import signal
import subprocess
import sys

import numpy as np
import pytest
import safetensors.torch
import torch
from photo_cases import make_photos, photo
from PIL import Image

import metakm
from metakm import UserError
from metakm.models.pretrained import Preprocessing, load_pretrained
from metakm.modulation import read_pack
from metakm.modulation.pack_file import write_pack
from metakm.packs.__main__ import main as packs_main
from metakm.photos import fit_command, predict_command
from metakm.photos.fit_command import main as fit_main
from metakm.photos.listing import NONE_OF_THESE
from metakm.photos.methods import METHODS
from metakm.photos.predict_command import main as predict_main
from metakm.photos.store import PhotoStore

pytestmark = pytest.mark.float32


@pytest.mark.parametrize("method", METHODS)
def test_each_method_learns_and_its_pack_gives_the_same_probabilities(method, shop, new, base, tmp_path):
    fitted = metakm.fit(shop, base=base, method=method)
    assert list(fitted.classes_) == ["birne grün", "blau", "red apple"]
    labels = [name for name in fitted.classes_ for _ in range(2)]
    paths = [path for name in fitted.classes_ for path in sorted((new / name).iterdir())]
    assert fitted.score(paths, labels) == 1.0
    fitted.save(tmp_path / "shop.safetensors")
    loaded = metakm.load_classifier(tmp_path / "shop.safetensors", base=base)
    assert np.array_equal(loaded.predict_proba(paths), fitted.predict_proba(paths))
    assert loaded.pack.photos["method"] == method
    assert repr(loaded).startswith(f"PhotoClassifier({loaded.pack.task!r}, 3 classes, {method} on ")
    assert not any(name.endswith("running_mean") for name in loaded.pack.tensors) or method == "full"


def test_only_what_the_method_says_changes(shop, base):
    plain = load_pretrained(base).network.state_dict()
    head = {"fc.weight", "fc.bias"}
    norms = {f"norm{i}.{kind}" for i in (1, 2) for kind in ("weight", "bias")}
    modulators = {f"conv{i}.modulator.{name}" for i in (1, 2) for name in ("layers.0", "layers.1", "scale")}
    low_rank = {f"conv{i}.modulator.{name}" for i in (1, 2) for name in ("up", "down")}
    trained = {
        "head": head, "norm": head | norms, "km": head | modulators, "both": head | norms | modulators,
        "lora": head | low_rank,
    }  # fmt: skip
    kernels = {}  # with the norms folded in
    for method, names in trained.items():
        fitted = metakm.fit(shop, base=base, method=method, validation="none")
        pack = fitted.pack.tensors
        assert set(pack) == names
        kernels[method] = [fitted.network.get_submodule(name).weight for name in ("conv1", "conv2")]
        assert not any(torch.equal(tensor, plain[name]) for name, tensor in pack.items() if name.startswith("norm"))
    for method in ("km", "lora"):
        assert not any(torch.equal(*pair) for pair in zip(kernels[method], kernels["head"], strict=True))


@pytest.mark.parametrize("method", ["both", "full"])
def test_the_same_seed_gives_the_same_pack_and_another_seed_another(method, shop, base):
    settings = {"base": base.replace(":Small", ":Dropping"), "method": method, "validation": "none"}
    before = torch.get_rng_state()
    first, again, other = (metakm.fit(shop, seed=seed, **settings) for seed in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), before)
    assert first.report_.state.step > 0
    assert all(torch.equal(first.pack.tensors[name], tensor) for name, tensor in again.pack.tensors.items())
    assert not all(torch.equal(first.pack.tensors[name], tensor) for name, tensor in other.pack.tensors.items())


def test_a_pack_in_half_precision_predicts_as_its_fit(shop, new, base, tmp_path):
    sizes = []
    for precision in ("full", "fp16"):
        fitted = metakm.fit(shop, base=base, method="both", validation="none", precision=precision)
        fitted.save(tmp_path / "shop.safetensors")
        sizes.append(sum(t.nbytes for t in safetensors.torch.load_file(tmp_path / "shop.safetensors").values()))
        loaded = metakm.load_classifier(tmp_path / "shop.safetensors", base=base)
        assert np.array_equal(loaded.predict_proba(new), fitted.predict_proba(new))
    assert sizes[1] < 0.51 * sizes[0]


def test_photos_may_be_lists_images_arrays_or_a_mapping(shop, new, base):
    paths = sorted(path for path in shop.rglob("*.png"))
    labels = [path.parent.name for path in paths]
    folder = metakm.fit(shop, base=base, method="head")
    listed = metakm.fit(list(map(str, paths)), labels, base=base, method="head")
    images = [Image.open(path) for path in paths]
    shown = metakm.fit(images, labels, base=base, method="head")
    arrays = {name: [np.asarray(Image.open(p)) for p in sorted((shop / name).iterdir())] for name in set(labels)}
    mapped = metakm.fit(arrays, base=base, method="head")
    expected = folder.predict_proba(new)
    for other in (listed, shown, mapped):
        assert np.allclose(other.predict_proba(new), expected, atol=1e-12)
    one = folder.predict_proba(np.asarray(Image.open(paths[0])))
    assert np.array_equal(one, folder.predict_proba(paths[0]))
    assert one.shape == (1, 3)


def test_below_the_threshold_a_photo_is_none_of_the_classes(shop, new, base):
    fitted = metakm.fit(shop, base=base, method="head")
    best = fitted.predict_proba(new).max(axis=1)
    least = float(np.sort(best)[2])
    assert list(fitted.predict(new, threshold=least) == NONE_OF_THESE) == list(best < least)
    assert NONE_OF_THESE not in fitted.predict(new, threshold=0)
    with pytest.raises(UserError, match="Expected threshold to be a probability from 0 to 1, got 3"):
        fitted.predict(new, threshold=3)


@pytest.mark.parametrize("count", [2, 80])
def test_where_no_photo_is_held_out_each_photo_gets_a_class_of_however_many(count, base):
    colours = np.random.default_rng(0).integers(30, 226, (count, 3))
    fitted = metakm.fit({f"{i}": [photo(c, i)] for i, c in enumerate(colours)}, base=base, method="head")
    assert fitted.threshold == 0
    assert NONE_OF_THESE not in fitted.predict([photo(c, 100 + i) for i, c in enumerate(colours)])


def test_auto_takes_the_best_and_says_by_how_much(shop, base, capsys, tmp_path):
    assert fit_main([str(shop), "--base", base, "--method", "auto", "--out", str(tmp_path / "a.safetensors")]) == 0
    printed = capsys.readouterr().out
    lines = [line for line in printed.splitlines() if "negative log-likelihood" in line]
    assert len(lines) == 5
    assert lines[0].endswith("(chosen)")
    assert all("points" in line for line in lines[1:])
    assert read_pack(tmp_path / "a.safetensors").photos["method"] == lines[0].split()[0]
    assert "The accuracy is a little optimistic" in (tmp_path / "a.html").read_text()


def test_one_photo_a_class_has_fixed_defaults_and_says_so(tmp_path, base, capsys):
    folder = make_photos(tmp_path / "one", 1)
    assert fit_main([str(folder), "--base", base, "--out", str(tmp_path / "a.safetensors")]) == 0
    said = capsys.readouterr().err
    assert "No photos are held out, so the accuracy is unknown" in said
    assert "predict always names a class" in " ".join(said.split())
    assert set(read_pack(tmp_path / "a.safetensors").metrics) == {"images"}
    with pytest.raises(UserError, match="Expected photos to hold out for --method auto"):
        metakm.fit(folder, base=base, method="auto")
    with pytest.raises(UserError, match="Expected more than one photo of some class for --validation folds"):
        metakm.fit(folder, base=base, validation="folds")


@pytest.mark.slow
def test_commands_in_new_processes_agree_with_python(shop, new, base, tmp_path):
    out = tmp_path / "packs" / "shop.safetensors"
    (shop / "blau" / "broken.jpg").write_text("no image")
    run = [sys.executable, "-m", "metakm"]
    done = subprocess.run(
        [*run, "fit", shop, "--base", base, "--out", out], capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert "broken.jpg: Expected an image, got another kind of file" in done.stderr
    assert {path.name for path in out.parent.iterdir()} == {"shop.safetensors", "shop.html"}
    flags = ["predict", out, new, "--base", base, "--json"]
    said = subprocess.run([*run, *flags], capture_output=True, text=True, check=True, timeout=120).stdout
    records = json.loads(said)
    (shop / "blau" / "broken.jpg").unlink()
    fitted = metakm.fit(shop, base=base)
    expected = fitted.predict_proba(new)
    found = [[record["probabilities"][name] for name in fitted.classes_] for record in records]
    assert np.allclose(found, expected, atol=1e-6)
    assert [record["class"] for record in records] == list(fitted.predict(new))


def test_predict_prints_lines_or_csv_and_names_what_it_cannot_read(shop, new, base, tmp_path, capsys):
    pack = tmp_path / "a.safetensors"
    metakm.fit(shop, base=base, method="head").save(pack)
    (new / "zz.jpg").write_bytes(b"")
    assert predict_main([str(pack), str(new), "--base", base, "--csv"]) == 2
    captured = capsys.readouterr()
    rows = list(csv.DictReader(io.StringIO(captured.out)))
    assert len(rows) == 7
    assert [row["class"] for row in rows if row["file"].endswith("zz.jpg")] == [""]
    assert "zz.jpg: Expected an image, got an empty file" in captured.err
    (new / "zz.jpg").unlink()
    assert predict_main([str(pack), str(new / "blau"), "--base", base, "--threshold", "0"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[-2] for line in lines] == ["blau", "blau"]
    assert predict_main([str(pack), str(new / "blau"), "--base", base, "--threshold", "1"]) == 0
    rejected = capsys.readouterr().out.splitlines()
    assert [line.partition(NONE_OF_THESE)[2].split()[1] for line in rejected] == ["blau", "blau"]  # what it may be
    assert predict_main([str(pack), str(new / "blau"), "--base", base, "--device", "auto", "--csv"]) == 0
    assert predict_main([str(pack), str(new / "blau"), "--base", base, "--device", "tpu"]) == 2
    assert "Expected --device to be auto, cpu, or cuda of this machine, got 'tpu'" in capsys.readouterr().err


@pytest.mark.parametrize("flags", [[], ["--csv"]])
def test_predict_prints_each_batch_before_it_reads_the_next(flags, shop, new, base, tmp_path, capsys, monkeypatch):
    pack = tmp_path / "a.safetensors"
    metakm.fit(shop, base=base, method="head").save(pack)
    monkeypatch.setattr(predict_command, "BATCH", 2)
    read, printed = predict_command.photo_pixels, []

    def decode(path, preprocessing):
        printed.append(capsys.readouterr().out)
        return read(path, preprocessing)

    monkeypatch.setattr(predict_command, "photo_pixels", decode)
    assert predict_main([str(pack), str(new), "--base", base, *flags]) == 0
    assert [text.count(".png") for text in printed] == [0, 0, 2, 0, 2, 0]


@pytest.mark.parametrize("where", ["photos", "features"])
def test_ctrl_c_ends_a_fit_while_photos_are_read_and_features_computed(
    where, shop, base, tmp_path, capsys, monkeypatch
):
    seen, original = [], fit_command._Steps.prepare

    def prepare(self, what, done, total):
        seen.append((what, done, total))
        if what == where:
            signal.raise_signal(signal.SIGINT)
        original(self, what, done, total)

    monkeypatch.setattr(fit_command._Steps, "prepare", prepare)
    out = tmp_path / "a.safetensors"
    assert fit_main([str(shop), "--base", base, "--out", str(out)]) == 130
    said = capsys.readouterr().err
    assert "Stopped." in said
    photos = [("photos", i, 12) for i in range(1, 13)]
    assert seen == (photos[:1] if where == "photos" else [*photos, ("features", 12, 60)])
    assert ("12 photos of 3 classes" in said) == (where == "features")
    assert not out.exists()


class Killed(BaseException):
    pass


def kill(after, flags, monkeypatch):
    """Run a fit that ends after some steps."""
    steps, original = [], fit_command._Steps.advance

    def advance(self, loss, trainer):
        original(self, loss, trainer)
        steps.append(loss)
        if sum(each is not None for each in steps) == after:
            raise Killed

    monkeypatch.setattr(fit_command._Steps, "advance", advance)
    with pytest.raises(Killed):
        fit_main(flags)
    monkeypatch.setattr(fit_command._Steps, "advance", original)


def test_a_fit_on_other_weights_of_the_same_name_does_not_resume(shop, base, tmp_path, monkeypatch, capsys):
    weights, out = tmp_path / "net.pt", tmp_path / "a.safetensors"
    tensors = load_pretrained(base).network.state_dict()
    torch.save(tensors, weights)
    flags = [str(shop), "--base", base, "--weights", str(weights), "--out", str(out)]
    kill(2, flags, monkeypatch)
    torch.save({**tensors, "conv1.weight": 1.5 * tensors["conv1.weight"]}, weights)
    assert fit_main([*flags, "--resume"]) == 2
    assert "of the same photos, settings and base" in capsys.readouterr().err


@pytest.mark.parametrize(("after", "validation"), [(1, "folds"), (7, "folds"), (9, "folds"), (1, "none"), (4, "none")])
@pytest.mark.parametrize("method", ["both", "full"])
def test_a_fit_that_was_stopped_resumes_to_the_same_pack(
    after, validation, method, shop, base, tmp_path, monkeypatch, capsys
):
    dropping = base.replace(":Small", ":Dropping")
    flags = [str(shop), "--base", dropping, "--method", method, "--validation", validation, "--out"]
    assert fit_main([*flags, str(tmp_path / "whole.safetensors")]) == 0
    out = tmp_path / "parts.safetensors"
    kill(after, [*flags, str(out)], monkeypatch)
    assert not out.exists()
    assert fit_main([*flags, str(out), "--seed", "1", "--resume"]) == 2
    monkeypatch.chdir(shop.parent)  # the same photos by another path
    capsys.readouterr()
    assert fit_main([shop.name, *flags[1:], str(out), "--resume", "--device", "cpu"]) == 0
    whole, parts = (read_pack(tmp_path / f"{name}.safetensors") for name in ("whole", "parts"))
    assert whole.tensors.keys() == parts.tensors.keys()
    assert all(torch.equal(whole.tensors[name], parts.tensors[name]) for name in whole.tensors)
    assert (whole.metrics, whole.photos["temperature"]) == (parts.metrics, parts.photos["temperature"])
    trained = not torch.equal(whole.tensors["norm1.weight"], torch.ones(12))
    assert trained == (validation == "none")  # folds find that this network needs no more than a head
    assert {path.name for path in tmp_path.glob("*parts*")} == {"parts.safetensors", "parts.html"}


def test_a_pack_of_another_base_version_or_kind_is_refused(shop, base, tmp_path, capsys):
    path = tmp_path / "a.safetensors"
    fitted = metakm.fit(shop, base=base, method="km")
    fitted.save(path)
    with pytest.raises(UserError, match="Expected the base network of the pack"):
        metakm.load_classifier(path, base=base.replace(":Small", ":Other"))
    with pytest.raises(
        UserError,
        match=r"Expected base \(--base\) for a pack whose base is in a Python file, got none; give net.py:Small",
    ):
        metakm.load_classifier(path)
    with pytest.raises(UserError, match="Expected"):
        metakm.load_classifier(path, base="")  # which is no leave to run the file
    for key, value, message in (
        ("version", 2, "Expected version 1 of what metakm fit writes, got 2"),
        ("method", "new", "Expected a pack of a method that is known, got 'new'"),
    ):
        pack = read_pack(path)
        pack.photos[key] = value
        write_pack(pack, tmp_path / "b.safetensors")
        with pytest.raises(UserError, match=message):
            metakm.load_classifier(tmp_path / "b.safetensors", base=base)
    pack = read_pack(path)
    pack.photos.clear()
    write_pack(pack, tmp_path / "b.safetensors")
    with pytest.raises(UserError, match="Expected a pack of metakm fit, got another"):
        metakm.load_classifier(tmp_path / "b.safetensors", base=base)
    data = path.read_bytes()
    for damaged in (data[:-10], data.replace(b'\\"temperature\\": ', b'\\"temperature\\": 1', 1)):
        path.write_bytes(damaged)
        capsys.readouterr()
        assert predict_main([str(path), str(shop), "--base", base]) == 2
        assert capsys.readouterr().err.count("\n") == 1
        assert damaged != data


def test_merge_writes_onnx_only_from_a_pack_of_fit(shop, base, tmp_path, capsys):
    pack = tmp_path / "a.safetensors"
    metakm.fit(shop, base=base, method="head", validation="none").save(pack)
    assert packs_main(["merge", str(pack), "--onnx", str(tmp_path / "a.zip"), "--base", base]) == 2
    assert "Expected --onnx to be a .onnx file" in capsys.readouterr().err
    assert packs_main(["inspect", str(pack)]) == 0
    assert "head on net.py:Small, by metakm fit" in capsys.readouterr().out


def test_a_network_that_does_more_after_its_classifier_is_judged_by_what_it_returns(shop, base):
    behind = base.replace(":Small", ":Behind")
    fitted = metakm.fit(shop, base=behind, method="head", validation="part")
    held = fitted.report_.held_out
    logits = held.probabilities.log() * fitted.temperature
    assert (logits - logits.min(dim=1, keepdim=True).values > 0).any()
    assert ((logits == logits.min(dim=1, keepdim=True).values).sum(dim=1) > 1).any()  # several zeros, by its ReLU


@pytest.mark.parametrize(
    ("name", "size", "message"),
    [
        ("Fixed", 32, "Expected .*:Fixed to take images of 32x32 pixels, got RuntimeError"),
        ("Tuple", 32, r"Expected logits \[2, N\] of 2 images, got tuple in training from .*:Tuple"),
        ("Unused", 32, r"last linear layer, projection; with 5 classes in that, got logits \[2, 7\] and 0 calls of it"),
        ("HeadFirst", 32, r"projection; with 5 classes in that, got logits \[2, 7\]; choose another base"),
        ("Pixels", 32, r"layer, fc; with 5 .*, got logits \[2, 5\] and 1 calls of it with 4 dimensions; choose"),
    ],
)
def test_a_network_that_cannot_take_the_photos_is_refused_before_they_are_read(name, size, message, base, tmp_path):
    missing = {"a": [tmp_path / "missing.jpg"], "b": [tmp_path / "gone.jpg"]}
    with pytest.raises(UserError, match=message):
        metakm.fit(missing, base=base.replace(":Small", f":{name}"), size=size)


def test_copies_of_a_photo_are_used_once_and_named(shop, base, tmp_path, capsys):
    copied = shop / "blau" / "copy.png"
    copied.write_bytes((shop / "blau" / "0.png").read_bytes())
    (shop / "red apple" / "wrong.png").write_bytes((shop / "blau" / "1.png").read_bytes())
    out = tmp_path / "a.safetensors"
    assert fit_main([str(shop), "--base", base, "--method", "head", "--out", str(out)]) == 0
    said = " ".join(capsys.readouterr().err.split())
    assert f"skipped {copied}: a copy of {shop / 'blau' / '0.png'}" in said
    assert (
        f"{shop / 'red apple' / 'wrong.png'} is the same photo as {shop / 'blau' / '1.png'}, of another class" in said
    )
    assert "13 photos of 3 classes" in said


def test_copies_in_memory_and_in_two_classes_are_found_too():
    one, two, three = (np.asarray(photo((200, 30, 20), seed)) for seed in range(3))
    store = PhotoStore({"a": [one, two, two], "b": [one, three, one]}, Preprocessing(32))
    assert [(str(path), reason) for path, reason in store.skipped] == [
        ("photo 3 of a", "a copy of photo 2 of a"),
        ("photo 3 of b", "a copy of photo 1 of b"),
    ]
    assert store.in_two_classes == [("photo 1 of b", "photo 1 of a")]
    assert store.labels.tolist() == [0, 0, 1, 1]


def test_a_base_with_weights_that_are_not_numbers_is_refused(shop, base):
    with pytest.raises(UserError, match=r"Expected finite features from .*:NotANumber, got NaN or infinite ones"):
        metakm.fit(shop, base=base.replace(":Small", ":NotANumber"))


def test_a_place_that_cannot_be_written_is_refused_before_the_fit(shop, base, tmp_path, capsys):
    for name in ("p.html", "q.safetensors"):
        (tmp_path / name).mkdir()
    (tmp_path / "file").write_text("")
    for out, message in (
        ("q.safetensors", f"Expected --out to be a file, got the folder {tmp_path / 'q.safetensors'}"),
        ("p.safetensors", f"got the folder {tmp_path / 'p.html'} beside it"),
        ("file/x/p.safetensors", f"but {tmp_path / 'file'} is a file"),
    ):
        assert fit_main([str(shop), "--base", base, "--out", str(tmp_path / out)]) == 2
        assert message in capsys.readouterr().err
    assert not list(tmp_path.glob(".*.checkpoint"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"labels": ["x", "y"]}, "Expected no labels with photos by class"),
        ({"base": None}, "Expected --base to be a name or a path, got None"),
        ({"weights": 3}, "Expected --weights to be a path, got 3"),
    ],
)
def test_arguments_that_make_no_sense_are_refused(options, message, base):
    with pytest.raises(UserError, match=message):
        metakm.fit({"a": [photo((200, 30, 20), 0)], "b": [photo((30, 40, 190), 1)]}, **{"base": base, **options})


def test_predict_takes_photos_alone(shop, base):
    fitted = metakm.fit(shop, base=base, method="head", validation="none")
    for given, message in (
        (5, "Expected photos, got int"),
        (np.zeros((40, 40), np.uint8), r"got uint8 \[40, 40\]"),
        ("~nobody-of-this-name/a.jpg", "Expected a photo's path to be a path, got ~nobody"),
    ):
        with pytest.raises(UserError, match=message):
            fitted.predict(given)


def test_a_score_needs_labels_of_its_classes_and_no_autocast(base):
    photos = [photo((200, 30, 20), 0), photo((30, 40, 190), 1)]
    fitted = metakm.fit(photos, [0, 1], base=base, method="head", validation="none")
    assert fitted.score(photos, [0, 1]) == 1
    with pytest.raises(UserError, match=r"Expected labels such as '0', '1', got none of these classes but '0\.0'"):
        fitted.score(photos, [0.0, 1.0])
    expected = fitted.predict_proba(photos)
    with torch.autocast("cpu", torch.bfloat16):
        assert np.array_equal(fitted.predict_proba(photos), expected)


def test_gradients_and_inference_mode_outside_do_not_matter(base, tmp_path):
    photos = [photo((200, 30, 20), 0), photo((30, 40, 190), 1)]
    settings = {"base": base, "method": "norm", "validation": "none"}
    expected = metakm.fit(photos, [0, 1], **settings)
    expected.save(tmp_path / "a.safetensors")
    expected = expected.predict_proba(photos)
    for block in (torch.inference_mode(), torch.no_grad()):
        with block:
            assert np.array_equal(metakm.fit(photos, [0, 1], **settings).predict_proba(photos), expected)
            loaded = metakm.load_classifier(tmp_path / "a.safetensors", base=base)
            assert np.array_equal(loaded.predict_proba(photos), expected)


def test_labels_that_name_no_class_and_keys_that_are_one_text_are_refused(base):
    photos = [photo((200, 30, 20), i) for i in range(4)]
    for labels in (["a", "a", "b", None], ["a", "a", "b", float("nan")], ["a", "a", "b", ""], ["a", "a", "b", 1]):
        with pytest.raises(UserError, match=r"Expected a label for every image|Expected labels that are all"):
            metakm.fit(photos, labels, base=base, method="head")
    with pytest.raises(UserError, match="Expected labels that are all strings or all numbers"):
        metakm.fit({1: photos[:2], "1": photos[2:]}, base=base, method="head")
    fitted = metakm.fit(photos, (label for label in "aabb"), base=base, method="head", validation="none")
    assert list(fitted.classes_) == ["a", "b"]


def test_images_in_memory_stay_as_they_are_and_damaged_ones_are_named(base, tmp_path):
    photo((200, 30, 20), 0, (1600, 1200)).save(tmp_path / "large.jpg")
    large = Image.open(tmp_path / "large.jpg")  # its file is closed once it is loaded
    fitted = metakm.fit({"a": [large], "b": [photo((30, 40, 190), 1)]}, base=base, method="head", validation="none")
    fitted.predict([large])
    assert large.size == (1600, 1200)
    (tmp_path / "cut.jpg").write_bytes((tmp_path / "large.jpg").read_bytes()[:5000])
    with Image.open(tmp_path / "cut.jpg") as cut, pytest.raises(UserError, match="Expected a whole image, got"):
        fitted.predict([cut])


def test_classes_without_a_name_are_refused():
    photos = [np.zeros((8, 8, 3), np.uint8)]
    for missing in (None, float("nan"), ""):
        with pytest.raises(UserError, match="Expected a label for every image"):
            metakm.fit({missing: photos, "b": photos})


@pytest.mark.parametrize("method", ["norm", "both"])
def test_the_default_precision_outside_does_not_matter(shop, new, base, tmp_path, method):
    paths = sorted(new.rglob("*.png"))[:3]
    expected = metakm.fit(shop, base=base, method=method, validation="none")
    expected.save(tmp_path / "shop.safetensors")
    torch.set_default_dtype(torch.float64)
    try:
        fitted = metakm.fit(shop, base=base, method=method, validation="none")
        loaded = metakm.load_classifier(tmp_path / "shop.safetensors", base=base)
        for classifier in (fitted, loaded):
            np.testing.assert_allclose(classifier.predict_proba(paths), expected.predict_proba(paths), atol=1e-6)
    finally:
        torch.set_default_dtype(torch.float32)
