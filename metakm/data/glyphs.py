"""Glyphs: 1,100 invented characters, 20 drawers each, drawn by this module, without files or network.

A stand-in for Omniglot, of the same size and look: 28x28, ink 255 on 0. A character is one to four strokes, each a
smooth curve through five control points; a stroke often starts on another one. A drawer moves every
control point a little, slants, scales and shifts the character, and has a pen of a certain width.

All numbers come from constant streams, and only additions, multiplications, divisions and square roots of single
elements touch them, which IEEE 754 rounds the same everywhere: the images are equal bit for bit on every machine.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from metakm.data.cache import CachePlan, Entry, cached
from metakm.data.dataset import FewShotDataset
from metakm.data.registry import register_dataset
from metakm.data.rng import raw_words, stream_key

VERSION = "glyphs 1"
SIDE = 28
DRAWERS = 20
SIZES = {"train": 800, "val": 100, "test": 200}
STROKES, KNOTS, SAMPLES = 4, 5, 20
"""At most so many strokes; control points a stroke; points drawn between two control points."""

Floats = npt.NDArray[np.float64]
_KEY = stream_key("metakm glyphs 1")
_LOOP = np.array([[0.0, 0.0], [1.0, 1.0], [2.0, 0.0], [1.0, -1.0], [0.0, 0.0]])  # [KNOTS, 2], along and aside
_PER_STROKE = 9 + 2 * KNOTS
_PER_DRAWER = 8 + 2 * STROKES * KNOTS


@register_dataset("glyphs", title="glyphs", family="characters", ways=20)
def load_glyphs(split: str, roots: Sequence[Path] = ()) -> FewShotDataset:  # noqa: ARG001, a loader's signature
    """Load a split; the first call draws it, in seconds. `roots` is not used."""
    entry = Entry("glyphs", split, rotations=True, fingerprint=VERSION.replace(" ", "-"))
    return cached(entry, lambda: _plan(split))


def draw_character(number: int) -> npt.NDArray[np.uint8]:
    """Draw one character by all drawers, `[20, 1, 28, 28]`."""
    (words,) = raw_words(_KEY, [number], 2 + STROKES * _PER_STROKE + DRAWERS * _PER_DRAWER)
    unit = (words >> np.uint64(11)).astype(np.float64) / 2.0**53  # exact
    strokes = _character(unit[: 2 + STROKES * _PER_STROKE])  # [S, KNOTS, 2]
    hands = unit[2 + STROKES * _PER_STROKE :].reshape(DRAWERS, _PER_DRAWER)
    knots, width = _by_hand(strokes, hands)  # [D, S, KNOTS, 2], [D]
    points = _curve(knots)  # [D, S, P, 2]
    return _ink(points.reshape(DRAWERS, -1, 2), width)[:, None]


def _plan(split: str) -> CachePlan:
    numbers, start = {}, 0
    for key, size in SIZES.items():
        numbers[key] = range(start, start + size)
        start += size
    classes = {key: [(f"glyph{n:04d}", DRAWERS) for n in numbers[key]] for key in SIZES}

    def arrays() -> Iterator[npt.NDArray[np.uint8]]:
        return (draw_character(number) for number in numbers[split])

    return CachePlan(classes, (1, SIDE, SIDE), arrays)


def _character(unit: Floats) -> Floats:
    """Compose the strokes of a character in a box about the origin, `[S, KNOTS, 2]` in pixels."""
    count = 1 + int(np.searchsorted([0.15, 0.5, 0.82], unit[0]))
    strokes: list[Floats] = []
    for own in unit[2:].reshape(STROKES, _PER_STROKE)[:count]:
        knots = _stroke(own)  # [KNOTS, 2]
        if strokes and own[6] < 0.65:  # start on an earlier stroke
            knots += strokes[int(own[7] * len(strokes))][int(own[5] * KNOTS)] - knots[0]
        strokes.append(knots)
    placed = np.stack(strokes)  # [S, KNOTS, 2]
    low, high = placed.min(axis=(0, 1)), placed.max(axis=(0, 1))
    size = 13.0 + 7.0 * unit[1]  # the longer side of the box
    centred: Floats = (placed - (low + high) / 2) * (size / max(float((high - low).max()), 1e-3))
    return centred


def _stroke(own: Floats) -> Floats:
    """One stroke in about the unit square, `[KNOTS, 2]`: a line, an arc, a loop or a wandering curve."""
    start, way = own[0:2], own[2:4] - own[0:2]
    length = np.sqrt(way[0] * way[0] + way[1] * way[1])
    way = way * (max(float(length), 0.4) / max(float(length), 1e-3))  # no stroke is very short
    along = np.linspace(0.0, 1.0, KNOTS)[:, None]  # [KNOTS, 1]
    knots: Floats = start + way * along
    aside = np.array([-way[1], way[0]])
    noise = own[-2 * KNOTS :].reshape(KNOTS, 2) - 0.5
    if own[4] < 0.3:
        knots += 0.03 * noise
    elif own[4] < 0.6:
        knots += (own[8] * 2 - 1) * 4 * along * (1 - along) * aside + 0.05 * noise
    elif own[4] < 0.75:
        loop = _LOOP[:, :1] * way + _LOOP[:, 1:] * aside  # [KNOTS, 2]
        knots = start + loop * (0.3 + 0.3 * own[8]) + 0.1 * noise
    else:
        knots += 0.75 * noise
    return knots


def _by_hand(strokes: Floats, hands: Floats) -> tuple[Floats, Floats]:
    """Let every drawer write the strokes: control points `[D, S, KNOTS, 2]` and half widths of the pen `[D]`."""
    count = len(strokes)
    signed = hands * 2 - 1
    shake = signed[:, 8:].reshape(DRAWERS, STROKES, KNOTS, 2)[:, :count]
    start, end, bend = (shake[:, :, i, None] for i in range(3))  # [D, S, 1, 2]
    along = np.linspace(0.0, 1.0, KNOTS)[:, None]  # [KNOTS, 1]
    drift = start * (1 - along) + end * along + bend * 4 * along * (1 - along)
    knots = strokes + 1.8 * drift + 0.35 * shake
    turn, grow, slant, stretch = (amount * signed[:, i] for i, amount in enumerate((0.24, 0.2, 0.2, 0.16)))
    x, y = knots[..., 0], knots[..., 1]
    grown_x, grown_y = (1 + grow + stretch)[:, None, None], (1 + grow - stretch)[:, None, None]
    mix_x, mix_y = (slant - turn)[:, None, None], turn[:, None, None]
    shift = 2.0 * signed[:, 4:6][:, None, None] + (SIDE - 1) / 2
    written = np.stack([grown_x * x + mix_x * y, grown_y * y + mix_y * x], axis=-1) + shift
    return written, 0.7 + 0.2 * signed[:, 6]


def _curve(knots: Floats) -> Floats:
    """Catmull-Rom curve through the control points, `[..., KNOTS, 2] -> [..., (KNOTS-1)*SAMPLES + 1, 2]`."""
    first, last = knots[..., :1, :], knots[..., -1:, :]
    padded = np.concatenate([2 * first - knots[..., 1:2, :], knots, 2 * last - knots[..., -2:-1, :]], axis=-2)
    a, b, c, d = (padded[..., i : i + KNOTS - 1, None, :] for i in range(4))  # [..., KNOTS-1, 1, 2]
    t = (np.arange(SAMPLES) / SAMPLES)[:, None]  # [SAMPLES, 1]
    cubic = (3 * b - a - 3 * c + d) * t + (2 * a - 5 * b + 4 * c - d)
    points = ((cubic * t + (c - a)) * t + 2 * b) * 0.5  # [..., KNOTS-1, SAMPLES, 2]
    return np.concatenate([points.reshape(*knots.shape[:-2], -1, 2), last], axis=-2)


def _ink(points: Floats, width: Floats) -> npt.NDArray[np.uint8]:
    """Draw points `[D, P, 2]` (x, y) with pens of half width `[D]`: `[D, 28, 28]`, edges one pixel soft."""
    pixels = np.arange(SIDE, dtype=np.float32)[:, None]
    across, down = points.astype(np.float32).transpose(2, 1, 0)[:, :, None]  # [P, 1, D] each
    x2, y2 = (pixels - across) ** 2, (pixels - down) ** 2  # [P, 28, D]
    nearest = np.full((SIDE, SIDE, len(points)), np.inf, dtype=np.float32)
    square = np.empty_like(nearest)
    for column, row in zip(x2, y2, strict=True):
        np.add(row[:, None], column, out=square)  # [28, 28, D]
        np.minimum(nearest, square, out=nearest)
    ink = np.clip(width.astype(np.float32) + np.float32(0.5) - np.sqrt(nearest), 0, 1)
    grey: npt.NDArray[np.uint8] = np.rint(ink * 255).astype(np.uint8).transpose(2, 0, 1)
    return grey
