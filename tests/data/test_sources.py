import os
import zipfile
from pathlib import Path

import pytest

from metakm.data.sources import FolderSource, ZipSource, find_source, fingerprint
from metakm.errors import UserError


@pytest.fixture
def pair(tmp_path: Path) -> tuple[ZipSource, FolderSource]:
    """The same two files as an archive and as a folder."""
    (tmp_path / "top" / "sub").mkdir(parents=True)
    (tmp_path / "top" / "b.txt").write_bytes(b"B")
    (tmp_path / "top" / "sub" / "a.txt").write_bytes(b"A")
    with zipfile.ZipFile(tmp_path / "top.zip", "w") as archive:
        archive.writestr("top/", b"")
        archive.writestr("top/sub/a.txt", b"A")
        archive.writestr("top/b.txt", b"B")
    return ZipSource(tmp_path / "top.zip"), FolderSource(tmp_path / "top")


def test_zip_and_folder_hold_the_same_names_and_bytes(pair: tuple[ZipSource, FolderSource]) -> None:
    for source in pair:
        assert source.names() == ["top/b.txt", "top/sub/a.txt"]
        with source.opened() as read:
            assert [read(name) for name in source.names()] == [b"B", b"A"]


def test_a_name_that_is_not_there_is_a_user_error(pair: tuple[ZipSource, FolderSource]) -> None:
    for source in pair:
        with source.opened() as read, pytest.raises(UserError, match=r"top/c\.txt; fetch it again"):
            read("top/c.txt")


def test_a_file_that_is_no_zip_is_a_user_error(tmp_path: Path) -> None:
    (tmp_path / "a.zip").write_bytes(b"no zip")
    with pytest.raises(UserError, match=r"a\.zip"):
        ZipSource(tmp_path / "a.zip").names()
    with pytest.raises(UserError, match=r"absent\.zip"):
        ZipSource(tmp_path / "absent.zip").stamps()


def test_the_fingerprint_follows_version_size_and_time(pair: tuple[ZipSource, FolderSource]) -> None:
    seen = {fingerprint("1", pair), fingerprint("2", pair), fingerprint("1", pair[:1])}
    extra = pair[1].path / "b.txt"
    seen.add(fingerprint("1", pair[:1], [extra]))
    assert len(seen) == 4
    assert fingerprint("1", pair) in seen
    os.utime(extra, ns=(1, 1))
    assert fingerprint("1", pair) not in seen
    assert fingerprint("1", pair[:1]) in seen


@pytest.mark.usefixtures("pair")
def test_the_first_folder_that_has_one_wins(tmp_path: Path) -> None:
    names = ("top.zip", "top")
    first = find_source([tmp_path / "none", tmp_path], names)
    assert isinstance(first, ZipSource)
    (tmp_path / "top.zip").unlink()
    assert isinstance(find_source([tmp_path], names), FolderSource)
    assert find_source([tmp_path / "none"], names) is None
