"""`modulate` on any ConvNet, against the paper's equations and counts."""

import copy
from statistics import mean

import pytest
import torch
import torch.nn.functional as F
import torchvision
from convnets import CASES, Mixed, images, perturb, resnet18, train
from torch import nn
from torch.nn.utils import parametrize

import metakm
from metakm.modulation import count_trainable, modulate, replace_norm
from metakm.modulation import trainable_report as report
from metakm.modulation.attachment import modulated_layers

NORMS = (nn.BatchNorm2d, nn.GroupNorm, nn.LayerNorm, metakm.models.BatchNorm2d)
PAPER_CLASSES = {"Aircraft": 100, "Cars": 196, "Flowers": 102, "Food": 101}


@pytest.fixture(params=CASES)
def case(request):
    torch.manual_seed(0)
    builder, classifier = CASES[request.param]
    return builder(), classifier


def layers_of(layer):
    return list(layer.parametrizations.weight[0].layers)


@pytest.mark.parametrize("start", ["paper", "exact"])
def test_modulated_forward_equals_equations_2_and_3_written_out(case, start):
    plain, classifier = case
    model = perturb(modulate(copy.deepcopy(plain), classifier=classifier, start=start))
    by_hand = copy.deepcopy(plain)
    by_hand.load_state_dict(model.state_dict(), strict=False)  # norms and classifier
    with torch.no_grad():
        for name, layer in modulated_layers(model).items():
            w = plain.get_submodule(name).weight
            u1, u2 = layers_of(layer)
            rows = w.reshape(-1, w.shape[2] * w.shape[3])  # Sec. III-A step B: (k_n * k_c, k_h * k_w)
            if start == "paper":
                modulated = torch.tanh(rows @ u1.T) @ u2.T
            else:
                s = 2 * rows.square().mean().sqrt()
                modulated = rows + s * (torch.tanh(rows / s @ u1.T) @ u2.T - torch.tanh(rows / s))
            by_hand.get_submodule(name).weight.copy_(modulated.reshape(w.shape))
    x = images()
    for mode in (True, False):
        torch.testing.assert_close(model.train(mode)(x), by_hand.train(mode)(x))
    assert not torch.allclose(model(x), plain.eval()(x))


def test_trainable_is_exactly_the_modulators_the_norms_affine_and_the_classifier(case):
    model, classifier = case
    norms = {f"{n}.{p}" for n, m in model.named_modules() if isinstance(m, NORMS) for p in ("weight", "bias")}
    heads = {n for n, _ in model.named_parameters() if n.startswith(f"{classifier}.")}
    convolutions = [n for n, m in model.named_modules() if isinstance(m, nn.Conv2d)]
    modulate(model, classifier=classifier)
    trainable = {n for n, p in model.named_parameters() if p.requires_grad}
    modulators = {f"{n}.parametrizations.weight.0.layers.{j}" for n in convolutions for j in range(2)}
    assert trainable == norms | heads | modulators
    assert len(convolutions) >= 4


def test_frozen_tensors_are_bit_equal_after_training_and_all_else_moves(case):
    model, classifier = case
    modulate(model, classifier=classifier)
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    train(model)
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name]) != parameter.requires_grad, name


def test_identity_without_noise_is_tanh_and_within_a_third_of_the_cube():
    model = modulate(Mixed(), start="paper")
    with torch.no_grad():
        for layer in modulated_layers(model).values():
            for u in layers_of(layer):
                u.copy_(torch.eye(len(u)))
            w = layer.parametrizations.weight.original
            torch.testing.assert_close(layer.weight, torch.tanh(w))
            assert ((layer.weight - w).abs() <= w.abs() ** 3 / 3 + 1e-15).all()


