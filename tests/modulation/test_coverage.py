"""What `modulate` refuses before it changes anything, and what it says it leaves frozen."""

import logging

import pytest
import torch
import torchvision
from convnets import resnet18
from torch import nn
from torch.nn.utils import parametrizations, prune

import metakm
from metakm.modulation import KernelModulators, modulate, replace_norm
from metakm.modulation.norms import is_norm

COMPUTED = {
    "weight_norm": lambda conv: nn.utils.weight_norm(conv),
    "new weight_norm": parametrizations.weight_norm,
    "spectral_norm": lambda conv: nn.utils.spectral_norm(conv),
    "new spectral_norm": parametrizations.spectral_norm,
    "pruning": lambda conv: prune.l1_unstructured(conv, "weight", 0.5),
}


@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
@pytest.mark.parametrize("kind", COMPUTED)
def test_a_layer_whose_weight_is_computed_is_named_and_the_model_left_as_it_was(kind):
    net = nn.Sequential(nn.Conv2d(3, 4, 3), COMPUTED[kind](nn.Conv2d(4, 4, 3)), nn.Flatten(), nn.Linear(4, 2))
    names, classes = [n for n, _ in net.named_parameters()], [type(m) for m in net.modules()]
    for refused in (lambda: modulate(net, classifier="3"), lambda: KernelModulators(net)):
        with pytest.raises(metakm.UserError, match="Expected a plain layer '1', got"):
            refused()
    assert [n for n, _ in net.named_parameters()] == names
    assert [type(m) for m in net.modules()] == classes
    assert all(p.requires_grad for p in net.parameters())


class Sequence(nn.Module):
    """All kinds of layers with weights."""

    def __init__(self, width=4):
        super().__init__()
        self.conv = nn.Conv2d(3, 64, 3)
        self.conv1d, self.conv3d = nn.Conv1d(2, 2, 3), nn.Conv3d(2, 2, 3)
        self.up = nn.ConvTranspose2d(2, 2, 3)
        self.aux = nn.ModuleList([nn.Linear(4, width), nn.Linear(4, width)])
        self.norm = nn.RMSNorm(4)
        self.fc = nn.Linear(4, 2)


def test_what_stays_frozen_is_said_once_by_kind_and_name(caplog):
    with caplog.at_level(logging.WARNING):
        model = modulate(Sequence())
    assert [record.message for record in caplog.records] == [
        "modulates 1 Conv2d layers; frozen: 1 Conv1d (conv1d), 1 Conv3d (conv3d), 1 ConvTranspose2d (up), "
        "2 Linear (aux.0, ...)"
    ]
    assert model.norm.weight.requires_grad, "RMS norm is a norm"


def test_a_network_of_convolutions_and_norms_says_nothing(caplog):
    modulate(resnet18())
    modulate(Sequence(), layers="conv")
    assert not caplog.records


def test_a_network_that_is_hardly_modulated_is_refused_unless_the_layers_are_chosen():
    transformer = torchvision.models.VisionTransformer(32, 8, 4, 2, 64, 256, num_classes=3)
    with pytest.raises(metakm.UserError, match=r"a tenth of the parameters .* got [\d.]+ %; the") as e:
        modulate(transformer, classifier="heads")
    assert "MultiheadAttention" in str(e.value)
    assert all(p.requires_grad for p in transformer.parameters())
    modulate(transformer, layers="conv_proj", classifier="heads")
    assert not transformer.class_token.requires_grad


def test_norms_of_other_libraries_are_norms():
    class RmsNormAct2d(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(3))

    class NormalLinear(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight, self.other = nn.Parameter(torch.ones(3, 3)), nn.Parameter(torch.ones(3))

    assert is_norm(RmsNormAct2d())
    assert is_norm(nn.RMSNorm(3))
    assert not is_norm(NormalLinear())
    assert not is_norm(nn.Identity())


def test_a_batch_norm_that_also_activates_is_not_replaced():
    class NormAct(nn.BatchNorm2d):
        def forward(self, x):
            return torch.relu(super().forward(x))

    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), NormAct(8))
    with pytest.raises(metakm.UserError, match="got its subclass NormAct at '2', which may do more"):
        replace_norm(net)
    assert [type(m) for m in net] == [nn.Conv2d, nn.BatchNorm2d, NormAct]


@pytest.mark.filterwarnings("ignore:.*torch.jit.trace.*:FutureWarning")
@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
@pytest.mark.float32
def test_gradients_under_torch_func_are_those_of_autograd_and_a_trace_computes_the_same():
    torch.manual_seed(0)
    model, x = modulate(resnet18()).eval(), torch.rand(1, 3, 64, 64)
    parameters = {n: p.detach() for n, p in model.named_parameters() if p.requires_grad}
    found = torch.func.grad(lambda p: torch.func.functional_call(model, p, (x,)).square().sum())(parameters)
    model(x).square().sum().backward()
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, model.get_parameter(name).grad, rtol=1e-4, atol=1e-5)
    traced = torch.jit.trace(model, x, check_trace=False)
    torch.testing.assert_close(traced(x), model(x), rtol=1e-5, atol=1e-5)
