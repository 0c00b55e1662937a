import io

import numpy as np
import pytest
from PIL import Image

from metakm.data.pictures import decode
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
