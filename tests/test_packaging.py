"""What is shipped: wheel and sdist are whole and valid, the wheel works, and the citation is this version's."""

import importlib.util
import os
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
def dist(tmp_path_factory):
    """A folder with the wheel and the sdist, built offline by the backend of pyproject.toml from a copy of the tree."""
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
    return dist


@pytest.fixture(scope="module")
def shipped(dist):
    """Names in the wheel and in the sdist."""
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


def test_twine_finds_nothing_to_complain_about(dist):
    if importlib.util.find_spec("twine") is None:
        pytest.skip("twine is not installed")
    command = [sys.executable, "-m", "twine", "--no-color", "check", "--strict", *map(str, sorted(dist.iterdir()))]
    checked = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert checked.returncode == 0, checked.stdout
    assert checked.stdout.count("PASSED") == 2


def test_the_installed_wheel_is_imported_and_has_its_data(dist, tmp_path):
    """Without dependencies, into a folder of its own: those of the tests' environment serve."""
    (wheel,) = dist.glob("*.whl")
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", str(tmp_path)]
    subprocess.run([*command, str(wheel)], check=True, capture_output=True, timeout=120)
    code = "import metakm; print(metakm.__file__, metakm.__version__, len(metakm.load_dataset('glyphs').class_names))"
    environment = {**os.environ, "PYTHONPATH": str(tmp_path), "METAKM_CACHE": str(tmp_path / "cache")}
    ran = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    file, version_, classes = ran.stdout.split()
    assert Path(file) == tmp_path / "metakm" / "__init__.py"
    assert version_ == metakm.__version__
    assert int(classes) > 0
    assert (tmp_path / "bin" / "metakm-run").is_file()


def test_the_changelog_has_this_version_or_says_what_is_unreleased():
    headings = re.findall(r"^## (.*)$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert metakm.__version__ in [heading.split()[0] for heading in headings]
    assert headings[0].split()[0] in ("Unreleased", metakm.__version__)


def test_ci_runs_what_contributing_says_on_every_python_that_is_supported():
    workflow = (ROOT / ".github" / "workflows" / "ci.yml").read_text()
    assert {"make check", "make test"} <= set(re.findall(r"run: (.*?)(?: PYTHON=python)?$", workflow, re.MULTILINE))
    assert re.findall(r'"(3\.\d+)"', workflow) == ["3.10", "3.11", "3.12", "3.13"]


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
