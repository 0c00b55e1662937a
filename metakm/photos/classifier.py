"""A classifier of photographs, in scikit-learn's words: what `metakm.fit` returns and a pack holds."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterable, Iterator, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor, nn

from metakm.device import float32_by_default, resolve_device
from metakm.errors import UserError
from metakm.io.files import expanded
from metakm.models.pretrained import Preprocessing, Pretrained, replace_classifier
from metakm.modulation.base_pack import load_base
from metakm.modulation.merging import merge
from metakm.modulation.pack import swap
from metakm.modulation.pack_file import Pack, class_names, read_pack, write_pack
from metakm.photos.listing import NONE_OF_THESE, Photo, list_images, normal_form
from metakm.photos.methods import METHODS, attach, faster_layout
from metakm.photos.options import is_local, without_folder
from metakm.photos.reading import without_warnings
from metakm.photos.store import BATCH, as_photo, normalise, photo_pixels

if TYPE_CHECKING:
    from metakm.photos.fitting import FitReport

HEADER_VERSION = 1
_LIBRARIES = ("metakm", "torch", "torchvision", "timm")


class PhotoClassifier:
    """Photographs to class names and probabilities.

    Attributes:
        classes_: names, sorted; column i of the probabilities is `classes_[i]`.
        threshold: below it `predict` answers `(none of these)`.
        temperature: by which logits are divided, so that probabilities are calibrated.
        network: the base with the task merged into it: normalised images `[n, 3, S, S]` to logits `[n, N]`.
        report_: how the fit went; None for a classifier from a file.
    """

    def __init__(self, pack: Pack, network: nn.Module, preprocessing: Preprocessing) -> None:
        """Merge what the network, modulated, holds of the pack's task."""
        self.pack, self.preprocessing = pack, preprocessing
        self.classes_ = np.array(pack.classes)
        self.temperature = float(pack.photos["temperature"])
        self.threshold = float(pack.photos["threshold"])
        self.network = merge(network)
        self.report_: FitReport | None = None

    def __repr__(self) -> str:
        task, method = self.pack.task, self.pack.photos["method"]
        return f"PhotoClassifier({task!r}, {len(self.classes_)} classes, {method} on {self.pack.photos['base']})"

    def predict(self, photos: Any, threshold: float | None = None) -> npt.NDArray[np.str_]:
        """The name of each photo's class, or `(none of these)` where no probability reaches the threshold.

        Args:
            photos: paths, folders of images, PIL images or uint8 arrays `[H, W, 3]`; or one of them.
            threshold: in place of the classifier's own; 0 always names a class.

        Raises:
            UserError: a photo that cannot be read.
        """
        probabilities = self.predict_proba(photos)
        return self.names(probabilities, threshold)

    def predict_proba(self, photos: Any) -> npt.NDArray[np.float64]:
        """Calibrated probabilities `[n, N]`; see `predict`."""
        given = _photos(photos)
        parts = []
        for first in range(0, len(given), BATCH):
            parts.append(self.probabilities(self._pixels(given[first : first + BATCH]).numpy()))
        return np.concatenate(parts)

    def inputs(self, photos: Any) -> Tensor:
        """What the network is given for photos: normalised, `[n, 3, S, S]`, on the CPU; see `predict`."""
        return normalise(self._pixels(_photos(photos)), self.preprocessing)

    @torch.no_grad()
    def probabilities(self, pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.float64]:
        """Calibrated probabilities of images that are squares of the right size, uint8 `[n, 3, S, S]`."""
        device = next(self.network.parameters()).device
        images = normalise(torch.from_numpy(pixels).to(device), self.preprocessing)
        with torch.autocast(device.type, enabled=False):
            logits = self.network(images).double().cpu()
        found: npt.NDArray[np.float64] = torch.softmax(logits / self.temperature, dim=1).numpy()
        return found

    def names(self, probabilities: npt.NDArray[np.float64], threshold: float | None = None) -> npt.NDArray[np.str_]:
        """What `predict` answers for these probabilities `[n, N]`.

        Raises:
            UserError: a threshold that is no probability.
        """
        least = self.threshold if threshold is None else threshold
        if not 0 <= least <= 1:
            raise UserError(f"Expected threshold to be a probability from 0 to 1, got {least}")
        found = self.classes_[probabilities.argmax(axis=1)]
        return np.where(probabilities.max(axis=1) >= least, found, NONE_OF_THESE)

    def _pixels(self, photos: Sequence[Photo]) -> Tensor:
        with without_warnings():
            return torch.from_numpy(np.stack([photo_pixels(photo, self.preprocessing) for photo in photos]))

    def score(self, photos: Any, labels: Sequence[Any]) -> float:
        """Share of photos whose most likely class is their label.

        Raises:
            UserError: a photo that cannot be read, another number of labels than photos, or none that is a class.
        """
        found = self.predict(photos, threshold=0.0)
        if len(found) != len(labels):
            raise UserError(f"Expected one label per photo, got {len(labels)} for {len(found)} photos")
        names = [normal_form(name) for name in class_names(labels)]
        if not set(names) & set(self.classes_.tolist()):
            classes = ", ".join(map(repr, self.classes_[:4].tolist()))
            raise UserError(
                f"Expected labels such as {classes}, got none of these classes but {names[0]!r}; convert them"
            )
        return float(np.mean(found == np.array(names)))

    def save(self, path: str | Path) -> None:
        """Write the pack: all that prediction needs but the base itself."""
        write_pack(self.pack, path)


