"""Task packs: bit-equal round trips, and one base with many tasks."""

import copy
import dataclasses

import numpy as np
import pandas as pd
import pytest
import torch
from convnets import CASES, Mixed, images, mobilenet, perturb, train
from packing import assert_bit_equal, packed_task, state
from torch import nn

import metakm
from metakm.modulation import ChannelModulator, load_pack, make_pack, modulate, read_pack, save_pack, swap, write_pack
from metakm.modulation.attachment import modulated_layers
from metakm.modulation.partition import base_fingerprint


@pytest.fixture
def task(tmp_path):
    return packed_task(tmp_path)


@pytest.fixture
def base(task):
    return task[0]


@pytest.fixture
def packed(task):
    """The trained model and the file of its task."""
    return task[1:]


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("implicit", [True, False])
def test_round_trip_is_bit_equal_and_carries_the_task_over(name, implicit, tmp_path):
    torch.manual_seed(0)
    builder, classifier = CASES[name]
    plain = builder()
    model = train(modulate(copy.deepcopy(plain), classifier=classifier, implicit=implicit)).eval()
    written = save_pack(model, tmp_path / "a.safetensors")
    read = read_pack(tmp_path / "a.safetensors")
    assert_bit_equal(read.tensors, written.tensors)
    other = modulate(copy.deepcopy(plain), classifier=classifier, implicit=implicit).eval()
    load_pack(other, tmp_path / "a.safetensors")
    assert_bit_equal(other.state_dict(), model.state_dict())
    x = images()
    assert torch.equal(other(x), model(x))


def test_a_pack_has_the_tasks_tensors_and_no_other(packed):
    model, path = packed
    norms = {f"{n}.{p}" for n in ("norm1", "norm2", "norm3") for p in ("weight", "bias")}
    statistics = {f"norm1.{b}" for b in ("running_mean", "running_var", "num_batches_tracked")}
    modulators = {f"{n}.modulator.{p}" for n in modulated_layers(model) for p in ("layers.0", "layers.1", "scale")}
    assert read_pack(path).tensors.keys() == norms | statistics | modulators | {"fc.weight", "fc.bias"}
    assert make_pack(modulate(Mixed(), implicit=False)).tensors.keys() == statistics | modulators | {
        "fc.weight",
        "fc.bias",
    }


def test_a_pack_says_what_it_is(base, packed):
    _, path = packed
    pack = read_pack(path)
    assert (pack.task, pack.classes, pack.metrics) == ("birds", ("owl", "wren", "kite"), {"accuracy": 0.5})
    assert pack.base == base_fingerprint(base, True, "fc")
    assert pack.modulation == {
        "layers": ["stem", "grouped", "depthwise", "pointwise"],
        "implicit": True,
        "classifier": "fc",
        "modulator": "KernelModulator",
        "activation": "tanh",
        "init": "identity",
        "depth": 2,
        "start": "exact",
        "statistics": "task",
    }


def test_the_same_task_gives_the_same_bytes_and_leaves_no_temporary_file(packed, tmp_path):
    model, path = packed
    save_pack(model, tmp_path / "again", "birds", ["owl", "wren", "kite"], {"accuracy": 0.5})
    assert (tmp_path / "again").read_bytes() == path.read_bytes()
    assert [p.name for p in path.parent.iterdir()] == ["birds.safetensors"]


def test_a_plain_base_is_modulated_as_the_pack_was(base, tmp_path):
    model = perturb(modulate(copy.deepcopy(base), layers="*wise", activation="sin", modulator=ChannelModulator)).eval()
    save_pack(model, tmp_path / "a")
    plain = copy.deepcopy(base).eval()
    state_before = torch.get_rng_state()
    load_pack(plain, tmp_path / "a")
    assert torch.equal(torch.get_rng_state(), state_before)
    assert_bit_equal(plain.state_dict(), model.state_dict())
    x = images()
    assert torch.equal(plain(x), model(x))
    trainable = [{n for n, p in m.named_parameters() if p.requires_grad} for m in (plain, model)]
    assert trainable[0] == trainable[1]


