"""Test episodes as they are shown: pictures, labels, and what each strategy took the queries for."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from metakm.results.kernels import LayerKernels

PNG_PIXELS = 64 * 64  # larger pictures are photographs, which JPEG packs ten times smaller
JPEG_QUALITY = 85


@dataclass(frozen=True, eq=False)
class EpisodePictures:
    """The images of one episode, class by class.

    support: uint8 `[N, K, C, H, W]`; query: uint8 `[N, Q, C, H, W]`; C is 1 or 3.
    """

    index: int
    support: npt.NDArray[np.uint8]
    query: npt.NDArray[np.uint8]


@dataclass(frozen=True, eq=False)
class Inspection:
    """What one trained run did on its first meta-test episodes, E of them.

    predictions: int64 `[E, N, Q]`, the class that each query was taken for, in 0..N-1.
    kernels: of every convolution, in the order of the network; empty without convolutions.
    """

    episodes: tuple[EpisodePictures, ...]
    predictions: npt.NDArray[np.int64]
    kernels: tuple[LayerKernels, ...]

    @property
    def right(self) -> npt.NDArray[np.bool_]:
        """Whether each query was taken for its own class, `[E, N, Q]`."""
        ways = self.predictions.shape[1]
        right: npt.NDArray[np.bool_] = self.predictions == np.arange(ways)[None, :, None]
        return right

    @property
    def accuracies(self) -> npt.NDArray[np.float64]:
        """Query accuracy of each episode, `[E]`."""
        means: npt.NDArray[np.float64] = self.right.mean(axis=(1, 2), dtype=np.float64)
        return means


def data_uri(image: npt.NDArray[np.uint8]) -> str:
    """A picture `[C, H, W]` as a `data:` address: PNG, or JPEG where it is large and in colour."""
    from PIL import Image  # needed for pages with a gallery only

    channels, height, width = image.shape
    picture = Image.fromarray(image[0] if channels == 1 else np.ascontiguousarray(image.transpose(1, 2, 0)))
    photograph = channels == 3 and height * width > PNG_PIXELS
    kind = "jpeg" if photograph else "png"
    buffer = io.BytesIO()
    picture.save(buffer, kind, **({"quality": JPEG_QUALITY} if photograph else {"optimize": True}))
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"
