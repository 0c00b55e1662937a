"""Every Python block of the README runs as it stands."""

import re
from pathlib import Path

import pytest
from small import random_episodes, small_strategy

import metakm
from metakm.command_line import parse
from metakm.run import main
from metakm.strategies import registry

README = (Path(__file__).parent.parent / "README.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


@pytest.mark.float32
def test_python_example_runs(capsys):
    (example,) = [block for block in BLOCKS if "load_dataset" in block]
    exec(compile(example, "README.md", "exec"), {})
    assert re.search(r"loss \d\.\d+, accuracy of each task \[", capsys.readouterr().out)


@pytest.mark.float32
def test_new_strategy_runs_as_a_plugin_and_keeps_the_contract(tmp_path, monkeypatch):
    monkeypatch.setattr(registry, "_registry", dict(registry._registry))
    monkeypatch.setattr(registry, "_plugins", set())
    (text,) = [block for block in BLOCKS if "register_strategy" in block]
    assert len([line for line in text.splitlines() if line.strip()]) <= 22
    plugin = tmp_path / "last_block.py"
    plugin.write_text(text)
    flags = (
        f"--algo last-block --plugin {plugin} --out {tmp_path} --ways 3 --backbone conv4-4-stride --iterations 2 "
        "--meta-batch 2 --val-tasks 2 --eval-tasks 2"
    )
    assert main(flags.split()) == 0
    assert (tmp_path / "glyphs-3w1s" / "last-block" / "seed0" / "result.csv").is_file()


def test_new_strategy_adapts_what_it_says(tmp_path, monkeypatch):
    monkeypatch.setattr(registry, "_registry", dict(registry._registry))
    monkeypatch.setattr(registry, "_plugins", set())
    (text,) = [block for block in BLOCKS if "register_strategy" in block]
    (tmp_path / "last_block.py").write_text(text)
    metakm.load_plugin(tmp_path / "last_block.py")
    strategy, episodes = small_strategy("last-block"), random_episodes()
    assert strategy.parameter_counts()[0] == 3 * 3 * 9 + 3 + 3 * 4 + 4
    metakm.meta_loss(strategy, episodes, inner_lr=0.4, inner_steps=2).loss.backward()
    assert all(p.grad is not None for p in strategy.parameters())


def test_commands_of_the_readme_parse():
    commands = re.findall(r"^    python -m metakm\.run (.*)$", README, re.MULTILINE)
    assert len(commands) >= 3
    for command in commands:
        parse(command.split("#")[0].split())
