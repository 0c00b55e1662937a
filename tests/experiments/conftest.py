"""A small image folder in the layout of CIFAR-10, and commands that run on it in seconds."""

import numpy as np
import pytest
import torch
from PIL import Image


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("METAKM_CACHE", str(folder))
    monkeypatch.delenv("METAKM_DATA", raising=False)
    return folder


def write_images(folder, classes, per_class, seed=0, size=10):
    """Noise around a colour of the class."""
    generator = np.random.default_rng(seed)
    for label in range(classes):
        place = folder / f"class{label}"
        place.mkdir(parents=True)
        colour = np.array([40 * label % 256, 255 - 20 * label, 90])
        for number in range(per_class):
            pixels = np.clip(colour + generator.normal(0, 40, (size, size, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(place / f"{number:04d}.png")


@pytest.fixture(scope="session")
def data_root(tmp_path_factory):
    """`cifar10/{train,test}/<class>/`: 10 classes of 12 training and 3 test images."""
    root = tmp_path_factory.mktemp("data")
    write_images(root / "cifar10" / "train", 10, 12)
    write_images(root / "cifar10" / "test", 10, 3, seed=1)
    return root


@pytest.fixture
def small(data_root, tmp_path):
    """Flags of a run of seconds."""
    return [
        *("--data-root", str(data_root), "--out", str(tmp_path / "out"), "--image-size", "8", "--epochs", "2"),
        *("--batch", "16", "--train-images", "0", "--device", "cpu"),
    ]


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
