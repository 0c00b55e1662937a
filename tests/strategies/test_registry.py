import copy
import re
import textwrap
from importlib.metadata import EntryPoint
from typing import ClassVar

import pytest
import torch
from torch import nn

import metakm
from metakm.presets import changes_from_preset, preset_config
from metakm.run.__main__ import main
from metakm.strategies import registry
from metakm.strategies.anil import ANIL
from metakm.table.collect import read_runs


def test_built_in_strategies_are_known():
    proto = {"anil-proto", "km-proto", "maml-proto"}
    baselines = {"baseline", "baseline++", "cavia", "finetune", "simpleshot", "imaml", "meta-curvature", "r2d2"}
    built_in = {"anil", "bn", "boil", "km", "maml", "meta-sgd", "protonet", "reptile", *proto, *baselines}
    assert built_in <= set(metakm.available_strategies())
    assert list(metakm.available_strategies()) == sorted(metakm.available_strategies())


def test_unknown_name_lists_the_known_and_the_nearest():
    with pytest.raises(metakm.UserError, match=r"one of anil, .*reptile, simpleshot, got 'mmal'; did you mean 'maml'"):
        metakm.make_strategy("mmal", metakm.Conv4(1, 4), 5)


def test_duplicate_name_is_refused():
    class Other(metakm.Strategy):
        pass

    with pytest.raises(metakm.UserError, match=r"'km', which metakm\.strategies\.km\.KM has already"):
        metakm.register_strategy("km")(Other)


def test_registering_the_same_class_again_is_harmless():
    cls = registry.strategy_class("km")
    assert metakm.register_strategy("km")(cls) is cls


def test_only_strategies_can_be_registered():
    with pytest.raises(metakm.UserError, match=r"subclass of metakm\.Strategy"):
        metakm.register_strategy("linear")(nn.Linear)


def test_unknown_option_names_the_strategys_own():
    with pytest.raises(metakm.UserError, match=r"options of 'anil' out of \(none\), got 'implicit'"):
        metakm.make_strategy("anil", metakm.Conv4(1, 4), 5, implicit=True)


@pytest.mark.parametrize(
    ("name", "option", "value"),
    [("protonet", "distance", "cosin"), ("simpleshot", "transform", "cl2nn"), ("imaml", "proximal", 0.0),
     ("cavia", "layer", -1)],
)  # fmt: skip
def test_a_value_that_an_option_refuses_is_refused_here_too(name, option, value):
    with pytest.raises(metakm.UserError, match=f"{option} to be"):
        metakm.make_strategy(name, metakm.Conv4(1, 4), 5, train_classes=7, **{option: value})


def test_a_strategy_without_adapted_is_refused():
    @metakm.register_strategy("forgetful")
    class Forgetful(metakm.Strategy):
        def __init__(self, backbone, ways):
            super().__init__()
            self.head = nn.Linear(backbone.out_features, ways)

    with pytest.raises(metakm.UserError, match=r"set self\.adapted"):
        metakm.make_strategy("forgetful", metakm.Conv4(1, 4), 5)


def test_a_backbone_must_say_how_many_features_it_has():
    with pytest.raises(metakm.UserError, match="out_features"):
        metakm.make_strategy("maml", nn.Sequential(nn.Conv2d(1, 2, 3)), 5)
    with pytest.raises(metakm.UserError, match="at least 2"):
        metakm.make_strategy("maml", metakm.Conv4(1, 4), 1)


class OwnNet(metakm.Strategy):
    """Images to logits by one layer of its own, whatever the backbone."""

    def __init__(self, backbone, ways):  # noqa: ARG002
        super().__init__()
        self.adapted = metakm.models.Linear(28 * 28, ways)

    def predict(self, adapted, encoded):
        return adapted(encoded.flatten(2))


def test_a_strategy_that_ignores_its_backbone_or_copies_it_is_refused():
    metakm.register_strategy("ignorant")(OwnNet)
    said = r"OwnNet to be made of the backbone that it is given, got none of its layers .* set own_network = True"
    with pytest.raises(metakm.UserError, match=said):
        metakm.make_strategy("ignorant", metakm.Conv4(1, 4), 5)

    @metakm.register_strategy("copying")
    class Copying(ANIL):
        def __init__(self, backbone, ways):
            super().__init__(copy.deepcopy(backbone), ways)

    with pytest.raises(metakm.UserError, match="a copy has others"):
        metakm.make_strategy("copying", metakm.Conv4(1, 4), 5)

    @metakm.register_strategy("half")
    class Half(ANIL):
        def __init__(self, backbone, ways):
            super().__init__(backbone, ways)
            self.backbone = nn.Sequential(backbone.blocks[0])

    assert isinstance(metakm.make_strategy("half", metakm.Conv4(1, 4), 5), Half), "a part of it will do"


