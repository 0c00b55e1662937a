"""Test episodes to show: pictures, labels, and each strategy's predictions."""

from __future__ import annotations

import base64
import hashlib
import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from metakm.report.modulated_kernels import LayerKernels
from metakm.table.collect import RecordedRun

PHOTOGRAPH = 40  # height in pixels from which a picture is shown larger and smoothly scaled
PNG_PIXELS = 64 * 64  # larger pictures are photographs, which JPEG makes ten times smaller
JPEG_QUALITY = 85


@dataclass(frozen=True, eq=False)
class EpisodePictures:
    """The images of one episode, class by class.

    support: uint8 `[N, K, C, H, W]`; query: uint8 `[N, Q, C, H, W]`.
    """

    index: int
    support: npt.NDArray[np.uint8]
    query: npt.NDArray[np.uint8]

    @property
    def identity(self) -> bytes:
        """Equal for episodes with the same number and the same images in the same roles."""
        shapes = repr((self.index, self.support.shape, self.query.shape)).encode()
        return hashlib.sha256(shapes + self.support.tobytes() + self.query.tobytes()).digest()


@dataclass(frozen=True, eq=False)
class Inspection:
    """What one trained run did on its first E meta-test episodes.

    predictions: int64 `[E, N, Q]`, the predicted class of each query, in 0..N-1.
    kernels: of every convolution, in network order; empty without convolutions.
    """

    episodes: tuple[EpisodePictures, ...]
    predictions: npt.NDArray[np.int64]
    kernels: tuple[LayerKernels, ...]


@dataclass(frozen=True)
class EpisodeResult:
    """What one run predicted for the queries of an episode."""

    label: str
    run: RecordedRun
    predictions: list[list[int]]  # [N][Q]
    right: int
    queries: int
    recorded: float | None  # the episode's accuracy in the run's tasks.csv

    @property
    def accuracy(self) -> float:
        """Fraction of the queries whose class was predicted."""
        return self.right / self.queries

    @property
    def as_recorded(self) -> bool:
        """Whether `tasks.csv` has the same accuracy; it may differ on another device or version of torch."""
        return self.recorded is None or round(self.recorded * self.queries) == self.right


@dataclass(frozen=True)
class ShownEpisode:
    """An episode's pictures, each under an id in the page, and what the runs predicted for its queries."""

    name: str
    index: int
    pictures: dict[str, str]  # id, <name>-s-<class>-<shot> or <name>-q-<class>-<query>, to data address
    height: int
    width: int
    ways: int
    shots: int
    trials: tuple[EpisodeResult, ...]

    @property
    def photographs(self) -> bool:
        """Whether the pictures are large enough to be scaled smoothly."""
        return self.height >= PHOTOGRAPH


def show_episodes(shown: Sequence[tuple[str, RecordedRun, Inspection]], anchor: str) -> tuple[ShownEpisode, ...]:
    """The episodes of labelled runs of one setting; runs with the same episode share an entry."""
    met: dict[bytes, tuple[EpisodePictures, list[EpisodeResult]]] = {}
    for label, run, inspection in shown:
        for episode, predictions in zip(inspection.episodes, inspection.predictions, strict=True):
            right = int((predictions == np.arange(len(predictions))[:, None]).sum())
            recorded = None if run.accuracies is None else float(run.accuracies[episode.index])
            trial = EpisodeResult(label, run, predictions.tolist(), right, predictions.size, recorded)
            met.setdefault(episode.identity, (episode, []))[1].append(trial)
    episodes = sorted(met.values(), key=lambda one: one[0].index)
    return tuple(_shown(one, tuple(trials), f"{anchor}-e{n}") for n, (one, trials) in enumerate(episodes))


def _shown(episode: EpisodePictures, trials: tuple[EpisodeResult, ...], name: str) -> ShownEpisode:
    pictures = {
        f"{name}-{role}-{label}-{number}": data_uri(image)
        for role, images in (("s", episode.support), ("q", episode.query))
        for label, each in enumerate(images)
        for number, image in enumerate(each)
    }
    ways, shots, _, height, width = episode.support.shape
    return ShownEpisode(name, episode.index, pictures, height, width, ways, shots, trials)


def data_uri(image: npt.NDArray[np.uint8]) -> str:
    """A picture `[C, H, W]` as a `data:` URL: PNG, or JPEG if it is large and in colour.

    Of other than 1 or 3 channels, such as those of satellites, it shows the mean in grey.
    """
    from PIL import Image  # needed for pages with a gallery only

    if len(image) not in (1, 3):
        image = np.rint(image.mean(axis=0, keepdims=True)).astype(np.uint8)
    channels, height, width = image.shape
    picture = Image.fromarray(image[0] if channels == 1 else np.ascontiguousarray(image.transpose(1, 2, 0)))
    photograph = channels == 3 and height * width > PNG_PIXELS
    kind = "jpeg" if photograph else "png"
    buffer = io.BytesIO()
    picture.save(buffer, kind, **({"quality": JPEG_QUALITY} if photograph else {"optimize": True}))
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"
