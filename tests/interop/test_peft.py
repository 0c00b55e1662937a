"""Kernel modulation in peft's own words, against `modulate`."""

import copy
import json
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from convnets import Mixed, images, mobilenet, perturb, resnet18
from torch import nn

import metakm
from metakm.modulation import modulate

peft = pytest.importorskip("peft", reason="peft is not installed: pip install 'metakm[peft]'")

from metakm.interop.peft import KernelModulationConfig, ModulatedConv2d, ModulatedNorm  # noqa: E402
from metakm.interop.peft_type import add_peft_type  # noqa: E402

FILES = {"adapter_config.json", "adapter_model.safetensors", "README.md"}


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def adapted(builder=Mixed, saved="fc", **options):
    return peft.get_peft_model(builder(), KernelModulationConfig(modules_to_save=[saved], **options))


def trained(model, steps=3):
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.05)
    model.train()
    for _ in range(steps):
        optimizer.zero_grad()
        logits = model(images())
        F.cross_entropy(logits, torch.arange(4) % logits.shape[1]).backward()
        optimizer.step()
    return model.eval()


@pytest.mark.parametrize(
    ("builder", "classifier", "options"),
    [
        (Mixed, "fc", {}),
        (Mixed, "fc", {"start": "paper"}),
        (Mixed, "fc", {"implicit": False, "depth": 3, "activation": "sin"}),
        (Mixed, "fc", {"init": "diagonal", "modulator": "channel"}),
        (Mixed, "fc", {"modulator": "low-rank"}),
        (resnet18, "fc", {}),
        (mobilenet, "classifier", {}),
    ],
)
def test_training_in_peft_is_training_of_a_modulated_model(builder, classifier, options):
    base = builder()
    torch.manual_seed(1)
    ours = trained(modulate(copy.deepcopy(base), classifier=classifier, **options))
    torch.manual_seed(1)
    theirs = peft.get_peft_model(base, KernelModulationConfig(modules_to_save=[classifier], **options))
    own = sum(p.numel() for p in ours.parameters() if p.requires_grad)
    assert theirs.get_nb_trainable_parameters()[0] == own
    trained(theirs)
    x = images()
    torch.testing.assert_close(theirs(x), ours(x), rtol=1e-10, atol=1e-10)


def test_a_new_adapter_leaves_the_network_as_it_was():
    base, x = Mixed().eval(), images()
    expected = base(x)
    model = peft.get_peft_model(base, KernelModulationConfig()).eval()
    torch.testing.assert_close(model(x), expected, rtol=1e-12, atol=1e-12)
    assert [type(m).__name__ for m in model.modules()].count("ModulatedConv2d") == 4
    assert [type(m).__name__ for m in model.modules()].count("ModulatedNorm") == 3


