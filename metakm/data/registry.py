"""Datasets by name: built in, from the entry-point group `metakm.datasets`, or from a plugin file."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypeVar, get_args

from metakm.config.dataset_names import dataset_names
from metakm.data.dataset import FewShotDataset
from metakm.errors import UserError, unknown_name
from metakm.registry import Registry, full_name

Family = Literal["characters", "photographs"]
Loader = Callable[..., FewShotDataset]
_L = TypeVar("_L", bound=Loader)


@dataclass(frozen=True)
class DatasetEntry:
    """A dataset of the registry.

    load: called with the split and the folders in which data may be, see `register_dataset`.
    title: as papers write it.
    family: what the images show; the published protocols, and so the presets, differ by it.
    ways: of the published protocol.
    resized: whether `load` takes `side`, the side in pixels to which it resizes its images.
    divided: whether `load` takes `class_split` and `split_seed`, by which it divides its classes.
    """

    load: Loader
    title: str
    family: Family
    ways: int
    resized: bool = False
    divided: bool = False

    def __str__(self) -> str:
        return full_name(self.load)

    @property
    def summary(self) -> str:
        """The entry in a line of `python -m metakm.list`."""
        return f"{self.title}: {self.family}, {self.ways}-way by default"


datasets: Registry[DatasetEntry] = Registry("dataset", "metakm.datasets")


def register_dataset(
    name: str, *, title: str, family: Family, ways: int, resized: bool = False, divided: bool = False
) -> Callable[[_L], _L]:
    """Function decorator: make a dataset known under `name`, for `--dataset name` and `load_dataset`.

    The function is called as `load(split, roots)` with "train", "val" or "test" and a list of folders in which data may
    be, the first one first, and returns a `FewShotDataset`; `FewShotDataset.from_arrays` makes one. It raises
    `metakm.UserError` for data that are missing.

    Args:
        title: as papers write it, such as `mini-ImageNet`.
        family: `characters` or `photographs`; presets differ by it.
        ways: the default of `--ways`.
        resized: whether the function takes `side` too, the side in pixels of `--image-size`.
        divided: whether it takes `class_split` and `split_seed`, `--split` and `--split-seed`, too.

    Raises:
        UserError: the name is taken, an unknown family, or fewer than 2 ways.
    """
    if family not in get_args(Family):
        raise unknown_name("family", family, get_args(Family))
    if ways < 2:
        raise UserError(f"Expected ways of the dataset {name!r} to be at least 2, got {ways}")

    def register(load: _L) -> _L:
        datasets.add(name, DatasetEntry(load, title, family, ways, resized, divided))
        return load

    return register


def available_datasets() -> tuple[str, ...]:
    """The names that `load_dataset` knows, sorted."""
    return datasets.names()


def dataset_entry(name: str) -> DatasetEntry:
    """What is known of a dataset; of several, joined by `+`, the first one says what the presets go by.

    Raises:
        UserError: an unknown dataset; what it shows, and so its protocol, cannot be told.
    """
    first, *_ = [datasets.get(each) for each in dataset_names(name)]
    return first
