"""Fixtures for the dataset tests: a cache that is nobody's, arrays that tell where they came from, real Omniglot."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from metakm.data import FewShotDataset, load_dataset

SPLITS = ("train", "val", "test")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "cache"
    monkeypatch.setenv("METAKM_CACHE", str(folder))
    return folder


@pytest.fixture
def make() -> Callable[..., FewShotDataset]:
    """Datasets of given class sizes; every image is the binary code of its row, so that it tells its origin."""

    def made(counts: list[int], rotations: bool = False, **names: str) -> FewShotDataset:
        total = sum(counts)
        images = np.zeros((total, 1, 4, 4), np.uint8)
        for bit in range(12):  # the last row of pixels stays dark, so a turned image differs
            images[:, 0, bit // 4, bit % 4] = 255 * (np.arange(total) >> bit & 1)
        labels = np.repeat(np.arange(len(counts)), counts)
        return FewShotDataset.from_arrays(images, labels, rotations=rotations, **names)

    return made


@pytest.fixture(scope="session")
def omniglot(real_data: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, FewShotDataset]:
    """The three splits of the real Omniglot, decoded once a session."""
    if not (real_data / "omniglot" / "images_background.zip").exists():
        pytest.skip("omniglot/images_background.zip is not under METAKM_DATA")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("METAKM_CACHE", str(tmp_path_factory.mktemp("cache")))
        return {split: load_dataset("omniglot", split, root=real_data) for split in SPLITS}
