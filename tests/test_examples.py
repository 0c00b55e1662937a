"""The numbered scripts of examples/ run as they stand, in seconds."""

import re
import runpy

import pytest
from documents import ROOT

from metakm.run.__main__ import main

SCRIPTS = sorted((ROOT / "examples").glob("*.py"))
SAYS = {
    "01_train": r"before: [\d.]+%\nafter:  [\d.]+%",
    "02_own_strategy": r"anil: adapts 85 of \d+ parameters.*\nbiases: adapts 149 of \d+ parameters",
    "03_own_images": r"(test-(\d): recognised as test-\2\n){5}",
    "04_modulate": r"the pack has \d+ kB\nlargest difference after merging: \d\.\de-0[5-9]\n",
    "06_sinusoid": (  # the shape of the published curve
        r" 0 inner steps: mean squared error [2-4]\.\d\d .*\n"
        r" 1 inner steps: mean squared error (0\.[7-9]\d|1\.[0-3]\d) .*\n"
        r" 5 inner steps: mean squared error 0\.[0-7]\d .*\n10 inner steps: mean squared error 0\.[0-5]\d "
    ),
    "05_read_results": r"KM minus ANIL, seed 0: [+]0\.\d{4} [+]- 0\.\d{4} over 600 tasks",
}


@pytest.fixture(autouse=True)
def own_folder(tmp_path, monkeypatch, cache):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("METAKM_CACHE", str(cache))
    return tmp_path


@pytest.mark.float32
@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_an_example_runs_and_prints(script, capsys):
    runpy.run_path(str(script), run_name="__main__")
    said = capsys.readouterr().out
    assert re.search(SAYS[script.stem], said)
    if script.stem == "01_train":
        before, after = map(float, re.findall(r"([\d.]+)%", said))
        assert after > before + 5


@pytest.mark.float32
def test_the_strategy_of_an_example_is_a_plugin(own_folder):
    small = "--ways 3 --backbone conv4-4-stride --iterations 2 --meta-batch 2 --val-tasks 2 --eval-tasks 2"
    plugin = ROOT / "examples" / "02_own_strategy.py"
    assert main(["--algo", "biases", "--plugin", str(plugin), *small.split()]) == 0
    assert (own_folder / "results" / "glyphs-3w1s" / "biases" / "seed0" / "result.csv").is_file()
