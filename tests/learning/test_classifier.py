"""From images to an adapted classifier, and from a run's folder to its strategy."""

import copy
import json
import pickle
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from small import small_strategy

import metakm
from metakm.run.__main__ import main
from metakm.run.build import make_sampler

WAYS, SHOTS, QUERIES = 3, 2, 4
NAMES = ["emu", "kea", "owl"]
INNER = {"inner_lr": 0.4, "inner_steps": 3}


def photographs(seed=0):
    """Support images in an order of their own with their names, and query images."""
    generator = torch.Generator().manual_seed(seed)
    support = torch.rand(WAYS * SHOTS, 1, 14, 14, generator=generator)
    queries = torch.rand(WAYS * QUERIES, 1, 14, 14, generator=generator)
    return support, ["owl", "emu", "kea", "kea", "owl", "emu"], queries


def episode(support, labels, queries):
    index = torch.tensor([NAMES.index(label) for label in labels])
    unused = torch.zeros(1, len(queries), dtype=torch.int64)
    return SimpleNamespace(
        support_images=support[None], support_labels=index[None], query_images=queries[None], query_labels=unused
    )


@pytest.mark.parametrize("bn_mode", ["transductive", "support", "running", "frozen"])
@pytest.mark.parametrize("algo", metakm.available_strategies())
def test_the_classifier_gives_the_logits_of_an_evaluated_episode(algo, bn_mode):
    strategy, (support, labels, queries) = small_strategy(algo, WAYS, bn_mode=bn_mode), photographs()
    strategy.eval()
    expected = metakm.evaluate_episodes(strategy, episode(support, labels, queries), **INNER).logits[0]
    classifier = metakm.adapt(strategy, support, labels, **INNER)
    logits = classifier(queries)
    torch.testing.assert_close(logits, expected, rtol=1e-10, atol=1e-12)
    assert not logits.requires_grad
    assert classifier.classes_ == NAMES
    assert classifier.predict(queries) == [NAMES[i] for i in expected.argmax(1).tolist()]
    torch.testing.assert_close(classifier.predict_proba(queries).sum(1), torch.ones(WAYS * QUERIES))


@pytest.mark.parametrize("bn_mode", ["transductive", "support", "running", "frozen"])
def test_images_of_one_call_influence_each_other_under_transductive_batch_norm_only(bn_mode):
    support, labels, queries = photographs()
    classifier = metakm.adapt(small_strategy("km", WAYS, bn_mode=bn_mode), support, labels, **INNER)
    together, alone = classifier(queries), torch.cat([classifier(query[None]) for query in queries])
    assert torch.allclose(together, alone, rtol=1e-9) == (bn_mode != "transductive")


def test_the_strategy_stays_as_it_is_and_the_classifier_does_not_follow_it():
    strategy, (support, labels, queries) = small_strategy("maml", WAYS, bn_mode="running"), photographs()
    before = {k: v.clone() for k, v in strategy.state_dict().items()}
    classifier = metakm.adapt(strategy, support, labels, **INNER)
    logits = classifier(queries)
    assert strategy.training
    assert all(torch.equal(before[k], v) for k, v in strategy.state_dict().items())
    with torch.no_grad():
        for parameter in strategy.parameters():
            parameter.zero_()
    assert torch.equal(classifier(queries), logits)


def test_bytes_arrays_and_numbered_labels_are_taken_too():
    strategy, (support, labels, queries) = small_strategy("anil", WAYS), photographs()
    as_bytes = [(255 * images).round().to(torch.uint8) for images in (support, queries)]
    numbers = torch.tensor([NAMES.index(label) for label in labels])
    named = metakm.adapt(strategy, as_bytes[0], labels, **INNER)
    numbered = metakm.adapt(strategy, as_bytes[0].numpy(), numbers, **INNER)
    assert torch.equal(named(as_bytes[1]), numbered(as_bytes[1].numpy()))
    torch.testing.assert_close(named(as_bytes[1]), named(as_bytes[1].double() / 255))
    assert numbered.classes_ == [0, 1, 2]
    assert repr(numbered) == "AdaptedClassifier(3 classes, images [1, 14, 14])"


def test_protonet_takes_any_number_of_classes():
    support, labels, queries = photographs()
    classifier = metakm.adapt(small_strategy("protonet", 20), support, labels, **INNER)
    assert classifier(queries).shape == (WAYS * QUERIES, WAYS)


