"""A small network and folders of photos that it can tell apart."""

import pytest
from photo_cases import NETWORK, make_photos


@pytest.fixture(scope="session")
def base(tmp_path_factory):
    """The name of the small network."""
    path = tmp_path_factory.mktemp("base") / "net.py"
    path.write_text(NETWORK)
    return f"{path}:Small"


@pytest.fixture
def shop(tmp_path):
    """Three classes of four photos."""
    return make_photos(tmp_path / "shop")


@pytest.fixture
def new(tmp_path):
    """Two more photos of each class."""
    return make_photos(tmp_path / "new", 2, first=100)
