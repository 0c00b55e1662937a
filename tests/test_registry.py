import textwrap
from importlib.metadata import EntryPoint

import pytest
import torch
from torch import nn

import metakm
from metakm.strategies import registry


@pytest.fixture(autouse=True)
def clean_registry(monkeypatch):
    monkeypatch.setattr(registry, "_registry", dict(registry._registry))
    monkeypatch.setattr(registry, "_plugins", set())


def test_built_in_strategies_are_known():
    built_in = {"anil", "bn", "boil", "km", "maml", "meta-sgd", "protonet", "reptile"}
    assert built_in <= set(metakm.available_strategies())
    assert list(metakm.available_strategies()) == sorted(metakm.available_strategies())


def test_unknown_name_lists_the_known_and_the_nearest():
    with pytest.raises(metakm.UserError, match=r"one of anil, bn, .*reptile, got 'mmal'; did you mean 'maml'"):
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


def test_entry_points_are_found(monkeypatch):
    point = EntryPoint("from-elsewhere", "metakm.strategies.anil:ANIL", registry.GROUP)

    def entry_points(group, name=None):
        return [point] if group == registry.GROUP and name in (None, point.name) else []

    monkeypatch.setattr(registry, "entry_points", entry_points)
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
