"""The site that `make docs` builds: without a warning, complete, and without anything fetched when it is read."""

import importlib
import os
import re
import subprocess
import sys

import pytest
from documents import ROOT

pytest.importorskip("mkdocs", reason="mkdocs is not installed")
PACKAGES = ["metakm", "metakm.data", "metakm.strategies", "metakm.models", "metakm.modulation"]


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    built = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert built.returncode == 0, built.stdout + built.stderr
    return folder


@pytest.mark.parametrize("name", PACKAGES)
def test_every_public_name_is_in_the_reference(site, name):
    page = (site / "reference" / f"{name.removeprefix('metakm.')}.html").read_text()
    documented = set(re.findall(r'id="([\w.]+)"', page))
    assert [each for each in importlib.import_module(name).__all__ if f"{name}.{each}" not in documented] == []


def test_nothing_is_fetched_from_elsewhere_when_a_page_is_read(site):
    loads = r"""<(?:script|img|iframe|link rel="(?:stylesheet|preconnect|icon)")[^>]*(?:src|href)="(?:https?:)?//"""
    assert len(list(site.rglob("*.html"))) > 20
    for path in site.rglob("*.html"):
        assert re.findall(loads, path.read_text()) == [], path.name


def test_every_page_is_in_the_navigation(site):
    home = (site / "index.html").read_text()
    pages = [p.relative_to(ROOT / "docs").with_suffix(".html").as_posix() for p in (ROOT / "docs").rglob("*.md")]
    assert [page for page in pages if f'href="{page}"' not in home] == []
