import io
import struct
import tracemalloc
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageOps

from metakm.data.decode import decode, read_images
from metakm.errors import UserError


def png(mode: str = "RGB") -> bytes:
    """`picture` as a PNG file."""
    return encoded(picture().convert(mode))


def picture() -> Image.Image:
    """A picture, 60 wide and 40 high: dark, but for red 200 in the upper half."""
    image = Image.new("RGB", (60, 40))
    image.paste((200, 0, 0), (0, 0, 60, 20))
    return image


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def test_colour_is_channels_first_and_upright() -> None:
    found = decode(png(), "here", "RGB", 20)
    assert found.shape == (3, 20, 20)
    assert found.dtype == np.uint8
    assert abs(found[0, :7].astype(int) - 200).max() <= 4
    assert found[0, 13:].max() <= 4
    assert not found[1:].any()


def test_grey_keeps_one_channel() -> None:
    found = decode(png("L"), "here", "L", 10)
    assert found.shape == (1, 10, 10)
    assert abs(found[0, :3].astype(int) - 60).max() <= 4  # 0.299 * 200


def test_one_bit_images_are_resized_as_grey() -> None:
    stripes = Image.fromarray(np.tile([True, False], (40, 20)))
    out = io.BytesIO()
    stripes.save(out, "PNG")
    found = decode(out.getvalue(), "here", "L", 10)
    assert abs(found[:, :, 2:-2].astype(int) - 127).max() < 10


@pytest.mark.parametrize("data", [b"", b"no image", png()[:60], png()[:-30]])
def test_what_is_no_whole_image_is_refused_by_name(data: bytes) -> None:
    with pytest.raises(UserError, match=r"Expected an image, got .* from the\.zip: a\.png; fetch it again"):
        decode(data, "the.zip: a.png", "RGB", 20)


def test_a_file_that_is_no_image_is_named_alone() -> None:
    with pytest.raises(
        UserError, match=r"^Expected an image, got a file in no image format from a\.jpg; fetch it again$"
    ):
        decode(b"hi", "a.jpg", "RGB", 8)


def test_a_tiff_with_a_damaged_second_directory_is_refused_by_name(tmp_path: Path) -> None:
    whole = bytearray(encoded(picture(), "TIFF"))
    (first,) = struct.unpack("<I", whole[4:8])
    (entries,) = struct.unpack("<H", whole[first : first + 2])
    after = first + 2 + 12 * entries
    whole[after : after + 4] = struct.pack("<I", len(whole))
    (tmp_path / "a.tif").write_bytes(whole + bytes(6))  # a second directory, without entries
    with pytest.raises(UserError, match=r"Expected an image, got .* from .*a\.tif; fetch it again"):
        read_images(tmp_path / "a.tif", (3, 8, 8))


def flat(mode: str, colour: Any = 0) -> Image.Image:
    return Image.new(mode, (8, 8), colour)


