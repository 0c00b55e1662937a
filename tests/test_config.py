import dataclasses
import json
import shlex
from pathlib import Path
from typing import get_args

import numpy as np
import pytest

from metakm.cli.flags import with_paths_expanded
from metakm.config import PresetName, RunConfig
from metakm.data.registry import Family, available_datasets, dataset_entry
from metakm.errors import UserError
from metakm.fields import flag
from metakm.presets import preset_config
from metakm.registry import isolated
from metakm.run.command_line import command, parse


@pytest.mark.parametrize("preset", ["quick", "paper"])
@pytest.mark.parametrize("dataset", ["glyphs", "omniglot", "mini-imagenet", "tiny-imagenet"])
def test_config_survives_json(preset, dataset):
    config = preset_config(preset, dataset=dataset, plugin=())
    assert RunConfig.from_json(json.loads(json.dumps(config.to_json()))) == config


def test_paper_preset_is_the_published_protocol():
    omniglot = preset_config("paper", "maml", "omniglot", 20, 5)
    assert (omniglot.queries, omniglot.meta_batch, omniglot.iterations) == (5, 16, 60_000)
    assert (omniglot.inner_lr, omniglot.inner_steps, omniglot.test_inner_steps) == (2.0, 5, 5)
    assert (omniglot.backbone, omniglot.meta_lr, omniglot.grad_clip) == ("conv4-64-stride", 1e-3, 0.0)
    assert (omniglot.test_queries, omniglot.select, omniglot.shared.normal_head) == (0, "last", True)
    five = preset_config("paper", "maml", "omniglot", 5, 1)
    assert (five.queries, five.meta_batch, five.inner_steps, five.test_inner_steps) == (1, 32, 1, 3)
    assert five.inner_lr == pytest.approx(0.4 * 5)
    for shots, tasks, clip in ((1, 4, 10 / 75), (5, 2, 50 / 75)):
        mini = preset_config("paper", "km", "mini-imagenet", 5, shots)
        assert (mini.queries, mini.test_queries, mini.meta_batch) == (15, shots, tasks)
        assert mini.grad_clip == pytest.approx(clip)
        assert (mini.inner_lr, mini.inner_steps, mini.test_inner_steps) == (0.05, 5, 10)
        assert (mini.backbone, mini.select, mini.shared.normal_head) == ("conv4-32-pool", "last", False)


@pytest.mark.parametrize(("dataset", "ways"), [("omniglot", 20), ("omniglot", 5), ("mini-imagenet", 5)])
def test_what_is_scaled_down_keeps_its_own_test(dataset, ways):
    config = preset_config("quick", "anil", dataset, ways)
    assert (config.test_queries, config.select, config.shared.normal_head, config.inner_steps) == (0, "best", False, 5)
    assert (config.test_inner_steps, config.grad_clip) == (5, 10.0)


@pytest.mark.parametrize("preset", get_args(PresetName))
def test_a_dataset_whose_protocol_is_not_known_is_refused(preset):
    with pytest.raises(UserError, match=r"Expected dataset .*got 'tiny_imagenet'; did you mean 'tiny-imagenet'"):
        preset_config(preset, dataset="tiny_imagenet", ways=5)
    with pytest.raises(UserError, match="got 'stickers'"):
        parse(["--preset", preset, "--dataset", "stickers"])


def test_every_dataset_states_its_family():
    assert {dataset_entry(name).family for name in available_datasets()} == set(get_args(Family))
    of = {name: preset_config("paper", dataset=name).backbone for name in available_datasets()}
    characters = {"glyphs", "omniglot"}
    assert of == {name: "conv4-64-stride" if name in characters else "conv4-32-pool" for name in available_datasets()}


def test_a_head_inits_in_one_way():
    with pytest.raises(UserError, match="--zero-head or --normal-head, got both"):
        preset_config(zero_head=True, normal_head=True)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("ways", 1),
        ("shots", 0),
        ("queries", 0),
        ("test_queries", -1),
        ("inner_lr", 0.0),
        ("inner_lr", float("nan")),
        ("meta_lr", -1.0),
        ("inner_steps", 0),
        ("test_inner_steps", -1),
        ("meta_batch", 0),
        ("iterations", -1),
        ("grad_clip", -0.1),
        ("seed", -1),
        ("seed", 2**63),
        ("eval_tasks", 1),
        ("val_tasks", 0),
        ("val_every", 0),
        ("task_chunk", -1),
        ("schedule", "linear"),
        ("select", "newest"),
        ("bn_mode", "eval"),
        ("preset", "fast"),
    ],
)
def test_values_out_of_range_name_their_flag(field, value):
    with pytest.raises(UserError, match=f"Expected --{field.replace('_', '-')} to be"):
        dataclasses.replace(preset_config(), **{field: value})


