"""Baseline, Baseline++, SimpleShot and fine-tuning: classification, then a task, each written out in float64."""

import pytest
import torch
import torch.nn.functional as F
from oracle import conv4, unrolled_loss
from small import CLASS_TRAINING, TRAIN_CLASSES, assert_close, gradients, random_episodes, small_strategy

import metakm
from metakm.learning.inner_loop import evaluate_episodes, meta_loss
from metakm.presets import preset_config

LR, STEPS, FILTERS, SCALE = 0.4, 3, 6, 7.0  # of cosines
IDENTITY = {"head.weight": torch.eye(FILTERS).double(), "head.bias": torch.zeros(FILTERS).double()}


def small(algo, **options):
    own = {"scale": SCALE} if algo in ("baseline++", "finetune") else {}
    return small_strategy(algo, filters=FILTERS, **own, **options)


def body(strategy):
    backbone = strategy.network.backbone if hasattr(strategy, "network") else strategy.backbone
    return {f"backbone.{k}": p for k, p in backbone.named_parameters()}


def features(parameters, images, **options):
    return conv4({**parameters, **IDENTITY}, images, "stride", **options)


def unit(x):
    """Rows of length 1; a row of zeros stays."""
    return x / x.norm(dim=1, keepdim=True).clamp_min(1e-12)


def cosines(x, w, scale):
    return scale * unit(x) @ unit(w).T


@pytest.mark.parametrize("bn_mode", ["transductive", "support", "running", "frozen"])
@pytest.mark.parametrize("algo", CLASS_TRAINING)
def test_training_is_the_classification_of_all_images_of_each_episode(algo, bn_mode):
    strategy, episodes = small(algo, bn_mode=bn_mode), random_episodes()
    losses, right = [], []
    for t in range(3):
        support, images = episodes.support_images[t], torch.cat([episodes.support_images[t], episodes.query_images[t]])
        labels = torch.cat(
            [episodes.classes[t][episodes.support_labels[t]], episodes.classes[t][episodes.query_labels[t]]]
        )
        if bn_mode == "support":
            x = torch.cat([features(body(strategy), support),
                           features(body(strategy), episodes.query_images[t], reference=support)])  # fmt: skip
        else:
            x = features(body(strategy), images, frozen=bn_mode == "frozen")
        head = dict(strategy.classifier.named_parameters())
        logits = cosines(x, head["weight"], SCALE) if algo == "baseline++" else x @ head["weight"].T + head["bias"]
        losses.append(F.cross_entropy(logits, labels))
        own = logits[len(support) :, episodes.classes[t]]
        right.append((own.argmax(1) == episodes.query_labels[t]).double().mean())
        if algo == "simpleshot":
            away = ((x.detach() - strategy.mean) ** 2).sum(1).mean() / 2
            losses[-1] = losses[-1] + away - away.detach()
    expected = torch.stack(losses).mean()
    actual = meta_loss(strategy, episodes, inner_lr=LR, inner_steps=STEPS)
    torch.testing.assert_close(actual.loss, expected, rtol=1e-10, atol=0)
    torch.testing.assert_close(actual.accuracy, torch.stack(right))
    assert_close(gradients(strategy, actual.loss), gradients(strategy, expected))


@pytest.mark.parametrize("bn_mode", ["transductive", "support"])
@pytest.mark.parametrize("algo", ["baseline", "baseline++"])
def test_a_task_trains_a_new_head_on_fixed_features(algo, bn_mode):
    strategy, episodes = small(algo, bn_mode=bn_mode), random_episodes()
    head = {k: p.detach().requires_grad_() for k, p in strategy.adapted.named_parameters()}

    def predict(fast, images, reference=None):
        x = features(body(strategy), images, reference=reference if bn_mode == "support" else None)
        return x @ fast["weight"].T + fast["bias"] if algo == "baseline" else cosines(x, fast["weight"], SCALE)

    expected = unrolled_loss(predict, head, episodes, LR, STEPS)
    found = evaluate_episodes(strategy, episodes, inner_lr=LR, inner_steps=STEPS)
    torch.testing.assert_close(found.loss, expected.detach(), rtol=1e-10, atol=0)
    assert not torch.allclose(found.loss, evaluate_episodes(strategy, episodes, inner_lr=LR, inner_steps=0).loss)


@pytest.mark.parametrize("bn_mode", ["transductive", "support"])
def test_fine_tuning_moves_every_weight_from_the_class_means_on(bn_mode):
    strategy = small("finetune", bn_mode=bn_mode)
    episodes = random_episodes(ways=3, shots=4)
    episodes.support_labels = torch.tensor([[2, 0, 1, 1, 0, 2, 2, 0, 0, 0, 2, 2]] * 3)  # uneven, in any order
    own, losses = {k: p.detach().requires_grad_() for k, p in body(strategy).items()}, []

    def predict(fast, images, reference=None):
        return cosines(features(fast, images, reference=reference if bn_mode == "support" else None), fast["w"], SCALE)

    for t in range(3):
        x = features(own, episodes.support_images[t]).detach()
        labels = episodes.support_labels[t]
        start = {**own, "w": torch.stack([unit(x)[labels == k].mean(0) for k in range(3)]).requires_grad_()}
        task = type(episodes)(**{k: v[t : t + 1] for k, v in vars(episodes).items()})
        losses.append(unrolled_loss(predict, start, task, LR / 10, STEPS))
    found = evaluate_episodes(strategy, episodes, inner_lr=LR / 10, inner_steps=STEPS)
    torch.testing.assert_close(found.loss, torch.stack(losses).mean().detach(), rtol=1e-9, atol=0)


