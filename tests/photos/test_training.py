"""How a fit trains: downhill, by the schedule's rates, with rare classes weighted, from each photo as it is."""

import pytest
import torch
import torch.nn.functional as F
from photo_cases import photo
from torch import nn

import metakm
from metakm.models.pretrained import load_pretrained
from metakm.photos.api import as_listing
from metakm.photos.calibration import rejection_threshold
from metakm.photos.features import VIEWS, frozen_features
from metakm.photos.store import PhotoStore, normalise
from metakm.photos.training import HEAD_RATE, Trainer, _schedule, plan_for

pytestmark = pytest.mark.float32
TRAINED = ("norm", "km", "both", "lora", "full")


@pytest.fixture(scope="module")
def noise(tmp_path_factory):
    """Two classes of grey noise, of 10 and 5 photos."""
    folder = tmp_path_factory.mktemp("noise")
    for number in range(15):
        path = folder / ("rare" if number % 3 == 0 else "common") / f"{number}.png"
        path.parent.mkdir(exist_ok=True)
        photo((128, 128, 128), number).save(path)
    return folder


@torch.no_grad()
def loss_of_all(trainer):
    """The weighted loss over the photos that it trains on, as they are."""
    trainer.network.eval()
    pixels = trainer.store.pixels(trainer.train)
    logits = trainer.network(normalise(pixels, trainer.preprocessing))
    return (F.cross_entropy(logits, trainer.labels, reduction="none") * trainer.weights).mean().item()


@pytest.mark.parametrize("method", TRAINED)
def test_training_goes_downhill(method, shop, base, monkeypatch):
    """From a head of zeros: from the best one there is nothing to gain on photos that it tells apart."""
    found, run = [], Trainer.run
    monkeypatch.setattr(Trainer, "start", lambda self: nn.init.zeros_(self.network.fc.weight))

    def watched(trainer, *args):
        found.append(loss_of_all(trainer))
        run(trainer, *args)
        found.append(loss_of_all(trainer))

    monkeypatch.setattr(Trainer, "run", watched)
    metakm.fit(shop, base=base, method=method, validation="none", augment=False)
    before, after = found
    assert after < before - 0.003


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
    trainers, start = [], Trainer.start
    monkeypatch.setattr(Trainer, "start", lambda self: (trainers.append(self), start(self))[1])
    metakm.fit(noise, base=base, method="head", validation="none")
    (trainer,) = trainers
    common, rare = (trainer.weights[trainer.labels == label].unique() for label in (0, 1))
    assert rare.item() == pytest.approx(2**0.5 * common.item())  # half as many photos
    assert trainer.weights.mean().item() == pytest.approx(1)


def test_passes_have_their_own_order_and_steps_their_own_views_and_dropout(noise, base, monkeypatch):
    trainers, seeds, states = [], [], []
    start, dropout = Trainer.start, F.dropout

    def views(pixels, seed):
        seeds.append(seed)
        return pixels

    def dropping(x, p, training):
        if training and trainers:  # not while the network is tried
            states.append(bytes(torch.get_rng_state().numpy()))
        return dropout(x, p, training)

    monkeypatch.setattr(Trainer, "start", lambda self: (trainers.append(self), start(self))[1])
    monkeypatch.setattr("metakm.photos.training.random_views", views)
    monkeypatch.setattr(F, "dropout", dropping)
    metakm.fit(noise, base=base.replace(":Small", ":Dropping"), method="norm", validation="none")
    (trainer,) = trainers
    assert len(set(seeds)) == len(set(states)) == trainer.budget.steps > 1
    orders = [trainer._order(number) for number in range(3)]
    assert all(sorted(order) == list(range(15)) for order in orders)
    assert len(set(map(tuple, orders))) == 3


def test_the_threshold_is_of_calibrated_probabilities(noise, base):
    fitted = metakm.fit(noise, base=base, method="head", validation="folds")
    held = fitted.report_.held_out
    calibrated, raw = (torch.softmax(held.logits.double() / scale, dim=1) for scale in (fitted.temperature, 1.0))
    assert fitted.threshold == pytest.approx(rejection_threshold(calibrated, held.labels), rel=1e-6)
    assert fitted.threshold != pytest.approx(rejection_threshold(raw, held.labels), rel=1e-4)


def test_the_first_view_is_the_photo_as_it_is(shop, base):
    network = load_pretrained(base)
    network.network.eval()
    store = PhotoStore(as_listing(shop, None).classes, network.preprocessing)
    plain, views = (frozen_features(network, store, 0, augment=augment) for augment in (False, True))
    assert len(views) == VIEWS + 1
    assert torch.equal(views[0], plain[0])
    assert not torch.equal(views[1], plain[0])