def test_resume_and_overwrite_exclude_each_other():
    with pytest.raises(UserError, match="--resume or --overwrite"):
        preset_config(resume=True, overwrite=True)


def test_unknown_missing_or_mistyped_keys_are_errors():
    values = preset_config().to_json()
    with pytest.raises(UserError, match="did you mean 'inner_lr'"):
        RunConfig.from_json({**values, "inner_rl": 1.0})
    with pytest.raises(UserError, match="'meta_lr', got none"):
        RunConfig.from_json({k: v for k, v in values.items() if k != "meta_lr"})
    for key, value in (("ways", "5"), ("ways", True), ("algo", 3), ("plugin", "x.py"), ("first_order", 1)):
        with pytest.raises(UserError, match=f"'{key}' to be"):
            RunConfig.from_json({**values, key: value})


def test_run_id_tells_computations_apart_but_not_places(tmp_path):
    config = preset_config()
    assert dataclasses.replace(config, out=tmp_path, device="cpu").run_id == config.run_id
    changes = {"seed": 1, "implicit": True, "km.depth": 1, "inner_lr": 0.123}
    others = [config.replaced(**{name: value}) for name, value in changes.items()]
    assert len({config.run_id, *(c.run_id for c in others)}) == 5
    assert "-km-implicit-quick-" in others[1].run_id
    assert "-km-depth-1-quick-" in others[2].run_id


def test_an_unknown_preset_is_refused_by_name():
    for make in (preset_config, lambda preset: RunConfig(preset=preset)):
        with pytest.raises(UserError, match=r"Expected --preset to be one of .*, got 'tabel3'; did you mean 'table3'"):
            make("tabel3")


def test_a_preset_sets_nothing_that_the_strategy_would_refuse():
    proto = preset_config("table3", "km-proto", "omniglot")
    assert (proto.shared.inner_lr_per_step, proto.shared.first_head_lr, proto.shared.zero_head) == (True, 0.0, False)
    assert preset_config("table3", "protonet", "omniglot").shared.learn_inner_lr is False
    with pytest.raises(UserError, match="--learn-inner-lr has no effect with 'protonet'"):
        preset_config("quick", "protonet", learn_inner_lr=True)
    with pytest.raises(UserError, match=r"Expected strategy to be one of .*got 'from-a-plugin'"):
        preset_config("table3", "from-a-plugin", "omniglot")


@pytest.mark.parametrize(
    ("field", "needed"), [("inner_lr_per_step", "learn_inner_lr"), ("first_head_lr", "inner_lr_per_step")]
)
def test_rates_of_steps_need_rates_that_are_learned(field, needed):
    flag, other = (f"--{name.replace('_', '-')}" for name in (field, needed))
    with pytest.raises(UserError, match=f"Expected {other} with {flag}"):
        preset_config(**{field: 1})


def test_flags_take_their_defaults_from_the_preset_asked_for():
    assert parse([]) == preset_config()
    assert parse(["--preset", "paper", "--dataset", "mini-imagenet", "--shots=5"]) == preset_config(
        "paper", "km", "mini-imagenet", 5, 5
    )
    changed = parse(["--algo", "anil", "--inner-lr", "0.25", "--first-order", "--plugin", "a.py", "b.py"])
    assert (changed.inner_lr, changed.shared.first_order, len(changed.plugin)) == (0.25, True, 2)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"preset": "paper", "dataset": "mini-imagenet", "ways": 5, "shots": 5, "algo": "anil"},
        {
            "first_order": True,
            "resume": True,
            "seed": 2**63 - 1,
            "inner_lr": 1 / 3,
            "meta_lr": 1e-300,
            "grad_clip": 0.0,
        },
        {"out": Path("a folder/\u00fc $HOME 'x'"), "data_root": Path("~/d"), "plugin": (Path("a.py"), Path("b c.py"))},
        {"preset": "table3", "dataset": "omniglot", "algo": "protonet", "learn_inner_lr": False},
        {"schedule": "constant", "precision": "bf16", "bn_mode": "support", "test_inner_steps": 0, "iterations": 0},
    ],
)
def test_the_command_of_a_config_gives_that_config(changes):
    config = preset_config(**changes)
    words = shlex.split(command(config))
    assert words[:3] == ["python", "-m", "metakm.run"]
    assert parse(words[3:]) == with_paths_expanded(config)