def test_fingerprint_is_of_the_base_alone(base):
    for options in ({}, {"layers": "stem"}, {"modulator": ChannelModulator, "depth": 3}):
        model = train(modulate(copy.deepcopy(base), **options))
        assert base_fingerprint(model, True, "fc") == base_fingerprint(base, True, "fc")
    assert base_fingerprint(base, False, "fc") != base_fingerprint(base, True, "fc")


@pytest.mark.parametrize(
    ("kind", "setting", "value"),
    [
        (torch.nn.Conv2d, "stride", (3, 3)),
        (torch.nn.Conv2d, "padding", (2, 2)),
        (torch.nn.Conv2d, "dilation", (2, 2)),
        (torch.nn.Conv2d, "padding_mode", "circular"),
        (torch.nn.BatchNorm2d, "eps", 0.1),
    ],
)
def test_fingerprint_is_of_what_layers_do_too(base, kind, setting, value):
    other = copy.deepcopy(base)
    setattr(next(module for module in other.modules() if isinstance(module, kind)), setting, value)
    assert base_fingerprint(other, True, "fc") != base_fingerprint(base, True, "fc")


def test_a_pack_of_everything_still_needs_the_same_layers(base):
    other = copy.deepcopy(base)
    next(m for m in other.modules() if isinstance(m, torch.nn.Conv2d)).stride = (3, 3)
    assert base_fingerprint(other, True, "", "base") != base_fingerprint(base, True, "", "base")
    other.load_state_dict({name: 2 * t for name, t in base.state_dict().items()})
    next(m for m in other.modules() if isinstance(m, torch.nn.Conv2d)).stride = next(
        m for m in base.modules() if isinstance(m, torch.nn.Conv2d)
    ).stride
    assert base_fingerprint(other, True, "", "base") == base_fingerprint(base, True, "", "base")


@pytest.mark.parametrize(("builder", "classifier"), [(Mixed, "fc"), (mobilenet, "classifier")])
def test_swap_restores_each_task_bit_for_bit_with_its_own_number_of_classes(builder, classifier):
    torch.manual_seed(0)
    resident, x, expected, packs = modulate(builder(), classifier=classifier).eval(), images(), [], []
    frozen = {n: p.clone() for n, p in resident.named_parameters() if not p.requires_grad}
    for classes in (3, 7, 2):
        last = resident.fc if classifier == "fc" else resident.classifier[-1]
        last.weight, last.bias = (
            nn.Parameter(torch.randn(classes, last.in_features)),
            nn.Parameter(torch.randn(classes)),
        )
        perturb(resident)
        expected.append(resident(x).detach())
        packs.append(make_pack(resident))
    for task in (0, 2, 1, 1, 0):
        swap(resident, packs[task])
        assert torch.equal(resident(x), expected[task])
        assert last.out_features == len(last.weight) == (3, 7, 2)[task]
        assert make_pack(resident).tensors.keys() == packs[task].tensors.keys()
    assert all(torch.equal(resident.get_parameter(n), p) for n, p in frozen.items())
    train(resident, steps=1)  # gradients of the present shapes


def test_training_on_after_a_swap_leaves_the_pack_as_it_was(base):
    wider = copy.deepcopy(base)
    wider.fc = nn.Linear(12, 9)
    wide, model = make_pack(modulate(wider)), modulate(base)
    pack = make_pack(model)
    train(model)
    for task in (wide, pack):
        before = {name: tensor.clone() for name, tensor in task.tensors.items()}
        swap(model, task)
        assert model.fc.weight.grad is None  # of the other number of classes
        train(model)
        assert_bit_equal(task.tensors, before)


