import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from metakm.data.pictures import decode, read_images
from metakm.errors import UserError


def png(mode: str = "RGB") -> bytes:
    """A picture, 60 wide and 40 high: dark, but for red 200 in the upper half."""
    image = Image.new("RGB", (60, 40))
    image.paste((200, 0, 0), (0, 0, 60, 20))
    out = io.BytesIO()
    image.convert(mode).save(out, "PNG")
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


def test_files_are_read_as_a_strategy_expects_them(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png())
    (tmp_path / "b.png").write_bytes(png("L"))
    colour = read_images([tmp_path / "a.png", str(tmp_path / "b.png")], (3, 20, 20))
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
