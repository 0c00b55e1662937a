import os
from pathlib import Path

import pytest
import torch
from hypothesis import settings

from metakm.registry import isolated

os.environ.setdefault("MPLBACKEND", "Agg")

settings.register_profile("repeatable", derandomize=True, database=None)
settings.load_profile("repeatable")


LONGEST = ("run/test_run.py", "sweep/test_slurm.py", "modulation/test_crashes.py", "run/test_faults.py", "distributed/")
"""Files that take longest: they run first, so that no process ends long after the others."""


def pytest_collection_modifyitems(items):
    """Longest files first; the others keep their order."""
    items.sort(key=lambda item: not any(name in item.nodeid for name in LONGEST))


@pytest.fixture(autouse=True)
def float64(request):
    """Mathematics is tested in float64; a test marked `float32` opts out."""
    previous = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32 if request.node.get_closest_marker("float32") else torch.float64)
    yield
    torch.set_default_dtype(previous)


@pytest.fixture(autouse=True)
def registries():
    """What a test registers is forgotten after it."""
    with isolated():
        yield


@pytest.fixture(scope="session")
def cache(tmp_path_factory):
    """One cache for all runs of all workers, so that the glyphs are drawn once."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "shared-cache"
    folder.mkdir(exist_ok=True)
    return folder


@pytest.fixture(scope="session")
def trained(tmp_path_factory, cache):
    """A folder with a run of each of KM, ANIL and MAML on glyphs, checkpoints included; do not change it."""
    from metakm.run.__main__ import main

    out = tmp_path_factory.mktemp("trained")
    flags = "--ways 3 --queries 2 --backbone conv4-8-stride --meta-batch 2 --val-tasks 16 --eval-tasks 6 --device cpu"
    flags += f" --iterations 16 --val-every 8 --out {out}"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("METAKM_CACHE", str(cache))
        for algo in ("km", "anil", "maml"):
            assert main(["--algo", algo, *flags.split()]) == 0
    return out


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real data."""
    chosen = os.environ.get("METAKM_DATA")
    if not chosen:
        pytest.skip("METAKM_DATA is not set")
    return Path(chosen)
