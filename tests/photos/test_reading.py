"""Photographs of every kind that people have, and files that are none."""

import struct
import warnings
import zlib

import numpy as np
import pytest
from PIL import Image

from metakm import UserError
from metakm.photos.reading import read_photo, without_warnings


def saved(folder, image, name, **options):
    path = folder / name
    image.save(path, **options)
    return path


@pytest.fixture
def halves():
    """Left half red, right half blue."""
    pixels = np.zeros((60, 60, 3), dtype=np.uint8)
    pixels[:, :30, 0], pixels[:, 30:, 2] = 255, 255
    return Image.fromarray(pixels)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_photo_is_turned_upright(orientation, halves, tmp_path):
    stored_by = {2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
            5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_90, 7: Image.Transpose.TRANSVERSE,
            8: Image.Transpose.ROTATE_270}  # fmt: skip
    stored = halves.transpose(stored_by[orientation]) if orientation in stored_by else halves
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = saved(tmp_path, stored, "a.JPG", exif=exif, quality=95)
    read = read_photo(path, 60).astype(int)
    assert np.abs(read[:, :, 10] - np.array([[254], [0], [0]])).max() < 12
    assert np.abs(read[:, :, 50] - np.array([[0], [0], [254]])).max() < 12


def test_other_modes_and_depths_become_the_same_rgb(halves, tmp_path):
    plain = read_photo(saved(tmp_path, halves, "a.png"), 60)
    assert plain.shape == (3, 60, 60)
    for name, image in {
        "cmyk.jpg": halves.convert("CMYK"),
        "a.webp": halves,
        "palette.gif": halves.quantize(4),
        "alpha.png": halves.convert("RGBA"),
        "a.bmp": halves,
        "a.tif": halves,
    }.items():
        found = read_photo(saved(tmp_path, image, name), 60).astype(int)
        middle = np.r_[5:25, 35:55]
        assert np.abs(found - plain)[:, :, middle].max() < 14, name


def test_grey_of_16_bits_keeps_its_range(tmp_path):
    values = np.linspace(0, 65535, 64 * 64).reshape(64, 64).astype(np.uint16)
    read = read_photo(saved(tmp_path, Image.fromarray(values), "a.png"), 64)
    assert np.abs(read[0].astype(float) - values / 257).max() <= 1
    assert (read[0] == read[2]).all()
    dark = Image.fromarray((values // 328).astype(np.uint16))  # 0 to 199 of 65,535
    assert read_photo(saved(tmp_path, dark, "dark.png"), 64).max() <= 1
    deep = Image.fromarray(values.astype(np.int32) * 16)  # of 20 bits
    assert np.abs(read_photo(saved(tmp_path, deep, "deep.tif"), 64)[0].astype(float) - values / 257).max() <= 1
    floats = Image.fromarray((values / 65535).astype(np.float32))
    assert np.abs(read_photo(saved(tmp_path, floats, "b.tif"), 64)[1].astype(float) - values / 257).max() <= 1


def test_transparency_lies_on_white(tmp_path):
    clear = Image.new("RGBA", (50, 50), (0, 0, 0, 0))
    assert (read_photo(saved(tmp_path, clear, "a.png"), 40) == 255).all()
    palette = Image.new("RGB", (50, 50), "red").quantize(2)
    hidden = palette.getpixel((0, 0))
    assert (read_photo(saved(tmp_path, palette, "b.png", transparency=hidden), 40) == 255).all()


def test_of_an_animation_the_first_frame(tmp_path):
    frames = [Image.new("RGB", (40, 40), colour) for colour in ("red", "blue", "blue")]
    for name in ("a.gif", "a.webp", "a.png"):
        path = saved(tmp_path, frames[0], name, save_all=True, append_images=frames[1:])
        assert read_photo(path, 32)[0].min() > 240, name
        assert read_photo(path, 32)[2].max() < 15, name


def test_the_middle_square_keeps_proportions(tmp_path):
    pixels = np.full((100, 300, 3), 0, dtype=np.uint8)
    pixels[:, 95:205] = 255
    assert read_photo(saved(tmp_path, Image.fromarray(pixels), "a.png"), 50).min() == 255


def test_a_huge_photo_is_read_and_pillows_limit_stays(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    path = tmp_path / "a.jpg"
    Image.new("RGB", (3000, 2000), "red").save(path)
    assert read_photo(path, 32)[0].min() > 240
    assert Image.MAX_IMAGE_PIXELS == 1000
    header = struct.pack(">IIBBBBB", 60000, 60000, 8, 2, 0, 0, 0)
    chunk = b"IHDR" + header
    bomb = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + chunk + struct.pack(">I", zlib.crc32(chunk))
    bomb += struct.pack(">I", 0) + b"IDAT" + struct.pack(">I", zlib.crc32(b"IDAT"))
    (tmp_path / "b.png").write_bytes(bomb)
    with pytest.raises(UserError, match=r"at most 1,073,741,824 pixels, got more in .*b.png"):
        read_photo(tmp_path / "b.png", 32)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jpg", b"", "got an empty file, "),
        ("a.jpg", b"plain text", "got another kind of file, "),
        (
            "a.heic",
            b"\0\0\0\x18ftypheic" + bytes(64),
            r"HEIC, a phone's format \(to read it, pip install pillow-heif\)",
        ),
        ("a.png", None, "Expected a whole image, got"),
    ],
)
def test_what_is_no_photo_is_named(name, content, message, tmp_path):
    path = tmp_path / name
    if content is None:
        noise = np.random.default_rng(0).integers(0, 256, (99, 99, 3), dtype=np.uint8)
        Image.fromarray(noise).save(path)
        content = path.read_bytes()[:-4000]
    path.write_bytes(content)
    with pytest.raises(UserError, match=message) as error:
        read_photo(path, 32)
    assert name in str(error.value)


def test_warnings_come_back_once_the_last_of_several_threads_is_done():
    before = list(warnings.filters)
    first, second = without_warnings(), without_warnings()
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert warnings.filters[0][0] == "ignore"
    second.__exit__(None, None, None)
    assert warnings.filters == before


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(UserError, match=r"got no file .*a.jpg"):
        read_photo(tmp_path / "a.jpg", 32)
