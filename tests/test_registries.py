"""What can be added with one file: in the package or as a plugin; and what registries refuse."""

import copy
import importlib
import re
import sys

import pandas as pd
import pytest
import torch
from documents import ROOT
from runs import write_run
from torch import nn

import metakm
from metakm import list as listing
from metakm.data.registry import dataset_entry, datasets
from metakm.models import make_backbone
from metakm.modulation.modulators import modulator_class
from metakm.presets import preset_config
from metakm.registry import import_modules, installed_points, isolated, load_plugin, registries
from metakm.run.__main__ import main
from metakm.strategies.registry import strategy_class
from metakm.table.__main__ import main as table
from metakm.table.setting import TITLES

STRATEGY = """
import metakm
from metakm.strategies.anil import ANIL


@metakm.register_strategy("mine")
class Mine(ANIL):
    \"\"\"Another ANIL.\"\"\"
"""
DATASET = """
import numpy as np
import metakm


@metakm.register_dataset("dots", title="Dots", family="characters", ways=3)
def load_dots(split, roots):
    generator = np.random.default_rng({"train": 0, "val": 1, "test": 2}[split])
    images = generator.integers(0, 256, (40, 1, 16, 16), dtype=np.uint8)
    labels = [f"{split} {number // 10}" for number in range(40)]
    return metakm.FewShotDataset.from_arrays(images, labels, name="dots", split=split)
"""
BACKBONE = """
import metakm


@metakm.register_backbone("narrow-<filters>")
def narrow(image_shape, bn_mode, filters):
    return metakm.Conv4(image_shape[0], filters, image_size=image_shape[1], bn_mode=bn_mode)
"""


MODULATOR = """
import torch
import metakm


@metakm.register_modulator("gain")
class Gain(torch.nn.Module):
    \"\"\"One factor for the whole kernel.\"\"\"

    def __init__(self, kernel_size, depth, activation, init, scale=None):
        super().__init__()
        self.factor = torch.nn.Parameter(torch.ones(()))

    def forward(self, kernel):
        return self.factor * kernel
"""
LAYOUT = """
import metakm
from metakm.table.grids import Grid, Layout


@metakm.register_table_layout("seeds")
def seeds(table):
    \"\"\"How many seeds each measured cell has.\"\"\"
    lines = tuple((cell.protocol.label, cell.setting.title, str(cell.n_seeds)) for cell in table.cells)
    return Layout((Grid("Seeds", ("Method", "Setting", "Seeds"), lines),))
"""


FILES = {  # for each kind the package that it belongs to, a file that adds one, and the line that lists it
    "strategy": ("metakm.strategies", STRATEGY, "mine Another ANIL."),
    "dataset": ("metakm.data", DATASET, "dots Dots: characters, 3-way by default"),
    "backbone": ("metakm.models", BACKBONE, "narrow-<filters>"),
    "modulator": ("metakm.modulation.modulators", MODULATOR, "gain One factor for the whole kernel."),
    "table layout": ("metakm.table.layouts", LAYOUT, "seeds How many seeds each measured cell has."),
}


def test_tables_call_the_datasets_what_their_registry_does():
    registered = {name: datasets.get(name).title for name in datasets.names()}
    assert {name: registered.get(name) for name in TITLES} == TITLES
    assert registered.keys() - TITLES.keys() == {"folder", "glyphs"}  # named as on the command line


@pytest.fixture
def plugins(tmp_path, monkeypatch, cache):
    monkeypatch.setenv("METAKM_CACHE", str(cache))
    files = {"dots.py": "dataset", "narrow.py": "backbone", "gain.py": "modulator", "seeds.py": "table layout"}
    for name, kind in files.items():
        (tmp_path / name).write_text(FILES[kind][1])
    return [str(tmp_path / name) for name in files]


def list_everything(arguments, capsys):
    """The lines of `metakm.list`, without their alignment."""
    assert listing.main(arguments) == 0
    return [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]


@pytest.mark.parametrize("kind", FILES)
def test_one_more_file_in_the_package_is_all_it_takes(kind, tmp_path, monkeypatch, capsys):
    """What CONTRIBUTING says of adding one, with a folder that extends the package for the test."""
    name, text, line = FILES[kind]
    package = importlib.import_module(name)
    monkeypatch.setattr(package, "__path__", [*package.__path__, str(tmp_path)])
    (tmp_path / "added.py").write_text(text)
    import_modules(name)
    monkeypatch.delitem(sys.modules, f"{name}.added")
    monkeypatch.delattr(package, "added")
    assert line in list_everything([], capsys)


