"""A batch of several tasks in one pass equals a loop of swaps."""

import copy
import itertools
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import torch.nn.functional as F
import torchvision
from convnets import Mixed, cifar_resnet, images, mobilenet, perturb, resnet18
from packing import assert_bit_equal, state
from torch import nn

import metakm
from metakm.modulation import ChannelModulator, ResidentPacks, make_pack, modulate, replace_norm, save_pack, swap
from metakm.modulation.attachment import attachment

CLASSIFIERS = {Mixed: "fc", resnet18: "fc", cifar_resnet: "head", mobilenet: "classifier"}


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def packs(model, n=3, **names):
    """`n` tasks of a modulated model."""
    shared = [buffer.clone() for buffer in model.buffers()] if attachment(model).statistics == "base" else []
    tasks = []
    for i in range(n):
        perturb(model)
        for buffer, kept in zip(model.buffers() if shared else [], shared, strict=True):
            buffer.copy_(kept)
        tasks.append(make_pack(model, task=f"task{i}", **names))
    return tasks


def loop(model, tasks, x, rows):
    """Swap task after task, one forward pass for each row."""
    model.eval()
    outputs = []
    with torch.no_grad():
        for image, row in zip(x, rows, strict=True):
            swap(model, tasks[row])
            outputs.append(model(image[None]))
    return torch.cat(outputs)


def assert_equals_the_loop(model, rows=(0, 1, 2, 1), size=16, tasks=None):
    tasks = packs(model) if tasks is None else tasks
    resident, x = ResidentPacks(model, tasks), torch.randn(len(rows), 3, size, size)
    found = resident(x, [tasks[row].task for row in rows])
    torch.testing.assert_close(found, loop(model, tasks, x, rows), rtol=1e-10, atol=1e-10)


class Dilated(nn.Sequential):
    """Dilated, grouped, strided and depthwise convolutions, without bias too, around a transposed one."""

    def __init__(self):
        layers = [nn.Conv2d(3, 8, 3, stride=2, dilation=2, padding=2, bias=False), nn.BatchNorm2d(8), nn.ReLU()]
        layers += [nn.Conv2d(8, 16, (3, 5), padding=(1, 0), groups=4, bias=False), nn.InstanceNorm2d(16, affine=True)]
        layers += [nn.ConvTranspose2d(16, 8, 2, stride=2), nn.Conv2d(8, 8, 5, stride=3, groups=8, bias=False)]
        layers += [
            nn.GroupNorm(2, 8),
            nn.Conv2d(8, 12, 3, padding=1, dilation=1),
            nn.Conv2d(12, 6, 1, stride=2, padding=1),
        ]
        super().__init__(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 4))


@pytest.mark.parametrize(
    ("builder", "rows"),
    [
        *itertools.product((Mixed, cifar_resnet), [(0, 1, 2), (2, 0, 2, 2, 1), (1,), (0, 0, 1, 1)]),
        (mobilenet, (2, 0, 2, 2, 1)),
        (resnet18, (0, 0, 1, 1)),
    ],
)
def test_one_pass_equals_a_loop_of_swaps(builder, rows):
    assert_equals_the_loop(modulate(builder(), classifier=CLASSIFIERS[builder]), rows)


@pytest.mark.parametrize("size", [16, 33, 64])
def test_dilated_and_strided_convolutions_at_several_sizes(size):
    assert_equals_the_loop(modulate(Dilated(), classifier="12"), size=size)


def test_group_norm():
    assert_equals_the_loop(modulate(replace_norm(resnet18()), classifier="fc"), size=33)


@pytest.mark.parametrize(
    "options",
    [
        {"start": "paper"},
        {"activation": "sin"},
        {"depth": 3},
        {"init": "diagonal"},
        {"modulator": ChannelModulator},
        {"modulator": "low-rank"},
        {"implicit": False},
        {"statistics": "base"},
        {"implicit": False, "statistics": "base"},
        {"classifier": None},
        {"layers": ["stem", "pointwise"]},
        {"layers": []},
        {"layers": (), "classifier": "", "statistics": "base"},
    ],
)
def test_every_kind_of_modulation(options):
    assert_equals_the_loop(modulate(Mixed(), **options).eval())


def test_reflected_and_named_padding():
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1, padding_mode="reflect"),
        nn.Conv2d(4, 4, 3, padding="same"),
        nn.ReLU(),
        nn.Flatten(),
    )
    assert_equals_the_loop(modulate(model, classifier=None))


class Padded(nn.Conv2d):
    """A convolution with code of its own."""

    def forward(self, x):
        return F.conv2d(F.pad(x, (0, 1, 0, 1)), 2 * self.weight, self.bias, self.stride)


