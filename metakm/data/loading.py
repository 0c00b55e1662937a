"""Load a dataset by its name."""

from __future__ import annotations

import operator
import os
from pathlib import Path
from typing import Any

from metakm.data.cache import cache_folder
from metakm.data.dataset import FewShotDataset
from metakm.data.registry import datasets
from metakm.data.splits import SPLITS
from metakm.errors import UserError, describe_error, unknown_name
from metakm.io.files import expanded


def load_dataset(
    name: str,
    split: str = "train",
    root: str | Path | None = None,
    image_size: int = 0,
    class_split: str | None = None,
    split_seed: int = 0,
) -> FewShotDataset:
    """Load one split of a dataset. The first call decodes the files, later ones read the cache.

    Args:
        name: of a registered dataset.
        split: "train", "val" or "test".
        root: the folder to search; else METAKM_DATA, then `data/` of the cache folder (METAKM_CACHE, or the user's
            cache folder of the platform).
        image_size: the side in pixels to which images are resized, by datasets that can be (such as "folder"); 0 is
            their default.
        class_split: such as 64/16/20, divides the classes of a "folder" at random: one that has a folder of images per
            class and nothing else.
        split_seed: of this division.

    Raises:
        UserError: an unknown name or split, or data that are missing, damaged or unreadable.
    """
    entry = datasets.get(name)
    if split not in SPLITS:
        raise unknown_name("split", split, SPLITS)
    try:
        image_size = operator.index(image_size)
    except TypeError as error:
        raise UserError(f"Expected image_size to be a whole number of pixels, got {image_size!r}") from error
    if image_size < 0 or (image_size and not entry.resized):
        resized = ", ".join(sorted(name for name, entry in datasets.entries.items() if entry.resized))
        raise UserError(
            f"Expected image_size 0 (the dataset's own) with {name}, got {image_size}; only {resized} can be resized"
        )
    options: dict[str, Any] = {"side": image_size} if image_size else {}
    if class_split is not None:
        if not entry.divided:
            raise UserError(
                f"Expected no --split with {name}, which has a split of its own, got {class_split}; drop it"
            )
        options |= {"class_split": class_split, "split_seed": split_seed}
    roots = data_roots(root)
    try:
        dataset: Any = entry.load(split, roots, **options)
    except UserError:
        raise
    except OSError as error:
        raise UserError(
            f"Expected data that can be read under {', '.join(map(str, roots))}, got {error}; fix this, or choose "
            "another --data-root"
        ) from error
    except Exception as error:  # a plugin's code may raise anything; a built-in's errors are passed on
        if entry.load.__module__.startswith("metakm."):
            raise
        raise UserError(f"Expected the dataset {name!r} to be loaded, got {describe_error(error)}") from error
    if not isinstance(dataset, FewShotDataset):
        raise UserError(
            f"Expected {entry} to return a FewShotDataset, got {type(dataset).__name__}; make one, for example by "
            "FewShotDataset.from_arrays"
        )
    return dataset


def data_roots(root: str | Path | None = None) -> list[Path]:
    """The folders in which data are searched for, in this order.

    Raises:
        UserError: `root` is a file, or a path with the home of an unknown user.
    """
    if root is not None:
        folder = expanded(root, "--data-root")
        if os.path.exists(folder) and not folder.is_dir():  # noqa: PTH110 (which does not raise)
            raise UserError(f"Expected --data-root to be a folder, got {folder}, which is not one; name its folder")
        return [folder]
    chosen = os.environ.get("METAKM_DATA")
    return [*([expanded(chosen, "METAKM_DATA")] if chosen else []), cache_folder() / "data"]
