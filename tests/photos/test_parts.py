"""The parts of a fit: folds, budgets, calibration, the head, low rank; and the numbers they must give."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from metakm import UserError
from metakm.models.pretrained import replace_classifier
from metakm.modulation.attachment import modulate
from metakm.modulation.modulators.low_rank import LowRank
from metakm.photos.calibration import nll, rejection_threshold, temperature
from metakm.photos.checkpoint import Checkpoint
from metakm.photos.head import solve_head, solve_start
from metakm.photos.methods import faster_layout
from metakm.photos.training import _schedule, budget
from metakm.photos.validation import plan_splits


def test_folds_hold_each_photo_out_once_class_by_class():
    labels = torch.tensor([0] * 7 + [1] * 3 + [2])
    splits = plan_splits(labels, "folds", 3, seed=0)
    held = sorted(number for split in splits for number in split.held_out)
    assert held == list(range(10))  # the only photo of a class is always trained on
    for split in splits:
        assert sorted(split.train + split.held_out) == list(range(11))
        assert (labels[split.held_out] == 1).sum() == 1
        assert 10 in split.train
    assert plan_splits(labels, "folds", 3, seed=0) == splits != plan_splits(labels, "folds", 3, seed=1)


@pytest.mark.parametrize(("classes", "each"), [(20, 4), (20, 5), (102, 6), (150, 3), (400, 2)])
def test_parts_are_of_one_size_over_all_classes_and_in_each(classes, each):
    labels = torch.arange(classes).repeat_interleave(each)
    for validation, parts in (("folds", 3), ("part", 5)):
        splits = plan_splits(labels, validation, 3, seed=0)
        spread = min(parts, each) if validation == "folds" else parts
        for split in splits:
            assert len(labels) // spread <= len(split.held_out) <= -(-len(labels) // spread)
            per_class = torch.bincount(labels[split.held_out], minlength=classes)
            assert per_class.min() >= each // spread
            assert per_class.max() <= -(-each // spread)


def test_auto_takes_folds_for_few_a_part_for_many_and_nothing_of_one_each():
    assert len(plan_splits(torch.arange(4).repeat(5), "auto", 3, 0)) == 3
    (part,) = plan_splits(torch.arange(4).repeat(100), "auto", 3, 0)
    assert len(part.held_out) == 80
    assert plan_splits(torch.arange(4), "auto", 3, 0) == plan_splits(torch.arange(4).repeat(5), "none", 3, 0) == []
    with pytest.raises(UserError, match="one photo of some class for --validation part, got one of each"):
        plan_splits(torch.arange(4), "part", 3, 0)


def test_budgets_grow_with_photos_and_passes_shrink():
    passes = [steps * batch / n for n in (40, 400, 4000) for steps, batch in [budget(n)]]
    assert passes == sorted(passes, reverse=True)
    assert budget(1).steps >= 6
    assert budget(2000).evaluation_steps() == [0, 125, 250]
    rates = [_schedule(step, 20) for step in range(20)]
    assert max(rates) == 1
    assert rates[0] < rates[1]
    assert 0 < rates[-1] < 0.1


def test_the_temperature_minimises_the_smoothed_likelihood():
    torch.manual_seed(0)
    labels = torch.arange(200) % 4
    logits = torch.randn(200, 4) + 2 * F.one_hot(labels, 4)
    found = temperature(5 * logits, labels)
    smooth = 1 / 202
    targets = torch.full((200, 4), smooth / 3)
    targets[torch.arange(200), labels] = 1 - smooth

    def objective(t):
        return -(targets * torch.log_softmax(5 * logits / t, 1)).sum(1).mean()

    grid = torch.linspace(math.log(1 / 20), math.log(20), 4000).exp()
    assert found == pytest.approx(float(min(grid, key=objective)), rel=3e-3)
    assert temperature(logits, labels) == pytest.approx(found / 5, rel=1e-3)
    assert nll(5 * logits, labels, found) < nll(5 * logits, labels)


def test_right_answers_alone_do_not_ask_for_certainty():
    labels = torch.arange(40) % 8
    logits = 3.0 * F.one_hot(labels, 8)
    probability = torch.softmax(logits / temperature(logits, labels), 1).max()
    assert probability == pytest.approx(1 - 1 / 42, abs=1e-4)  # Platt's target


def test_the_threshold_lets_most_right_answers_through():
    labels = torch.zeros(100, dtype=torch.long)
    best = torch.linspace(0.5, 1.0, 100)
    probabilities = torch.stack([best, 1 - best], 1).clone()
    found = rejection_threshold(torch.cat([probabilities, torch.zeros(100, 2)], 1) * 0.9, labels)
    assert 0.03 <= float((best * 0.9 < found).double().mean()) <= 0.06
    assert rejection_threshold(torch.tensor([[0.3, 0.7]]), torch.tensor([0])) == 0.75  # nothing right: 1.5 / N
    assert rejection_threshold(torch.tensor([[0.99, 0.01]] * 9), labels[:9]) == 0.9  # at most


def test_the_head_is_where_the_gradient_of_the_penalised_loss_vanishes():
    torch.manual_seed(0)
    inputs, labels = torch.randn(30, 6) + 3, torch.arange(30) % 3
    weights = torch.rand(30) + 0.5
    weights /= weights.mean()
    weight, bias = solve_head(inputs, labels, weights, 3, l2=0.3)
    scale = inputs.norm(dim=1).mean()
    own = (weight * scale).requires_grad_()
    free = bias.clone().requires_grad_()
    errors = F.cross_entropy((inputs / scale) @ own.T + free, labels, reduction="none")
    loss = (weights * errors).sum() + 0.3 * own.square().sum()
    gradients = torch.autograd.grad(loss, [own, free])
    assert max(g.abs().max() for g in gradients) < 3e-4


def test_the_penalty_of_the_head_that_training_starts_from_grows_with_the_images():
    inputs, labels, weights = torch.randn(30, 6) + 3, torch.arange(30) % 3, torch.ones(30)
    for count in (15, 30):
        given = inputs[:count], labels[:count], weights[:count], 3
        assert all(map(torch.equal, solve_start(*given), solve_head(*given, l2=1e-4 * count)))


def test_low_rank_adds_b_times_a_and_starts_at_the_base():
    network = nn.Sequential(nn.Conv2d(4, 6, 3, groups=2), nn.Flatten(), nn.Linear(6, 2))
    plain = network[0].weight.clone()
    modulate(network, classifier="2", modulator=LowRank)
    assert torch.equal(network[0].weight, plain)
    modulator = network[0].parametrizations.weight[0]
    assert (modulator.up.shape, modulator.down.shape) == ((6, 4), (4, 18))
    with torch.no_grad():
        modulator.up.normal_()
    assert torch.allclose(network[0].weight, plain + (modulator.up @ modulator.down).view(6, 2, 3, 3))


def test_networks_with_strided_pointwise_convolutions_keep_their_layout():
    plain, strided = nn.Conv2d(8, 8, 3), nn.Sequential(nn.Conv2d(8, 8, 3), nn.Conv2d(8, 8, 1, stride=2))
    assert faster_layout(plain).weight.is_contiguous(memory_format=torch.channels_last)
    assert faster_layout(strided)[0].weight.is_contiguous()


def test_a_convolution_can_be_the_classifier():
    network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 1000, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    replace_classifier(network, "1", 4)
    assert network(torch.rand(2, 3, 8, 8)).abs().max() == 0
    assert network(torch.rand(2, 3, 8, 8)).shape == (2, 4)


def test_the_time_of_a_fit_is_that_of_all_its_sessions(tmp_path):
    first = Checkpoint(tmp_path / "c", "key", resume=False)
    first._began -= 100
    first.save()
    assert 100 <= Checkpoint(tmp_path / "c", "key", resume=True).seconds < 200


def test_a_damaged_checkpoint_is_refused(tmp_path):
    path = tmp_path / "c"
    path.write_bytes(b"broken")
    with pytest.raises(UserError, match="Expected a checkpoint, got a damaged one"):
        Checkpoint(path, "key", resume=True)
    Checkpoint(path, "key", resume=False).finish("part", {"a": 1})
    assert Checkpoint(path, "key", resume=True).done == {"part": {"a": 1}}
    with pytest.raises(UserError, match="of the same photos, settings and base, got another"):
        Checkpoint(path, "other", resume=True)
