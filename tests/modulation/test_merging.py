"""Merged models equal unmerged ones, without a trace of modulation; so do their ONNX files."""

import copy
import importlib.util

import pytest
import torch
from convnets import CASES, Mixed, images, perturb, resnet18
from torch import nn
from torch.nn.utils import parametrize

import metakm
from metakm.modulation import export_onnx, merge, modulate, replace_norm
from metakm.modulation.attachment import is_modulated


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def identities(model):
    return sum(type(m) is nn.Identity for m in model.modules())


def trained(model, **options):
    return perturb(modulate(model, **options)).eval()


@pytest.mark.parametrize(
    ("builder", "classifier", "folded"),
    [
        (Mixed, "fc", 1),
        (resnet18, "fc", 20),
        (CASES["mobilenet"][0], "classifier", 34),
        (lambda: replace_norm(Mixed()), "fc", 0),
    ],
)
def test_merged_equals_unmerged_and_batch_norm_is_folded(builder, classifier, folded):
    model, x = trained(builder(), classifier=classifier), images()
    before = {n: t.clone() for n, t in model.state_dict().items()}
    expected = model(x)
    merged = merge(model)
    torch.testing.assert_close(merged(x), expected, rtol=1e-12, atol=1e-12)
    assert identities(merged) - identities(model) == folded
    assert not model.training
    assert not merged.training
    assert torch.equal(model(x), expected)
    assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items())


def test_folding_the_weights_alone_leaves_the_norms():
    model, x = trained(Mixed()), images()
    merged = merge(model, norms=False)
    torch.testing.assert_close(merged(x), model(x), rtol=1e-12, atol=1e-12)
    assert identities(merged) == 0
    assert merged.state_dict().keys() == Mixed().state_dict().keys()


@pytest.mark.float32
def test_merged_equals_unmerged_to_1e6_in_single_precision():
    """Bit for bit without the norms; folding them rounds, by more for some weights than for others."""
    differences = []
    for seed in range(3):
        torch.manual_seed(seed)
        model, x = trained(resnet18()), images()
        assert torch.equal(merge(model, norms=False)(x), model(x))
        differences.append((merge(model)(x) - model(x)).abs().max() / model(x).abs().max())
    assert torch.stack(differences).median() < 1e-6
    assert max(differences) < 1e-5


def test_nothing_of_modulation_is_left():
    plain = resnet18()
    merged = merge(trained(copy.deepcopy(plain)), norms=False)
    assert not is_modulated(merged)
    assert not any(parametrize.is_parametrized(m) for m in merged.modules())
    assert [type(m) for m in merged.modules()] == [type(m) for m in plain.modules()]
    assert not any(name.startswith("_metakm") for module in merged.modules() for name in vars(module))
    assert not any(p.requires_grad for p in merged.parameters())
    plain.load_state_dict(merged.state_dict())
    x = images()
    assert torch.equal(plain.eval()(x), merged(x))


def test_merged_keeps_the_memory_format():
    model = trained(Mixed().to(memory_format=torch.channels_last))
    assert merge(model, norms=False).grouped.weight.is_contiguous(memory_format=torch.channels_last)
    assert merge(trained(Mixed()), norms=False).grouped.weight.is_contiguous()


def test_metakms_own_backbones_merge_their_weights_and_keep_their_norms():
    builder, classifier = CASES["cifar_resnet"]
    model, x = trained(builder(), classifier=classifier), images()
    torch.testing.assert_close(merge(model)(x), model(x), rtol=1e-12, atol=1e-12)


class Pairs(nn.Module):
    """One pair that folds and four that must not."""

    def __init__(self):
        super().__init__()
        for name in ("plain", "branched", "twice", "read", "shifted"):
            setattr(self, name, nn.Conv2d(3, 3, 3, padding=1))
            setattr(self, f"{name}_norm", nn.BatchNorm2d(3))
        self.untracked, self.untracked_norm = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3, track_running_stats=False)

    def forward(self, x):
        x = self.plain_norm(self.plain(x))
        y = self.branched(x)
        x = self.branched_norm(y) + y
        x = self.twice_norm(self.twice(self.twice(x)))
        x = self.read_norm(self.read(x)) * self.read.weight.mean()
        x = self.shifted_norm(self.shifted(x) + 1)
        return self.untracked_norm(self.untracked(x))


def test_only_pairs_that_may_fold_do():
    model, x = trained(Pairs(), classifier=None), images()
    merged = merge(model)
    torch.testing.assert_close(merged(x), model(x), rtol=1e-11, atol=1e-11)
    assert [n for n, m in merged.named_modules() if type(m) is nn.Identity] == ["plain_norm"]


class Untraceable(Mixed):
    def forward(self, x):
        return super().forward(x if x.sum() > 0 else -x)


def test_a_model_that_cannot_be_traced_folds_its_weights_and_says_so():
    model, x = trained(Untraceable()), images()
    with pytest.warns(UserWarning, match="Only the weights were folded, not the norms: torch.fx cannot trace") as seen:
        merged = merge(model)
    assert seen[0].filename == __file__
    torch.testing.assert_close(merged(x), model(x), rtol=1e-12, atol=1e-12)
    assert identities(merged) == 0
    merge(model, norms=False)


