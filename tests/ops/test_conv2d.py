import pytest
import torch

from metakm.ops import matmul_conv2d
from metakm.ops.conv2d import Geometry, convolve

GEOMETRIES = {  # 1x1 kernels where the name says so, else 3x3
    "plain": Geometry((1, 1), (1, 1), (1, 1), 1),
    "stride": Geometry((2, 2), (1, 1), (1, 1), 1),
    "grouped": Geometry((2, 1), (0, 1), (1, 1), 2),
    "dilated": Geometry((1, 1), (2, 2), (2, 2), 1),
    "depthwise": Geometry((1, 1), (1, 1), (1, 1), 4),
    "pointwise": Geometry((1, 1), (0, 0), (1, 1), 1),
    "pointwise-strided": Geometry((2, 2), (0, 0), (1, 1), 1),
    "pointwise-padded": Geometry((3, 2), (1, 1), (1, 1), 2),
}
POINTWISE = [geometry for name, geometry in GEOMETRIES.items() if name.startswith("pointwise")]

REAL_IS_FASTER = matmul_conv2d.is_faster


def inputs(geometry):
    torch.manual_seed(0)
    x = torch.randn(2, 4, 6, 5, requires_grad=True)
    side = 1 if geometry in POINTWISE else 3
    weight = torch.randn(4, 4 // geometry.groups, side, side, requires_grad=True)
    return x, weight


@pytest.fixture(params=["oneDNN", "product"], autouse=True)
def way(request, monkeypatch):
    """Every test runs with the library's convolutions and with those that are matrix products."""
    monkeypatch.setattr(matmul_conv2d, "is_faster", lambda *_args, **_options: request.param == "product")


@pytest.mark.parametrize("geometry", GEOMETRIES.values(), ids=GEOMETRIES)
def test_value_and_derivatives_up_to_the_second(geometry):
    x, weight = inputs(geometry)
    torch.testing.assert_close(convolve(x, weight, geometry), torch.conv2d(x, weight, None, *geometry))
    assert torch.autograd.gradcheck(lambda x, w: convolve(x, w, geometry), (x, weight))
    assert torch.autograd.gradgradcheck(lambda x, w: convolve(x, w, geometry), (x, weight))


@pytest.mark.parametrize("geometry", GEOMETRIES.values(), ids=GEOMETRIES)
def test_third_derivative_equals_pytorch(geometry):
    x, weight = inputs(geometry)

    def third(function):
        value = (function(x, weight) ** 3).sum()
        for _ in range(2):
            value = sum((g**2).sum() for g in torch.autograd.grad(value, (x, weight), create_graph=True))
        return torch.autograd.grad(value, (x, weight))

    ours = third(lambda x, w: convolve(x, w, geometry))
    theirs = third(lambda x, w: torch.conv2d(x, w, None, *geometry))
    for actual, expected in zip(ours, theirs, strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-9)


def test_the_double_backward_of_pytorch_is_never_reached():
    """No node of the second-order graph is PyTorch's own convolution."""
    x, weight = inputs(GEOMETRIES["plain"])
    grads = torch.autograd.grad((convolve(x, weight, GEOMETRIES["plain"]) ** 2).sum(), (x, weight), create_graph=True)
    seen, stack = set(), [g.grad_fn for g in grads]
    while stack:
        node = stack.pop()
        if node is not None and node not in seen:
            seen.add(node)
            stack += [n for n, _ in node.next_functions]
    names = {n.name() for n in seen}
    assert any("Convolve" in name for name in names)
    assert not any(name.startswith("Convolution") for name in names)


def test_a_product_pays_with_fewer_pixels_than_channels():
    output = torch.empty(5, 640, 4, 4)  # 80 pixels
    assert REAL_IS_FASTER(output, 320)
    assert not REAL_IS_FASTER(output, 256)
    assert REAL_IS_FASTER(output, 80, weight_gradient=True)
    assert not REAL_IS_FASTER(output, 64, weight_gradient=True)
    assert REAL_IS_FASTER(torch.empty(5, 320, 8, 8), 320, stride=(2, 2))
    assert not REAL_IS_FASTER(output.to("meta"), 320)
