"""Packs that are refused, with the model left as it was: wrong base, other modulation, damaged or changed files."""

import copy
import json

import pytest
import safetensors
import safetensors.torch
import torch
from convnets import Mixed, train
from packing import assert_bit_equal, packed_task, state
from torch import nn

import metakm
from metakm.modulation import load_pack, make_pack, modulate, read_pack, save_pack, swap
from metakm.modulation.attachment import is_modulated


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


def rewrite(path, change, key="metakm"):
    """Change the header of a pack as JSON and write a valid safetensors file again."""
    with safetensors.safe_open(path, "pt") as file:
        header = json.loads(file.metadata()["metakm"])
    tensors = safetensors.torch.load_file(path)
    change(header, tensors)
    path.write_bytes(safetensors.torch.save(tensors, {key: json.dumps(header)}))


@pytest.mark.parametrize(
    "change",
    [
        lambda m: m.stem.weight.data[0, 0, 0, 0].add_(1e-12),
        lambda m: m.linear.bias.data.neg_(),
        lambda m: setattr(m.grouped, "dilation", (1, 1)),
        lambda m: setattr(m.norm2, "num_groups", 4),
        lambda m: setattr(m.norm2, "eps", 1e-3),
        lambda m: m.float(),
        lambda m: setattr(m, "linear", nn.Linear(12, 12, bias=False)),
    ],
    ids=["one bit", "linear", "dilation", "groups", "eps", "precision", "tensor missing"],
)
@pytest.mark.parametrize("plain", [True, False])
def test_a_wrong_base_is_refused_and_left_as_it_was(base, packed, change, plain):
    change(base)
    if not plain:
        modulate(base)
    before, trainable = state(base), [p.requires_grad for p in base.parameters()]
    with pytest.raises(
        metakm.UserError, match=r"base network of the pack \(fingerprint [0-9a-f]{12}\), got [0-9a-f]{12}: other"
    ):
        load_pack(base, packed[1])
    assert_bit_equal(base.state_dict(), before)
    assert [p.requires_grad for p in base.parameters()] == trainable
    assert is_modulated(base) is not plain


def test_a_pack_that_does_not_fit_is_refused_and_the_model_left_as_it_was(base, packed):
    narrower = copy.deepcopy(base)
    narrower.fc = nn.Linear(6, 3)
    for model in (narrower, modulate(copy.deepcopy(narrower))):
        before, trainable = state(model), [p.requires_grad for p in model.parameters()]
        with pytest.raises(metakm.UserError, match=r"fc.weight of shape \(3, 6\), got \(3, 12\) in the pack"):
            load_pack(model, packed[1])
        assert_bit_equal(model.state_dict(), before)
        assert [p.requires_grad for p in model.parameters()] == trainable
    headless = copy.deepcopy(base)
    del headless.fc
    with pytest.raises(metakm.UserError, match="pack's classifier 'fc', got one without"):
        load_pack(headless, packed[1])
    without_statistics = copy.deepcopy(base)
    without_statistics.norm1 = nn.GroupNorm(2, 8)
    with pytest.raises(metakm.UserError, match="base network of the pack"):
        load_pack(without_statistics, packed[1])
    other_precision = copy.deepcopy(base)
    other_precision.fc.float()
    with pytest.raises(metakm.UserError, match=r"fc.weight of torch.float32, got torch.float64 in the pack"):
        load_pack(other_precision, packed[1])
    biasless = copy.deepcopy(base)
    biasless.fc = nn.Linear(12, 3, bias=False)
    with pytest.raises(metakm.UserError, match=r"same tensors, got 1 in one of them only \(fc.bias\)"):
        load_pack(biasless, packed[1])


def test_what_weight_norm_computes_from_is_the_bases():
    def network(scale=1.0):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3), nn.Flatten(), nn.Linear(64, 2))
        nn.utils.parametrizations.weight_norm(model[0])
        with torch.no_grad():
            model[0].parametrizations.weight.original0.mul_(scale)
        return modulate(model, layers=["1"], classifier="3")

    pack = make_pack(network())
    assert {name.partition(".modulator.")[0] for name in pack.tensors} == {"1", "3.weight", "3.bias"}
    swap(network(), pack)
    with pytest.raises(metakm.UserError, match="Expected the base network of the pack"):
        swap(network(7.0), pack)


def test_a_model_modulated_otherwise_is_refused(base, packed):
    model = modulate(base, activation="sin", layers="stem")
    before = state(model)
    with pytest.raises(metakm.UserError, match=r"layers=.*the model has \['stem'\].*activation='tanh' \(the model has"):
        load_pack(model, packed[1])
    assert_bit_equal(model.state_dict(), before)