SEE_THROUGH = flat("P")
SEE_THROUGH.putpalette([9, 9, 9] * 256)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (encoded(flat("L"), "GIF", save_all=True, append_images=[flat("L", 255)]), "still image, got 2 frames"),
        (encoded(flat("L"), "PNG", save_all=True, append_images=[flat("L", 255)]), "still image, got 2 frames"),
        (encoded(flat("L"), "TIFF", save_all=True, append_images=[flat("L", 255)] * 2), "still image, got 3 frames"),
        (encoded(flat("I;16", 40_000)), "8 bits a channel, grey or colour, got mode I;16"),
        (encoded(flat("F", 0.5), "TIFF"), "8 bits a channel, grey or colour, got mode F"),
        (encoded(flat("I", 70_000), "TIFF"), "8 bits a channel, grey or colour, got mode I"),
        (encoded(flat("LAB"), "TIFF"), "8 bits a channel, grey or colour, got mode LAB"),
        (encoded(flat("RGBA", (200, 0, 0, 254))), "opaque image, got transparent pixels"),
        (encoded(flat("LA", (200, 0))), "opaque image, got transparent pixels"),
        (encoded(SEE_THROUGH, transparency=0), "opaque image, got transparent pixels"),
        (encoded(flat("RGB"), transparency=(0, 0, 0)), "opaque image, got transparent pixels"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_an_image_that_would_be_read_wrongly_is_refused_by_name(data: bytes, said: str) -> None:
    with pytest.raises(UserError, match=rf"{said}.* from the\.zip: a; "):
        decode(data, "the.zip: a", "RGB", 4)


@pytest.mark.parametrize("size", [(10_000, 10_000), (20_000, 20_000)])
def test_a_decompression_bomb_is_refused_before_it_is_decoded(size: tuple[int, int]) -> None:
    """Pillow warns of the first and raises for the second; neither is 100 million pixels long on disk."""
    header = size[0].to_bytes(4, "big") + size[1].to_bytes(4, "big")
    data = bytearray(png("L"))
    data[16:24] = header
    data[29:33] = zlib.crc32(data[12:29]).to_bytes(4, "big")
    tracemalloc.start()
    try:
        with pytest.raises(UserError, match=r"image of usual size, got .* from here; make it smaller"):
            decode(bytes(data), "here", "L", 4)
        assert tracemalloc.get_traced_memory()[1] < 10**6
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr"])
def test_every_opaque_mode_of_8_bits_is_read(mode: str) -> None:
    image = picture().convert(mode)
    data = encoded(image, "JPEG" if mode in ("CMYK", "YCbCr") else "PNG")
    found = decode(data, "here", "RGB", 10).astype(int)
    assert found.shape == (3, 10, 10)
    assert found[0, :3].max() > 0 if mode == "1" else found[0, :3].mean() > 50
    assert found[:, 8:].max() <= 8


def test_a_photograph_with_its_preview_is_one_photograph() -> None:
    data = encoded(flat("RGB", (200, 0, 0)), "MPO", save_all=True, append_images=[flat("RGB")])
    assert abs(decode(data, "here", "RGB", 4)[0].astype(int) - 200).max() <= 4


def test_files_are_read_as_a_strategy_expects_them(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png())
    (tmp_path / "b.png").write_bytes(png("L"))
    colour = read_images([tmp_path / "a.png", str(tmp_path / "b.png")], (3, 20, 20))
    assert np.array_equal(read_images(str(tmp_path / "a.png"), (3, 20, 20)), colour[:1])
    assert (colour.shape, colour.dtype) == ((2, 3, 20, 20), np.uint8)
    assert np.array_equal(colour[0], decode(png(), "here", "RGB", 20))
    assert np.array_equal(read_images([tmp_path / "b.png"], (1, 8, 8))[0], decode(png("L"), "here", "L", 8))


def test_files_or_shapes_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"no image")
    with pytest.raises(UserError, match=r"Expected an image, got .*a\.png"):
        read_images([tmp_path / "a.png"], (3, 20, 20))
    with pytest.raises(UserError, match=r"readable file, got .*absent\.png"):
        read_images([tmp_path / "absent.png"], (3, 20, 20))
    with pytest.raises(UserError, match="at least one image file"):
        read_images([], (3, 20, 20))
    for shape in ((3, 20, 21), (2, 20, 20)):
        with pytest.raises(UserError, match="1 or 3 channels and a square"):
            read_images([tmp_path / "a.png"], shape)


def tagged(kind: str, exif: bytes) -> bytes:
    """`picture` with EXIF data that need not be whole."""
    return encoded(picture(), kind, exif=exif)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
@pytest.mark.parametrize(
    "exif",
    [
        b"Exif\0\0\0\x08\0\x02\x01\x12\0\x03",
        b"Exif\0\0",
        b"Exif\0\0MM\0*",
        b"Exif\0\0MM\0*\0\0\0\x08\0\x09\x01\x12",
        b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\xff\xff\0\0\x06\0\0\0",
        b"Exif\0\0II*\0\xff\xff\xff\x7f",
        b"junk",
    ],
)
def test_whole_pixels_with_damaged_exif_are_read_as_without(kind: str, exif: bytes) -> None:
    found = decode(tagged(kind, exif), "here", "RGB", 20, upright=True)
    assert np.array_equal(found, decode(encoded(picture(), kind), "here", "RGB", 20))


@pytest.mark.parametrize("orientation", range(10))
def test_the_orientation_is_followed_as_pillow_does(orientation: int) -> None:
    marked = picture()
    marked.paste((0, 0, 250), (0, 0, 20, 40))  # without symmetry
    exif = Image.Exif()
    exif[274] = orientation
    data = encoded(marked, exif=exif)
    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    found = decode(data, "here", "RGB", 20, upright=True)
    assert np.array_equal(found, decode(encoded(upright), "here", "RGB", 20))
    assert (orientation in range(2, 9)) != np.array_equal(found, decode(data, "here", "RGB", 20))


def test_damaged_pixels_are_refused_whatever_the_exif_says() -> None:
    data = tagged("PNG", b"junk")
    with pytest.raises(UserError, match="Expected an image"):
        decode(data[: len(data) * 2 // 3], "here", "RGB", 20, upright=True)