def test_identity_start_is_tanh_within_the_noise():
    """|W~ - tanh(W)| <= |E2| |tanh((I + E1) W)| + |E1 W| row by row, since tanh is 1-Lipschitz; E of sd 0.001."""
    torch.manual_seed(0)
    model = modulate(Mixed(), start="paper")
    for layer in modulated_layers(model).values():
        u1, u2 = layers_of(layer)
        rows = layer.parametrizations.weight.original.flatten(2)  # [O, C, k]
        e1, e2 = (torch.linalg.matrix_norm(u - torch.eye(len(u)), 2) for u in (u1, u2))
        assert max(e1, e2) < 3 * 0.001 * len(u1) ** 0.5  # spectral norm of k x k noise: about 2 sd sqrt(k)
        bound = e2 * torch.tanh(rows @ u1.T).norm(dim=2) + e1 * rows.norm(dim=2)
        assert ((layer.weight.flatten(2) - torch.tanh(rows)).norm(dim=2) <= bound + 1e-12).all()


@pytest.mark.parametrize(("depth", "kept"), [(1, lambda w: w), (2, torch.tanh)])
def test_identity_start_leaves_the_models_output_unchanged_to_the_initial_noise(depth, kept):
    """To W's own output with one layer, to that of tanh(W) with two: zero without noise, linear in its size."""
    torch.manual_seed(0)
    plain, x = metakm.strategies.Classifier(metakm.CifarResNet(8), 10), images()
    model = modulate(copy.deepcopy(plain), classifier="head", depth=depth, start="paper")
    start = {n: u.detach().clone() for n, u in model.named_parameters() if ".layers." in n}
    with torch.no_grad():
        for name in modulated_layers(model):
            w = plain.get_submodule(name).weight
            w.copy_(kept(w))

    def change(noise):
        with torch.no_grad():
            for name, u in start.items():
                model.get_parameter(name).copy_(torch.eye(9) + noise * (u - torch.eye(9)))
        return ((model(x) - plain(x)).norm() / plain(x).norm()).item()

    assert change(0) < 1e-12
    assert change(1) < 0.01
    assert change(0.1) == pytest.approx(0.1 * change(1), rel=0.1)


def test_implicit_modulation_is_a_scaled_kernel_and_an_offset():
    """Eq. 8, by the modulated kernel; gamma / sigma scales the kernel's input channels."""
    torch.manual_seed(0)
    norm, conv = nn.BatchNorm2d(5), nn.Conv2d(5, 7, 3, bias=False)
    model = perturb(modulate(nn.Sequential(norm, conv), classifier=None), 0.5).eval()
    x, w = torch.randn(2, 5, 6, 6), model[1].weight
    scale = norm.weight / torch.sqrt(norm.running_var + norm.eps)
    shift = norm.bias - scale * norm.running_mean
    offset = F.conv2d(shift[None, :, None, None].expand(1, 5, 3, 3), w)  # [1, 7, 1, 1]
    torch.testing.assert_close(model(x), F.conv2d(x, w * scale[:, None, None]) + offset)
    torch.testing.assert_close(nn.GroupNorm(5, 5)(x).mean(), torch.zeros(()), atol=1e-12, rtol=0)


def test_each_layer_computes_its_weight_once_a_forward(case):
    model, classifier = case
    modulate(model, classifier=classifier)
    calls = []
    for layer in modulated_layers(model).values():
        layer.parametrizations.weight[0].register_forward_hook(lambda *_: calls.append(1))
    model(images())
    assert len(calls) == len(modulated_layers(model))
    with parametrize.cached():
        model(images())
        model(images())
    assert len(calls) == 2 * len(modulated_layers(model))