@pytest.mark.parametrize(
    ("images", "labels", "said"),
    [
        (torch.rand(6, 1, 14, 14), ["a", "b", "c"], "one label per image, got 3 for 6 images"),
        (torch.rand(6, 1, 14, 14), list("aabbab"), "3 different labels, the ways of the strategy, got 2"),
        (torch.rand(6, 1, 14, 14), list("abcdef"), "3 different labels, the ways of the strategy, got 6"),
        (torch.rand(6, 1, 14, 14), ["a", "b", "c", 1, 2, 3], "all strings or all numbers"),
        (torch.rand(6, 14, 14), list("aabbcc"), r"\[n, C, H, W\], got \[6, 14, 14\]"),
        (torch.rand(0, 1, 14, 14), [], r"\[n, C, H, W\], got \[0, 1, 14, 14\]"),
        (torch.rand(6, 3, 14, 14), list("aabbcc"), "images of 1 channels, got 3"),
        (255 * torch.rand(6, 1, 14, 14), list("aabbcc"), "uint8 images, or floats from 0 to 1, got torch.float"),
        (torch.full((6, 1, 14, 14), torch.nan), list("aabbcc"), "floats from 0 to 1"),
        (torch.ones(6, 1, 14, 14, dtype=torch.int64), list("aabbcc"), "got torch.int64"),
        ("six.png", list("aabbcc"), r"\[n, C, H, W\], got str; metakm.read_images reads files"),
        (["1.png", "2.png"], ["a", "b"], r"\[n, C, H, W\], got list; metakm.read_images reads files"),
    ],
)
def test_a_support_set_that_does_not_fit_is_refused(images, labels, said):
    with pytest.raises(metakm.UserError, match=said):
        metakm.adapt(small_strategy("km", WAYS), images, labels, **INNER)


def test_images_that_do_not_fit_the_network_are_refused():
    strategy = small_strategy("km", WAYS, downsample="pool", size=16)
    with pytest.raises(metakm.UserError, match=r"fit the strategy, got \[1, 32, 32\]"):
        metakm.adapt(strategy, torch.rand(6, 1, 32, 32), list("aabbcc"), **INNER)


def test_images_of_another_size_than_the_support_set_are_refused():
    support, labels, _ = photographs()
    classifier = metakm.adapt(small_strategy("km", WAYS), support, labels, **INNER)
    with pytest.raises(metakm.UserError, match=r"\[1, 14, 14\] as in the support set, got \[1, 28, 28\]"):
        classifier(torch.rand(2, 1, 28, 28))