@pytest.mark.float32
def test_a_strategy_with_a_network_of_its_own_says_so_in_its_row(tmp_path, monkeypatch, cache, capsys):
    monkeypatch.setenv("METAKM_CACHE", str(cache))
    metakm.register_strategy("own-net")(type("Own", (OwnNet,), {"own_network": True}))
    small = "--algo own-net --ways 3 --iterations 1 --meta-batch 2 --val-tasks 2 --eval-tasks 2 --device cpu"
    assert main([*small.split(), "--out", str(tmp_path), "--backbone", "conv4-4-stride"]) == 2
    assert "Expected --backbone own with 'own-net'" in capsys.readouterr().err
    assert main([*small.split(), "--out", str(tmp_path)]) == 0
    row = read_runs(tmp_path).runs[0]
    assert row.row.backbone == "own"
    assert [name for name, _ in row.changes] == ["eval_tasks", "iterations", "meta_batch", "val_tasks"]
    assert metakm.evaluate(row.path.parent).accuracy == row.row.accuracy
    with pytest.raises(metakm.UserError, match="'own-net' to be None, as it brings a network of its own, got Conv4"):
        metakm.make_strategy("own-net", metakm.Conv4(1, 4), 5)
    with pytest.raises(metakm.UserError, match="'anil' to be a network, got NoneType"):
        metakm.make_strategy("anil", None, 5)


def install(monkeypatch, *points):
    """Make these the installed entry points; a point is (name, value)."""
    installed = [EntryPoint(name, value, "metakm.strategies") for name, value in points]
    monkeypatch.setattr(
        "metakm.registry.installed_points", lambda group: [point for point in installed if point.group == group]
    )


def test_entry_points_are_found(monkeypatch):
    install(monkeypatch, ("from-elsewhere", "metakm.strategies.anil:ANIL"))
    assert "from-elsewhere" in metakm.available_strategies()
    assert type(metakm.make_strategy("from-elsewhere", metakm.Conv4(1, 4), 5)).__name__ == "ANIL"


def test_plugin_file_registers_its_strategies(tmp_path):
    plugin = tmp_path / "mine.py"
    plugin.write_text(
        textwrap.dedent("""
        import metakm
        from metakm.strategies.anil import ANIL

        @metakm.register_strategy("mine")
        class Mine(ANIL):
            pass
        """)
    )
    metakm.load_plugin(plugin)
    metakm.load_plugin(plugin)  # a second time is harmless
    strategy = metakm.make_strategy("mine", metakm.Conv4(1, 4), 5)
    assert strategy(torch.rand(1, 5, 1, 28, 28)).shape == (1, 5, 5)


@pytest.mark.parametrize(
    ("text", "message"),
    [("import no_such_module_here", "ModuleNotFoundError"), ("def", "SyntaxError"), ("1 / 0", "ZeroDivisionError")],
)
def test_a_plugin_that_fails_says_how(tmp_path, text, message):
    plugin = tmp_path / "bad.py"
    plugin.write_text(text)
    with pytest.raises(metakm.UserError, match=message):
        metakm.load_plugin(plugin)


def test_a_plugin_that_is_missing_or_not_python(tmp_path):
    with pytest.raises(metakm.UserError, match="not a file"):
        metakm.load_plugin(tmp_path / "missing.py")
    (tmp_path / "notes.txt").write_text("x = 1")
    with pytest.raises(metakm.UserError, match=r"\.py"):
        metakm.load_plugin(tmp_path / "notes.txt")


def test_an_attribute_of_before_is_named_with_its_new_name():
    with pytest.raises(metakm.UserError, match=r"has 'variants', which is now .*options="):
        metakm.register_strategy("mine")(type("Mine", (ANIL,), {"variants": False}))
    assert "mine" not in metakm.available_strategies()


