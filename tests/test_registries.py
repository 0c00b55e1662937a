"""Plugins that bring a dataset and a backbone, and what registries refuse."""

import pandas as pd
import pytest

import metakm
from metakm import list as listing
from metakm.presets import preset_config
from metakm.registry import isolated
from metakm.run.__main__ import main

DATASET = """
import numpy as np
import metakm


@metakm.register_dataset("dots", title="Dots", family="characters", ways=3)
def load_dots(split, roots):
    generator = np.random.default_rng({"train": 0, "val": 1, "test": 2}[split])
    images = generator.integers(0, 256, (40, 1, 16, 16), dtype=np.uint8)
    labels = [f"{split} {number // 10}" for number in range(40)]
    return metakm.FewShotDataset.from_arrays(images, labels, name="dots", split=split)
"""
BACKBONE = """
import metakm


@metakm.register_backbone("narrow-<filters>")
def narrow(image_shape, bn_mode, filters):
    return metakm.Conv4(image_shape[0], filters, image_size=image_shape[1], bn_mode=bn_mode)
"""


@pytest.fixture
def plugins(tmp_path, monkeypatch, cache):
    monkeypatch.setenv("METAKM_CACHE", str(cache))
    for name, text in (("dots.py", DATASET), ("narrow.py", BACKBONE)):
        (tmp_path / name).write_text(text)
    return [str(tmp_path / "dots.py"), str(tmp_path / "narrow.py")]


@pytest.mark.float32
def test_a_run_on_the_dataset_and_backbone_of_plugins(plugins, tmp_path):
    flags = "--dataset dots --backbone narrow-5 --queries 2 --meta-batch 2 --val-tasks 2 --eval-tasks 2 --iterations 1"
    assert main([*flags.split(), "--out", str(tmp_path / "out"), "--plugin", *plugins]) == 0
    row = pd.read_csv(tmp_path / "out" / "dots-3w1s" / "km" / "seed0" / "result.csv").iloc[0]
    assert (row.dataset, row.backbone, row.ways) == ("dots", "narrow-5", 3)


def test_they_are_listed(plugins, capsys):
    assert listing.main(["--plugin", *plugins]) == 0
    output = capsys.readouterr().out
    assert "  dots           Dots: characters, 3-way by default\n" in output
    assert "  narrow-<filters>\n" in output
    assert "  km          `adapted` = modulators, convolution biases and head.\n" in output


def test_what_is_registered_is_forgotten(plugins):
    with isolated():
        metakm.load_plugin(plugins[0])
        assert "dots" in metakm.available_datasets()
    assert "dots" not in metakm.available_datasets()
    with pytest.raises(metakm.UserError, match=r"Expected dataset to be one of .*, got 'dots'"):
        preset_config(dataset="dots")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"family": "drawings"}, "Expected family to be one of characters, photographs, got 'drawings'"),
        ({"ways": 1}, "to be at least 2, got 1"),
        ({"name": "omniglot"}, "got 'omniglot', which metakm.data.omniglot.load_omniglot has already"),
    ],
)
def test_a_dataset_that_cannot_be_registered(changes, said):
    values = {"name": "dots", "title": "Dots", "family": "characters", "ways": 5} | changes
    name = values.pop("name")
    with pytest.raises(metakm.UserError, match=said):
        metakm.register_dataset(name, **values)(print)


def test_a_dataset_says_what_it_is():
    with pytest.raises(TypeError, match="title"):
        metakm.register_dataset("dots")


def test_a_backbone_that_fails_to_build_is_named(tmp_path, plugins, capsys):
    (tmp_path / "narrow.py").write_text(BACKBONE.replace("image_shape[0]", "image_shape[3]"))
    arguments = ["--backbone", "narrow-5", "--ways", "3", "--out", str(tmp_path / "out"), "--plugin", plugins[1]]
    assert main(arguments) == 2
    assert "Expected the backbone 'narrow-5' to be built, got IndexError" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
