"""Every Python block of the README runs as it stands, and every command of it is one."""

import importlib
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from small import random_episodes, small_strategy

import metakm
from metakm.__main__ import commands
from metakm.packs.__main__ import main as packs
from metakm.run.__main__ import main
from metakm.run.command_line import parse
from metakm.run.evaluate import asks_for_retest, parse_retest
from metakm.search.options import parse_search
from metakm.search.space import read_space
from metakm.strategies import registry
from metakm.sweep.options import parse_sweep
from metakm.sweep.plan import expand

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
COMMANDS = re.findall(r"^    (?:torchrun --nproc-per-node 2|python) -m metakm\.(\S+)(.*)$", README, re.MULTILINE)
SMALL = "--backbone conv4-4-stride --iterations 2 --meta-batch 2 --val-tasks 2 --eval-tasks 2"


def block(word):
    (found,) = [block for block in BLOCKS if word in block]
    return found


def execute(text):
    exec(compile(text, "README.md", "exec"), {})


@pytest.mark.float32
def test_python_example_runs(capsys):
    execute(block("make_strategy"))
    assert re.search(r"loss \d\.\d+, accuracy of each task \[", capsys.readouterr().out)


@pytest.mark.float32
def test_new_strategy_runs_as_a_plugin_and_keeps_the_contract(tmp_path, monkeypatch):
    monkeypatch.setattr(registry, "_registry", dict(registry._registry))
    monkeypatch.setattr(registry, "_plugins", set())
    text = block("register_strategy")
    assert len([line for line in text.splitlines() if line.strip()]) <= 22
    plugin = tmp_path / "last_block.py"
    plugin.write_text(text)
    assert main(f"--algo last-block --plugin {plugin} --out {tmp_path} --ways 3 {SMALL}".split()) == 0
    assert (tmp_path / "glyphs-3w1s" / "last-block" / "seed0" / "result.csv").is_file()


def test_new_strategy_adapts_what_it_says(tmp_path, monkeypatch):
    monkeypatch.setattr(registry, "_registry", dict(registry._registry))
    monkeypatch.setattr(registry, "_plugins", set())
    (tmp_path / "last_block.py").write_text(block("register_strategy"))
    metakm.load_plugin(tmp_path / "last_block.py")
    strategy, episodes = small_strategy("last-block"), random_episodes()
    assert strategy.parameter_counts()[0] == 3 * 3 * 9 + 3 + 3 * 4 + 4
    metakm.meta_loss(strategy, episodes, inner_lr=0.4, inner_steps=2).loss.backward()
    assert all(p.grad is not None for p in strategy.parameters())


@pytest.mark.float32
def test_your_own_images_become_an_adapted_classifier(tmp_path, monkeypatch, capsys):
    """A run on a folder of images, then the five lines, in the folder where the README has them run."""
    monkeypatch.chdir(tmp_path)
    generator = np.random.default_rng(0)
    folders = [Path("photos", split, f"{split}{k}") for split in ("train", "val", "test") for k in range(5)]
    names = [f"{name}.jpg" for name in ("ant", "bee", "cat", "dog", "elk", "new1", "new2")]
    for path in [*(folder / f"{i}.jpg" for folder in folders for i in range(3)), *map(Path, names)]:
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(generator.integers(0, 256, (20, 20, 3), dtype=np.uint8)).save(path)
    (arguments,) = [arguments for name, arguments in COMMANDS if name == "run" and "photos" in arguments]
    assert main([*arguments.split(), *f"--queries 2 --image-size 20 {SMALL}".split()]) == 0
    capsys.readouterr()
    execute(block("load_run"))
    said = capsys.readouterr().out
    assert set(re.findall(r"'(\w+)'", said)) <= {"ant", "bee", "cat", "dog", "elk"}
    assert len(re.findall(r"'(\w+)'", said)) == 2


@pytest.mark.float32
def test_any_convnet_is_modulated_and_packed(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    text = block("modulate(")
    execute(text)
    said = capsys.readouterr().out
    trainable, total = re.search(r"# ([\d,]+) trainable of ([\d,]+);", text).groups()
    assert trainable in said
    assert total in said
    assert packs(["inspect", "birds.safetensors"]) == 0
    assert "birds" in capsys.readouterr().out


@pytest.mark.float32
def test_learn2learn_example_runs():
    pytest.importorskip("learn2learn", reason="learn2learn is not installed")
    execute(block("import learn2learn"))


@pytest.mark.parametrize(("name", "arguments"), COMMANDS, ids=["".join(command) for command in COMMANDS])
def test_command(name, arguments, tmp_path, monkeypatch):
    """Flags of what takes long are read, not run; tables and reports are made, in another folder."""
    assert name in commands()
    arguments = shlex.split(arguments.split("#")[0])
    if name == "run":
        (parse_retest if asks_for_retest(arguments) else parse)(arguments)
    elif name == "sweep":
        assert expand(*parse_sweep(arguments))
    elif name == "search":
        assert read_space(parse_search(arguments)[0].space)
    elif name in ("table", "report"):
        (tmp_path / "results").symlink_to(ROOT / "results")
        monkeypatch.chdir(tmp_path)
        assert importlib.import_module(f"metakm.{name}").main(arguments) == 0
    else:
        with pytest.raises(SystemExit) as end:
            importlib.import_module(f"metakm.{name}").main([arguments[0], "--help"])
        assert end.value.code == 0
