"""`metakm packs merge`: a pack of `metakm fit` and its base as one network, for deployment."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import tyro

from metakm.errors import UserError
from metakm.fields import require_file


@dataclass(frozen=True)
class Merge:
    """Merge a pack of metakm fit into its base, and write the network as one ONNX file.

    Input: RGB images in [0, 1], the central square of a photo. Output: logits, whose
    softmax gives calibrated probabilities. The metadata names the classes.
    """

    file: tyro.conf.Positional[Path]
    """A pack that metakm fit wrote."""
    onnx: Path
    """The file to write, replaced if it is there. Needs metakm[onnx]."""
    base: str | None = None
    """The pretrained network, in place of the name in the pack; needed where that is in a Python file."""
    weights: Path | None = None
    """File with weights of the base, if the pack was fitted with one."""

    def __call__(self) -> str:
        """The text to print."""
        from metakm.photos.classifier import load_classifier  # brings the base's libraries along
        from metakm.photos.deployment import export_classifier

        if self.onnx.suffix != ".onnx":
            raise UserError(f"Expected --onnx to be a .onnx file, got {self.onnx}; rename it")
        require_file(self.onnx, "onnx")
        classifier = load_classifier(self.file, self.base, self.weights)
        export_classifier(classifier, self.onnx)
        side = classifier.preprocessing.size
        return f"{self.onnx}: {len(classifier.classes_)} classes, {side} px, {self.onnx.stat().st_size:,} bytes"
