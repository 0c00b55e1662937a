import os
from pathlib import Path

import pytest

from metakm.io.files import atomic_write, write_text


def test_a_write_that_fails_leaves_the_old_file_and_no_other(tmp_path):
    path = tmp_path / "a.txt"
    write_text(path, "old")

    def half_a_write():
        with atomic_write(path) as file:
            file.write(b"half of the ne")
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        half_a_write()
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]


@pytest.mark.parametrize("path", ["/dev/null/a.txt", "/proc/none/a.txt", "/proc/a.txt"])
def test_a_place_that_takes_no_file_is_named_as_it_was_given(path):
    with pytest.raises(OSError, match=f"'{path}'$"):
        write_text(Path(path), "new")


def test_a_write_makes_folders_and_respects_the_umask(tmp_path):
    path = tmp_path / "new" / "a.txt"
    previous = os.umask(0o027)
    try:
        write_text(path, "\u00e4")
    finally:
        os.umask(previous)
    assert path.read_bytes() == "\u00e4".encode()
    assert path.stat().st_mode & 0o777 == 0o640


def test_a_name_that_is_no_utf8_is_written_as_its_bytes(tmp_path):
    name = os.fsdecode(b"K\xe4se.png")
    write_text(tmp_path / "a.txt", f"photo {name}")
    assert (tmp_path / "a.txt").read_bytes() == b"photo K\xe4se.png"
