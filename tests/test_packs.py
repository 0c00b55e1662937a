"""Task packs: bit-equal round trips, one base with many tasks, and files that are refused."""

import copy
import json

import pytest
import safetensors
import safetensors.torch
import torch
from convnets import CASES, Mixed, images, mobilenet, perturb, train
from torch import nn

import metakm
from metakm.modulation import ChannelModulator, load_pack, make_pack, modulate, read_pack, save_pack, swap
from metakm.modulation.attach import is_modulated, modulated_layers
from metakm.modulation.tensors import fingerprint


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


@pytest.fixture
def base():
    return Mixed()


@pytest.fixture
def packed(base, tmp_path):
    """A trained copy of the base and the file of its task."""
    model = train(modulate(copy.deepcopy(base)))
    path = tmp_path / "tasks" / "birds.safetensors"
    save_pack(model, path, task="birds", classes=["owl", "wren", "kite"], metrics={"accuracy": 0.5})
    return model.eval(), path


def state(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def assert_bit_equal(a, b):
    assert a.keys() == b.keys()
    assert all(torch.equal(a[name], b[name]) for name in a)


def rewrite(path, change, key="metakm"):
    """Change the header of a pack as JSON and write a valid safetensors file again."""
    with safetensors.safe_open(path, "pt") as file:
        header = json.loads(file.metadata()["metakm"])
    tensors = safetensors.torch.load_file(path)
    change(header, tensors)
    path.write_bytes(safetensors.torch.save(tensors, {key: json.dumps(header)}))


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("implicit", [True, False])
def test_round_trip_is_bit_equal_and_carries_the_task_over(name, implicit, tmp_path):
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
    modulators = {f"{n}.modulator.layers.{j}" for n in modulated_layers(model) for j in range(2)}
    assert read_pack(path).tensors.keys() == norms | statistics | modulators | {"fc.weight", "fc.bias"}
    assert make_pack(modulate(Mixed(), implicit=False)).tensors.keys() == statistics | modulators | {
        "fc.weight",
        "fc.bias",
    }


def test_a_pack_says_what_it_is(base, packed):
    _, path = packed
    pack = read_pack(path)
    assert (pack.task, pack.classes, pack.metrics) == ("birds", ("owl", "wren", "kite"), {"accuracy": 0.5})
    assert pack.base == fingerprint(base, True, "fc")
    assert pack.modulation == {
        "layers": ["stem", "grouped", "depthwise", "pointwise"],
        "implicit": True,
        "classifier": "fc",
        "modulator": "KernelModulator",
        "activation": "tanh",
        "init": "identity",
        "depth": 2,
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
        assert fingerprint(model, True, "fc") == fingerprint(base, True, "fc")
    assert fingerprint(base, False, "fc") != fingerprint(base, True, "fc")


@pytest.mark.parametrize(
    "change",
    [
        lambda m: m.stem.weight.data[0, 0, 0, 0].add_(1e-12),
        lambda m: m.linear.bias.data.neg_(),
        lambda m: setattr(m.grouped, "dilation", (1, 1)),
        lambda m: setattr(m.norm2, "num_groups", 4),
        lambda m: m.float(),
        lambda m: setattr(m, "linear", nn.Linear(12, 12, bias=False)),
    ],
    ids=["one bit", "linear", "dilation", "groups", "precision", "tensor missing"],
)
@pytest.mark.parametrize("plain", [True, False])
def test_a_wrong_base_is_refused_and_left_as_it_was(base, packed, change, plain):
    change(base)
    if not plain:
        modulate(base)
    before, trainable = state(base), [p.requires_grad for p in base.parameters()]
    with pytest.raises(metakm.UserError, match=r"base network of the pack \(fingerprint [0-9a-f]{12}\), got another"):
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
    with pytest.raises(metakm.UserError, match="truncated or foreign file"):
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
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("builder", "classifier"), [(Mixed, "fc"), (mobilenet, "classifier")])
def test_swap_restores_each_task_bit_for_bit_with_its_own_number_of_classes(builder, classifier):
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
    counted = lambda *arguments: calls.append(1) or fingerprint(*arguments)  # noqa: E731
    monkeypatch.setattr("metakm.modulation.swapping.fingerprint", counted)
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
