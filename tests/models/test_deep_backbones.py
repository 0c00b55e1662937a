"""ResNet-12 and Wide ResNet: their published sizes, their equations, and drop-block."""

import itertools

import pytest
import torch
import torch.nn.functional as F

import metakm
from metakm.models.build import make_backbone
from metakm.models.resnet12 import DropBlock, ResNet12, ResNet12Block
from metakm.models.wide_resnet import WideBlock, WideResNet


def parameters(backbone):
    return sum(p.numel() for p in backbone.parameters())


def test_sizes_are_the_published_ones():
    """WRN-28-10 has 36.5 million with 10 classes. ResNet-12's are counted by hand, from its widths."""
    widths = (3, 64, 160, 320, 640)
    blocks = [9 * (c * f + 2 * f * f) + c * f + 4 * 2 * f for c, f in itertools.pairwise(widths)]
    with torch.device("meta"):
        assert parameters(ResNet12()) == sum(blocks) == 12_424_320
        assert parameters(WideResNet(28, 10)) + 640 * 10 + 10 == 36_479_194


def test_tasks_do_not_mix_in_a_small_resnet12():
    torch.manual_seed(0)
    backbone, images = ResNet12(2, widths=(4, 6, 8, 10)).eval(), torch.rand(3, 4, 2, 16, 16)
    together = backbone(images)
    for t in range(3):
        torch.testing.assert_close(together[t], backbone(images[t]))


def test_a_block_of_resnet12_is_its_equation():
    torch.manual_seed(0)
    block, x = ResNet12Block(3, 4, "transductive", DropBlock(0.1, 5, 4)).eval(), torch.randn(5, 3, 6, 6)

    def norm(y):
        return F.batch_norm(y, None, None, training=True)

    y = x
    for depth, conv in enumerate(block.convs):
        y = norm(F.conv2d(F.leaky_relu(y, 0.1) if depth else y, conv.weight, padding=1))
    y = y + norm(F.conv2d(x, block.projection.weight))
    torch.testing.assert_close(block(x), F.max_pool2d(F.leaky_relu(y, 0.1), 2))


@pytest.mark.parametrize(("channels", "stride"), [(4, 1), (3, 2)])
def test_a_wide_block_is_its_equation(channels, stride):
    torch.manual_seed(0)
    block, x = WideBlock(channels, 4, stride, "transductive"), torch.randn(5, channels, 6, 6)
    activated = F.relu(F.batch_norm(x, None, None, training=True))
    y = F.conv2d(activated, block.conv1.weight, stride=stride, padding=1)
    y = F.conv2d(F.relu(F.batch_norm(y, None, None, training=True)), block.conv2.weight, padding=1)
    shortcut = x if stride == 1 else F.conv2d(activated, block.projection.weight, stride=stride)
    torch.testing.assert_close(block(x), y + shortcut)


def test_drop_block_drops_whole_squares_at_its_rate_in_training_only():
    torch.manual_seed(0)
    layer, x = DropBlock(0.1, 3, 4), torch.ones(200, 4, 12, 12)
    assert torch.equal(layer.eval()(x), x)
    dropped = layer.train()(x) == 0
    assert 0.08 < float(dropped.double().mean()) < 0.11  # squares overlap, so a little less than the rate
    whole = -F.max_pool2d(-dropped.double(), 3, 1)  # 1 where a whole square is dropped
    cover = F.max_pool2d(F.pad(whole, [2] * 4), 3, 1)
    assert torch.equal(cover > 0, dropped)
    torch.testing.assert_close(layer(x).mean(), torch.tensor(1.0))


def test_drop_block_of_single_values_and_of_maps_smaller_than_it():
    torch.manual_seed(0)
    assert 0.08 < float((DropBlock(0.1, 1, 4)(torch.ones(100, 4, 8, 8)) == 0).double().mean()) < 0.12
    small = DropBlock(0.3, 5, 4)(torch.ones(500, 4, 2, 2)) == 0
    assert 0.25 < float(small.double().mean()) < 0.35
    assert torch.equal(small.all((2, 3)), small.any((2, 3)))


def test_drop_block_scales_each_task_by_its_own_mask():
    torch.manual_seed(0)
    x = torch.ones(2, 3 * 4, 6, 6)  # three tasks
    kept = DropBlock(0.3, 3, 4)(x).view(2, 3, 4, 6, 6)
    for task in range(3):
        torch.testing.assert_close(kept[:, task].mean(), torch.tensor(1.0))
    assert len({float(kept[:, task].max()) for task in range(3)}) > 1


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16])
def test_drop_block_has_its_rate_in_16_bits(kind):
    torch.manual_seed(0)
    out = DropBlock(0.02, 5, 64)(torch.ones(512, 64, 10, 10, dtype=kind))
    assert out.dtype == kind
    assert 0.016 < float((out == 0).double().mean()) < 0.022
    assert float(out.double().mean()) == pytest.approx(1, abs=0.01)


def test_gradients_pass_what_is_kept():
    torch.manual_seed(0)
    x = torch.ones(4, 4, 6, 6, requires_grad=True)
    out = DropBlock(0.2, 2, 4)(x)
    out.sum().backward()
    assert torch.equal(x.grad == 0, out == 0)


def test_what_deep_backbones_refuse():
    with pytest.raises(metakm.UserError, match="at least 16x16"):
        make_backbone("resnet12", (3, 8, 8))
    with pytest.raises(metakm.UserError, match="6n"):
        make_backbone("wrn-12-1", (3, 32, 32))
    with pytest.raises(metakm.UserError, match="width factor"):
        WideResNet(10, 0)
    with pytest.raises(metakm.UserError, match="drop rate"):
        DropBlock(1.0, 5, 4)


def test_a_run_with_dropout_resumes_to_the_same_weights(tmp_path, cache, monkeypatch):
    monkeypatch.setenv("METAKM_CACHE", str(cache))

    @metakm.register_backbone("small12")
    def small12(image_shape, bn_mode):
        return ResNet12(image_shape[0], bn_mode, widths=(2, 2, 2, 4), dropout=0.3)

    settings = {"algo": "anil", "backbone": "small12", "ways": 3, "queries": 2, "meta_batch": 2, "val_tasks": 4}
    settings |= {"eval_tasks": 4, "val_every": 2, "schedule": "constant", "select": "last", "quiet": True}
    settings |= {"device": "cpu"}
    whole = metakm.train(metakm.RunConfig(out=tmp_path / "a", iterations=4, **settings))
    metakm.train(metakm.RunConfig(out=tmp_path / "b", iterations=2, **settings))
    torch.rand(7)  # whatever else has been drawn
    resumed = metakm.train(metakm.RunConfig(out=tmp_path / "b", iterations=4, resume=True, **settings))
    one, other = (run.learner.state_dict() for run in (whole, resumed))
    assert all(torch.equal(one[name], other[name]) for name in one)
