"""Packs in half precision."""

import copy

import pytest
import torch
from convnets import images, perturb
from packing import assert_bit_equal, packed_task

import metakm
from metakm.modulation import load_pack, make_pack, modulate, read_pack, save_pack, swap, write_pack
from metakm.modulation.precision import to_half

STEP = 2.0**-11  # of float16: the largest relative error of rounding


@pytest.fixture
def task(tmp_path):
    """A plain base in float64, and a trained copy."""
    base, model, _ = packed_task(tmp_path)
    return base, perturb(model).eval()


def test_a_round_trip_rounds_each_value_once(task, tmp_path):
    base, model = task
    written = save_pack(model, tmp_path / "half.safetensors", classes=["a", "b", "c"], precision="fp16")
    read = read_pack(tmp_path / "half.safetensors")
    exact = make_pack(model).tensors
    assert (read.precision, read.classes, read.base) == ("fp16", ("a", "b", "c"), written.base)
    assert_bit_equal(read.tensors, written.tensors)
    for name, tensor in exact.items():
        assert read.tensors[name].dtype == tensor.dtype
        if tensor.is_floating_point():
            bound = STEP * tensor.abs().clamp_min(2.0**-14)
            assert ((read.tensors[name] - tensor).abs() <= bound).all()
        else:
            assert torch.equal(read.tensors[name], tensor)
    assert any(not torch.equal(read.tensors[name], tensor) for name, tensor in exact.items())
    loaded = modulate(copy.deepcopy(base)).eval()
    load_pack(loaded, tmp_path / "half.safetensors")
    swap(model, written)
    x = images()
    assert torch.equal(loaded(x), model(x))


def test_the_values_take_half_the_bytes_of_float32(task, tmp_path):
    model = task[1].float()
    tensors = make_pack(model).tensors.values()
    saved = sum(t.nbytes for t in tensors if t.is_floating_point()) / 2
    sizes = {}
    for precision in ("full", "fp16"):
        save_pack(model, tmp_path / precision, precision=precision)
        sizes[precision] = (tmp_path / precision).stat().st_size
    assert abs(saved - (sizes["full"] - sizes["fp16"])) < 60  # the header names their former precision, once


def test_what_half_precision_cannot_hold_keeps_its_own(task, tmp_path):
    _, model = task
    with torch.no_grad():
        model.norm1.running_var[0] = 1e6
        model.fc.bias.mul_(1e-9)
        model.fc.weight[0, 0] = float("nan")
    exact = make_pack(model).tensors
    save_pack(model, tmp_path / "half.safetensors", precision="fp16")
    read = read_pack(tmp_path / "half.safetensors").tensors
    for name in ("norm1.running_var", "fc.bias"):
        assert torch.equal(read[name], exact[name])
    assert torch.equal(read["fc.weight"].nan_to_num(), exact["fc.weight"].nan_to_num())


def test_precisions_may_be_mixed(task, tmp_path):
    _, model = task
    model.norm1.half()
    model.norm2.float()
    exact = make_pack(model).tensors
    save_pack(model, tmp_path / "half.safetensors", precision="fp16")
    read = read_pack(tmp_path / "half.safetensors").tensors
    assert {n: t.dtype for n, t in read.items()} == {n: t.dtype for n, t in exact.items()}
    assert len({t.dtype for t in read.values() if t.is_floating_point()}) == 3
    assert torch.equal(read["norm1.weight"], exact["norm1.weight"])


def test_a_pack_that_was_read_is_written_as_it_was(task, tmp_path):
    save_pack(task[1], tmp_path / "a", precision="fp16")
    write_pack(read_pack(tmp_path / "a"), tmp_path / "b")
    assert (tmp_path / "b").read_bytes() == (tmp_path / "a").read_bytes()


def test_an_unknown_precision_is_refused(task):
    with pytest.raises(metakm.UserError, match="Expected precision to be one of"):
        make_pack(task[1], precision="fp8")


@pytest.mark.parametrize(("value", "kept"), [(2.0**-12, "float16"), (1.4 * 2.0**-24, "float64")])
def test_values_that_half_precision_would_distort_stay_as_they_are(value, kept):
    stored, _ = to_half({"tiny": torch.full((3,), value, dtype=torch.float64)})  # 1.4 * 2^-24 would become 2^-24
    assert stored["tiny"].dtype == getattr(torch, kept)