@torch.inference_mode(False)
@float32_by_default()
def load_classifier(
    path: str | Path,
    base: str | os.PathLike[str] | None = None,
    weights: str | Path | None = None,
    device: str = "cpu",
) -> PhotoClassifier:
    """Read a pack of `metakm fit`, load its base and put both together.

    Args:
        base: in place of the name in the pack, which has no folder. A run's folder or a file has to be named here,
            unless it lies in the current folder; a Python file always: what a pack names is never run.
        weights: of the base, if it was fitted with `--weights`.
        device: cpu, cuda or auto.

    Raises:
        UserError: no such device, no such pack, one that `metakm fit` did not write, or of another base or version.
    """
    on = resolve_device(device)
    pack = read_pack(path)
    header = pack.photos
    if not header:
        raise UserError(f"Expected a pack of metakm fit, got another in {path}; load_pack() reads it")
    if header.get("version") != HEADER_VERSION:
        raise UserError(
            f"Expected version {HEADER_VERSION} of what metakm fit writes, got {header.get('version')!r:.20} in "
            f"{path}; read it with the metakm that wrote it ({header.get('versions', {}).get('metakm', 'unknown')})"
        )
    name = str(header["base"]) if base is None else os.fspath(base)
    if base is None and ".py:" in name:
        raise UserError(f"Expected base (--base) for a pack whose base is in a Python file, got none; give {name}")
    if base is None and is_local(name) and not expanded(name, "the base").exists():
        raise UserError(f"Expected base (--base) for a pack whose base is {name}, got none; say where that lies")
    if weights is None and header["settings"]["weights"] and base is None:
        raise UserError(
            "Expected weights (--weights) for a base whose weights were in "
            f"{header['settings']['weights']}, got none; give it"
        )
    return _assembled(pack, load_base(name, weights), on)


def photos_header(
    base: Pretrained,
    method: str,
    temperature: float,
    threshold: float,
    settings: dict[str, object],
) -> dict[str, Any]:
    """What a pack of photos says beside its tensors."""
    return {
        "version": HEADER_VERSION,
        "base": without_folder(base.name),
        "method": method,
        "preprocessing": dataclasses.asdict(base.preprocessing),
        "temperature": temperature,
        "threshold": threshold,
        "settings": settings,
        "versions": dict(_versions()),
    }


def _assembled(pack: Pack, base: Pretrained, device: torch.device) -> PhotoClassifier:
    method = pack.photos["method"]
    if method not in METHODS:
        raise UserError(f"Expected a pack of a method that is known, got {method!r:.20}; update metakm")
    replace_classifier(base.network, base.classifier, len(pack.classes))
    network = attach(faster_layout(base.network), base.classifier, method)
    try:
        swap(network, pack)
    except UserError as error:
        here, then = dict(_versions()), pack.photos.get("versions", {})
        other = [f"{name} {then[name]} (here {here.get(name)})" for name in then if then[name] != here.get(name)]
        if not other:
            raise
        raise UserError(f"{error}; it was fitted with {', '.join(other)}") from error
    wanted = pack.photos["preprocessing"]
    preprocessing = Preprocessing(wanted["size"], tuple(wanted["mean"]), tuple(wanted["std"]), wanted["interpolation"])
    return PhotoClassifier(pack, network.to(device).eval(), preprocessing)


def _photos(given: Any) -> list[Photo]:
    """One photo or several, as a list; folders are replaced by the images below them."""
    one = isinstance(given, str | Path | Image.Image) or (isinstance(given, np.ndarray) and given.ndim < 4)
    if not one and not isinstance(given, Iterable):
        raise UserError(f"Expected photos, got {type(given).__name__}; give paths, PIL images or arrays [H, W, 3]")
    found: list[Photo] = []
    for each in [given] if one else given:
        photo = as_photo(each)
        found += list_images([photo]) if isinstance(photo, Path) else [photo]
    if not found:
        raise UserError("Expected at least one photo, got none")
    return found


def _versions() -> Iterator[tuple[str, str]]:
    for name in _LIBRARIES:
        try:
            yield name, version(name)
        except PackageNotFoundError:
            continue
