"""`benchmarks/task_rates.py`: a trained run on meta-validation, with other inner rates and steps than its own."""

import pytest
import task_rates

import metakm

pytestmark = pytest.mark.float32


def test_each_rate_is_tested_on_meta_validation_alone(trained, cache, monkeypatch, capsys):
    monkeypatch.setenv("METAKM_CACHE", str(cache))
    run = metakm.load_run(trained / "glyphs-3w1s" / "anil" / "seed0")
    splits, make = [], task_rates.make_sampler
    monkeypatch.setattr(task_rates, "make_sampler", lambda config, split: splits.append(split) or make(config, split))
    rates = [str(run.config.inner_lr), "0.001"]
    assert task_rates.main([str(run.folder), "--rates", *rates, "--steps", "5", "--tasks", "16"]) == 0
    own, gentle = capsys.readouterr().out.splitlines()
    expected = metakm.evaluate(run, split="val", tasks=16, inner_steps=5).accuracy
    assert own.startswith(f"rate {run.config.inner_lr:g}, 5 steps: {100 * expected:.2f} +- ")
    assert own.split(": ")[1] != gentle.split(": ")[1]
    assert set(splits) == {"val"}


def test_a_folder_without_a_run_is_one_message(tmp_path, capsys):
    assert task_rates.main([str(tmp_path / "none"), "--rates", "1", "--steps", "5"]) == 2
    found = capsys.readouterr()
    assert (found.out, found.err.count("\n"), found.err[:16]) == ("", 1, "error: Expected ")
