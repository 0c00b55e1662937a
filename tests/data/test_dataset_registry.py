from pathlib import Path

import pytest

from metakm.data import available_datasets, load_dataset
from metakm.data.loading import data_roots
from metakm.errors import UserError


def test_the_datasets_are_listed() -> None:
    assert available_datasets() == (
        "cifar-fs",
        "cub",
        "fc100",
        "flowers",
        "folder",
        "glyphs",
        "grocery-store",
        "mini-imagenet",
        "omniglot",
        "tiered-imagenet",
        "tiny-imagenet",
    )


def test_an_unknown_dataset_is_refused_with_the_nearest() -> None:
    with pytest.raises(UserError, match="got 'omniglott'; did you mean 'omniglot'"):
        load_dataset("omniglott")


def test_an_unknown_split_is_refused_with_the_nearest() -> None:
    with pytest.raises(UserError, match="test, train, val, got 'trian'; did you mean 'train'"):
        load_dataset("glyphs", "trian")


def test_roots_are_the_argument_alone_or_the_variable_then_the_cache(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("METAKM_DATA", raising=False)
    assert data_roots() == [cache / "data"]
    monkeypatch.setenv("METAKM_DATA", "/there")
    assert data_roots() == [Path("/there"), cache / "data"]
    assert data_roots("~/here") == [Path.home() / "here"]