def test_a_users_own_modulator_is_named_and_needs_a_modulated_model(base, tmp_path):
    class Own(metakm.modulation.KernelModulator):
        pass

    model = train(modulate(copy.deepcopy(base), modulator=Own))
    save_pack(model, tmp_path / "a")
    with pytest.raises(metakm.UserError, match="modulated model for a pack of Own, got a plain one"):
        load_pack(copy.deepcopy(base), tmp_path / "a")
    load_pack(modulate(base, modulator=Own), tmp_path / "a")
    assert_bit_equal(base.state_dict(), model.state_dict())


@pytest.mark.parametrize("size", [0, 4, 100, -1000, -1])
def test_a_truncated_file_is_refused(base, packed, size):
    _, path = packed
    path.write_bytes(path.read_bytes()[:size])
    before = state(base)
    with pytest.raises(metakm.UserError, match=r"truncated or foreign file .*birds\.safetensors"):
        load_pack(base, path)
    assert_bit_equal(base.state_dict(), before)


@pytest.mark.parametrize(
    "change",
    [
        lambda header, _: header.update(base="0" * 64),
        lambda header, _: header["metrics"].update(accuracy=0.99),
        lambda header, _: header["classes"].reverse(),
        lambda header, _: header["modulation"].update(activation="sin"),
        lambda header, _: header.pop("task"),
        lambda _, tensors: tensors["fc.bias"].add_(1e-3),
        lambda _, tensors: tensors.pop("fc.bias"),
    ],
    ids=["base", "metrics", "classes", "modulation", "key missing", "tensor changed", "tensor missing"],
)
def test_a_tampered_file_is_refused(base, packed, change):
    rewrite(packed[1], change)
    with pytest.raises(metakm.UserError, match="as it was written, got a changed header or tensor"):
        load_pack(base, packed[1])


def test_a_flipped_byte_anywhere_is_refused(base, packed):
    _, path = packed
    whole = path.read_bytes()
    for position in range(0, len(whole), len(whole) // 40):
        damaged = bytearray(whole)
        damaged[position] ^= 1
        path.write_bytes(damaged)
        with pytest.raises(metakm.UserError, match=r"birds\.safetensors"):
            load_pack(base, path)


def test_other_files_are_refused(base, packed, tmp_path):
    _, path = packed
    with pytest.raises(metakm.UserError, match=r"got no file .*nothing"):
        load_pack(base, tmp_path / "nothing")
    with pytest.raises(metakm.UserError, match="got the folder"):
        load_pack(base, tmp_path)
    rewrite(path, lambda header, _: header.update(format=2))
    with pytest.raises(metakm.UserError, match="pack format 1, got 2"):
        read_pack(path)
    rewrite(path, lambda header, _: header.pop("digest"))
    with pytest.raises(metakm.UserError, match="header, got a damaged one"):
        read_pack(path)
    safetensors.torch.save_file({"a": torch.zeros(1)}, path)
    with pytest.raises(metakm.UserError, match="without metakm's header"):
        read_pack(path)


def test_saving_says_what_it_cannot_do(base, tmp_path):
    with pytest.raises(metakm.UserError, match="modulated model, got a plain Mixed"):
        save_pack(base, tmp_path / "a")
    with pytest.raises(metakm.UserError, match=r"Expected 3 class names.*got 2"):
        save_pack(modulate(base), tmp_path / "a", classes=["owl", "wren"])
    assert not (tmp_path / "a").exists()


def test_a_model_made_in_inference_mode_is_refused_and_stays_as_it_was(base, packed):
    with torch.inference_mode():
        made, modulated = copy.deepcopy(base), copy.deepcopy(modulate(base))
    for refused in (lambda: modulate(made), lambda: load_pack(made, packed[1]), lambda: swap(modulated, packed[1])):
        with pytest.raises(metakm.UserError, match=r"got one made in torch\.inference_mode; build it outside"):
            refused()
    assert all(parameter.requires_grad for parameter in made.parameters())


def test_a_pack_is_not_made_of_a_model_that_trains_its_base():
    model = modulate(Mixed())
    model.stem.bias.requires_grad_(True)
    with pytest.raises(metakm.UserError, match=r"trainable tensors that a pack does not hold: stem\.bias; freeze"):
        make_pack(model)
    model.stem.bias.requires_grad_(False)
    make_pack(model)
    model = modulate(Mixed(), statistics="base")
    with pytest.raises(metakm.UserError, match=r"Expected norms in evaluation mode .*'norm1' in training mode"):
        make_pack(model)
    make_pack(model.eval())
