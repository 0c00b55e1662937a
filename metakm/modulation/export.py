"""A modulated model as an ONNX file, for runtimes without PyTorch."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor, nn

from metakm.errors import UserError, missing_extra, one_line
from metakm.io.files import atomic_write, expanded
from metakm.modulation.attachment import is_modulated, unwrap
from metakm.modulation.merging import merge


def export_onnx(model: nn.Module, path: Path | str, images: Tensor, metadata: Mapping[str, str] | None = None) -> None:
    """Write `model`, merged if it is modulated, in evaluation mode, to one ONNX file from `images` to `logits`.

    The number of images is dynamic; channels, height and width are those of `images`. Needs `metakm[onnx]` and PyTorch
    2.6 or newer.

    Args:
        images: an example `[n, C, H, W]` with n >= 2, on the model's device.
        metadata: to store in the file.

    Raises:
        UserError: the exporter is not installed, it cannot export the network, or fewer than 2 images (PyTorch would
            fix n to 1).
    """
    file_path = expanded(path, "the ONNX file's path")
    missing = [name for name in ("onnx", "onnxscript") if find_spec(name) is None]
    if missing:
        raise missing_extra(" and ".join(missing), "onnx", "an export")
    if images.dim() != 4 or len(images) < 2:
        raise UserError(f"Expected images [n, C, H, W] with n >= 2, got {tuple(images.shape)}; stack two images")
    model = unwrap(model)
    plain = merge(model) if is_modulated(model) else model
    training = [module for module in plain.modules() if module.training]
    try:
        program = torch.onnx.export(
            plain.eval(),
            (images,),
            dynamo=True,
            input_names=["images"],
            output_names=["logits"],
            dynamic_shapes=({0: torch.export.Dim("n")},),
            verbose=False,
        )
    except Exception as error:  # the exporter's, or the network's own
        raise UserError(
            f"Expected a network that PyTorch can export, got {type(error).__name__}: {one_line(error, 200)}; remove "
            "what depends on values, such as branches, from its forward"
        ) from error
    finally:
        for module in training:
            module.training = True
    assert program is not None  # with dynamo=True it is returned
    proto = program.model_proto
    for key, value in (metadata or {}).items():
        proto.metadata_props.add(key=key, value=value)
    with atomic_write(file_path) as file:
        file.write(proto.SerializeToString())
