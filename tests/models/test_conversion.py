"""A plain network, converted, equals itself run task by task: in float64, forward, gradient and meta-gradient."""

import copy
import logging
import pickle

import pytest
import torch
import torch.nn.functional as F
import torchvision
from plain_networks import TIMM, TORCHVISION, alone, assert_equal, plain, twice_differentiable
from torch import nn
from torch.func import functional_call
from torch.nn.utils import prune

import metakm
from metakm.models.batch_statistics import statistics_from, tracking_statistics
from metakm.models.conversion import TaskBackbone, carry_tasks

SHAPE = (3, 32, 32)
MODES = {"batch": "transductive", "held": "frozen"}


@pytest.mark.parametrize("statistics", ["batch", "held"])
@pytest.mark.parametrize("name", [*TORCHVISION, *TIMM])
def test_a_converted_network_equals_the_plain_one_task_by_task(name, statistics):
    torch.manual_seed(0)
    network = plain(name)
    reference = twice_differentiable(copy.deepcopy(network)).train(statistics == "batch")
    backbone = carry_tasks(network, SHAPE, MODES[statistics])
    _compare_gradients(reference, backbone)
    _compare_meta_gradients(reference, backbone)


def _compare_gradients(reference, backbone, shape=SHAPE):
    images = torch.randn(2, 3, *shape)
    starts = {k: p.detach() * (1 + 0.1 * torch.randn(2, *p.shape)) for k, p in reference.named_parameters()}
    own, given = ({k: p.clone().requires_grad_() for k, p in starts.items()} for _ in range(2))
    expected = alone(reference, own, images)
    found = functional_call(backbone, {f"network.{k}": p for k, p in given.items()}, (images,), tie_weights=False)
    assert found.shape == (2, 3, backbone.out_features)
    assert_equal({"features": found}, {"features": expected})
    cotangent = torch.randn_like(expected)
    gradients = torch.autograd.grad((expected * cotangent).sum(), list(own.values()))
    converted = torch.autograd.grad((found * cotangent).sum(), list(given.values()))
    assert_equal(dict(zip(own, converted, strict=True)), dict(zip(own, gradients, strict=True)))


def _compare_meta_gradients(reference, backbone):
    strategy = metakm.make_strategy("maml", backbone, 2, implicit=True).train()
    episodes = _episodes()
    result = metakm.meta_loss(strategy, episodes, inner_lr=0.1, inner_steps=1)
    result.loss.backward()
    names = {"head.weight": "linear.weight", "head.bias": "linear.bias"}
    found = {names.get(k, k.removeprefix("backbone.network.")): p.grad for k, p in strategy.network.named_parameters()}
    head = {f"linear.{k}": p for k, p in strategy.network.head.named_parameters()}
    meta = {k: p.detach().clone().requires_grad_() for k, p in {**dict(reference.named_parameters()), **head}.items()}
    losses = []
    for t in range(2):
        support = _loss(reference, meta, episodes.support_images[t], episodes.support_labels[t])
        gradients = torch.autograd.grad(support, list(meta.values()), create_graph=True)
        fast = {k: p - 0.1 * g for (k, p), g in zip(meta.items(), gradients, strict=True)}
        losses.append(_loss(reference, fast, episodes.query_images[t], episodes.query_labels[t]))
    loss = torch.stack(losses).mean()
    expected = dict(zip(meta, torch.autograd.grad(loss, list(meta.values())), strict=True))
    assert_equal({"loss": result.loss}, {"loss": loss})
    assert_equal(found, expected)


def _loss(network, parameters, images, labels):
    own = {k: p for k, p in parameters.items() if not k.startswith("linear.")}
    features = functional_call(network, own, (images,), tie_weights=False)
    return F.cross_entropy(features @ parameters["linear.weight"].T + parameters["linear.bias"], labels)


def _episodes():
    labels = torch.tensor([[0, 1, 0, 1], [0, 1, 0, 1]])
    return metakm.Episodes(torch.randn(2, 4, *SHAPE), labels, torch.randn(2, 4, *SHAPE), labels, range(2))