def test_saved_and_loaded_under_another_name(tmp_path):
    model = trained(adapted())
    x = images()
    model.save_pretrained(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == FILES
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert (config["peft_type"], config["start"], config["modules_to_save"]) == ("KM", "exact", ["fc"])
    torch.manual_seed(0)
    again = peft.PeftModel.from_pretrained(Mixed(), tmp_path, adapter_name="birds").eval()
    assert torch.equal(again(x), model(x))
    assert not any(p.requires_grad for p in again.parameters())
    torch.manual_seed(0)
    trainable = peft.PeftModel.from_pretrained(Mixed(), tmp_path, is_trainable=True)
    assert trainable.get_nb_trainable_parameters() == model.get_nb_trainable_parameters()
    torch.manual_seed(0)
    empty = peft.PeftModel.from_pretrained(Mixed(), tmp_path, low_cpu_mem_usage=True).eval()
    assert torch.equal(empty(x), model(x))


def test_a_file_holds_the_adapter_alone(tmp_path):
    from safetensors.torch import load_file

    model = trained(adapted())
    model.save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    modulated = modulate(Mixed())
    from metakm.modulation import make_pack

    pack = make_pack(modulated)
    assert sum(t.numel() for t in tensors.values()) == sum(t.numel() for t in pack.tensors.values())
    assert not any("default" in name or "base_layer" in name for name in tensors)


def test_adapters_are_switched_disabled_and_deleted():
    model, x = adapted(), images()
    model.eval()
    plain = model.base_model.model
    with torch.no_grad(), model.disable_adapter():
        base = model(x)
    model.add_adapter("birds", KernelModulationConfig(modules_to_save=["fc"], depth=1, implicit=False))
    outputs = {}
    for name in ("default", "birds"):
        model.set_adapter(name)
        outputs[name] = trained(model)(x).detach()
    for name in ("default", "birds"):
        model.set_adapter(name)
        model.eval()
        assert torch.equal(model(x), outputs[name])
        names = {n for n, p in model.named_parameters() if p.requires_grad}
        assert names
        assert all(f".{name}." in n for n in names)
    assert not torch.allclose(outputs["default"], outputs["birds"])
    with torch.no_grad(), model.disable_adapter():
        assert torch.equal(model(x), base)
    with pytest.warns(UserWarning, match="Setting active adapter to default"):
        model.delete_adapter("birds")
    assert torch.equal(model.eval()(x), outputs["default"])
    assert isinstance(plain.stem, ModulatedConv2d)
    assert isinstance(plain.norm1, ModulatedNorm)


def test_merged_and_unloaded_is_the_plain_network():
    model, x = trained(adapted()), images()
    expected = model(x)
    merged = model.merge_and_unload(safe_merge=True)
    torch.testing.assert_close(merged(x), expected, rtol=1e-12, atol=1e-12)
    assert {type(m) for m in merged.modules()} == {type(m) for m in Mixed().modules()}
    assert merged.state_dict().keys() == Mixed().state_dict().keys()


def test_a_head_of_several_layers_is_merged_and_unloaded_too():
    model, x = trained(adapted(mobilenet, "classifier")), images()
    expected = model(x)
    torch.testing.assert_close(model.merge_and_unload()(x), expected, rtol=1e-12, atol=1e-12)


def test_unmerge_follows_a_model_that_has_changed_its_precision():
    model, x = trained(adapted()), images()
    expected = model(x)
    model.merge_adapter()
    model.float()
    model.unmerge_adapter()
    torch.testing.assert_close(model(x.float()).double(), expected, rtol=1e-3, atol=1e-4)


class Tied(nn.Module):
    """Two convolutions with one weight."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 3, 3, padding=1)
        self.second.weight = self.first.weight
        self.fc = nn.Linear(3, 4)

    def forward(self, x):
        return self.fc(self.second(self.first(x).relu()).mean((2, 3)))


@pytest.mark.parametrize("modulator", ["kernel", "channel"])
def test_convolutions_that_share_a_weight_are_merged_each_by_itself(modulator):
    model, x = trained(adapted(Tied, modulator=modulator)), images()
    expected = model(x)
    model.merge_adapter()
    torch.testing.assert_close(model(x), expected, rtol=1e-12, atol=1e-12)
    model.unmerge_adapter()
    assert torch.equal(model(x), expected)
    torch.testing.assert_close(model.merge_and_unload()(x), expected, rtol=1e-12, atol=1e-12)


def test_unload_and_unmerge_give_the_base_back_to_the_last_bit():
    base = Mixed().eval()
    before = {name: t.clone() for name, t in base.state_dict().items()}
    model, x = trained(peft.get_peft_model(base, KernelModulationConfig(modules_to_save=["fc"]))), images()
    expected = model(x)
    model.merge_adapter()
    torch.testing.assert_close(model(x), expected, rtol=1e-12, atol=1e-12)
    with pytest.raises(metakm.UserError, match="Expected no merged adapter, got 'default'"):
        model.add_adapter("late", KernelModulationConfig())
    model.unmerge_adapter()
    assert torch.equal(model(x), expected)
    model.merge_adapter()
    with torch.no_grad(), model.disable_adapter():
        model(x)  # disabling unmerges
    unloaded = model.unload()
    changed = {name for name, t in unloaded.state_dict().items() if not torch.equal(t, before[name])}
    assert changed == {"fc.weight", "fc.bias"}  # peft leaves the trained modules_to_save


def test_targets_in_pefts_words():
    def chosen(**options):
        model = peft.get_peft_model(Mixed(), KernelModulationConfig(**options))
        return {name for name, m in model.base_model.model.named_modules() if isinstance(m, ModulatedConv2d)}

    everything = {"stem", "grouped", "depthwise", "pointwise"}
    assert chosen() == everything
    assert chosen(target_modules=["stem", "linear"]) == {"stem"}
    assert chosen(target_modules=r".*wise") == {"depthwise", "pointwise"}
    assert chosen(exclude_modules=["stem"]) == everything - {"stem"}
    assert chosen(modules_to_save=["pointwise"]) == everything - {"pointwise"}


def test_what_is_refused():
    with pytest.raises(metakm.UserError, match="Expected modulator to be one of"):
        KernelModulationConfig(modulator="nothing")
    with pytest.raises(metakm.UserError, match="Expected a model with Conv2d layers to modulate"):
        peft.get_peft_model(nn.Sequential(nn.Linear(2, 2)), KernelModulationConfig())
    with pytest.raises(metakm.UserError, match="Expected activation to be one of"):
        peft.get_peft_model(Mixed(), KernelModulationConfig(activation="nothing"))
    model = Mixed()
    nn.utils.parametrizations.spectral_norm(model.stem)
    with pytest.raises(metakm.UserError, match="Expected a plain layer 'stem', got a parametrized one"):
        peft.get_peft_model(model, KernelModulationConfig())
    model = perturb(adapted()).eval()
    model.add_adapter("birds", KernelModulationConfig())
    model.base_model.set_adapter(["default", "birds"])
    with pytest.raises(metakm.UserError, match="Expected one active adapter of kernel modulation, got default, birds"):
        model(images())
    with pytest.raises(metakm.UserError, match=r"Expected one adapter of .* to merge, got default, birds"):
        model.merge_adapter()
    model.set_adapter("default")
    with torch.no_grad():
        next(iter(model.base_model.model.stem.km_modulators["default"].parameters())).fill_(torch.nan)
    with pytest.raises(metakm.UserError, match="Expected finite kernels, got others from adapter 'default'"):
        model.merge_adapter(safe_merge=True)


def test_the_new_type_is_one_of_pefts_own_and_found_again(tmp_path):
    kind = peft.PeftType("KM")
    assert kind in list(peft.PeftType)
    assert add_peft_type("KM") is kind
    assert peft.PeftType.LORA in list(peft.PeftType)
    config = KernelModulationConfig(target_modules=["stem"])
    config.save_pretrained(tmp_path)
    assert peft.PeftConfig.from_pretrained(tmp_path) == config


def test_a_peft_that_cannot_be_added_to_is_named(monkeypatch):
    def fail(*_):
        raise TypeError("no more members")

    monkeypatch.setattr("metakm.interop.peft_type._add", fail)
    with pytest.raises(ImportError, match=rf"can be added to \(such as 0.21\), got {peft.__version__} \(TypeError"):
        add_peft_type("OTHER")


def test_without_peft_the_extra_is_named():
    code = "import sys; sys.modules['peft'] = None; import metakm.interop.peft"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert "ImportError: Expected peft 0.21 or newer" in done.stderr
    assert "pip install 'metakm[peft]'" in done.stderr


def test_what_is_saved_while_merged_is_the_adapter(tmp_path):
    model, x = trained(adapted()), images()
    expected = model(x)
    model.merge_adapter()
    model.save_pretrained(tmp_path)
    torch.manual_seed(0)
    again = peft.PeftModel.from_pretrained(Mixed(), tmp_path).eval()
    torch.testing.assert_close(again(x), expected, rtol=1e-12, atol=1e-12)
    model.unmerge_adapter()
    assert torch.equal(model(x), expected)


@pytest.mark.parametrize("targets", [["conv_1"], ["fc"], "nope.*"])
def test_target_modules_that_name_no_convolution_are_refused(targets):
    with pytest.raises(metakm.UserError, match=r"target_modules to name Conv2d layers, got .* names none"):
        adapted(target_modules=targets)


def test_a_model_that_is_moved_while_it_is_merged_is_unmerged_where_it_is():
    model = trained(adapted())
    model.merge_adapter()
    model.float()
    model.unmerge_adapter()
    x = images().float()
    with model.disable_adapter(), torch.no_grad():
        torch.testing.assert_close(model(x), Mixed.__call__(model.get_base_model(), x))
    assert {p.dtype for p in model.parameters()} == {torch.float32}