def test_counts_of_the_papers_resnet50():
    """Sec. IV-B: 75X fewer; 1.33 % of the full model, 1.35 % of the 23.5 M of the backbone, on the mean of four tasks.

    Modulated are all 53 convolutions: 16 of 3x3, 1 of 7x7 and 36 of 1x1, the shortcuts' included.
    """
    full, trainable = [], []
    model = modulate(replace_norm(torchvision.models.resnet50(num_classes=100)))
    for classes in PAPER_CLASSES.values():
        model.fc = nn.Linear(2048, classes)
        counts = count_trainable(model)
        full.append(counts.n_full)
        trainable.append(counts.n_trainable)
    assert counts.total["modulators"] == 16 * 2 * 9**2 + 1 * 2 * 49**2 + 36 * 2 * 1**2 == 7_466
    assert counts.total["norms"] == 53_120
    assert counts.total["classifier"] == 2_049 * 101
    backbone = counts.total["convolutions"] + counts.total["norms"]
    assert backbone == 23_508_032
    assert mean(full) / mean(trainable) == pytest.approx(75.15, abs=0.005)
    assert 100 * mean(trainable) / mean(full) == pytest.approx(1.33, abs=0.005)
    assert 100 * mean(trainable) / backbone == pytest.approx(1.345, abs=0.0005)
    assert model(torch.randn(2, 3, 32, 32)).shape == (2, 101)


def test_counts_of_the_papers_cifar_resnet32(capsys):
    """Table I: BL 2.9 K, KM 7.9 K, both of 470 K in all."""
    network = metakm.strategies.Classifier(metakm.CifarResNet(32), ways=10)
    baseline = count_trainable(modulate(copy.deepcopy(network), layers=(), classifier="head"))
    assert (baseline.n_trainable, baseline.n_total) == (2_922, 464_154)
    counts = report(modulate(network, classifier="head"))
    assert (counts.n_trainable, counts.n_total, counts.total["modulators"]) == (7_944, 469_176, 31 * 162)
    printed = capsys.readouterr().out
    assert [line.split() for line in printed.splitlines()[1:6]] == [
        ["modulators", "5,022", "5,022"],
        ["norms", "2,272", "2,272"],
        ["classifier", "650", "650"],
        ["convolutions", "0", "461,232"],
        ["in", "all", "7,944", "469,176"],
    ]
    assert "58.43 times fewer than the 464,154" in printed


def test_report_of_a_model_that_is_not_modulated():
    counts = count_trainable(Mixed())
    assert counts.n_trainable == counts.n_full == counts.n_total
    assert counts.total["others"] == 12 * 13 + 12 * 3 + 3
    assert count_trainable(Mixed().requires_grad_(False)).reduction == float("inf")


def test_options_reach_the_modulators():
    model = modulate(Mixed(), activation="sin", init="diagonal", depth=3)
    networks = [layer.parametrizations.weight[0] for layer in modulated_layers(model).values()]
    assert {(n.activation, n.diagonal, len(n.layers)) for n in networks} == {("sin", True, 3)}
    assert [n.kernel_size for n in networks] == [(7, 7), (3, 3), (1, 3), (1, 1)]


def test_explicit_alone_leaves_the_norms_affine_frozen_and_their_statistics_moving():
    model = modulate(Mixed(), implicit=False)
    affine, mean_before = model.norm1.weight.clone(), model.norm1.running_mean.clone()
    train(model)
    assert not any(p.requires_grad for n in ("norm1", "norm2", "norm3") for p in getattr(model, n).parameters())
    assert torch.equal(model.norm1.weight, affine)
    assert not torch.equal(model.norm1.running_mean, mean_before)


def test_without_classifier_and_with_convolutions_in_it():
    assert not modulate(Mixed(), classifier=None).fc.weight.requires_grad
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Sequential(nn.Conv2d(4, 2, 1), nn.Flatten()))
    modulate(model, classifier="1")
    assert list(modulated_layers(model)) == ["0"]
    assert model[1][0].weight.requires_grad


