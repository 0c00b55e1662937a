"""Backbones: shapes, task axis, and what each batch-norm mode lets through."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import metakm
from metakm.errors import UserError
from metakm.models.build import make_backbone
from metakm.models.layers import BatchNorm2d, Conv2d, Linear, join_tasks, split_tasks
from metakm.models.resnet import PLAIN, CifarResNet


@pytest.mark.parametrize(
    ("name", "shape", "features"),
    [
        ("conv4-64-stride", (1, 28, 28), 64),
        ("conv4-32-pool", (3, 84, 84), 800),
        ("conv4-8-pool", (1, 28, 28), 8),
        ("resnet8", (3, 32, 32), 64),
        ("resnet12", (3, 16, 16), 640),
        ("wrn-10-1", (3, 16, 16), 64),
    ],
)
def test_backbones_give_the_features_they_promise(name, shape, features):
    backbone = make_backbone(name, shape)
    assert backbone.out_features == features
    images = torch.rand(2, 3, *shape)
    assert metakm.carry_tasks(backbone, shape) is backbone
    assert backbone(images).shape == (2, 3, features)
    assert backbone(images[0]).shape == (3, features)


@pytest.mark.parametrize("name", ["conv4-4-stride", "conv4-4-pool", "resnet8", "wrn-10-1"])
def test_tasks_do_not_mix(name):
    backbone, images = make_backbone(name, (2, 16, 16)), torch.rand(3, 4, 2, 16, 16)
    together = backbone(images)
    for t in range(3):
        torch.testing.assert_close(together[t], backbone(images[t]))


def test_resnet_shortcut_is_option_a():
    """With zero convolutions a block is ReLU of its shortcut: every second pixel, channels padded with zeros."""
    block = make_backbone("resnet8", (3, 8, 8)).blocks[1]
    assert (block.in_channels, block.filters, block.stride) == (16, 32, 2)
    nn.init.zeros_(block.norm2.weight)
    x = torch.rand(2, 2 * 16, 8, 8)  # two tasks
    expected = F.pad(x[:, :, ::2, ::2].reshape(2, 2, 16, 4, 4), (0, 0, 0, 0, 8, 8)).reshape(2, 64, 4, 4)
    torch.testing.assert_close(block(x), expected)


@pytest.mark.parametrize("name", ["conv5-64-stride", "conv4-0-pool", "resnet", "vgg"])
def test_unknown_backbone(name):
    with pytest.raises(metakm.UserError, match=r"Expected backbone to be one of .* got"):
        make_backbone(name, (1, 28, 28))


def test_networks_of_libraries_are_among_the_names_and_a_pack_is_no_backbone():
    with pytest.raises(
        metakm.UserError, match=r"efficientnet-lite0, file.py:Class, .*timm:NAME, .* got 'efficientnet-lite'"
    ):
        make_backbone("efficientnet-lite", (3, 28, 28))
    with pytest.raises(metakm.UserError, match=r"a base of `metakm fit`; use efficientnet-lite0$"):
        make_backbone("efficientnet-lite0-fewshot", (3, 28, 28))


def test_backbones_refuse_what_they_cannot_do():
    for name in ("conv4-4-stride", "resnet8"):
        with pytest.raises(metakm.UserError, match="images of 2 channels, got 3"):
            make_backbone(name, (2, 16, 16))(torch.rand(1, 4, 3, 16, 16))
    with pytest.raises(metakm.UserError, match="at least 16x16"):
        metakm.Conv4(1, 8, "pool", image_size=8)
    with pytest.raises(metakm.UserError, match="at least 1 channel and 1 filter, got 0 and 64"):
        metakm.Conv4(in_channels=0)
    with pytest.raises(metakm.UserError, match="6n"):
        metakm.CifarResNet(33)
    with pytest.raises(metakm.UserError, match="square"):
        make_backbone("conv4-8-pool", (1, 28, 32))
    with pytest.raises(metakm.UserError, match="downsample"):
        metakm.Conv4(1, 8, "avg")
    with pytest.raises(metakm.UserError, match="bn_mode"):
        BatchNorm2d(3, "eval")
    with pytest.raises(metakm.UserError, match="padding"):
        Conv2d(1, 1, 3, padding="same")


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("groups", [1, 2])
def test_convolution_with_a_weight_a_task_equals_one_convolution_each(bias, groups):
    layer = Conv2d(4, 6, 3, stride=2, padding=1, groups=groups, bias=bias)
    weights = {k: torch.randn(3, *p.shape) for k, p in layer.named_parameters()}
    images = torch.rand(3, 5, 4, 8, 8)
    joined = torch.func.functional_call(layer, weights, (join_tasks(images, 4),))
    shared = layer(join_tasks(images, 4))
    for t in range(3):
        own = F.conv2d(images[t], weights["weight"][t], weights["bias"][t] if bias else None, 2, 1, 1, groups)
        torch.testing.assert_close(joined.reshape(5, 3, 6, 4, 4)[:, t], own)
        plain = F.conv2d(images[t], layer.weight, layer.bias, 2, 1, 1, groups)
        torch.testing.assert_close(shared.reshape(5, 3, 6, 4, 4)[:, t], plain)


@pytest.mark.parametrize("own", ["weight", "bias"])
@pytest.mark.parametrize("images", [5, 7])  # as many as outputs, and others
def test_linear_with_one_of_weight_and_bias_a_task(own, images):
    """A bias of `[O]` must not be taken for one of each of O images, nor one of `[T, O]` for one of each of T."""
    torch.manual_seed(0)
    layer, x = Linear(4, 5), torch.randn(5, images, 4)
    tensors = {name: value.detach() for name, value in layer.named_parameters()}
    tensors[own] = torch.randn(5, *tensors[own].shape)
    expected = []
    for task in range(5):
        here = {**tensors, own: tensors[own][task]}
        expected.append(F.linear(x[task], here["weight"], here["bias"]))
    torch.testing.assert_close(torch.func.functional_call(layer, tensors, (x,)), torch.stack(expected))


@pytest.mark.parametrize("bias", [True, False])
def test_linear_with_a_weight_a_task(bias):
    layer, x = Linear(4, 2, bias=bias), torch.rand(3, 5, 4)
    weights = {k: torch.randn(3, *p.shape) for k, p in layer.named_parameters()}
    out = torch.func.functional_call(layer, weights, (x,))
    for t in range(3):
        own = F.linear(x[t], weights["weight"][t], weights["bias"][t] if bias else None)
        torch.testing.assert_close(out[t], own)


@pytest.mark.parametrize("name", ["conv4-4-stride", "resnet8", "resnet12", "wrn-10-1"])
def test_images_of_other_channels_are_no_further_tasks(name):
    backbone = make_backbone(name, (1, 28, 28))
    for shape in ((2, 3, 28, 28), (1, 2, 3, 28, 28)):
        with pytest.raises(UserError, match="Expected images of 1 channels, got 3"):
            backbone(torch.rand(shape))


def test_join_and_split_are_inverse():
    images = torch.rand(2, 3, 4, 1, 1)
    assert torch.equal(split_tasks(join_tasks(images, 4).flatten(1), images), images.flatten(2))


def test_running_statistics_are_means_over_tasks_and_are_used_in_evaluation_only():
    layer, x = BatchNorm2d(2, "running", momentum=1.0), torch.rand(5, 3 * 2, 4, 4)
    in_training = layer(x)
    with metakm.models.batch_statistics.tracking_statistics():
        layer(x)
    by_task = x.reshape(5, 3, 2, 4, 4)
    torch.testing.assert_close(layer.running_mean, by_task.mean((0, 3, 4)).mean(0))
    torch.testing.assert_close(layer.running_var, by_task.var((0, 3, 4)).mean(0))
    torch.testing.assert_close(layer(x), in_training)
    expected = F.batch_norm(x, layer.running_mean.repeat(3), layer.running_var.repeat(3), training=False)
    torch.testing.assert_close(layer.eval()(x), expected)


def test_support_mode_equals_batch_norm_on_the_support_images():
    layer, x = BatchNorm2d(2, "support"), torch.rand(5, 4, 3, 3)
    with metakm.models.batch_statistics.statistics_from(3):
        out = layer(x)
    torch.testing.assert_close(out[:3], F.batch_norm(x[:3], None, None, training=True))


def test_a_bias_that_the_norm_cancels_is_not_added_and_has_a_zero_gradient():
    layer, norm = Conv2d(2, 3, 3), BatchNorm2d(3)
    nn.init.constant_(layer.bias, 5.0)
    x = torch.rand(4, 2, 6, 6)
    out = norm(layer(x, bias_cancels=True))
    torch.testing.assert_close(out, norm(layer(x)))
    out.square().sum().backward()
    assert torch.equal(layer.bias.grad, torch.zeros(3))


def test_plain_layers_make_the_same_network():
    """torch's layers with the same weights give the same features as those with a task axis."""
    torch.manual_seed(0)
    plain = CifarResNet(8, width=4, shortcut="projection", layers=PLAIN)
    tasks = CifarResNet(8, width=4, shortcut="projection")
    tasks.load_state_dict(plain.state_dict(), strict=False)  # torch's norms count their batches too
    images = torch.randn(5, 3, 9, 9)
    torch.testing.assert_close(plain(images), tasks(images))
    assert plain(images).shape == (5, 16)


def test_projections_stand_where_the_shape_changes():
    network = CifarResNet(14, width=4, shortcut="projection")
    assert [block.projection is not None for block in network.blocks] == [False, False, True, False, True, False]
    everywhere = CifarResNet(14, width=4, shortcut="all-projections")
    assert all(block.projection is not None for block in everywhere.blocks)


def test_a_projection_is_a_strided_convolution():
    torch.manual_seed(0)
    block = CifarResNet(8, width=2, shortcut="projection").blocks[1]
    for conv in (block.conv1, block.conv2):
        nn.init.zeros_(conv.weight)
    x = torch.randn(3, 2, 7, 7)
    kernel, norm = block.projection
    torch.testing.assert_close(block(x), norm(nn.functional.conv2d(x, kernel.weight, stride=2)).relu())


@pytest.mark.parametrize("wrong", [{"shortcut": "padding-b"}, {"width": 0}])
def test_networks_that_cannot_be_are_refused(wrong):
    with pytest.raises(metakm.UserError):
        CifarResNet(8, **wrong)
