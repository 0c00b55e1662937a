import os
import time
import tracemalloc
import zipfile
from pathlib import Path

import pytest

from metakm.data import archives as sources
from metakm.data.archives import FolderSource, ZipSource, find_source, fingerprint, unwrap_folder
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
        with source.reader() as read:
            assert [read(name) for name in source.names()] == [b"B", b"A"]


def test_a_name_that_is_not_there_is_a_user_error(pair: tuple[ZipSource, FolderSource]) -> None:
    for source in pair:
        with source.reader() as read, pytest.raises(UserError, match=r"top/c\.txt; fetch it again"):
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


def test_files_of_the_same_names_sizes_and_times_are_told_apart_but_may_be_moved(tmp_path: Path) -> None:
    (folder := tmp_path / "here" / "top").mkdir(parents=True)
    seen = set()
    for content in b"AB":
        (folder / "a.bmp").write_bytes(bytes([content]))
        os.utime(folder / "a.bmp", ns=(1, 1))
        seen.add(fingerprint("1", [FolderSource(folder)]))
        time.sleep(0.05)  # file systems count in steps of a few ms
    assert len(seen) == 2
    folder.parent.rename(tmp_path / "there")
    assert fingerprint("1", [FolderSource(tmp_path / "there" / "top")]) in seen


@pytest.mark.usefixtures("pair")
def test_the_current_folder_has_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path / "top")
    source = FolderSource(unwrap_folder(Path()))
    assert source.names() == ["top/b.txt", "top/sub/a.txt"]
    (tmp_path / "top" / "b.txt").rename(tmp_path / "b.txt")
    (tmp_path / "top" / "sub").rename(tmp_path / "top" / "top")
    assert FolderSource(unwrap_folder(Path())).names() == ["top/a.txt"]
    with source.reader() as read:
        assert read("top/top/a.txt") == b"A"


@pytest.mark.usefixtures("pair")
def test_the_first_folder_that_has_one_wins(tmp_path: Path) -> None:
    names = ("top.zip", "top")
    first = find_source([tmp_path / "none", tmp_path], names)
    assert isinstance(first, ZipSource)
    (tmp_path / "top.zip").unlink()
    assert isinstance(find_source([tmp_path], names), FolderSource)
    assert find_source([tmp_path / "none"], names) is None


def archive(path: Path, **members: bytes) -> ZipSource:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name, data in members.items():
            file.writestr(name.replace("__", "/"), data)
    return ZipSource(path)


def test_a_member_that_unpacks_to_too_much_is_refused_without_unpacking_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = archive(tmp_path / "bomb.zip", fits=bytes(1000), bomb=bytes(10**7))
    assert (tmp_path / "bomb.zip").stat().st_size < 20_000
    monkeypatch.setattr(sources, "LARGEST_FILE", 1000)
    tracemalloc.start()
    try:
        with source.reader() as read:
            assert read("fits") == bytes(1000)
            with pytest.raises(UserError, match=r"at most 1000 bytes, got more from .*bomb\.zip: bomb"):
                read("bomb")
        assert tracemalloc.get_traced_memory()[1] < 10**6
    finally:
        tracemalloc.stop()


def test_a_member_that_lies_about_its_size_is_refused_without_unpacking_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The directory says 10 bytes, the data are 20 million."""
    monkeypatch.setattr(sources, "LARGEST_FILE", 10**5)
    path = archive(tmp_path / "liar.zip", bomb=bytes(2 * 10**7)).path
    data = path.read_bytes()
    path.write_bytes(data.replace((2 * 10**7).to_bytes(4, "little"), (10).to_bytes(4, "little")))
    assert zipfile.ZipFile(path).getinfo("bomb").file_size == 10
    tracemalloc.start()
    try:
        with ZipSource(path).reader() as read, pytest.raises(UserError, match=r"got Bad CRC-32 .*liar\.zip: bomb"):
            read("bomb")
        assert tracemalloc.get_traced_memory()[1] < 10**6
    finally:
        tracemalloc.stop()


def test_a_file_in_a_folder_is_bounded_too_and_a_pipe_is_no_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "top").mkdir()
    (tmp_path / "top" / "large").write_bytes(bytes(1001))
    os.mkfifo(tmp_path / "top" / "pipe")
    monkeypatch.setattr(sources, "LARGEST_FILE", 1000)
    with FolderSource(tmp_path / "top").reader() as read:
        for name, said in (("large", "at most 1000 bytes"), ("pipe", "not a file")):
            with pytest.raises(UserError, match=said):
                read(f"top/{name}")


def test_an_encrypted_member_and_an_unknown_method_are_user_errors(tmp_path: Path) -> None:
    path = archive(tmp_path / "a.zip", a=b"A" * 100).path
    whole = path.read_bytes()
    directory = whole.index(b"PK\x01\x02")
    for position, value in ((6, b"\x01\x00"), (8, b"\x63\x00")):  # flags, method
        changed = bytearray(whole)
        changed[position : position + 2] = changed[directory + position + 2 : directory + position + 4] = value
        path.write_bytes(changed)
        with ZipSource(path).reader() as read, pytest.raises(UserError, match=r"a\.zip: a; fetch it again"):
            read("a")


def test_names_that_lead_out_of_an_archive_and_links_in_it_touch_no_file(tmp_path: Path) -> None:
    """Members are read into memory by their own name; none is ever written or followed."""
    inside = tmp_path / "in" / "folder"
    inside.mkdir(parents=True)
    (tmp_path / "secret").write_bytes(b"secret")
    link = zipfile.ZipInfo("link")
    link.external_attr = 0o120777 << 16
    names = ["../../secret", "/etc/hostname", "..\\..\\secret", "a/../../../secret"]
    with zipfile.ZipFile(inside / "slip.zip", "w") as file:
        for name in names:
            file.writestr(name, b"mine")
        file.writestr(link, b"../../secret")
    source = ZipSource(inside / "slip.zip")
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    with source.reader() as read:
        assert {read(name) for name in source.names()} == {b"mine", b"../../secret"}
    assert before == {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}


def test_a_folder_that_cannot_be_listed_is_refused_and_not_left_out(
    pair: tuple[ZipSource, FolderSource], monkeypatch: pytest.MonkeyPatch
) -> None:
    scandir = os.scandir

    def forbidding(path: str) -> object:
        if str(path).endswith("sub"):
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", forbidding)
    for listing in (pair[1].names, pair[1].stamps):
        with pytest.raises(UserError, match=r"Permission denied: '.*top/sub'; change its permissions"):
            listing()