@pytest.mark.parametrize(
    ("layers", "chosen"),
    [
        (None, ["stem", "grouped", "depthwise", "pointwise"]),
        ("stem", ["stem"]),
        ("*wise", ["depthwise", "pointwise"]),
        (["pointwise", "s*"], ["stem", "pointwise"]),
        ((), []),
        (lambda name, module: module.groups > 1 and name != "grouped", ["depthwise"]),
    ],
)
def test_layers_are_chosen_by_name_pattern_or_predicate(layers, chosen):
    model = modulate(Mixed(), layers=layers)
    assert list(modulated_layers(model)) == chosen
    assert not any(m.parametrizations.weight.original.requires_grad for m in modulated_layers(model).values())


def test_a_glob_selects_a_stage():
    model = modulate(resnet18(), layers="layer4.*")
    assert len(modulated_layers(model)) == 5
    assert not model.conv1.weight.requires_grad


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layers": "grouping"}, "'grouping', which matches none; did you mean 'grouped'"),
        ({"layers": ["stem", "conv*"]}, "'conv\\*', which matches none"),
        ({"layers": "fc"}, "convolutions outside the classifier .*'fc', which matches none"),
        ({"layers": lambda *_: False}, "Expected layers to select a convolution, got none of stem, grouped"),
        ({"classifier": "head"}, "Expected classifier to name a submodule, got 'head'; .* fc, or pass None"),
        ({"activation": "tan"}, "did you mean 'tanh'"),
        ({"depth": 0}, "at least 1"),
        ({"start": "exat", "modulator": "low-rank"}, "Expected start to be one of .*did you mean 'exact'"),
        ({"activation": "zzz", "layers": []}, "Expected activation to be one of"),
        ({"init": "zeros", "layers": []}, "Expected init to be one of"),
        ({"depth": -3, "layers": []}, "Expected depth to be a whole number of at least 1, got -3"),
    ],
)
def test_wrong_options_are_refused_before_the_model_is_touched(options, message):
    model = Mixed()
    with pytest.raises(metakm.UserError, match=message):
        modulate(model, **options)
    assert all(p.requires_grad for p in model.parameters())
    assert not any(parametrize.is_parametrized(m) for m in model.modules())


def test_a_convolution_with_norm_in_its_name_is_no_norm():
    class NormedConv2d(nn.Conv2d):
        pass

    model = modulate(
        nn.Sequential(NormedConv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(8, 2)), None, True, "3"
    )
    assert not model[0].parametrizations.weight.original.requires_grad
    assert model[1].weight.requires_grad
    strategy = metakm.make_strategy(
        "maml", metakm.carry_tasks(nn.Sequential(NormedConv2d(3, 4, 3), nn.Flatten()), (3, 4, 4)), ways=2
    )
    assert any(name.endswith("0.weight") for name in strategy.adapted.names)


def test_a_name_is_no_network():
    with pytest.raises(metakm.UserError, match=r"Expected a network \(nn\.Module\) to modulate, got 'resnet18'"):
        modulate("resnet18")


@pytest.mark.parametrize("wrap", [nn.DataParallel, lambda model: torch.compile(model, backend="eager")])
def test_a_wrapped_network_is_modulated_before_it_is_wrapped(wrap):
    with pytest.raises(metakm.UserError, match=r"not wrapped yet, got .*; modulate the network within it"):
        modulate(wrap(Mixed()), classifier=None)


def test_models_that_cannot_be_modulated():
    with pytest.raises(metakm.UserError, match="Conv2d layers to modulate, got one without"):
        modulate(nn.Linear(2, 2), classifier=None)
    with pytest.raises(metakm.UserError, match="not modulated yet"):
        modulate(modulate(Mixed()))
    with pytest.raises(metakm.UserError, match=r"did you mean 'layer4.\*'"):
        modulate(resnet18(), layers="layer4")
    model = Mixed()
    nn.utils.parametrizations.weight_norm(model.stem)
    with pytest.raises(metakm.UserError, match="plain layer 'stem', got a parametrized one"):
        modulate(model)
    with pytest.raises(metakm.UserError, match="initialised weight in '0', got a lazy one"):
        modulate(nn.Sequential(nn.LazyConv2d(4, 3)), classifier=None)