def test_a_plugin_that_registers_nothing_or_exits_is_refused(tmp_path):
    plugin = tmp_path / "quiet.py"
    plugin.write_text("import metakm")
    with pytest.raises(metakm.UserError, match=r"register something, got nothing; decorate"):
        metakm.load_plugin(plugin)
    plugin.write_text("import sys\nsys.exit(0)")
    with pytest.raises(metakm.UserError, match=r"SystemExit: 0 \(.*quiet\.py:2\)"):
        metakm.load_plugin(plugin)


def test_a_constructor_that_fails_names_its_class_and_line():
    @metakm.register_strategy("broken")
    class Broken(metakm.Strategy):
        def __init__(self, backbone, ways):  # noqa: ARG002
            raise ValueError("no\nway")

    with pytest.raises(metakm.UserError, match=r"Broken\(backbone, ways\) .* ValueError: no way \(.*test_registry\.py"):
        metakm.make_strategy("broken", metakm.Conv4(1, 4), 5)


@pytest.mark.parametrize("name", ["km", "maml"])
def test_an_entry_point_that_takes_a_built_in_name_is_an_error_that_names_both(monkeypatch, name):
    install(monkeypatch, (name, "metakm.strategies.anil:ANIL"))
    said = rf"for metakm\.strategies\.anil\.ANIL, got '{name}', which metakm\.strategies\.{name}\.{name.upper()} has"
    with pytest.raises(metakm.UserError, match=said):
        registry.strategy_class(name)
    assert registry.strategy_class("anil").__name__ == "ANIL", "the other names are not held up"


def test_two_entry_points_of_one_name_are_an_error_that_names_both(monkeypatch):
    install(monkeypatch, ("twice", "metakm.strategies.anil:ANIL"), ("twice", "metakm.strategies.maml:MAML"))
    for _ in range(2):
        with pytest.raises(metakm.UserError, match=r"maml\.MAML, got 'twice', which metakm\.strategies\.anil\.ANIL"):
            registry.strategy_class("twice")


def test_an_entry_point_of_a_class_that_registered_itself_is_harmless(monkeypatch):
    install(monkeypatch, ("anil", "metakm.strategies.anil:ANIL"))
    assert registry.strategy_class("anil").__name__ == "ANIL"


def test_an_entry_point_that_does_not_load_is_named(monkeypatch):
    install(monkeypatch, ("gone", "metakm.no_such_module:Gone"))
    with pytest.raises(metakm.UserError, match=r"'metakm\.no_such_module:Gone' to load, got ModuleNotFoundError"):
        registry.strategy_class("gone")


def test_what_a_preset_sets_otherwise_is_in_the_strategys_own_file():
    @metakm.register_strategy("eager")
    class Eager(ANIL):
        preset_values: ClassVar = {("quick", "characters"): {"inner_lr": 7.0, "first_order": True}}

    config = preset_config("quick", "eager", "omniglot")
    assert (config.inner_lr, config.options.first_order) == (7.0, True)
    assert config == metakm.RunConfig(algo="eager", dataset="omniglot")
    assert changes_from_preset(config) == {}
    assert changes_from_preset(config.replaced(inner_lr=0.5)) == {"inner_lr": 0.5}
    for preset, dataset in (("paper", "omniglot"), ("quick", "mini-imagenet")):
        assert preset_config(preset, "eager", dataset).inner_lr == preset_config(preset, "anil", dataset).inner_lr


def test_a_derived_strategy_has_what_a_preset_sets_otherwise_and_drops_options_that_it_lacks():
    assert [preset_config("table3", algo, "omniglot").queries for algo in ("baseline", "baseline++", "km")] == [
        1,
        1,
        10,
    ]
    table3 = preset_config("table3", "km-proto", "omniglot"), preset_config("table3", "km", "omniglot")
    assert [config.shared.first_head_lr for config in table3] == [0.0, 10.0]


@pytest.mark.parametrize("key", [("quik", "characters"), ("quick", "letters"), "quick"])
def test_values_for_an_unknown_preset_or_family_are_refused(key):
    @metakm.register_strategy("mistaken")
    class Mistaken(ANIL):
        preset_values: ClassVar = {key: {"inner_lr": 7.0}}

    with pytest.raises(metakm.UserError, match=rf"preset_values of 'mistaken' .*got {re.escape(repr(key))}; name a"):
        preset_config("paper", "mistaken", "omniglot")
