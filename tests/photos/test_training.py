"""How a fit trains: downhill, by the schedule's rates, with rare classes weighted, from each photo as it is."""

import numpy as np
import pytest
import torch
from photo_cases import photo

import metakm
from metakm.models.pretrained import load_pretrained
from metakm.photos.api import as_listing
from metakm.photos.features import VIEWS, frozen_features
from metakm.photos.methods import METHODS
from metakm.photos.store import PhotoStore
from metakm.photos.training import HEAD_RATE, _schedule, plan_for

pytestmark = pytest.mark.float32
TRAINED = ("norm", "km", "both", "lora", "full")


@pytest.fixture(scope="module")
def noise(tmp_path_factory):
    """Two classes of grey noise, of 60 and 30 photos, which sixteen fixed features cannot tell apart."""
    folder = tmp_path_factory.mktemp("noise")
    for number in range(90):
        path = folder / ("rare" if number % 3 == 0 else "common") / f"{number}.png"
        path.parent.mkdir(exist_ok=True)
        photo((128, 128, 128), number).save(path)
    return folder


def losses(state):
    return np.array([loss for _, loss in state.losses])


@pytest.mark.parametrize("method", TRAINED)
def test_training_goes_downhill_where_a_head_is_not_enough(method, noise, base, monkeypatch):
    """With ten times the rates: those of a fit are gentle, for pretrained networks."""
    rates = METHODS[method]
    monkeypatch.setitem(METHODS, method, rates._replace(rate=10 * rates.rate, norm_rate=10 * rates.norm_rate))
    report = metakm.fit(noise, base=base, method=method, validation="none", augment=False).report_
    found = losses(report.state)
    assert found[-5:].mean() < 0.99 * found[:5].mean()


def test_each_step_has_the_rates_of_the_plan_by_the_schedule(shop, base, monkeypatch):
    seen, step = [], torch.optim.AdamW.step

    def spy(optimizer, *args, **kwargs):
        seen.append([group["lr"] for group in optimizer.param_groups])
        return step(optimizer, *args, **kwargs)

    monkeypatch.setattr(torch.optim.AdamW, "step", spy)
    metakm.fit(shop, base=base, method="both", validation="none")
    plan = plan_for("both", 12)
    assert len(seen) == plan.budget.steps
    for number, rates in enumerate(seen):
        scale = _schedule(number, plan.budget.steps)
        assert rates == pytest.approx([scale * rate for rate in (plan.rate, plan.norm_rate, HEAD_RATE)], rel=1e-12)


def test_a_rare_class_counts_more_but_not_as_much_as_it_is_rare(noise, base, monkeypatch):
    trainers = []
    start = metakm.photos.training.Trainer.start
    monkeypatch.setattr(metakm.photos.training.Trainer, "start", lambda self: (trainers.append(self), start(self))[1])
    metakm.fit(noise, base=base, method="head", validation="none")
    (trainer,) = trainers
    common, rare = (trainer.weights[trainer.labels == label].unique() for label in (0, 1))
    assert rare.item() == pytest.approx(2**0.5 * common.item())  # half as many photos
    assert trainer.weights.mean().item() == pytest.approx(1)


def test_the_first_view_is_the_photo_as_it_is(shop, base):
    network = load_pretrained(base)
    network.network.eval()
    store = PhotoStore(as_listing(shop, None).classes, network.preprocessing)
    plain, views = (
        frozen_features(network, network.preprocessing, store, 0, augment=augment) for augment in (False, True)
    )
    assert len(views) == VIEWS + 1
    assert torch.equal(views[0], plain[0])
    assert not torch.equal(views[1], plain[0])