@pytest.mark.parametrize("transform", ["cl2n", "l2n", "un"])
def test_simpleshot_is_the_nearest_mean_of_transformed_features(transform):
    strategy, episodes = small("simpleshot", transform=transform), random_episodes(ways=5)
    if transform == "cl2n":
        with torch.no_grad():
            strategy.mean.copy_(0.2 * torch.rand(FILTERS))
    logits = evaluate_episodes(strategy, episodes, inner_lr=9.0, inner_steps=7).logits
    for t in range(3):

        def z(images):
            x = features(body(strategy), images).detach()
            x = x - strategy.mean.detach() if transform == "cl2n" else x
            return x if transform == "un" else unit(x)

        support, queries = z(episodes.support_images[t]), z(episodes.query_images[t])
        means = torch.stack([support[episodes.support_labels[t] == k].mean(0) for k in range(5)])
        torch.testing.assert_close(logits[t], -((queries[:, None] - means) ** 2).sum(-1))


def test_the_learned_mean_comes_to_that_of_the_training_features():
    strategy, episodes = small("simpleshot"), random_episodes()
    optimiser = torch.optim.Adam([strategy.mean], lr=0.02)
    for _ in range(200):
        optimiser.zero_grad()
        meta_loss(strategy, episodes, inner_lr=LR, inner_steps=0).loss.backward()
        optimiser.step()
    images = torch.cat([episodes.support_images, episodes.query_images], dim=1)
    torch.testing.assert_close(strategy.mean, strategy.features(images).mean((0, 1)), rtol=0, atol=1e-3)


@pytest.mark.parametrize("algo", CLASS_TRAINING)
def test_without_a_number_of_training_classes_it_is_tested_but_not_trained(algo):
    strategy, episodes = small(algo, train_classes=None), random_episodes()
    trained = small(algo)
    trained.load_state_dict(strategy.state_dict(), strict=False)
    logits = [evaluate_episodes(s, episodes, inner_lr=LR, inner_steps=2).logits for s in (strategy, trained)]
    assert torch.equal(*logits), "the classifier of the training classes has no part in a task"
    with pytest.raises(metakm.UserError, match=rf"train_classes, .* to train '{algo.replace('+', '[+]')}', got none"):
        meta_loss(strategy, episodes, inner_lr=LR, inner_steps=2)


def test_episodes_without_class_numbers_or_with_unknown_ones_are_refused():
    strategy, episodes = small("baseline"), random_episodes()
    episodes.classes = episodes.classes + TRAIN_CLASSES - 11
    with pytest.raises(metakm.UserError, match=r"numbered below 12, .* got 12; build it for FewShotDataset"):
        meta_loss(strategy, episodes, inner_lr=LR, inner_steps=2)
    episodes.classes = None
    with pytest.raises(metakm.UserError, match=r"got none; draw them with metakm.EpisodeSampler"):
        meta_loss(strategy, episodes, inner_lr=LR, inner_steps=2)


def test_a_strategy_that_does_not_ask_for_the_training_classes_is_built_without():
    backbone = metakm.Conv4(1, 3, "stride", image_size=14)
    assert isinstance(metakm.make_strategy("anil", backbone, 4, train_classes=9), metakm.Strategy)
    learner = metakm.Learner("anil", backbone=backbone, ways=4, inner_lr=1.0, inner_steps=1, train_classes=9)
    assert learner.train_classes is None


@pytest.mark.parametrize("algo", CLASS_TRAINING)
def test_a_saved_learner_has_its_classifier(algo, tmp_path):
    settings = {"ways": 4, "inner_lr": 0.4, "inner_steps": 2, "image_shape": (1, 14, 14), "train_classes": 7}
    learner = metakm.Learner(algo, backbone="conv4-4-stride", **settings)
    learner.save(tmp_path / "learner.safetensors")
    loaded = metakm.Learner.load(tmp_path / "learner.safetensors")
    assert loaded.train_classes == 7
    assert all(torch.equal(value, loaded.state_dict()[name]) for name, value in learner.state_dict().items())
    assert any(name.startswith("strategy.classifier") for name in learner.state_dict())


@pytest.mark.parametrize("algo", ["baseline++", "finetune"])
@pytest.mark.parametrize("scale", [0.0, -1.0, float("inf"), float("nan")])
def test_a_scale_that_is_not_positive_is_refused(algo, scale):
    with pytest.raises(metakm.UserError, match=r"\.scale .*above 0"):
        preset_config(algo=algo, **{f"{algo}.scale": scale})


def test_an_unknown_transform_is_refused():
    with pytest.raises(metakm.UserError, match="did you mean 'cl2n'"):
        preset_config(algo="simpleshot", **{"simpleshot.transform": "c2ln"})


@pytest.mark.parametrize("preset", ["quick", "table3"])
@pytest.mark.parametrize("dataset", ["omniglot", "mini-imagenet"])
@pytest.mark.parametrize("algo", CLASS_TRAINING)
def test_presets_have_as_many_images_an_iteration_as_for_others_and_the_same_tests(algo, dataset, preset):
    own, other = (preset_config(preset, name, dataset) for name in (algo, "maml"))
    images = [c.meta_batch * c.ways * (c.shots + c.queries) for c in (own, other)]
    assert images[0] == images[1]
    assert own.test_queries == (other.test_queries or other.queries)
    assert own.queries == 1
