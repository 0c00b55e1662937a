"""A classifier of photos as one ONNX file, for programs without PyTorch."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from torch import Tensor, nn

from metakm.modulation.export import export_onnx
from metakm.photos.classifier import PhotoClassifier


class Deployable(nn.Module):
    """RGB images in [0, 1], `[n, 3, S, S]`, to logits `[n, N]` whose softmax is calibrated."""

    mean: Tensor
    std: Tensor

    def __init__(self, classifier: PhotoClassifier) -> None:
        super().__init__()
        wanted = classifier.preprocessing
        self.network, self.temperature = classifier.network, classifier.temperature
        self.register_buffer("mean", torch.tensor(wanted.mean)[:, None, None])
        self.register_buffer("std", torch.tensor(wanted.std)[:, None, None])

    def forward(self, images: Tensor) -> Tensor:
        """Normalise, classify, calibrate."""
        logits: Tensor = self.network((images - self.mean) / self.std)
        return logits / self.temperature


def export_classifier(classifier: PhotoClassifier, path: Path | str) -> None:
    """Write the network, normalisation and calibration included; needs `metakm[onnx]`.

    The input `images` is RGB in [0, 1], the middle square of a photo, resized to S; the output is `logits`, whose
    softmax has the probabilities. The file's metadata has `classes` (a JSON list), `threshold` and `size`.

    Raises:
        UserError: see `metakm.modulation.export_onnx`.
    """
    side = classifier.preprocessing.size
    device = next(classifier.network.parameters()).device
    metadata = {
        "classes": json.dumps([str(name) for name in classifier.classes_]),
        "threshold": repr(classifier.threshold),
        "size": str(side),
    }
    export_onnx(Deployable(classifier).to(device).eval(), path, torch.rand(2, 3, side, side, device=device), metadata)
