"""Every row and config below results/ stays readable, whatever columns and fields are added."""

import csv
import json
from pathlib import Path

import pytest

from metakm.config import RunConfig
from metakm.experiments.lines import read_experiments
from metakm.experiments.row import ExperimentRow
from metakm.io.csv_file import read_csv
from metakm.presets import changes_from_preset
from metakm.registry import isolated, load_plugin
from metakm.run.folder import RunFolder
from metakm.run.row import ResultRow
from metakm.table.collect import read_runs

RESULTS = Path(__file__).parents[2] / "results"
ROWS = sorted(RESULTS.rglob("result.csv"))
EXPERIMENTS = sorted(RESULTS.rglob("experiment.csv"))


def test_every_run_is_read_and_none_is_a_problem():
    collection = read_runs(RESULTS)
    assert len(ROWS) >= 8
    assert [run.path for run in collection.runs] == ROWS
    assert collection.problems == ()


def test_every_experiment_is_read_and_none_is_a_problem():
    runs, problems = read_experiments(RESULTS)
    assert len(runs) == len(EXPERIMENTS) > 40
    assert problems == []


@pytest.mark.parametrize("kind", [ResultRow, ExperimentRow])
def test_every_row_is_written_as_it_was_read(kind):
    """Columns that were added later stand behind those of the row, with nothing in them or their default."""
    for path in sorted(RESULTS.rglob(kind.FILE)):
        (cells,) = read_csv(path)
        (written,) = csv.DictReader(kind.from_cells(cells).to_csv().splitlines())
        kept = {name: text for name, text in cells.items() if name not in kind.FORMER}
        assert {name: written[name] for name in kept} == kept, path
        row = RunFolder(path.parent, kind).read_row()
        assert row == vars(kind.from_cells(cells)), path


@pytest.fixture
def control():
    """The strategy of results/control, which is a plugin's."""
    with isolated():
        load_plugin(RESULTS.parent / "benchmarks" / "modulated_anil.py")
        yield


@pytest.mark.usefixtures("control")
def test_every_config_is_read():
    configs = sorted(RESULTS.rglob("config.json"))
    trained = [path for path in ROWS if not RunFolder(path.parent).read_row()["trained_on"]]
    assert {path.parent for path in configs} == {path.parent for path in (*trained, *EXPERIMENTS)}
    for path in configs:
        if (path.parent / ResultRow.FILE).exists():
            config = RunConfig.from_json(json.loads(path.read_text()))
            row = RunFolder(path.parent).read_row()
            assert (config.algo, config.seed, config.iterations) == (row["algo"], row["seed"], row["iterations"]), path
            if path.parts[len(RESULTS.parts)] in ("control", "table3"):
                assert changes_from_preset(config) == {}, f"{path}: the preset is no longer that of the rows"