class Lines(nn.Module):
    """Convolutions with every kind of padding; norms of three kinds; linear layers on more than one axis."""

    def __init__(self):
        super().__init__()
        self.convs = nn.ModuleList(
            [
                nn.Conv2d(3, 4, 3, padding="same", dilation=2),
                nn.Conv2d(4, 4, 4, padding="same", groups=2),
                nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect", groups=4),
                nn.Conv2d(4, 8, 3, padding="valid", stride=2, bias=False),
            ]
        )
        self.group, self.layer, self.maps = nn.GroupNorm(2, 8), nn.LayerNorm(8), nn.LayerNorm((5, 8))
        self.plain_batch = nn.BatchNorm2d(8, affine=False, eps=0.1)
        self.mix, self.out, self.last = nn.Linear(8, 8), nn.Linear(8, 6, bias=False), nn.BatchNorm1d(6, eps=0.1)

    def forward(self, x):
        for conv in self.convs:
            x = torch.tanh(conv(x))
        x = self.plain_batch(self.group(x)).flatten(2).transpose(1, 2)[:, :5]  # [n, 5, 8]
        return self.last(self.out(self.maps(self.mix(self.layer(x))).mean(1)))


class Scaled(nn.Module):
    """A parameter of its own beside its layers, and one of torch's layers that is not known."""

    def __init__(self):
        super().__init__()
        self.conv, self.gain, self.act = nn.Conv2d(3, 4, 3), nn.Parameter(torch.ones(4, 1, 1)), nn.PReLU(4)
        self.norm = nn.BatchNorm2d(4, eps=0.1)

    def forward(self, x):
        return self.norm(self.act(self.conv(x) * self.gain)).mean((2, 3))


class Mixing(nn.Module):
    """Its own code subtracts the batch's mean."""

    def __init__(self):
        super().__init__()
        self.body = Scaled()

    def forward(self, x):
        features = self.body(x)
        return features - features.mean(0)


class Shared(nn.Module):
    """One convolution under two names, used twice."""

    def __init__(self):
        super().__init__()
        self.first = self.second = nn.Conv2d(3, 3, 3, padding=1)
        self.gain = nn.Parameter(torch.ones(3, 1, 1))

    def forward(self, x):
        return torch.tanh(self.second(torch.tanh(self.first(x)) * self.gain)).mean((2, 3))


@pytest.mark.parametrize("statistics", ["batch", "held"])
@pytest.mark.parametrize("kind", [Lines, Scaled, Mixing, Shared])
@pytest.mark.filterwarnings("ignore:Using padding='same'")  # of torch, for the plain network
def test_what_else_networks_are_made_of(kind, statistics):
    torch.manual_seed(0)
    network = kind()
    reference = copy.deepcopy(network).train(statistics == "batch")
    backbone = carry_tasks(network, SHAPE, MODES[statistics])
    _compare_gradients(reference, backbone)
    _compare_meta_gradients(reference, backbone)


def test_layers_without_parameters_of_their_own_are_not_slow(caplog):
    carry_tasks(plain("resnet"), SHAPE)
    carry_tasks(Lines(), SHAPE)
    assert caplog.records == []


def test_what_runs_task_by_task_is_said_once_by_name(caplog):
    caplog.set_level(logging.WARNING)
    backbone = carry_tasks(Scaled(), SHAPE)
    for _ in range(2):
        backbone(torch.randn(2, 3, *SHAPE))
    (record,) = caplog.records
    assert record.message == "Scaled runs task by task, which is slow: it has parameters or hooks of its own"
    for network, said in (
        (Mixing(), "Mixing runs task by task, which is slow: its own code mixes the images"),
        (nn.Sequential(Scaled()), "these layers run task by task, which is slow: 0 (Scaled), 0.act (PReLU)"),
    ):
        caplog.clear()
        carry_tasks(network, SHAPE)
        (record,) = caplog.records
        assert record.message == said


class Centred(nn.Module):
    """Subtracts the batch's mean in training, behind a layer that is random there."""

    def __init__(self, drop):
        super().__init__()
        self.conv, self.drop = nn.Conv2d(3, 4, 3), drop

    def forward(self, x):
        features = self.drop(self.conv(x)).mean((2, 3))
        return features - features.mean(0) if self.training else features


