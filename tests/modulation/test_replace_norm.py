"""Group norm in the place of batch norm."""

import pytest
import torch
import torch.nn.functional as F
from convnets import Mixed, perturb
from torch import nn

import metakm
from metakm.modulation import replace_norm


def test_group_norm_for_batch_norm_keeps_the_affine_and_picks_the_groups():
    model = nn.Sequential(nn.BatchNorm2d(64, eps=0.1), nn.Sequential(nn.BatchNorm2d(40)), nn.BatchNorm2d(16), nn.ReLU())
    affine, x = list(model.parameters()), torch.randn(2, 64, 3, 3)
    perturb(model)
    assert replace_norm(model) is model
    norms = [model[0], model[1][0], model[2]]
    assert [type(n) for n in norms] == [nn.GroupNorm] * 3
    assert [n.num_groups for n in norms] == [32, 20, 8]
    assert all(a is b for a, b in zip(model.parameters(), affine, strict=True))
    torch.testing.assert_close(model[0](x), F.group_norm(x, 32, affine[0], affine[1], 0.1))
    assert [replace_norm(nn.Sequential(nn.BatchNorm2d(c)), groups=4)[0].num_groups for c in (1, 7, 12)] == [1, 1, 4]


def test_replace_norm_says_what_it_cannot_do():
    with pytest.raises(metakm.UserError, match="Expected norm to be one of group"):
        replace_norm(Mixed(), "layer")
    with pytest.raises(metakm.UserError, match="groups to be at least 1"):
        replace_norm(Mixed(), groups=0)
    with pytest.raises(metakm.UserError, match=r"nn.BatchNorm2d layers, got CifarResNet without.*bn_mode"):
        replace_norm(metakm.CifarResNet(8))