@pytest.mark.parametrize("kind", FILES)
def test_contributing_says_where_the_file_belongs(kind):
    text = (ROOT / "CONTRIBUTING.md").read_text()
    section = text.partition(f"\n## Add a {kind}\n")[2].partition("\n## ")[0]
    assert f"`{FILES[kind][0].replace('.', '/')}/<name>.py`" in section
    assert f"`@register_{kind.replace(' ', '_')}(" in section


def test_there_is_a_file_for_each_kind_that_can_be_added():
    assert set(FILES) == {registry.kind for registry in registries()}


@pytest.mark.float32
def test_a_run_on_the_dataset_and_backbone_of_plugins(plugins, tmp_path):
    flags = "--dataset dots --backbone narrow-5 --queries 2 --meta-batch 2 --val-tasks 2 --eval-tasks 2 --iterations 1"
    assert main([*flags.split(), "--out", str(tmp_path / "out"), "--plugin", *plugins[:2]]) == 0
    row = pd.read_csv(tmp_path / "out" / "dots-3w1s" / "km" / "seed0" / "result.csv").iloc[0]
    assert (row.dataset, row.backbone, row.ways) == ("dots", "narrow-5", 3)


def test_they_are_listed(plugins, capsys):
    lines = list_everything(["--plugin", *plugins], capsys)
    assert {line for kind, (_, _, line) in FILES.items() if kind != "strategy"} <= {*lines}
    assert "km KM (Hu & Liu): adapts kernel modulators, convolution biases and head." in lines


def test_a_model_modulated_by_a_plugins_modulator(plugins, tmp_path):
    metakm.load_plugin(plugins[2])
    base = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(144, 2)).double()
    images = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    model = metakm.modulate(copy.deepcopy(base), classifier="2", modulator="gain")
    torch.testing.assert_close(model(images), base(images))
    with torch.no_grad():
        model.get_parameter("0.parametrizations.weight.0.factor").fill_(2)
    metakm.save_pack(model, tmp_path / "task")
    weight = base[0].weight.clone()
    metakm.load_pack(base, tmp_path / "task")  # onto a plain model: the pack names the modulator's class
    torch.testing.assert_close(base[0].weight, 2 * weight)


@pytest.mark.parametrize(
    ("modulator", "said"),
    [
        (print, "to decorate a subclass of torch.nn.Module, got <built-in"),
        (nn.ReLU, r"ReLU.__init__ to take kernel_size, depth, activation and init, got \(inplace"),
    ],
)
def test_a_modulator_that_cannot_be_registered(modulator, said):
    with pytest.raises(metakm.UserError, match=said):
        metakm.register_modulator("mine")(modulator)


def test_an_unknown_modulator_changes_nothing():
    model = nn.Sequential(nn.Conv2d(1, 1, 3))
    with pytest.raises(metakm.UserError, match=r"Expected modulator .* channel, .*got 'chanel'; did you mean"):
        metakm.modulate(model, classifier=None, modulator="chanel")
    assert model[0].weight.requires_grad


@pytest.mark.parametrize(
    ("form", "line"),
    [
        ("table", "km (quick, eval-tasks 4)  Omniglot 20-way 1-shot  1"),
        ("markdown", "| km (quick, eval-tasks 4) | Omniglot 20-way 1-shot | 1 |"),
        ("latex", r"    km (quick, eval-tasks 4) & Omniglot 20-way 1-shot & 1 \\"),
        ("csv", 'Seeds,"km (quick, eval-tasks 4)",Omniglot 20-way 1-shot,1'),
        ("json", '    "Method": "km (quick, eval-tasks 4)",'),
    ],
)
def test_a_plugins_table_layout_in_every_format(plugins, tmp_path, capsys, form, line):
    write_run(tmp_path / "km", "km")
    arguments = ["--format", form, "--all", "--layout", "seeds", "--plugin", plugins[3]]
    assert table([str(tmp_path / "km"), *arguments]) == 0
    assert line in capsys.readouterr().out.splitlines()


@pytest.mark.parametrize(
    ("result", "said"),
    [
        ("table.seeds", "plugin_seeds.seeds to lay out the table, got AttributeError: 'Table'"),
        ("'text'", "plugin_seeds.seeds to return a metakm.table.grids.Layout, got str"),
        ("Layout((Grid('A', ('B', 'C'), (('d',),)),))", r"each line of the grid 'A' as many texts as .*\(2\), got 1"),
    ],
)
def test_a_table_layout_that_fails_is_named(plugins, tmp_path, capsys, result, said):
    (tmp_path / "seeds.py").write_text(LAYOUT.replace("return ", f"return {result}  # "))
    write_run(tmp_path / "km", "km")
    assert table([str(tmp_path / "km"), "--layout", "seeds", "--plugin", plugins[3]]) == 2
    assert re.search(said, capsys.readouterr().err)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (
            ["--layout", "fulll"],
            "Expected table layout to be one of compact, cross-domain, full, got 'fulll'; did you mean 'full'?",
        ),
        (["--layout", "full", "--compare", "km", "anil"], "Expected --layout without --compare, got both"),
    ],
)
def test_a_table_layout_that_is_refused(tmp_path, capsys, arguments, said):
    assert table([str(tmp_path), *arguments]) == 2
    assert said in capsys.readouterr().err