class Functional(nn.Module):
    """A function that is random, in training."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x) if self.training else x


@pytest.mark.parametrize(
    "drop",
    [
        nn.Dropout(0.3),
        nn.Dropout2d(0.3),
        nn.AlphaDropout(0.3),
        torchvision.ops.StochasticDepth(0.3, "row"),
        torchvision.ops.DropBlock2d(0.3, 3),
        Functional(lambda x: F.dropout(x, 0.3)),
        Functional(lambda x: x * torch.bernoulli(torch.full_like(x, 0.7))),
        Functional(lambda x: x * (torch.rand_like(x) < 0.7)),
        Functional(lambda x: x + torch.randn(x.shape)),
    ],
    ids=lambda drop: type(drop).__name__,
)
def test_what_mixes_images_is_found_behind_layers_that_are_random(caplog, drop):
    carry_tasks(nn.Sequential(nn.Conv2d(3, 3, 3), drop, nn.Flatten()), SHAPE)
    assert caplog.records == [], "nothing mixes"
    backbone = carry_tasks(Centred(drop), SHAPE)
    assert "Centred runs task by task" in caplog.text
    assert_equal({"": backbone(torch.randn(2, 4, *SHAPE)).mean(1)}, {"": torch.zeros(2, 4)})


def test_support_statistics_make_queries_independent():
    torch.manual_seed(0)
    network = plain("resnet")
    reference = copy.deepcopy(network)
    backbone, images = carry_tasks(network, SHAPE, "support"), torch.randn(2, 5, *SHAPE)
    with statistics_from(3):
        found = backbone(images)
    for module in reference.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.register_forward_hook(_by_the_first_three)
    for t in range(2):
        assert_equal({"": found[t]}, {"": reference.eval()(images[t])})


def _by_the_first_three(layer, inputs, _):
    (x,) = inputs
    var, mean = torch.var_mean(x[:3], (0, 2, 3), correction=0, keepdim=True)
    shape = (1, -1, 1, 1)
    return (x - mean) / (var + layer.eps).sqrt() * layer.weight.view(shape) + layer.bias.view(shape)


@pytest.mark.parametrize("kind", [lambda: plain("resnet"), Mixing])
def test_running_averages_move_by_the_mean_over_tasks(kind):
    torch.manual_seed(0)
    network = kind()
    copies = [copy.deepcopy(network).train() for _ in range(2)]
    backbone, images = carry_tasks(network, SHAPE, "running").train(), torch.randn(2, 4, *SHAPE)
    with tracking_statistics():
        backbone(images)
    for each, own in zip(copies, images, strict=True):
        each(own)
    one, other = (dict(each.named_buffers()) for each in copies)
    found = dict(backbone.network.named_buffers())
    expected = {k: (one[k] + other[k]) / 2 for k in found if "running" in k}
    assert expected
    assert_equal(found, expected)


def test_one_image_set_is_one_task():
    backbone, images = carry_tasks(plain("regnet"), SHAPE), torch.randn(3, *SHAPE)
    torch.testing.assert_close(backbone(images), backbone(images[None])[0])


def test_parameters_are_the_networks_own_and_the_generator_is_not_moved():
    network = plain("regnet")
    before, state = dict(network.named_parameters()), torch.get_rng_state()
    after = dict(carry_tasks(network, SHAPE).network.named_parameters())
    assert before.keys() == after.keys()
    assert all(before[name] is after[name] for name in before)
    assert torch.equal(state, torch.get_rng_state())


def test_the_network_itself_stays_plain_whether_it_is_taken_or_refused():
    torch.manual_seed(0)
    network, images = plain("resnet"), torch.randn(2, 3, *SHAPE)
    with pytest.raises(metakm.UserError, match="3 channels for a convolution, got 1"):
        carry_tasks(network, (1, 32, 32))
    first, second = (carry_tasks(network, SHAPE, "frozen") for _ in range(2))
    assert_equal({"": second(images)}, {"": first(images)})
    assert_equal({"": first(images)[0]}, {"": network.eval()(images[0])})
    assert type(network.conv1) is nn.Conv2d


class Says(nn.Module):
    """Takes tasks itself, and does with their features what it is told."""

    carries_tasks = True

    def __init__(self, make=lambda features: features):
        super().__init__()
        self.out_features, self.make = 2, make

    def forward(self, images):
        return self.make(images.mean((3, 4))[..., :2])


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda x: x - x.mean((0, 1)), "Expected Says, which has carries_tasks, to keep tasks apart"),
        (lambda x: x / 0, "got NaN or infinity"),
        (lambda x: (x, x), r"return features \[1, 4, F\], got tuple"),
        (lambda x: x[..., :1], "Expected out_features of Says to be 1, as it returns, got 2"),
        (lambda x: x.view(7), "RuntimeError"),
    ],
)
def test_a_backbone_that_says_that_it_carries_tasks_is_tried(make, said):
    with pytest.raises(metakm.UserError, match=said):
        carry_tasks(Says(make), SHAPE)


def test_a_backbone_that_says_so_or_is_made_of_metakms_layers_stays_as_it_is():
    for backbone in (Says(), metakm.Conv4(3, 4)):
        assert carry_tasks(backbone, SHAPE) is backbone
    assert isinstance(carry_tasks(Scaled(), SHAPE), TaskBackbone)


class Returns(nn.Module):
    """Returns what it is given to return."""

    def __init__(self, make):
        super().__init__()
        self.conv, self.make = nn.Conv2d(3, 4, 3), make

    def forward(self, x):
        return self.make(self, self.conv(x))


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda _, x: (x.mean((2, 3)), x), "got tuple"),
        (lambda _, x: {"features": x}, "got dict"),
        (lambda _, x: x, r"got \[4, 4, 30, 30\]"),
        (lambda _, x: x.mean((2, 3)) / 0, "got NaN or infinity"),
        (lambda m, x: x.mean((2, 3))[:, : 3 if m.training else 4], "got 3 and 4"),
        (lambda _, x: x.mean((2, 3))[:2], r"got \[2, 4\]"),
        (lambda _, x: x.view(7), "RuntimeError"),
    ],
)
def test_what_a_forward_may_not_return(make, said):
    with pytest.raises(metakm.UserError, match=said):
        carry_tasks(Returns(make), SHAPE)


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")
@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
def test_layers_that_cannot_be_converted_are_refused_by_name():
    class Odd(nn.BatchNorm2d):
        pass

    body = {"a": nn.Conv2d(3, 4, 3)}
    for layer, said in (
        (Odd(4), "statistics cannot follow bn_mode"),
        (nn.LazyConv2d(4, 3), "no parameters yet"),
        (nn.utils.spectral_norm(nn.Conv2d(4, 4, 3)), "spectral norm"),
        (nn.utils.parametrizations.spectral_norm(nn.Conv2d(4, 4, 3)), "spectral norm"),
        (torch.jit.script(nn.ReLU()), "compiled"),
        (nn.utils.weight_norm(nn.Conv2d(4, 4, 3)), "computed before every call; remove its weight norm or pruning"),
        (prune.l1_unstructured(nn.Conv2d(4, 4, 3), "weight", 0.5), "computed before every call"),
    ):
        network = nn.Sequential()
        network.add_module("a", body["a"])
        network.add_module("odd", layer)
        with pytest.raises(metakm.UserError, match=rf"got odd: .*{said}"):
            carry_tasks(network, SHAPE)
        assert type(body["a"]) is nn.Conv2d


def test_a_compiled_network_is_refused_by_name():
    inner = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten())
    whole, own = torch.compile(inner, backend="eager"), metakm.Conv4(in_channels=1, filters=4)
    own.compile(backend="eager")
    for call in (
        lambda: carry_tasks(whole, SHAPE),
        lambda: carry_tasks(nn.Sequential(whole), SHAPE),
        lambda: carry_tasks(own, (1, 28, 28)),
        lambda: metakm.make_strategy("maml", backbone=own, ways=3),
    ):
        with pytest.raises(metakm.UserError, match=r"not compiled, got .* by torch.compile, which has no second"):
            call()


def test_norms_without_tensors_have_the_networks_precision():
    network = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, affine=False, track_running_stats=False), nn.Flatten()
    )
    for mode in ("transductive", "running", "support", "frozen"):
        backbone = carry_tasks(copy.deepcopy(network).half().float().double(), (3, 8, 8), mode)
        assert backbone(torch.rand(2, 2, 3, 8, 8, dtype=torch.float64)).dtype == torch.float64


def test_modulators_that_come_later_have_no_task_axis():
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.scale = nn.Conv2d(3, 4, 3), nn.Parameter(torch.ones(4, 1, 1))

        def forward(self, x):
            return (self.conv(x) * self.scale).mean((2, 3))

    backbone = carry_tasks(nn.Sequential(Block()), (3, 8, 8))
    learner = metakm.Learner("protonet", backbone=backbone, ways=3, inner_lr=0.1, inner_steps=1, train="km")
    assert learner(torch.rand(2, 4, 3, 8, 8)).shape == (2, 4, 4)


def test_what_runs_task_by_task_can_be_pickled():
    network = nn.Sequential(nn.ConvTranspose2d(3, 4, 3), nn.Flatten())
    backbone = carry_tasks(network, (3, 4, 4))
    images = torch.rand(2, 2, 3, 4, 4)
    for again in (pickle.loads(pickle.dumps(backbone)), copy.deepcopy(backbone)):
        assert torch.equal(again(images), backbone(images))
        assert type(again.network[0]) is type(backbone.network[0])


def test_a_weight_that_is_computed_runs_task_by_task(caplog):
    torch.manual_seed(0)
    network = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 4, 3)), nn.Flatten())
    reference = copy.deepcopy(network)
    _compare_gradients(reference, carry_tasks(network, (3, 8, 8)), (3, 8, 8))
    assert "slow" in caplog.text


@pytest.mark.parametrize("channels", [1, 3])
def test_a_network_for_other_channels_is_refused(channels):
    with pytest.raises(metakm.UserError, match=f"of {channels} channels for a convolution, got {4 - channels}"):
        carry_tasks(nn.Sequential(nn.Conv2d(channels, 8, 3), nn.Flatten()), (4 - channels, 8, 8))


@pytest.mark.parametrize(
    ("network", "shape", "said"),
    [
        (Scaled, SHAPE, "Expected a network, got the class Scaled"),
        ("resnet18", SHAPE, "Expected a network, got str"),
        (Scaled(), 28, r"Expected image_shape as \(C, H, W\), three whole numbers, got 28"),
        (Scaled(), (3, 32), r"got \(3, 32\)"),
    ],
)
def test_what_is_no_network_or_no_shape_is_refused(network, shape, said):
    with pytest.raises(metakm.UserError, match=said):
        carry_tasks(network, shape)


def test_modes_and_channels_are_checked():
    with pytest.raises(metakm.UserError, match="bn_mode"):
        carry_tasks(Scaled(), SHAPE, "eval")
    with pytest.raises(metakm.UserError, match="3 channels, got 1"):
        carry_tasks(Scaled(), SHAPE)(torch.randn(1, 2, 1, 32, 32))


class WithConstant(nn.Module):
    """Runs task by task, and is called with the rows and with a constant that has no rows."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(3, 1, 1))

    def forward(self, x, std):
        return x / std * self.scale