@pytest.fixture(scope="module")
def birds(tmp_path_factory):
    """Photographs of invented birds: each class has a colour of its own."""
    root = tmp_path_factory.mktemp("birds")
    rng = np.random.default_rng(0)
    for split, blue in (("train", 60), ("val", 90), ("test", 120)):
        for number in range(3):
            folder, colour = root / split / f"{split} bird {number}", np.roll([200, 60, blue], number)
            folder.mkdir(parents=True)
            for i in range(6):
                pixels = np.clip(colour + rng.integers(-40, 40, (20, 24, 3)), 0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(folder / f"{i}.png")
    return root


@pytest.fixture(scope="module")
def trained(birds, tmp_path_factory):
    """A small run on them, with learned inner rates; METAKM_CACHE as for the tests below."""
    torch.set_default_dtype(torch.float32)
    out = tmp_path_factory.mktemp("results")
    flags = (
        f"--algo km --dataset folder --data-root {birds} --image-size 16 --ways 3 --queries 4 --out {out} "
        "--backbone conv4-8-stride --iterations 15 --meta-batch 2 --val-every 15 --val-tasks 5 --eval-tasks 5 "
        "--inner-lr 0.5 --learn-inner-lr --device cpu"
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("METAKM_CACHE", str(out / "cache"))
        assert main(flags.split()) == 0
        yield SimpleNamespace(flags=flags.split(), folder=out / "folder-3w1s" / "km" / "seed0")


@pytest.mark.float32
def test_a_loaded_run_gives_the_accuracies_of_its_meta_test(trained):
    run = metakm.load_run(trained.folder)
    assert (run.config.algo, run.test_inner_steps, run.image_shape) == ("km", run.config.test_inner_steps, (3, 16, 16))
    assert len(run.inner_lr) == len(list(run.strategy.adapted.parameters()))
    assert not run.strategy.training
    episodes = make_sampler(run.config, "test").batch(index=0, tasks=5)
    accuracies = []
    for t in range(5):
        support, labels = episodes.support_images[t], episodes.support_labels[t]
        classifier = metakm.adapt(
            run.strategy, support, labels, inner_lr=run.inner_lr, inner_steps=run.test_inner_steps
        )
        right = torch.tensor(classifier.predict(episodes.query_images[t])) == episodes.query_labels[t]
        accuracies.append(right.double().mean().item())
    assert accuracies == pytest.approx(pd.read_csv(trained.folder / "tasks.csv").accuracy.tolist())


@pytest.mark.float32
def test_five_lines_from_photographs_to_labels(trained, birds):
    photos = [birds / "test" / f"test bird {i}" / f"{j}.png" for i in range(3) for j in range(2)]
    others = [birds / "test" / f"test bird {i}" / f"{j}.png" for i in range(3) for j in range(2, 6)]
    run = metakm.load_run(trained.folder)
    images, names = metakm.read_images(photos, run.image_shape), [name for name in NAMES for _ in range(2)]
    classifier = metakm.adapt(run.strategy, images, names, inner_lr=run.inner_lr, inner_steps=run.test_inner_steps)
    predicted = classifier.predict(metakm.read_images(others, run.image_shape))
    assert sum(p == NAMES[i // 4] for i, p in enumerate(predicted)) > 8, "of 12, by colour; chance is 4"


@pytest.mark.float32
def test_a_run_is_not_resumed_on_other_photographs(trained, birds, tmp_path, capsys):
    for split in ("train", "val", "test"):
        (tmp_path / split).symlink_to(birds / split)
    moved = [str(tmp_path) if flag == str(birds) else flag for flag in trained.flags]
    assert main([*moved, "--resume"]) == 0, "the same photographs elsewhere"
    (tmp_path / "train").unlink()
    for i in range(3):
        (tmp_path / "train" / f"other {i}").mkdir(parents=True)
        for j in range(5):
            Image.new("RGB", (9, 9), (i, j, 0)).save(tmp_path / "train" / f"other {i}" / f"{j}.png")
    before = (trained.folder / "result.csv").read_bytes()
    capsys.readouterr()
    assert main([*moved, "--resume"]) == 2
    assert "Expected the train data of the run to resume" in capsys.readouterr().err
    assert (trained.folder / "result.csv").read_bytes() == before


def spoil_config(folder, text):
    (folder / "config.json").write_text(text)


@pytest.mark.float32
@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda f: (f / "config.json").unlink(), "Expected the run's settings in .*config.json"),
        (lambda f: spoil_config(f, "{"), "Expected the run's settings in .*config.json"),
        (lambda f: spoil_config(f, "[]"), "Expected .*config"),
        (
            lambda f: (f / "checkpoint.pt").unlink(),
            "Expected a trained run, got .* without weights.safetensors or",
        ),
        (lambda f: (f / "checkpoint.pt").write_bytes(b"nonsense"), "damaged or foreign"),
        (lambda f: change(f, algo="anil"), r"Expected config key to be one of .*got 'km\.depth'"),
        (lambda f: change(f, **{"km.depth": 3}), r"km.depth=2 \(now 3\)"),
        (lambda f: change(f, algo="plugged-in"), "Expected strategy"),
        (lambda f: without(f, "image_shape"), "Expected the parameters of km"),
    ],
)
def test_a_folder_that_holds_no_trained_run_is_refused(trained, tmp_path, spoil, said):
    for name in ("config.json", "checkpoint.pt"):
        (tmp_path / name).write_bytes((trained.folder / name).read_bytes())
    assert metakm.load_run(tmp_path).config.algo == "km"
    spoil(tmp_path)
    with pytest.raises(metakm.UserError, match=said):
        metakm.load_run(tmp_path)


def change(folder, **values):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **values}))


def without(folder, key):
    state = torch.load(folder / "checkpoint.pt", weights_only=True)
    del state[key]
    torch.save(state, folder / "checkpoint.pt")


def test_a_copy_has_the_rates_of_when_it_was_adapted():
    support, labels, queries = photographs()
    learner = metakm.Learner(
        "anil", backbone=metakm.Conv4(in_channels=1, filters=4), ways=WAYS, inner_lr=0.4, inner_steps=2,
        learn_inner_lr=True,
    )  # fmt: skip
    classifier = learner.adapt(support, labels)
    before = classifier(queries)
    with torch.no_grad():
        for rate in learner.rates:
            rate.mul_(3)
    for again in (classifier, pickle.loads(pickle.dumps(classifier)), copy.deepcopy(classifier)):
        assert torch.equal(again(queries), before)


