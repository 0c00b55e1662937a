"""`metakm.Learner`: built, trained, evaluated, adapted, saved and loaded from Python."""

import numpy as np
import pytest
import torch
from loops import Sampler
from small import random_episodes, small_strategy

import metakm
from metakm.models.conv4 import Conv4

SETTINGS = {"inner_lr": 0.4, "inner_steps": 2}


def learner(algo="km", **options):
    torch.manual_seed(0)
    backbone = None if algo == "own" else Conv4(1, 4, "stride", image_size=14).double()
    return metakm.Learner(algo, backbone=backbone, ways=4, **SETTINGS, **options).double()


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("algo", ["km", "anil", "maml", "protonet", "meta-sgd"])
def test_its_loss_is_that_of_the_functions_below_it(algo):
    built, episodes = learner(algo), random_episodes(tasks=2)
    expected = metakm.meta_loss(built.strategy, episodes, **SETTINGS)
    found = built.meta_loss(episodes)
    assert found.loss.item() == expected.loss.item()
    assert torch.equal(found.logits, expected.logits)


def test_options_reach_the_strategy_and_the_inner_loop():
    deep = learner("km", depth=1, learn_inner_lr=True, inner_lr_per_step=True, first_order=True)
    assert len(deep.rates) == len(list(deep.strategy.adapted.parameters()))
    assert all(rate.tolist() == [0.4, 0.4] for rate in deep.rates)
    assert len(list(deep.strategy.parameters())) < len(list(learner("km").strategy.parameters()))
    loss = deep.meta_loss(random_episodes(tasks=2)).loss
    first_order = metakm.meta_loss(
        deep.strategy, random_episodes(tasks=2), inner_lr=list(deep.rates), inner_steps=2, first_order=True
    )
    parameter = deep.strategy.network.backbone.blocks[0].conv.weight
    gradients = [torch.autograd.grad(each, parameter)[0] for each in (loss, first_order.loss)]
    assert torch.equal(*gradients)


def test_a_head_that_starts_at_zero_is_no_meta_parameter():
    built = learner("anil", zero_head=True)
    head = {id(p) for p in built.strategy.head_parameters().values()}
    assert all(not p.any() for p in built.strategy.head_parameters().values())
    assert not head & {id(p) for p in built.meta_parameters()}
    assert len(built.meta_parameters()) == len(list(built.parameters())) - 2


def test_a_loop_of_ones_own_learns():
    built, sampler = learner("anil", learn_inner_lr=True), Sampler()
    optimizer = torch.optim.Adam(built.meta_parameters(), lr=0.01)
    losses = []
    for _ in range(10):
        optimizer.zero_grad()
        loss = built.meta_loss(sampler.batch(0, 4)).loss
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]
    assert built.rates[0].item() != 0.4


def test_evaluation_is_that_of_the_functions_below_it_and_depends_on_the_steps():
    built = learner("maml", test_inner_steps=3)
    found = built.evaluate(Sampler(), tasks=5, tasks_at_once=2)
    batch = Sampler().batch(0, 5)
    expected = metakm.evaluate_episodes(built.strategy.eval(), batch, inner_lr=0.4, inner_steps=3).accuracy
    assert found.accuracies.tolist() == expected.tolist()
    assert found.accuracy == pytest.approx(expected.mean().item())
    assert found.interval == pytest.approx(1.96 * expected.std().item() / 5**0.5)
    assert built.evaluate(Sampler(), tasks=1).interval is None
    unadapted = metakm.evaluate_episodes(built.strategy, batch, inner_lr=0.4, inner_steps=0).accuracy
    assert built.evaluate(Sampler(), tasks=5, inner_steps=0).accuracies.tolist() == unadapted.tolist()


def test_an_evaluation_that_fails_leaves_the_strategy_in_training_mode():
    class Broken:
        def batch(self, **_):
            raise OSError("the disk is gone")

    built = learner("maml")
    built.strategy.train()
    with pytest.raises(OSError, match="gone"):
        built.evaluate(Broken(), tasks=2)
    assert built.strategy.training


def test_it_adapts_to_labelled_images():
    built = learner("anil", test_inner_steps=20)
    images = torch.rand(4, 1, 14, 14)
    classifier = built.adapt(images, ["a", "b", "c", "d"])
    by_hand = metakm.adapt(built.strategy, images, ["a", "b", "c", "d"], inner_lr=0.4, inner_steps=20)
    assert torch.equal(classifier(images), by_hand(images))


