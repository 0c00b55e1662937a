"""What an import brings along, in a process of its own."""

import ast
import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

import metakm

HEAVY = ("torch", "pandas", "scipy", "matplotlib", "jinja2", "submitit")


def python(code, *arguments):
    """Standard output of Python code in a new process."""
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout


def brought_along(code):
    """Which of the heavy packages are imported after some code."""
    return ast.literal_eval(python(f"import sys\n{code}\nprint([n for n in {HEAVY!r} if n in sys.modules])"))


@pytest.mark.parametrize("module", ["metakm", "metakm.config", "metakm.table.__main__", "metakm.experiments.table"])
def test_no_heavy_package_comes_with(module):
    assert brought_along(f"import {module}") == []


def test_every_table_module_does_without_torch_strategies_presets_and_experiments():
    folder = Path(metakm.__file__).parent / "table"
    files = sorted(folder.rglob("*.py"))
    names = [".".join(("metakm.table", *path.relative_to(folder).with_suffix("").parts)) for path in files]
    names = [name.removesuffix(".__init__") for name in names]
    loaded = ast.literal_eval(python(f"import sys, {', '.join(names)}\nprint(sorted(sys.modules))"))
    above = ("torch", "metakm.strategies", "metakm.presets", "metakm.data", "metakm.experiments")
    assert [name for name in loaded if name in above] == []


def test_a_table_of_runs_is_made_without_torch(tmp_path):
    quick = str(Path(__file__).parents[1] / "results" / "quick")
    code = "import sys, metakm.table.__main__ as table\nassert table.main(sys.argv[1:]) == 0\n"
    python(code + "assert 'torch' not in sys.modules", quick, "--all", "--out", str(tmp_path / "table.txt"))
    assert "Table III" in (tmp_path / "table.txt").read_text()


def test_public_names_are_listed_typed_and_found():
    assert brought_along("import metakm\nassert 'Strategy' in dir(metakm)\nmetakm.UserError") == []
    assert brought_along("import metakm\nmetakm.Strategy") == ["torch"]
    for name in metakm.__all__:
        assert getattr(metakm, name).__module__.startswith("metakm."), name
    tree = ast.parse(Path(metakm.__file__).read_text())
    (typed,) = (node for node in tree.body if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING")
    imported = [alias.name for node in typed.body if isinstance(node, ast.ImportFrom) for alias in node.names]
    assert sorted(imported) == sorted(metakm.__all__)
    with pytest.raises(AttributeError, match="no attribute 'Stratgey'"):
        metakm.Stratgey  # noqa: B018


def test_no_public_name_is_removed_unasked():
    """docs/stability.md: a name is deprecated for a release before it goes. METAKM_GOLDEN=1 writes the list anew."""
    packages = ("metakm", "metakm.data", "metakm.strategies", "metakm.models", "metakm.modulation")
    names = [f"{package}.{name}" for package in packages for name in sorted(importlib.import_module(package).__all__)]
    path = Path(__file__).parent / "golden" / "public_names.txt"
    if os.environ.get("METAKM_GOLDEN") == "1":
        path.write_text("\n".join(names) + "\n")
    assert path.read_text().split() == names, "deprecate what goes; write the list anew for what comes"
    assert all(
        hasattr(importlib.import_module(package), name) for package, _, name in (n.rpartition(".") for n in names)
    )
