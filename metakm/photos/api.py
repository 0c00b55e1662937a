"""`metakm.fit`: photographs to a classifier, in one call."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from metakm.data.labels import check_labels, plain_label
from metakm.device import float32_by_default, resolve_device
from metakm.errors import UserError, unknown_name
from metakm.io.files import expanded
from metakm.modulation.base_pack import load_base
from metakm.modulation.pack_file import class_names
from metakm.photos.checkpoint import Checkpoint
from metakm.photos.classifier import PhotoClassifier
from metakm.photos.fitting import FitPipeline, fit_key
from metakm.photos.listing import Photo, PhotoListing, list_folder
from metakm.photos.methods import faster_layout
from metakm.photos.options import DEFAULT_METHOD, PLAIN_METHOD, FitSettings, MethodChoice
from metakm.photos.store import PhotoStore, as_photo
from metakm.photos.training import Trainer
from metakm.photos.trial import try_network


def fit(
    images: str | Path | Mapping[str, Sequence[Any]] | Sequence[Any],
    labels: Sequence[Any] | None = None,
    *,
    base: str | os.PathLike[str] = "efficientnet-lite0",
    method: MethodChoice = DEFAULT_METHOD,
    **settings: Any,
) -> PhotoClassifier:
    """Adapt a pretrained network to the classes of some photos.

    Args:
        images: a folder with one folder of photos per class; or the photos of each class by its name; or photos, with
            `labels`. A photo is a path, a PIL image or a uint8 array `[H, W, 3]`.
        labels: the class of each photo, if `images` is a list of them.
        base: see `metakm.modulation.base_pack`; the default needs `metakm[pretrained]`.
        method: what is trained besides the head; see `python -m metakm fit --help`.
        settings: the other settings of that command, such as `size=160`, `validation="none"`, `task="shop"`.

    Raises:
        UserError: an unknown setting, base or method, photos that no classifier can be made of.
    """
    known = {field.name for field in dataclasses.fields(FitSettings)}
    for name in settings:
        if name not in known:
            raise unknown_name("a setting of fit", name, known)
    if isinstance(images, str | Path):
        settings = {"task": expanded(images, "the folder of photos").absolute().name, **settings}
    chosen = FitSettings(base=base, method=method, **settings)  # type: ignore[arg-type]
    return fit_listing(as_listing(images, labels), chosen)


@torch.inference_mode(False)
@torch.enable_grad()
@float32_by_default()
def fit_listing(
    listing: PhotoListing,
    settings: FitSettings,
    *,
    checkpoint: Path | None = None,
    resume: bool = False,
    prepare: Callable[[str, int, int], None] = lambda *_: None,
    begin: Callable[[FitPipeline], None] = lambda _: None,
    advance: Callable[[float | None, Trainer], None] = lambda *_: None,
) -> PhotoClassifier:
    """Fit to listed photos.

    Args:
        checkpoint: a file to go on from, if the fit is stopped; the photos are read again.
        prepare: called after each photo with ("photos", photos read, all), and by `FitPipeline`; may raise to end the
            fit.
        begin: called once the photos are read, before the base's features are computed.
        advance: see `FitPipeline`.

    Raises:
        UserError: see `fit`.
    """
    device = resolve_device(settings.device)
    pretrained = load_base(settings.base, settings.weights)
    if settings.method == DEFAULT_METHOD:
        settings = dataclasses.replace(settings, method="few-shot" if pretrained.few_shot else PLAIN_METHOD)
    faster_layout(pretrained.network.to(device))
    if settings.size is not None:
        resized = dataclasses.replace(pretrained.preprocessing, size=settings.size)
        pretrained = dataclasses.replace(pretrained, preprocessing=resized)
    try_network(pretrained)
    store = PhotoStore(listing.classes, pretrained.preprocessing, lambda done, total: prepare("photos", done, total))
    store.skipped[:0] = listing.skipped
    saved = Checkpoint(checkpoint, fit_key(settings, pretrained, store) if checkpoint else "", resume=resume)
    pipeline = FitPipeline(pretrained, store, settings, saved, prepare, advance)
    begin(pipeline)
    return pipeline.run()


def as_listing(images: Any, labels: Sequence[Any] | Tensor | None) -> PhotoListing:
    """What `fit` takes, as photos by class.

    Raises:
        UserError: neither a folder nor photos, or labels that are missing, left over or of another number than photos.
    """
    if isinstance(images, str | Path):
        if labels is not None:
            raise UserError("Expected no labels with a folder, whose folders are the classes, got some; leave them out")
        return list_folder(images)
    if isinstance(images, Mapping):
        if labels is not None:
            raise UserError("Expected no labels with photos by class, got some; leave them out")
        check_labels([plain_label(name) for name in images])
        names = class_names(images)
        if len(set(names)) < len(names):
            raise UserError(f"Expected class names that differ as text, got {sorted(images, key=str)}; rename some")
        given = {name: _as_photos(photos) for name, photos in zip(names, images.values(), strict=True)}
    else:
        photos = _as_photos(images)
        if isinstance(labels, str | bytes):
            raise UserError(f"Expected one label per photo, got the text {labels!r}; put labels into a list")
        marks = None if labels is None else [plain_label(label) for label in labels]
        if marks is None or len(marks) != len(photos):
            count = "none" if marks is None else len(marks)
            raise UserError(f"Expected one label per photo, got {count} for {len(photos)} photos")
        check_labels(marks)
        given = {}
        for photo, name in zip(photos, class_names(marks), strict=True):
            given.setdefault(name, []).append(photo)
    return PhotoListing(given, [])


def _as_photos(given: Any) -> list[Photo]:
    if isinstance(given, str | Path) or not isinstance(given, Iterable):
        raise UserError(f"Expected a folder, or lists of photos, got {type(given).__name__}; put photos into a list")
    return [as_photo(photo) for photo in given]
