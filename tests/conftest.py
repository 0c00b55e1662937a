import os

import pytest
import torch
from hypothesis import settings

os.environ.setdefault("MPLBACKEND", "Agg")

settings.register_profile("repeatable", derandomize=True, database=None)
settings.load_profile("repeatable")


@pytest.fixture(autouse=True)
def float64(request):
    """Mathematics is tested in float64; a test marked `float32` opts out."""
    previous = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32 if request.node.get_closest_marker("float32") else torch.float64)
    yield
    torch.set_default_dtype(previous)


@pytest.fixture(scope="session")
def cache(tmp_path_factory):
    """One cache for all runs, so that the glyphs are drawn once a session."""
    return tmp_path_factory.mktemp("cache")