def test_a_frozen_learner_adapts_all_the_same():
    support, labels, queries = photographs()
    learner = metakm.Learner(
        "maml", backbone=metakm.Conv4(in_channels=1, filters=4), ways=WAYS, inner_lr=0.4, inner_steps=2
    )
    expected = learner.adapt(support, labels)(queries)
    learner.requires_grad_(False)
    assert torch.equal(learner.adapt(support, labels)(queries), expected)


@pytest.mark.parametrize("rate", [torch.tensor(0.4), np.float32(0.5)])
def test_a_rate_may_be_a_tensor_or_a_numpy_number(rate):
    support, labels, queries = photographs()
    strategy = small_strategy("anil", ways=WAYS)
    expected = metakm.adapt(strategy, support, labels, inner_lr=float(rate), inner_steps=2)(queries)
    found = metakm.adapt(strategy, support, labels, inner_lr=rate, inner_steps=2)(queries)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("algo", ["km", "anil", "protonet", "km-proto"])
def test_a_classifier_that_was_pickled_or_copied_gives_the_same_logits(algo):
    support, labels, queries = photographs()
    classifier = metakm.adapt(small_strategy(algo, WAYS), support, labels, **INNER)
    for again in (pickle.loads(pickle.dumps(classifier)), copy.deepcopy(classifier)):
        assert torch.equal(again(queries), classifier(queries))
        assert again.classes_ == classifier.classes_


def test_the_names_of_metakm_0_2_still_work():
    support, labels, queries = photographs()
    classifier = metakm.adapt(small_strategy("km", WAYS), support, labels, **INNER)
    with pytest.warns(DeprecationWarning, match=r"AdaptedClassifier\.labels is deprecated; use classes_"):
        assert classifier.labels == NAMES
    with pytest.warns(DeprecationWarning, match=r"AdaptedClassifier\.probabilities is deprecated; use predict_proba"):
        assert torch.equal(classifier.probabilities(queries), classifier.predict_proba(queries))


def test_adaptation_works_in_inference_mode_on_images_that_were_made_there():
    support, labels, queries = photographs()
    strategy = small_strategy("km", WAYS).eval()
    expected = metakm.adapt(strategy, support, labels, **INNER)(queries)
    with torch.inference_mode():
        made = support.clone(), labels, queries.clone()
        classifier = metakm.adapt(strategy, *made[:2], **INNER)
        assert torch.equal(classifier(made[2]), expected)
        found = metakm.evaluate_episodes(strategy, episode(*made), **INNER)
    torch.testing.assert_close(found.logits[0], expected, rtol=1e-10, atol=1e-12)


def test_images_in_float32_are_taken_in_the_precision_of_the_parameters():
    """As with `torch.set_default_dtype(torch.float64)`: the sampler gives float32."""
    support, labels, queries = (x.float() if isinstance(x, torch.Tensor) else x for x in photographs())
    strategy = small_strategy("km", WAYS)
    loss = metakm.meta_loss(strategy, episode(support, labels, queries), **INNER).loss
    assert loss.dtype == torch.float64
    doubled = metakm.meta_loss(strategy, episode(support.double(), labels, queries.double()), **INNER).loss
    assert loss.item() == pytest.approx(doubled.item(), rel=1e-12)


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        ([0, 0, 1, 1, 2, None], "a label for every image, got none for 1 of 6"),
        (pd.Series(["a", "a", "b", "b", "c", None]), "a label for every image"),
        (torch.tensor([0, 0, 1, 1, 2, float("nan")]), "a label for every image"),
        (np.eye(3)[[0, 0, 1, 1, 2, 2]], "all strings or all numbers, got list"),
        ([np.eye(3)[0]] * 6, "one-hot vectors, take the argmax"),
    ],
)
def test_labels_that_name_no_class_are_refused(labels, said):
    with pytest.raises(metakm.UserError, match=said):
        metakm.adapt(small_strategy("km", WAYS), torch.rand(6, 1, 14, 14), labels, **INNER)


def test_labels_as_a_table_has_them_are_taken():
    support, labels, queries = photographs()
    named = metakm.adapt(small_strategy("anil", WAYS), support, labels, **INNER)
    column = metakm.adapt(small_strategy("anil", WAYS), support, pd.Series(labels, dtype="category"), **INNER)
    assert column.classes_ == NAMES
    assert torch.equal(column(queries), named(queries))