def test_modulators_take_the_layers_precision():
    model = modulate(Mixed().to(torch.bfloat16))
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert model(images().to(torch.bfloat16)).dtype == torch.bfloat16


def test_copies_of_a_modulated_model_are_independent():
    torch.manual_seed(0)
    model, x = perturb(modulate(Mixed())).eval(), images()
    expected, twin = model(x), copy.deepcopy(model)
    perturb(twin)
    torch.testing.assert_close(model(x), expected, rtol=0, atol=0)
    assert not torch.allclose(twin(x), expected)


class Gain(nn.Module):
    """Returns `factor` times the kernel, which is what `spoil` makes of it."""

    spoil = staticmethod(lambda kernel: 0.9 * kernel)

    def __init__(self, kernel_size, depth, activation, init, scale=None):  # noqa: ARG002 (what modulators are given)
        super().__init__()
        self.factor = nn.Parameter(torch.ones(kernel_size))

    def forward(self, kernel):
        return self.spoil(self.factor * kernel)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda kernel: 0.9 * kernel, 'Expected Gain to return W at the start, as start="exact" says'),
        (lambda kernel: kernel[1:], r"Expected Gain to map a kernel \[8, 3, 7, 7\] to one of that shape, got \[7, 3"),
        (lambda kernel: kernel @ torch.ones(99), r"Expected Gain to map a kernel \[8, 3, 7, 7\], got RuntimeError: "),
    ],
)
def test_a_modulator_that_does_not_keep_its_promise_is_refused(monkeypatch, spoil, message):
    monkeypatch.setattr(Gain, "spoil", staticmethod(spoil))
    model = Mixed()
    with pytest.raises(metakm.UserError, match=message):
        modulate(model, modulator=Gain)
    assert all(p.requires_grad for p in model.parameters())
    monkeypatch.setattr(Gain, "spoil", staticmethod(lambda kernel: kernel))
    modulate(model, modulator=Gain)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"modulator": 3}, "Expected modulator to be a name or a class of modules, got 3"),
        ({"classifier": ["fc"]}, "Expected classifier to name a submodule"),
        ({"layers": [nn.Conv2d(1, 1, 1)]}, "Expected layers to be names or patterns, got a Conv2d"),
        ({"depth": 2.5}, "a whole number of at least 1, got 2.5"),
        ({"activation": None}, "Expected activation to be one of"),
        ({"modulator": "low-rank", "depth": 5}, "Expected no depth, activation or init for LowRank"),
    ],
)
def test_arguments_of_the_wrong_kind_are_refused(options, message):
    with pytest.raises(metakm.UserError, match=message):
        modulate(Mixed(), **options)


def test_networks_that_have_no_values_yet_are_refused():
    with pytest.raises(metakm.UserError, match="on the meta device; load it first"):
        modulate(Mixed().to("meta"))
    lazy = Mixed()
    lazy.fc = nn.LazyLinear(4)
    with pytest.raises(metakm.UserError, match="Expected an initialised classifier, got a lazy 'weight'"):
        modulate(lazy)
    assert lazy.stem.weight.requires_grad
    with pytest.raises(metakm.UserError, match=r"got a single convolution; put it into nn\.Sequential"):
        modulate(nn.Conv2d(3, 4, 3), classifier=None)


@pytest.mark.parametrize("options", [{}, {"start": "paper"}, {"modulator": "channel"}, {"modulator": "low-rank"}])
def test_a_modulated_network_compiles_as_one_graph(options):
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 1))
    model = perturb(modulate(plain, classifier=None, **options))
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    images = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    adapted = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for network in (model.train(), model.eval()):
        with torch.no_grad():
            torch.testing.assert_close(compiled(images), network(images))
        expected, found = (torch.autograd.grad(call(images).square().sum(), adapted) for call in (network, compiled))
        torch.testing.assert_close(found, expected)