class Optional(nn.Module):
    """Folding is right where a mask is given, and wrong without."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.fc = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 2)

    def forward(self, x, mask=None, *, power=1):
        y = self.conv(x)
        z = self.norm(y) + y if mask is None else self.norm(y) * mask
        return self.fc((z if power == 1 else z**power).mean((2, 3)))


def test_arguments_besides_the_images_have_their_defaults():
    model, x = trained(Optional()), images()
    merged = merge(model)
    torch.testing.assert_close(merged(x), model(x), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(merged(x, torch.ones(())), model(x, torch.ones(())), rtol=1e-12, atol=1e-12)


class Lazy(Optional):
    offset = None

    def forward(self, x):
        y = self.norm(self.conv(x))
        if self.offset is None:
            self.offset = torch.ones_like(y[:1])
        return self.fc((y + self.offset).mean((2, 3)))


def test_what_a_model_makes_at_its_first_call_is_made_by_the_merged_one():
    model, x = trained(Lazy()), images()
    merged = merge(model)
    assert merged.offset is None
    torch.testing.assert_close(merged(x), model(x), rtol=1e-12, atol=1e-12)
    assert identities(merged) == 1


def test_layers_that_share_a_kernel_merge_each_with_its_own_modulator():
    model = nn.Sequential(nn.Conv2d(3, 3, 3), nn.Conv2d(3, 3, 3))
    model[1].weight = model[0].weight
    model, x = trained(model, classifier=None), images()
    merged = merge(model)
    torch.testing.assert_close(merged(x), model(x), rtol=1e-12, atol=1e-12)
    assert not torch.equal(merged[0].weight, merged[1].weight)


def test_what_cannot_be_merged():
    with pytest.raises(metakm.UserError, match="modulated model, got a plain Mixed"):
        merge(Mixed())
    model = modulate(Mixed())
    nn.utils.parametrizations.spectral_norm(model.stem)
    with pytest.raises(metakm.UserError, match="modulators alone on 'stem', got another parametrization"):
        merge(model)


needs_onnx = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("onnx", "onnxscript", "onnxruntime")),
    reason="onnx, onnxscript and onnxruntime are not installed: pip install 'metakm[onnx]'",
)


@needs_onnx
@pytest.mark.float32
def test_onnx_file_equals_the_model_for_any_number_of_images(tmp_path):
    import onnxruntime

    model, path = trained(Mixed()).train(), tmp_path / "model.onnx"
    plain = Mixed().train()
    next(module for module in plain.modules() if isinstance(module, nn.BatchNorm2d)).eval()
    export_onnx(plain, path, images())
    assert [module.training for module in plain.modules()].count(False) == 1
    held = next(module for module in model.modules() if isinstance(module, nn.BatchNorm2d)).eval()
    modes = [module.training for module in model.modules()]
    export_onnx(model, path, images())
    assert [module.training for module in model.modules()] == modes
    assert not held.training
    assert is_modulated(model)
    assert [p.name for p in tmp_path.iterdir()] == ["model.onnx"]
    session = onnxruntime.InferenceSession(path)
    assert ([i.name for i in session.get_inputs()], [o.name for o in session.get_outputs()]) == (["images"], ["logits"])
    for n in (1, 3):
        x = images(n)
        (logits,) = session.run(None, {"images": x.numpy()})
        torch.testing.assert_close(torch.from_numpy(logits), model.eval()(x).detach(), rtol=1e-4, atol=1e-5)
        model.train()


@needs_onnx
def test_onnx_export_refuses_a_single_image(tmp_path):
    with pytest.raises(metakm.UserError, match=r"n >= 2, got \(1, 3, 16, 16\)"):
        export_onnx(Mixed(), tmp_path / "a.onnx", images(1))


def test_onnx_export_names_what_is_not_installed(tmp_path, monkeypatch):
    monkeypatch.setattr("metakm.modulation.export.find_spec", lambda name: None if name == "onnxscript" else name)
    with pytest.raises(metakm.UserError, match=r"Expected onnxscript for an export.*metakm\[onnx\]"):
        export_onnx(Mixed(), tmp_path / "a.onnx", images())


@pytest.mark.parametrize("hooked", ["norm", "convolution"])
def test_a_norm_is_not_folded_where_a_hook_changes_what_passes(hooked):
    layers = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4)
    network = nn.Sequential(*layers)
    if hooked == "norm":
        network[1].register_forward_pre_hook(lambda _, inputs: (inputs[0] * 3,))
    else:
        network[0].register_forward_hook(lambda *arguments: arguments[-1] * 3)
    model, x = trained(network, classifier="5"), images()
    torch.testing.assert_close(merge(model)(x), model(x), rtol=1e-12, atol=1e-12)


def test_a_pruned_convolution_that_is_not_modulated_stays():
    layers = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    network = nn.Sequential(*layers, nn.Linear(8, 4))
    torch.nn.utils.prune.l1_unstructured(network[0], "weight", 0.5)
    model, x = trained(network, layers="3", classifier="6"), images()
    with torch.no_grad():
        model(x)  # deepcopy refuses a computed weight that has a graph
    torch.testing.assert_close(merge(model)(x), model(x), rtol=1e-12, atol=1e-12)