class Standardised(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("std", torch.tensor([0.1, 0.5, 0.9])[:, None, None])
        self.first, self.conv = WithConstant(), nn.Conv2d(3, 8, 3)

    def forward(self, x):
        return self.conv(self.first(x, self.std)).relu().mean((2, 3))


@pytest.mark.parametrize("tasks", [1, 2, 3, 6])
def test_a_constant_whose_length_the_number_of_tasks_divides_is_not_taken_for_rows(tasks):
    network = Standardised()
    backbone, x = metakm.carry_tasks(network, (3, 12, 12)), torch.rand(tasks, 4, 3, 12, 12)
    own = {name: p.expand(tasks, *p.shape).clone() for name, p in backbone.named_parameters()}
    expected = torch.stack([network(images) for images in x])
    torch.testing.assert_close(torch.func.functional_call(backbone, own, (x,)), expected)


class Patches(nn.Module):
    """Has four patches of each image on the first axis."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4)

    def forward(self, x):
        patches = x.unfold(2, 7, 7).unfold(3, 7, 7).permute(0, 2, 3, 1, 4, 5).reshape(-1, 1, 7, 7)
        return torch.relu(self.norm(self.conv(patches))).mean((2, 3)).view(len(x), 4, 4).mean(1)


def test_support_statistics_of_patches_are_refused():
    strategy = metakm.make_strategy("protonet", metakm.carry_tasks(Patches(), (1, 14, 14), "support"), 3)
    images, labels = torch.rand(1, 6, 1, 14, 14), torch.arange(3).repeat(2)[None]
    episodes = metakm.Episodes(images, labels, images, labels, range(1))
    with pytest.raises(metakm.UserError, match=r"feature maps of 12 images for bn_mode=\"support\", got 48"):
        metakm.meta_loss(strategy, episodes, inner_lr=0.1, inner_steps=1)
