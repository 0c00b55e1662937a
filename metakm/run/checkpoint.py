"""Checkpoints: one file, replaced whole, loadable with `torch.load(path, weights_only=True)`."""

from __future__ import annotations

import contextlib
import json
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from metakm.config.interfaces import Identified
from metakm.errors import UserError, one_line
from metakm.io.files import atomic_write

FORMAT = 2
READABLE = (1, 2)  # 1, of metakm 0.2, has the parts of a learner apart: see `metakm.learning.learner_file.flat_state`


def save_checkpoint(path: Path, config: Identified, state: dict[str, Any]) -> None:
    """Write `state` (tensors, numbers, strings, lists, dicts) together with the config that it belongs to."""
    with atomic_write(path) as file:
        torch.save({"format": FORMAT, "config": json.dumps(config.identity()), **state}, file)


def load_checkpoint(path: Path, config: Identified) -> dict[str, Any]:
    """Read the state of a run of the same config.

    Raises:
        UserError: the file is damaged, of another format, or of a run with another config; the fields are named.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            if (damaged := archive.testzip()) is not None:  # torch does not compare the checksums
                raise zipfile.BadZipFile(f"the checksum of {damaged} is wrong")
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        identity, form = json.loads(state["config"]), state["format"]
        if not isinstance(identity, dict):
            raise TypeError("the config is not an object")
    except Exception as error:  # a damaged or malicious file may raise anything; weights_only builds nothing but data
        raise UserError(
            f"Expected a metakm checkpoint, got a damaged or foreign file {path}; remove it, or start again with "
            "--overwrite"
        ) from error
    if not (isinstance(form, int) and form in READABLE):
        raise UserError(f"Expected checkpoint format {FORMAT}, got {form!r:.9} in {path}; start again with --overwrite")
    identity = {**identity, **{k: config.identity()[k] for k in config.may_change(identity)}}
    if changes := config_changes(identity, config):
        raise UserError(
            f"Expected the config of the run to resume, got another: {changes}; use the earlier values, or another "
            "--out"
        )
    return state


def data_state(split_hashes: Mapping[str, str]) -> dict[str, Any]:
    """The part of a checkpoint that tells its data, by the `split_hash` of each split."""
    return {"split_hash": split_hashes["train"], "split_hashes": dict(split_hashes)}


@contextlib.contextmanager
def restoring(
    path: Path, state: Mapping[str, Any], split_hashes: Mapping[str, str], owner: str, remedy: str = ""
) -> Iterator[None]:
    """Restore the state of a checkpoint in the block.

    Args:
        split_hashes: of the data at hand, see `data_state`. A data root may move, but must hold the same classes, of
            the same sizes.
        owner: what the parameters belong to.
        remedy: what to try before starting again.

    Raises:
        UserError: the state belongs to other data, or the block cannot restore it.
    """
    try:
        # Older checkpoints have the hash of train alone.
        known = {"train": state.get("split_hash"), **state.get("split_hashes", {})}
        scope = "; the hash covers the classes of all splits" if len({*split_hashes.values()}) == 1 else ""
        for split, here in split_hashes.items():
            if known.get(split, here) != here:
                raise UserError(
                    f"Expected the {split} data of the run to resume (split hash {known[split]}), got others ({here})"
                    f"{scope}; name their folder by --data-root, or choose another --out"
                )
        yield
    except (RuntimeError, LookupError, ValueError, TypeError, AttributeError, ArithmeticError) as error:
        said = one_line(error)
        raise UserError(
            f"Expected the parameters of {owner} in {path}, got others: {said}; {remedy}start again with --overwrite"
        ) from error


def config_changes(identity: Mapping[str, Any], config: Identified) -> str:
    """The fields whose saved value differs from that in `config`, with both values; empty if there are none.

    A field that the identity lacks was added after that run; its default is assumed.
    """
    defaults = config.defaults()
    wanted = {**defaults, **json.loads(json.dumps(config.identity()))}
    identity = {**defaults, **identity}
    different = sorted(k for k in {*wanted, *identity} if wanted.get(k) != identity.get(k))
    return ", ".join(f"{k}={identity.get(k)!r} (now {wanted.get(k)!r})" for k in different)
