"""A pack as a folder laid out as on the Hugging Face Hub: the pack itself, its header as JSON, and a model card.

    pack.safetensors   what everything is read from
    config.json        the pack's header, for people and for the Hub's search
    README.md          the model card; one that is there is kept

A place is a folder, or `hf://owner/name`, with `@revision` behind it for a branch, tag or commit. The latter needs
`metakm[hub]`, and for private ones, and to push, what `hf auth login` leaves.
"""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from metakm.errors import UserError, missing_extra
from metakm.io.files import atomic_write, expanded, write_text
from metakm.modulation.pack_file import Pack, read_pack
from metakm.packs.card import model_card

PACK, CONFIG, CARD = "pack.safetensors", "config.json", "README.md"
LIBRARY = "metakm"

_SCHEME = "hf://"
_R = TypeVar("_R")


class Repository(NamedTuple):
    """A repository on the Hub, such as `owner/name`, and a revision of it, None for the main branch."""

    name: str
    revision: str | None


def push(file: Path | str, to: str, private: bool = False, replace_card: bool = False) -> str:
    """Put a pack into a folder or a repository, which is made if there is none, and say where it is.

    Args:
        to: a folder, or `hf://owner/name`.
        private: of a repository that is made.
        replace_card: write a model card in place of one that is there.

    Raises:
        UserError: a file that `read_pack` refuses, a place that is no folder, a folder with another program's
            config.json, or a repository that cannot be written.
    """
    pack = read_pack(file)
    data = expanded(file, "the pack's path").read_bytes()
    repository = parse(to)
    if repository is None:
        folder = _folder(to)
        _check_config(folder)
        _write(folder, pack, data, replace_card or not (folder / CARD).exists())
        return str(folder)
    hub = _hub()
    with tempfile.TemporaryDirectory() as temporary:
        _calling(lambda: hub.create_repo(repository.name, private=private, exist_ok=True), to)
        card = replace_card or not _calling(
            lambda: hub.file_exists(repository.name, CARD, revision=repository.revision), to
        )
        _write(Path(temporary), pack, data, card)
        _calling(
            lambda: hub.upload_folder(
                repo_id=repository.name,
                folder_path=temporary,
                revision=repository.revision,
                commit_message=f"Task pack {pack.task}".strip(),
            ),
            to,
        )
    return to


def pull(source: str, file: Path | str) -> Pack:
    """Copy the pack out of a folder or a repository, after checking that it is whole.

    Raises:
        UserError: `file` is a folder; no such folder or repository, one without a pack, or a pack that `read_pack`
            refuses. `file` is then unchanged.
    """
    target = expanded(file, "the pack's path")
    if target.is_dir():
        raise UserError(f"Expected a file to write the pack to, got the folder {target}; name a file in it")
    repository = parse(source)
    place: AbstractContextManager[str] = nullcontext("") if repository is None else tempfile.TemporaryDirectory()
    with place as temporary:
        if repository is None:
            folder = _folder(source)
        else:
            folder, hub = Path(temporary), _hub()
            _calling(
                lambda: hub.hf_hub_download(repository.name, PACK, revision=repository.revision, local_dir=temporary),
                source,
            )
        if not (folder / PACK).is_file():
            raise UserError(f"Expected a folder with {PACK}, got {source} without; `metakm packs push` makes one")
        pack = read_pack(folder / PACK)
        data = (folder / PACK).read_bytes()
    with atomic_write(target) as out:
        out.write(data)
    return pack


def parse(place: str) -> Repository | None:
    """The repository that a place names; None for a folder.

    Raises:
        UserError: `hf://` with anything but owner/name or owner/name@revision behind it.
    """
    if not place.startswith(_SCHEME):
        return None
    found = re.fullmatch(r"([\w.-]+/[\w.-]+)(?:@(.+))?", place.removeprefix(_SCHEME))
    if found is None:
        raise UserError(f"Expected hf://owner/name, got {place}; name one repository")
    return Repository(found[1], found[2])


def _folder(place: str) -> Path:
    folder = expanded(place, "the folder")
    if folder.exists() and not folder.is_dir():
        raise UserError(f"Expected a folder or hf://owner/name, got the file {place}; name another place")
    return folder


def _check_config(folder: Path) -> None:
    """Refuse to write over a config.json that is not ours."""
    try:
        found = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return
    except (OSError, ValueError, RecursionError):
        found = None
    if not isinstance(found, dict) or found.get("library_name") != LIBRARY:
        raise UserError(
            f"Expected a new folder or one of a pack, got {folder} with another {CONFIG}; name another folder"
        )


def _write(folder: Path, pack: Pack, data: bytes, card: bool) -> None:
    """Write the folder's files, the pack last."""
    config = {"library_name": LIBRARY, "pack": PACK, **pack.header()}
    write_text(folder / CONFIG, json.dumps(config, indent=2, sort_keys=True, ensure_ascii=False) + "\n")
    if card:
        write_text(folder / CARD, model_card(pack, len(data)))
    with atomic_write(folder / PACK) as file:
        file.write(data)


def _hub() -> Any:
    try:
        import huggingface_hub
    except ImportError as error:
        raise missing_extra("huggingface_hub", "hub", "places that begin with hf://") from error
    return huggingface_hub


def _calling(request: Callable[[], _R], place: str) -> _R:
    """The request's result; what the Hub or the network refuses is reported as a UserError."""
    try:
        return request()
    except Exception as error:  # the Hub's library, and the client below it, have errors of their own
        text = str(error).strip().splitlines()
        raise UserError(
            f"Expected to reach {place}, got {text[0] if text else type(error).__name__}; check its name, your access "
            "(`hf auth login`) and the network, or use a folder"
        ) from error
