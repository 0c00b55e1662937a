"""Packs of `metakm fit` beside each other on one base (`ResidentPacks`)."""

import copy

import pytest
import torch
from photo_cases import COLOURS, photo

import metakm
from metakm.models.pretrained import load_pretrained, replace_classifier
from metakm.modulation import ResidentPacks
from metakm.photos.store import normalise

pytestmark = pytest.mark.float32


@pytest.mark.parametrize("method", ["km", "both", "norm", "head"])
def test_rows_of_several_fits_in_one_batch_get_what_each_classifier_gives(method, base):
    pretrained = load_pretrained(base)
    network = copy.deepcopy(pretrained.network)
    replace_classifier(network, pretrained.classifier, len(COLOURS))
    fits = {}
    for seed, task in enumerate(("first", "second")):
        photos = {name: [photo(c, 10 * seed + i) for i in range(3)] for name, c in COLOURS.items()}
        fits[task] = metakm.fit(photos, base=base, method=method, seed=seed, validation="none")
    resident = ResidentPacks(network)
    for task, fitted in fits.items():
        resident.add(fitted.pack, task)
    pixels = torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8)
    images = normalise(pixels, pretrained.preprocessing)
    tasks = ["first", "second", "second", "first"]
    with torch.no_grad():
        together = resident(images, tasks=tasks)
        alone = torch.cat([fits[task].network(images[i : i + 1]) for i, task in enumerate(tasks)])
    assert torch.allclose(together, alone, atol=1e-4)
    assert not torch.allclose(alone[1], fits["first"].network(images[1:2])[0], atol=1e-4)
