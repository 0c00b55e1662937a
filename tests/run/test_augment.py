"""`--augment`, from the command to the run folder."""

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from metakm.learning.outer_loop import OuterLoop
from metakm.run.__main__ import main
from metakm.run.build import make_sampler
from metakm.run.command_line import parse

pytestmark = pytest.mark.float32

SMALL = "--algo anil --ways 3 --queries 2 --backbone conv4-4-pool --meta-batch 2 --val-tasks 2 --eval-tasks 3 "


@pytest.fixture
def flags(tmp_path, cache, monkeypatch):
    """A small run on noise, five classes of four images in each split."""
    monkeypatch.setenv("METAKM_CACHE", str(cache))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    generator = np.random.default_rng(0)
    for split in ("train", "val", "test"):
        for number in range(20):
            path = tmp_path / "photographs" / split / f"{split}{number % 5}" / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(generator.integers(0, 256, (21, 21, 3), dtype=np.uint8)).save(path)
    own = "--device cpu --iterations 6 --val-every 3 --dataset folder --image-size 21"
    return [*SMALL.split(), *own.split(), "--data-root", str(tmp_path / "photographs")]


def test_the_images_of_meta_training_alone_are_changed(flags):
    plain, augmented = parse(flags), parse([*flags, "--augment"])
    for split in ("train", "val", "test"):
        before, after = (make_sampler(config, split).batch(0, 2) for config in (plain, augmented))
        for name in ("support_images", "query_images"):
            assert torch.equal(getattr(before, name), getattr(after, name)) == (split != "train")


def test_a_run_is_named_for_it(flags):
    assert "-anil-augment-quick-seed0-" in parse([*flags, "--augment"]).run_id
    assert "augment" not in parse(flags).run_id


def test_a_run_that_died_resumes_to_the_numbers_of_an_unbroken_one(tmp_path, flags, monkeypatch):
    whole, broken = ([*flags, "--augment", "--out", str(tmp_path / name)] for name in ("whole", "broken"))
    assert main(whole) == 0
    step = OuterLoop.step

    def die(self):
        if self.iteration == 5:
            raise MemoryError
        return step(self)

    monkeypatch.setattr("metakm.run.history.SAVE_SECONDS", 0.0)
    monkeypatch.setattr(OuterLoop, "step", die)
    with pytest.raises(MemoryError):
        main(broken)
    monkeypatch.setattr(OuterLoop, "step", step)
    assert main([*broken, "--resume"]) == 0
    curves, tasks = [], []
    for name in ("whole", "broken"):
        folder = next((tmp_path / name).rglob("seed0"))
        curves.append(pd.read_csv(folder / "curve.csv").drop(columns="seconds").to_csv())
        tasks.append((folder / "tasks.csv").read_text())
    assert curves[0] == curves[1]
    assert tasks[0] == tasks[1]
