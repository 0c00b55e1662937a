"""The package's structure: imports that run in one direction, modules that can be read, names that do not collide."""

import ast
import importlib
import re
from collections import defaultdict
from pathlib import Path

import metakm

PACKAGE = Path(metakm.__file__).parent
MODULES = {
    ".".join(("metakm", *path.relative_to(PACKAGE).with_suffix("").parts)).removesuffix(".__init__"): path
    for path in PACKAGE.rglob("*.py")
}
LONGEST = 250


def packages():
    """For each package, or module at the top, the others that it imports when it is imported."""
    found = defaultdict(set)
    for module, path in MODULES.items():
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("metakm."):
                for name in node.names:
                    whole = f"{node.module}.{name.name}"
                    found[_package(module)].add(_package(whole if whole in MODULES else node.module))
    return {package: others - {package} for package, others in found.items()}


def _package(module):
    return ".".join(module.split(".")[:2])


def test_no_package_imports_one_that_imports_it():
    arrows = packages()
    reached = {package: set(others) for package, others in arrows.items()}
    for _ in arrows:
        for others in reached.values():
            others |= {further for other in others for further in reached.get(other, ())}
    assert [package for package, others in reached.items() if package in others] == []


def test_few_modules_lie_at_the_top():
    assert len([path for path in PACKAGE.glob("*.py") if path.name != "__init__.py"]) <= 10


def test_a_module_can_be_read_in_one_sitting():
    longer = {module for module, path in MODULES.items() if len(path.read_text().splitlines()) > LONGEST}
    assert not longer


def test_no_module_has_the_name_of_a_public_name_beside_it():
    """Importing such a module would put it in the name's place."""
    packages = [module for module, path in MODULES.items() if path.name == "__init__.py"]
    public = {f"{each}.{name}" for each in packages for name in getattr(importlib.import_module(each), "__all__", ())}
    assert public & {*MODULES} == set()


def test_no_two_things_have_one_name():
    found = defaultdict(set)
    for module, path in MODULES.items():
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                found[node.name].add(module)
    assert {name: modules for name, modules in found.items() if len(modules) > 1} == {}


def test_one_module_imports_higher():
    """It is unmaintained, and may have to be replaced."""
    files = {path.relative_to(PACKAGE).as_posix(): path.read_text() for path in PACKAGE.rglob("*.py")}
    found = [name for name, text in files.items() if re.search(r"^\s*(import|from) higher\b", text, re.MULTILINE)]
    assert found == ["learning/fast_weights.py"]


def test_no_two_test_modules_have_one_name():
    """pytest imports them by their name alone."""
    names = [path.stem for path in Path(__file__).parent.rglob("test_*.py")]
    assert sorted(names) == sorted(set(names))