def test_a_subclass_of_a_layer_runs_its_own_code():
    assert_equals_the_loop(modulate(nn.Sequential(Padded(3, 4, 3), nn.ReLU(), nn.Flatten()), classifier=None))


def test_layers_that_share_a_kernel_or_themselves():
    twice = nn.Conv2d(3, 3, 3, padding=1)
    model = nn.Sequential(twice, nn.BatchNorm2d(3), twice, nn.Conv2d(3, 3, 3), nn.Flatten())
    model[3].weight = twice.weight
    assert_equals_the_loop(modulate(model, classifier=None))


def with_head(base, head):
    """A copy of the base with another last layer."""
    model = copy.deepcopy(base)
    (model.classifier if isinstance(head, nn.Conv2d) else model)._modules[
        "1" if isinstance(head, nn.Conv2d) else "fc"
    ] = head
    return model


@pytest.mark.parametrize(
    ("builder", "classifier", "size", "heads"),
    [
        (Mixed, "fc", 16, (nn.Linear(12, 2), nn.Linear(12, 5))),
        (torchvision.models.squeezenet1_1, "classifier", 32, (nn.Conv2d(512, 2, 1), nn.Conv2d(512, 5, 1))),
        (torchvision.models.squeezenet1_1, "classifier.1", 32, (nn.Conv2d(512, 2, 1), nn.Conv2d(512, 5, 1))),
    ],
)
def test_tasks_with_different_numbers_of_classes_have_no_logits_beyond_theirs(builder, classifier, size, heads):
    base, x = builder(), torch.randn(3, 3, size, size)
    models = [modulate(with_head(base, head.double()), classifier=classifier) for head in heads]
    tasks = [make_pack(perturb(model), task=f"{i}") for i, model in enumerate(models)]
    found = ResidentPacks(base, tasks)(x, ["1", "0", "1"])
    assert found.shape == (3, 5)
    torch.testing.assert_close(found[[0, 2]], loop(models[1], tasks, x[[0, 2]], (1, 1)), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(found[1:2, :2], loop(models[0], tasks, x[1:2], (0,)), rtol=1e-10, atol=1e-10)
    assert torch.equal(found[1, 2:], torch.full((3,), -torch.inf))


def test_packs_that_modulate_different_layers_share_a_base():
    base = Mixed()
    models = [
        modulate(copy.deepcopy(base), **o)
        for o in ({"layers": "stem"}, {"layers": []}, {"implicit": False}, {"depth": 1})
    ]
    tasks = [make_pack(perturb(m), task=f"{i}") for i, m in enumerate(models)]
    x = images(4)
    found = ResidentPacks(base, tasks)(x, list("0123"))
    expected = torch.cat([loop(m, tasks, x[i : i + 1], (i,)) for i, m in enumerate(models)])
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


def test_the_model_is_left_alone_and_its_base_is_not_copied():
    model = modulate(Mixed()).train()
    tasks, before = packs(model), state(model)
    flags = [p.requires_grad for p in model.parameters()]
    resident = ResidentPacks(model, tasks)
    resident(images(2), ["task0", "task2"])
    assert_bit_equal(state(model), before)
    assert flags == [p.requires_grad for p in model.parameters()]
    assert model.training
    pointers = {t.data_ptr() for t in model.state_dict().values()}
    assert {p.data_ptr() for p in resident._network.parameters()} <= pointers


def test_memory_is_that_of_the_packs_tensors():
    model = modulate(resnet18())
    resident = ResidentPacks(model, packs(model, 3))
    tensors = [t for t in packs(model, 1)[0].tensors.values() if t.is_floating_point()]
    assert resident.nbytes <= 1.01 * 3 * sum(t.nbytes for t in tensors)


def test_tasks_come_and_go(tmp_path):
    model = modulate(Mixed())
    save_pack(perturb(model), tmp_path / "birds.safetensors", task="birds", classes=["owl", "wren", "kite"])
    resident = ResidentPacks(model)
    assert resident.add(tmp_path / "birds.safetensors") == "birds"
    assert resident.add(make_pack(model), name="other") == "other"
    assert resident.tasks == ("birds", "other")
    assert resident.classes("birds") == ("owl", "wren", "kite")
    x = images(2)
    torch.testing.assert_close(resident(x, "birds"), resident(x, ["other", "other"]), rtol=1e-12, atol=1e-12)
    resident.remove("birds")
    assert resident.tasks == ("other",)
    with pytest.raises(metakm.UserError, match=r"Expected task to be one of other, got 'birds'"):
        resident(x, "birds")


def test_what_cannot_become_resident():
    model = modulate(Mixed())
    task = make_pack(model, task="birds")
    resident = ResidentPacks(model, [task])
    with pytest.raises(metakm.UserError, match="Expected a new name for the task, got 'birds'"):
        resident.add(task)
    with pytest.raises(metakm.UserError, match="Expected a new name for the task, got ''"):
        resident.add(make_pack(model))
    with pytest.raises(metakm.UserError, match="Expected the base network of the pack"):
        ResidentPacks(Mixed(), [task])
    with pytest.raises(metakm.UserError, match="pack's classifier 'fc', got one without"):
        ResidentPacks(cifar_resnet(), [task])
    other = modulate(copy.deepcopy(resident._plain), classifier="linear")
    with pytest.raises(metakm.UserError, match="Expected packs that share the classifier 'fc', got one with 'linear'"):
        resident.add(make_pack(other, task="other"))

    class Own(metakm.modulation.KernelModulator):
        pass

    own = modulate(Mixed(), modulator=Own)
    with pytest.raises(metakm.UserError, match="Expected a model modulated with Own"):
        resident.add(make_pack(own, task="own"))
    assert_equals_the_loop(own)
    assert resident.tasks == ("birds",)


class Folding(nn.Module):
    def __init__(self, read=False):
        super().__init__()
        self.conv, self.read = nn.Conv2d(3, 3, 3), read

    def forward(self, x):
        if self.read:
            return self.conv(x) * self.conv.weight.mean() + self.conv.out_channels
        return self.conv(x.flatten(0, 1)[:, None].expand(-1, 3, -1, -1))


def test_networks_that_mix_rows_or_read_weights_are_refused():
    for read, message in (
        (False, r"row per image \(2\), got \(6, 3, 16, 16\)"),
        (True, "got a read of its weight"),
    ):
        model = modulate(Folding(read), classifier=None)
        resident = ResidentPacks(model, packs(model))
        with pytest.raises(metakm.UserError, match=message):
            resident(images(2), ["task0", "task1"])


def test_the_number_of_tasks_is_that_of_the_images():
    model = modulate(Mixed())
    resident = ResidentPacks(model, packs(model))
    for x, names in ((images(2), ["task0"]), (images(2)[:0], [])):
        with pytest.raises(metakm.UserError, match="Expected a task for each of 1 or more images"):
            resident(x, names)


def test_autocast_has_no_effect():
    model = modulate(Mixed())
    resident, x = ResidentPacks(model, packs(model)), images(2)
    expected = resident(x, ["task0", "task1"])
    with torch.autocast("cpu"):
        assert torch.equal(resident(x, ["task0", "task1"]), expected)


def test_calls_in_several_threads_equal_calls_one_after_the_other():
    model = modulate(Mixed(), classifier="fc")
    tasks = packs(model, 3)
    resident, x = ResidentPacks(model, tasks), torch.randn(2, 3, 16, 16)
    names = [each.task for each in tasks]
    expected = {name: resident(x, name) for name in names}
    before = state(resident._network)
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda name: (name, resident(x, name)), names * 40))
    assert all(torch.equal(logits, expected[name]) for name, logits in found)
    assert_bit_equal(state(resident._network), before)