def test_swap_hashes_the_base_once_and_again_after_it_was_written_to(base, packed, monkeypatch):
    pack, calls = read_pack(packed[1]), []
    counted = lambda *arguments: calls.append(1) or base_fingerprint(*arguments)  # noqa: E731
    monkeypatch.setattr("metakm.modulation.pack.base_fingerprint", counted)
    model = modulate(base)
    for _ in range(3):
        swap(model, pack)
    assert len(calls) == 1
    with torch.no_grad():
        model.linear.weight.add_(1)
    before = state(model)
    with pytest.raises(metakm.UserError, match="base network of the pack"):
        swap(model, pack)
    assert_bit_equal(model.state_dict(), before)
    with torch.no_grad():
        model.linear.weight.sub_(1)
    assert len(calls) == 2
    with pytest.raises(metakm.UserError, match="modulated model, got a plain"):
        swap(Mixed(), pack)


@pytest.mark.parametrize(
    ("classes", "names"),
    [
        (np.array(["owl", "wren", "kite"]), ("owl", "wren", "kite")),
        (list(np.unique([7, 5, 6])), ("5", "6", "7")),
        (np.unique([7, 5, 6]), ("5", "6", "7")),
        (pd.Series(["owl", "wren", "kite"]), ("owl", "wren", "kite")),
        (torch.arange(3), ("0", "1", "2")),
        ([b"owl", np.bytes_(b"wren"), np.str_("kite")], ("owl", "wren", "kite")),
        (np.array([]), ()),
    ],
)
def test_class_names_are_taken_as_numpy_pandas_and_torch_give_them(classes, names, tmp_path):
    metrics = {"accuracy": np.float32(0.5), "loss": torch.tensor(0.25)}
    save_pack(modulate(Mixed()), tmp_path / "a.safetensors", classes=classes, metrics=metrics)
    read = read_pack(tmp_path / "a.safetensors")
    assert (read.classes, read.metrics) == (names, {"accuracy": 0.5, "loss": 0.25})


def test_a_pack_made_by_hand_may_have_names_of_numpy(tmp_path):
    pack = dataclasses.replace(make_pack(modulate(Mixed())), classes=tuple(np.arange(3)), metrics={"a": np.float64(1)})
    write_pack(pack, tmp_path / "a.safetensors")
    read = read_pack(tmp_path / "a.safetensors")
    assert (read.classes, read.metrics) == (("0", "1", "2"), {"a": 1.0})


@pytest.mark.parametrize("classes", ["owl", b"owl"])
def test_one_string_is_not_three_class_names(classes):
    with pytest.raises(metakm.UserError, match=r"Expected a list of class names, got b?'owl'; put it into a list"):
        make_pack(modulate(Mixed()), classes=classes)


def test_packs_are_taken_from_memory_and_from_files(task):
    base, _, path = task
    pack = read_pack(path)
    from_file, from_memory = copy.deepcopy(base), copy.deepcopy(base)
    load_pack(from_file, path)
    load_pack(from_memory, pack)
    assert_bit_equal(state(from_memory), state(from_file))
    start = modulate(copy.deepcopy(base))
    swap(start, path)
    assert_bit_equal(state(start), state(from_file))
    assert "tensors" not in repr(pack)
    assert pack in [pack]


def test_the_next_task_begins_where_the_first_did(task):
    """docs/modulation.md: a pack made before training undoes it, whatever the head has become."""
    model = modulate(copy.deepcopy(task[0]))
    start = make_pack(model)
    before = state(model)
    train(model)
    assert any(p.grad is not None for p in model.parameters())
    swap(model, start)
    assert_bit_equal(state(model), before)
    assert all(p.grad is None for p in model.parameters())


def test_a_swap_in_inference_mode_leaves_a_head_that_can_be_trained():
    layers = nn.Conv2d(3, 8, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4)
    model = modulate(nn.Sequential(*layers), classifier="3")
    four = make_pack(model)
    model[3] = nn.Linear(8, 7)
    with torch.inference_mode():
        swap(model, four)
    model.train()(torch.rand(2, 3, 8, 8)).sum().backward()
    assert model[3].weight.grad.shape == (4, 8)