def test_installed_packages_are_searched_once(monkeypatch):
    searched = []
    monkeypatch.setattr("metakm.registry.entry_points", lambda group: searched.append(group) or ())
    installed_points.cache_clear()
    for name in metakm.available_datasets():
        dataset_entry(name)
    assert searched == ["metakm.datasets"]
    installed_points.cache_clear()


def test_what_is_registered_is_forgotten(plugins):
    with isolated():
        metakm.load_plugin(plugins[0])
        assert "dots" in metakm.available_datasets()
    assert "dots" not in metakm.available_datasets()
    with pytest.raises(metakm.UserError, match=r"Expected dataset to be one of .*, got 'dots'"):
        preset_config(dataset="dots")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"family": "drawings"}, "Expected family to be one of characters, photographs, got 'drawings'"),
        ({"ways": 1}, "to be at least 2, got 1"),
        ({"name": "omniglot"}, "got 'omniglot', which metakm.data.omniglot.load_omniglot has already"),
    ],
)
def test_a_dataset_that_cannot_be_registered(changes, said):
    values = {"name": "dots", "title": "Dots", "family": "characters", "ways": 5} | changes
    name = values.pop("name")
    with pytest.raises(metakm.UserError, match=said):
        metakm.register_dataset(name, **values)(print)


def test_a_dataset_says_what_it_is():
    with pytest.raises(TypeError, match="title"):
        metakm.register_dataset("dots")


def test_a_backbone_that_fails_to_build_is_named(tmp_path, plugins, capsys):
    (tmp_path / "narrow.py").write_text(BACKBONE.replace("image_shape[0]", "image_shape[3]"))
    arguments = ["--backbone", "narrow-5", "--ways", "3", "--out", str(tmp_path / "out"), "--plugin", plugins[1]]
    assert main(arguments) == 2
    assert "Expected the backbone 'narrow-5' to be built, got IndexError" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_name_with_signs_of_regular_expressions_is_found():
    metakm.register_backbone("conv4+more.<filters>")(lambda shape, _mode, filters: metakm.Conv4(shape[0], filters))
    assert make_backbone("conv4+more.4", (1, 28, 28)).in_channels == 1
    with pytest.raises(metakm.UserError, match="Expected backbone to be one of"):
        make_backbone("conv4+more-4", (1, 28, 28))


def test_plugins_of_one_file_name_in_two_folders_are_two(tmp_path):
    paths = [tmp_path / name / "mine.py" for name in "ab"]
    for path in paths:
        path.parent.mkdir()
        path.write_text(STRATEGY.replace('"mine"', f'"mine-{path.parent.name}"'))
        load_plugin(path)
    modules = [sys.modules[strategy_class(f"mine-{name}").__module__] for name in "ab"]
    assert [module.__file__ for module in modules] == [str(path) for path in paths]


def test_an_option_that_a_constructor_does_not_take_is_refused():
    from metakm.strategies.maml import MAML

    class Mine(MAML):
        def __init__(self, backbone, ways):
            super().__init__(backbone, ways)

    with pytest.raises(metakm.UserError, match="__init__ to take its option 'implicit', got none; add it"):
        metakm.register_strategy("mine")(Mine)


def test_the_groups_of_entry_points_are_those_that_are_promised():
    text = (ROOT / "docs" / "stability.md").read_text()
    promised = re.findall(r"`(metakm\.[a-z_]+)`", text.partition("entry-point groups")[2].partition("with the")[0])
    assert {each.group for each in registries()} == set(promised)
    assert len(promised) == 5


def test_a_plugin_that_failed_can_be_mended_and_loaded_again(tmp_path):
    plugin = tmp_path / "mended.py"
    text = "import metakm\n@metakm.register_modulator('mine')\nclass M(metakm.modulation.KernelModulator):\n    pass\n"
    with isolated():
        plugin.write_text(text + "1 / 0\n")
        with pytest.raises(metakm.UserError, match="ZeroDivisionError"):
            load_plugin(plugin)
        plugin.write_text(text)
        load_plugin(plugin)


def test_a_class_that_a_notebook_defines_again_takes_its_former_place():
    def define(module="__main__"):
        class Cell(metakm.modulation.KernelModulator):
            pass

        Cell.__module__ = module
        return metakm.register_modulator("cell")(Cell)

    with isolated():
        define()
        again = define()
        assert modulator_class("cell") is again
        with pytest.raises(metakm.UserError, match="choose another name"):
            define("elsewhere")
