"""What the tests of packs share: one trained task in a file, and comparison to the last bit."""

import copy

import torch
from convnets import Mixed, train

from metakm.modulation import modulate, save_pack


def packed_task(folder):
    """A base, a trained copy of it in evaluation mode, and the file of its task."""
    torch.manual_seed(0)
    base, path = Mixed(), folder / "tasks" / "birds.safetensors"
    model = train(modulate(copy.deepcopy(base)))
    save_pack(model, path, task="birds", classes=["owl", "wren", "kite"], metrics={"accuracy": 0.5})
    return base, model.eval(), path


def state(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def assert_bit_equal(a, b):
    assert a.keys() == b.keys()
    assert all(torch.equal(a[name], b[name]) for name in a)
