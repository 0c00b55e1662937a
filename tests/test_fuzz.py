"""Readers of files on values that nobody thought of: the thing itself or a UserError, never another exception."""

import contextlib
import copy
import dataclasses
import json
import shutil
import warnings
from types import SimpleNamespace

import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from metakm.cli.signals import StopRequest
from metakm.config import RunConfig
from metakm.data.cache import CachePlan, Entry, cached
from metakm.errors import UserError
from metakm.presets import preset_config
from metakm.run.__main__ import main
from metakm.run.folder import RunFolder
from metakm.run.runner import Run

pytestmark = pytest.mark.float32

SCALAR = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20)
JSON = st.recursive(
    SCALAR, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4)
)
FIELDS = sorted(field.name for field in dataclasses.fields(RunConfig))
VALUES = preset_config().to_json()


@given(JSON)
@example(VALUES)
@example(None)
def test_any_json_value_is_a_config_or_a_user_error(value):
    with contextlib.suppress(UserError):
        assert isinstance(RunConfig.from_json(value), RunConfig)


@settings(max_examples=300)
@given(
    st.dictionaries(st.sampled_from(FIELDS) | st.text(max_size=10), JSON, max_size=5), st.sets(st.sampled_from(FIELDS))
)
@example({"inner_lr": 10**400}, set())
@example({"inner_lr": 1}, set())
@example({"plugin": ["a", 1]}, set())
def test_any_change_of_a_config_is_a_config_that_survives_json_or_a_user_error(changes, left_out):
    values = {k: v for k, v in {**VALUES, **changes}.items() if k not in left_out}
    with contextlib.suppress(UserError):
        config = RunConfig.from_json(values)
        again = RunConfig.from_json(json.loads(json.dumps(config.to_json())))
        assert again == config
        assert again.run_id == config.run_id


RANGES = {"ways": (2, 10**4), "seed": (0, 2**63 - 1), "inner_steps": (1, 10_000), "iterations": (0, 10**9)}


@given(
    st.fixed_dictionaries({field: st.integers(*limits) for field, limits in RANGES.items()}),
    st.floats(0, exclude_min=True, allow_infinity=False, allow_nan=False),
    st.text(),
    st.lists(st.text(min_size=1), max_size=3),
)
def test_every_config_survives_json(numbers, rate, text, plugins):
    values = {**VALUES, **numbers, "inner_lr": rate, "backbone": text, "out": text, "plugin": plugins}
    config = RunConfig.from_json(values)
    assert RunConfig.from_json(json.loads(json.dumps(config.to_json()))) == config


@given(st.binary(max_size=300) | st.text(max_size=300).map(str.encode))
@example(b"status,accuracy\ndone,0.5")
@example(b'"')
def test_any_bytes_in_the_place_of_a_row_are_no_row(tmp_path_factory, content):
    folder = RunFolder(tmp_path_factory.getbasetemp())
    folder.result.write_bytes(content)
    assert folder.read_row() is None


@pytest.fixture(scope="module")
def finished(tmp_path_factory, cache):
    """A run whose checkpoint can be exchanged, its config, and its state."""
    out = tmp_path_factory.mktemp("fuzzed")
    flags = "--ways 3 --queries 2 --backbone conv4-4-stride --meta-batch 2 --val-tasks 2 --eval-tasks 2 --iterations 1"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("METAKM_CACHE", str(cache))
        assert main([*flags.split(), "--out", str(out)]) == 0
        [config] = out.rglob("config.json")
        config = RunConfig.from_json({**json.loads(config.read_text()), "resume": True})
        run = Run(config, StopRequest())
        [path] = out.rglob("checkpoint.pt")
        state = torch.load(path, weights_only=True)
        yield SimpleNamespace(run=run, path=path, state=state, whole=path.read_bytes())
    shutil.rmtree(out)


def load(finished):
    """Take up the checkpoint; what is taken up can be written again."""
    finished.run.loop.load_state(copy.deepcopy(finished.state["loop"]))
    with contextlib.suppress(UserError), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own, about odd values
        finished.run._load()
        finished.run._save()


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_a_checkpoint_with_any_value_in_any_place_is_taken_up_or_a_user_error(finished, data):
    state = copy.deepcopy(finished.state)
    place = state
    while isinstance(place, dict | list) and place:
        keys = sorted(place, key=str) if isinstance(place, dict) else range(len(place))
        key = data.draw(st.sampled_from(keys), label="key")
        inner = place[key]
        if not isinstance(inner, dict | list) or not inner or data.draw(st.booleans(), label="here"):
            place[key] = data.draw(JSON | st.just(torch.zeros(2, 3)), label="value")
            break
        place = inner
    torch.save(state, finished.path)
    load(finished)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0), st.integers(1, 255), st.booleans())
def test_a_damaged_checkpoint_is_taken_up_unchanged_or_a_user_error(finished, position, change, cut):
    damaged = bytearray(finished.whole)
    damaged[position % len(damaged)] ^= change
    finished.path.write_bytes(damaged[: position % len(damaged)] if cut else damaged)
    before = finished.state["loop"]["model"]
    load(finished)
    after = finished.run.loop.model_state()
    assert all(torch.equal(before[name], after[name]) for name in before)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.dictionaries(st.sampled_from(["format", "sha256", "classes", "split_hash"]), JSON, min_size=1)
    | st.fixed_dictionaries({"classes": st.lists(st.tuples(SCALAR, SCALAR))})
    | JSON
)
@example({"classes": [["a", 10**30]]})
@example({"classes": [["a", 2**62], ["b", 2**62]]})
@example({"classes": [["a", 1], ["b", 1e400]]})
def test_any_sidecar_in_the_cache_is_read_or_made_anew(tmp_path, monkeypatch, value):
    monkeypatch.setenv("METAKM_CACHE", str(tmp_path))
    images = torch.zeros(3, 1, 2, 2, dtype=torch.uint8).numpy()
    entry = Entry("made", "train", rotations=False, fingerprint="f00d")
    plan = CachePlan({"train": [("a", 1), ("b", 2)]}, (1, 2, 2), lambda: iter([images]))
    cached(entry, lambda: plan)
    side = entry.path.with_suffix(".json")
    whole = json.loads(side.read_text())
    side.write_text(json.dumps({**whole, **value} if isinstance(value, dict) else value))
    found = cached(entry, lambda: plan)
    assert found.images.shape == (3, 1, 2, 2)