@pytest.mark.float32
@pytest.mark.parametrize("algo", ["km", "anil-proto"])
def test_what_is_saved_is_loaded_with_the_same_results(tmp_path, algo):
    options = {"depth": 3} if algo == "km" else {"scaled_distance": True}
    built = metakm.Learner(
        algo, backbone="conv4-4-stride", image_shape=(1, 28, 28), ways=4, learn_inner_lr=True, **SETTINGS, **options
    )
    with torch.no_grad():
        for rate in built.rates:
            rate.add_(torch.rand(()))
    built.save(tmp_path / "mine.safetensors")
    loaded = metakm.Learner.load(tmp_path / "mine.safetensors")
    assert same(loaded.state_dict(), built.state_dict())
    assert loaded.options == built.options
    images = torch.rand(4, 1, 28, 28)
    assert torch.equal(loaded.adapt(images, "abcd")(images), built.adapt(images, "abcd")(images))


@pytest.mark.float32
def test_numbers_of_numpy_are_saved_as_plain_ones(tmp_path):
    built = metakm.Learner(
        "km", backbone="conv4-4-stride", ways=np.int64(3), inner_lr=np.float32(0.5), inner_steps=np.int64(2),
        test_inner_steps=np.int64(4), image_shape=(1, 14, 14), depth=np.int64(1), first_order=np.bool_(True),
        learn_inner_lr=True, inner_lr_per_step=True, first_head_lr=np.float32(0.25),
    )  # fmt: skip
    built.save(tmp_path / "learner.safetensors")
    loaded = metakm.Learner.load(tmp_path / "learner.safetensors")
    assert (loaded.ways, loaded.inner_steps, loaded.test_inner_steps, loaded.options.depth) == (3, 2, 4, 1)
    assert loaded.options == built.options
    assert {type(value) for value in vars(built.options).values()} == {int, float, bool, str}


def test_a_network_of_ones_own_is_given_again_on_loading(tmp_path):
    def network():
        return Conv4(1, 4, "pool")

    built = metakm.Learner("maml", backbone=network(), ways=3, **SETTINGS)
    built.save(tmp_path / "mine.safetensors")
    with pytest.raises(metakm.UserError, match="Expected backbone, the network that"):
        metakm.Learner.load(tmp_path / "mine.safetensors")
    with pytest.raises(metakm.UserError, match="size mismatch"):
        metakm.Learner.load(tmp_path / "mine.safetensors", backbone=Conv4(1, 8, "pool"))
    loaded = metakm.Learner.load(tmp_path / "mine.safetensors", backbone=network())
    assert same(loaded.state_dict(), built.state_dict())


def test_states_of_metakm_0_2_are_read():
    built = learner("anil", learn_inner_lr=True)
    flat = built.state_dict()
    older = {
        "strategy": {name.removeprefix("strategy."): t for name, t in flat.items() if name.startswith("strategy.")},
        "rates": [flat["rates.0"] + 1, flat["rates.1"]],
    }
    built.load_state_dict(older)
    assert built.rates[0].item() == pytest.approx(1.4)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"strategy": "klm"}, "did you mean 'km'"),
        ({"ways": None}, "Expected ways"),
        ({"backbone": "conv4-4-stride"}, "Expected image_shape"),
        ({"backbone": None}, "'km' to be a network, got NoneType"),
        ({"depht": 2}, "did you mean 'km.depth'"),
        ({"weights": "nofile.pt"}, "Expected weights only with a backbone given by name, got one that is built"),
        ({"bn_mode": "frozen"}, "Expected bn_mode 'frozen' of the backbone's layers, got 'transductive'; build"),
        ({"strategy": "protonet", "first_order": True}, "--first-order has no effect with 'protonet'"),
        ({"strategy": "protonet", "zero_head": True}, "--zero-head has no effect with 'protonet'"),
    ],
)
def test_what_does_not_fit_is_refused(changes, said):
    given = {"strategy": "km", "backbone": Conv4(1, 4), "ways": 4, **SETTINGS, **changes}
    with pytest.raises(metakm.UserError, match=said):
        metakm.Learner(given.pop("strategy"), **given)