def test_a_preset_sets_nothing_that_the_strategy_of_a_plugin_would_refuse(tmp_path):
    plugin, other = tmp_path / "no rates.py", tmp_path / "other.py"
    text = "import metakm\nfrom metakm.options import GradientOptions\nfrom metakm.strategies.anil import ANIL\n"
    text += "metakm.register_strategy({!r})(type('_', (ANIL,), {}))"
    plugin.write_text(text.format("no-rates", "dict(options=GradientOptions)"))
    other.write_text(text.format("other", "{}"))
    words = ["--preset", "table3", "--algo", "no-rates", "--dataset", "omniglot", "--plugin", str(other), str(plugin)]
    with isolated():
        config = parse(words)
        printed = shlex.split(command(config))[3:]
    options = config.shared
    assert (options.learn_inner_lr, options.inner_lr_per_step, options.first_head_lr) == (False, False, 0.0)
    assert parse(printed) == config


@pytest.mark.parametrize(
    "arguments",
    [["--ways", "many"], ["--no-such-flag"], ["--schedule"], ["--seed"], ["--iterations", "1.5"], ["extra"]],
)
def test_flags_that_do_not_parse_exit_with_2(arguments, capsys):
    with pytest.raises(SystemExit) as caught:
        parse(arguments)
    assert caught.value.code == 2
    output = capsys.readouterr()
    assert "Traceback" not in output.err + output.out


def test_a_switch_is_set_by_its_own_flag_and_cleared_by_the_other_whatever_the_preset_says():
    assert parse(["--preset", "table3", "--dataset", "omniglot"]).shared.zero_head
    for words, expected in ((["--zero-head"], True), (["--no-zero-head"], False)):
        for preset in ("table3", "quick"):
            assert parse(["--preset", preset, "--dataset", "omniglot", *words]).shared.zero_head == expected


def test_help_describes_every_flag_with_its_default(capsys):
    with pytest.raises(SystemExit) as caught:
        parse(["--help"])
    assert caught.value.code == 0
    text = " ".join(capsys.readouterr().out.replace("│", " ").split())
    fields = preset_config().flat()
    assert "km.depth" in fields
    for name in fields:
        assert flag(name) in text
    assert text.count("default:") >= len(fields) - 1


def test_help_shows_the_defaults_that_other_flags_imply(capsys):
    with pytest.raises(SystemExit):
        parse(["--preset", "paper", "--dataset", "mini-imagenet", "--help"])
    text = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "(default: 60000)" in text
    assert "(default: conv4-32-pool)" in text


def test_numbers_are_taken_as_what_their_fields_are(monkeypatch, tmp_path):
    """What a command's flags would be: whole numbers of numpy, 1 for 1.0, ~ for the home."""
    monkeypatch.setenv("HOME", str(tmp_path))
    plain = RunConfig(seed=3, inner_lr=1.0)
    assert RunConfig(seed=np.int64(3), inner_lr=1).run_id == plain.run_id
    assert RunConfig(out="~/runs", log_dir=Path("~/logs")).folder.is_relative_to(tmp_path / "runs")
    for name, value in (("iterations", 2.0), ("meta_batch", 2.5), ("seed", "3"), ("inner_lr", "1")):
        flag = name.replace("_", "-")
        with pytest.raises(UserError, match=f"Expected --{flag} to be a (whole )?number, got {value!r}"):
            RunConfig(**{name: value})


def test_a_config_with_another_strategy_needs_its_options():
    with pytest.raises(UserError, match="got KMOptions; build the config of another strategy"):
        dataclasses.replace(RunConfig(algo="km"), algo="anil")
    assert RunConfig(algo="km").replaced(seed=2).seed == 2


def test_several_datasets_are_one_text():
    with pytest.raises(UserError, match=r"several joined by '\+', such as flowers\+grocery-store, got \["):
        RunConfig(dataset=["flowers", "grocery-store"])