class TwoHeads(nn.Module):
    """Called with two feature vectors."""

    def __init__(self, classes=3):
        super().__init__()
        self.deep, self.shallow = nn.Linear(8, classes), nn.Linear(8, classes)

    def forward(self, deep, shallow):
        return self.deep(deep) + self.shallow(shallow)


class TwoPaths(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.last, self.fc = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3), TwoHeads()

    def forward(self, x):
        first = torch.relu(self.conv(x))
        return self.fc(self.last(first).mean((2, 3)), first.mean((2, 3)))


@pytest.mark.parametrize("rows", [(0, 1, 2), (0, 1, 1, 2, 0)])
def test_all_rows_that_a_layer_is_called_with_are_those_of_the_task(rows):
    model = modulate(TwoPaths())
    assert_equals_the_loop(model, rows)


class Tokens(nn.Module):
    """A head on `[n, L, F]`."""

    def __init__(self, classes=3):
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 8, 3), nn.Linear(8, classes)

    def forward(self, x):
        return self.fc(self.conv(x).flatten(2).transpose(1, 2))


def test_outputs_on_tokens_of_different_numbers_of_classes_are_refused():
    model = modulate(Tokens())
    three, base = make_pack(model, task="three"), model.conv.state_dict()
    model = modulate(Tokens(5))
    model.conv.load_state_dict(base)
    five = make_pack(model, task="five")
    with pytest.raises(metakm.UserError, match=r"first axis after the images, got \[36, 3\] and \[36, 5\]"):
        ResidentPacks(model, [three, five])(torch.rand(2, 3, 8, 8), ["three", "five"])