def test_a_state_is_not_loaded_by_assigning_its_tensors():
    learner = metakm.Learner("maml", backbone=Conv4(1, 4), ways=4, **SETTINGS)
    with pytest.raises(metakm.UserError, match="Expected assign=False"):
        learner.load_state_dict(learner.state_dict(), assign=True)


@pytest.mark.float32
@pytest.mark.parametrize(
    ("algo", "options"),
    [
        ("protonet", {}),
        ("protonet", {"distance": "cosine"}),
        ("maml-proto", {}),
        ("imaml", {"proximal": 2.0}),
        ("finetune", {"scale": 3.0}),
        ("simpleshot", {"transform": "un"}),
        ("km", {"depth": 1, "implicit": True}),
        ("cavia", {"contexts": 7}),
    ],
)
@pytest.mark.parametrize("asked", [{}, {"scaled_distance": False}])
def test_a_strategy_that_was_built_is_saved_with_its_options(tmp_path, algo, options, asked):
    def network():
        return Conv4(1, 4, "stride")

    torch.manual_seed(3)
    strategy = metakm.make_strategy(algo, backbone=network(), ways=4, **options)
    if asked and not hasattr(strategy, "scaled_distance"):
        asked = {}
    built = metakm.Learner(strategy, **SETTINGS, **asked)
    assert built.ways == 4
    assert all(getattr(built.options, name) == value for name, value in {**options, **asked}.items())
    built.save(tmp_path / "mine.safetensors")
    loaded = metakm.Learner.load(tmp_path / "mine.safetensors", backbone=network())
    assert loaded.options == built.options
    images = torch.rand(4, 1, 28, 28)
    assert torch.equal(loaded.adapt(images, "abcd")(images), built.eval().adapt(images, "abcd")(images))


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"ways": 5}, "was built for, 4, got 5"),
        ({"depth": 1}, "km.depth=1, got one with 2"),
        ({"km.depth": 1}, "km.depth=1, got one with 2"),
        ({"train": "norm"}, "Expected train only with a strategy given by name"),
        ({"weights": "pretrained"}, "Expected weights only with a strategy given by name"),
        ({"train_classes": 3}, "Expected train_classes only with a strategy given by name"),
        ({"backbone": Conv4(1, 4)}, "Expected backbone only with a strategy given by name"),
    ],
)
def test_what_a_built_strategy_is_not_is_refused(given, said):
    with pytest.raises(metakm.UserError, match=said):
        metakm.Learner(small_strategy("km"), **SETTINGS, **given)


def test_a_strategy_whose_class_was_called_is_not_saved(tmp_path):
    from metakm.strategies.anil import ANIL
    from metakm.strategies.km import KM

    built = metakm.Learner(KM(Conv4(1, 4, "stride"), 4, depth=1), **SETTINGS)
    with pytest.raises(metakm.UserError, match="build it with make_strategy"):
        built.save(tmp_path / "mine.safetensors")
    without_ways = metakm.Learner(ANIL(Conv4(1, 4, "stride"), 4), **SETTINGS)
    with pytest.raises(metakm.UserError, match="build it with make_strategy"):
        without_ways.save(tmp_path / "mine.safetensors")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"inner_lr": float("nan")}, "inner_lr to be a positive number, got nan"),
        ({"inner_lr": -1}, "inner_lr to be a positive number, got -1"),
        ({"inner_steps": 2.5}, "inner_steps to be a whole number, got 2.5"),
    ],
)
def test_rates_and_steps_are_checked(changes, said):
    with pytest.raises(metakm.UserError, match=said):
        metakm.Learner("anil", backbone=Conv4(1, 4, "stride"), ways=4, **{**SETTINGS, **changes})


def test_evaluation_leaves_each_part_in_its_mode():
    built = learner("anil")
    built.train()
    frozen = next(m for m in built.strategy.modules() if isinstance(m, Conv4))
    frozen.eval()
    before = [m.training for m in built.modules()]
    assert len(set(before)) == 2
    built.evaluate(Sampler(), tasks=2)
    assert [m.training for m in built.modules()] == before


def test_a_strategy_that_is_built_can_be_given():
    strategy = small_strategy("km")
    built = metakm.Learner(strategy, **SETTINGS)
    assert built.strategy is strategy
    assert built.algo == "km"
