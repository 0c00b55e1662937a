"""What is shipped: wheel and sdist have every file of the package, and the citation is this version's."""

import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pytest

import metakm

ROOT = Path(__file__).parent.parent
BUILD = "import sys, setuptools.build_meta as b; folder = sys.argv[1]; b.build_wheel(folder); b.build_sdist(folder)"


@pytest.fixture(scope="module")
def shipped(tmp_path_factory):
    """Names in the wheel and in the sdist, built by the backend of pyproject.toml from a copy of the tree, offline."""
    try:
        found = version("setuptools")
    except PackageNotFoundError:
        found = "0"
    if int(found.split(".")[0]) < 77:
        pytest.skip(f"setuptools >= 77 is not installed (found {found})")
    source, dist = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("dist")
    shutil.copytree(ROOT / "metakm", source / "metakm", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    subprocess.run([sys.executable, "-c", BUILD, str(dist)], cwd=source, check=True, capture_output=True, timeout=120)
    (wheel,), (sdist,) = dist.glob("*.whl"), dist.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        inside = {name.partition("/")[2] for name in archive.getnames()}
    return {"wheel": set(zipfile.ZipFile(wheel).namelist()), "sdist": inside}


@pytest.mark.parametrize("kind", ["wheel", "sdist"])
def test_every_file_of_the_package_is_shipped(shipped, kind):
    files = {p.relative_to(ROOT).as_posix() for p in (ROOT / "metakm").rglob("*") if p.is_file()}
    files = {name for name in files if "__pycache__" not in name}
    assert any(not name.endswith(".py") for name in files)
    assert sorted(files - shipped[kind]) == [], f"missing in the {kind}; see package-data in pyproject.toml"


def test_the_wheel_has_nothing_beside_the_package_and_its_licence(shipped):
    tops = {name.split("/")[0] for name in shipped["wheel"]}
    assert {re.sub(r"-[\d.]+\.dist-info$", ".dist-info", top) for top in tops} == {"metakm", "metakm.dist-info"}
    assert any(name.endswith("licenses/LICENSE") for name in shipped["wheel"])


def test_the_citation_has_what_cff_1_2_0_requires_and_this_version():
    """No YAML parser is a dependency: the file keeps to `key: value` at its top level."""
    text = (ROOT / "CITATION.cff").read_text()
    top = dict(re.findall(r"^([a-z-]+): *(.*)$", text, re.MULTILINE))
    assert top["cff-version"] == "1.2.0"
    assert {"message", "title", "authors"} <= set(top)
    assert top["type"] in ("software", "dataset")
    assert top["version"] == metakm.__version__
    assert re.fullmatch(r"\d{4}-\d\d-\d\d", top["date-released"])
    known = "cff-version message title type version date-released license authors references abstract keywords url"
    assert set(top) <= {*known.split(), "repository-code", "doi", "preferred-citation"}
