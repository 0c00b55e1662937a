"""`benchmarks/adapters.py`: readers, draws, contestants, and rows that go on where they stopped."""

import itertools
import shutil
from collections import Counter

import numpy as np
import pytest
import torch
from photographs import flower_files, grocery_files, write_tar

from metakm import UserError
from metakm.models.pretrained import Preprocessing, Pretrained
from metakm.photos.training import Budget, TrainingPlan

pytest.importorskip("peft", reason="peft is not installed: pip install 'metakm[peft]'")
import adapter_cells
import adapter_page
import adapters
from adapter_cells import Candidate, as_hex, from_hex, make_task, plan_of, run_cell
from adapter_data import TEST, TRAIN, VALIDATION, Images, draw, load_images
from adapter_methods import CONTESTANTS, build
from measuring import RESULTS

pytestmark = pytest.mark.float32
COLOURS = ((200, 30, 20), (40, 180, 60), (30, 40, 190), (120, 120, 20))
EACH = {TRAIN: 4, VALIDATION: 2, TEST: 5}


class Net(torch.nn.Module):
    """A stem, a depthwise and a pointwise convolution."""

    def __init__(self):
        super().__init__()
        self.conv1 = torch.nn.Conv2d(3, 12, 3, stride=2, bias=False)
        self.norm1 = torch.nn.BatchNorm2d(12)
        self.conv2 = torch.nn.Conv2d(12, 12, 3, groups=12, bias=False)
        self.conv3 = torch.nn.Conv2d(12, 16, 1, bias=False)
        self.norm2 = torch.nn.BatchNorm2d(16)
        self.fc = torch.nn.Linear(16, 7)

    def forward(self, x):
        x = self.norm1(self.conv1(x)).relu()
        return self.fc(self.norm2(self.conv3(self.conv2(x))).relu().mean((2, 3)))


def base():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Pretrained("net", Net().eval(), Preprocessing(32), "fc")


def images(name="colours"):
    generator = np.random.default_rng(0)
    rows = [(label, part) for label in range(4) for part, count in EACH.items() for _ in range(count)]
    pixels = [np.array(COLOURS[label]) + generator.integers(-30, 31, (32, 32, 3)) for label, _ in rows]
    labels, parts = np.array(rows).T
    return Images(name, np.stack(pixels).clip(0, 255).astype(np.uint8), labels, parts)


def bench(out):
    return adapters.Bench(out, images, base, draws=2, ways=3, datasets=("colours",), shots=("2", "all"))


@pytest.fixture
def _few(monkeypatch):
    monkeypatch.setattr(adapters, "CONTESTANTS", {name: CONTESTANTS[name] for name in ("head", "both", "lora1")})
    monkeypatch.setattr(adapters, "CANDIDATES", (Candidate(1, 1), Candidate(3, 2)))
    monkeypatch.setattr(adapters, "USUAL", 1)


def test_draws_keep_to_the_official_parts():
    held = images()
    for shots, number in itertools.product(("1", "2", "all"), ("tune", "0", "1")):
        found = draw(held, shots, number, ways=3)
        assert not set(found.support) & set(found.queries)
        assert (held.parts[found.support] != TEST).all()
        assert ((held.parts[found.queries] == TEST) == (number != "tune")).all()
        assert set(held.labels[found.queries]) == set(held.labels[found.support])
        if shots != "all":
            assert sorted(Counter(held.labels[found.support]).values()) == [int(shots)] * 3
    one, two = (draw(held, shots, "0", ways=3) for shots in ("1", "2"))
    assert set(one.support) < set(two.support)
    assert np.array_equal(one.queries, two.queries)
    assert len(draw(held, "all", "0").support) == 24
    with pytest.raises(UserError, match="Expected more than 6 images of class"):
        draw(held, "6", "0", ways=3)


@pytest.mark.parametrize("name", CONTESTANTS)
def test_a_contestant_starts_at_the_base_and_is_merged_and_stored_as_it_is(name, tmp_path):
    torch.manual_seed(0)
    plain, x = base().network, torch.randn(4, 3, 32, 32)
    adapted = build(name, plain, "fc", seed=0)
    adapted.network.eval()
    torch.testing.assert_close(adapted.network(x), plain(x))
    with torch.no_grad():
        for parameter in adapted.network.parameters():
            if parameter.requires_grad:
                parameter.add_(0.05 * torch.randn_like(parameter))
    expected = adapted.network(x).detach()
    assert not torch.allclose(expected, plain(x), atol=1e-2)
    merged = adapted.merged()
    torch.testing.assert_close(merged(x), expected, rtol=1e-4, atol=1e-4)
    assert not any("parametriz" in n or "lora" in n or "lokr" in n for n in merged.state_dict())
    full, half = tmp_path / "full.safetensors", tmp_path / "half.safetensors"
    adapted.write(full, half=False)
    adapted.write(half, half=True)
    trained, head = adapted.trained()
    assert full.stat().st_size - half.stat().st_size == pytest.approx(2 * trained, abs=400)
    assert (head, trained == head) == (16 * 7 + 7, name == "head")
    for path, error in ((full, 0.0), (half, 0.02)):
        other = build(name, plain, "fc", seed=0)
        other.read(path)
        assert (other.network.eval()(x) - expected).abs().max() <= error


def test_a_cell_fits_and_counts_what_it_took():
    task = make_task(base(), images(), "2", "0", ways=3)
    for name in ("head", "norm", "lora1"):
        result = run_cell(task, name, Candidate(1, 2))
        assert (len(result.right), result.steps) == (15, 0 if name == "head" else 6)
        assert result.right.double().mean() > 0.9
        assert result.trained_head == 17 * 3
        assert result.bytes_full > result.bytes_half
        assert min(result.fit_seconds, result.image_ms) > 0
    assert torch.equal(from_hex(as_hex(result.right), 15), result.right)
    assert plan_of("norm", Candidate(3, 4), 100) == TrainingPlan(
        0.0, pytest.approx(6e-3), pytest.approx(3e-3), Budget(12, 32)
    )


def test_all_methods_start_from_the_best_head():
    task = make_task(base(), images(), "2", "0", ways=3)
    right, _ = adapter_cells.classify(build("both", task.network, "fc", 0), task)
    assert torch.equal(right, run_cell(task, "head", Candidate(1, 1)).right)
    assert task.network.fc.weight.abs().max() > 0


@pytest.mark.usefixtures("_few")
def test_what_was_stopped_goes_on_to_the_same_rows(tmp_path):
    whole = list(bench(tmp_path / "whole").run())
    for _ in itertools.islice(bench(tmp_path / "parts").run(), 7):
        pass
    again = bench(tmp_path / "parts")
    assert len(again.rows) == 7
    assert "in all " in again.status()
    list(again.run())
    assert bench(tmp_path / "parts").left() == []
    same = (*adapters.KEYS, "accuracy", "accuracy_fp16", "bytes", "right")
    assert [[row[key] for key in same] for row in bench(tmp_path / "parts").rows] == [
        [row[key] for key in same] for row in whole
    ]
    assert len([row for row in whole if row["draw"] != "tune"]) == 3 * 3
    assert list(bench(tmp_path / "parts").run(seconds=0)) == []


def tuned(shots, accuracies):
    shared = {"dataset": "colours", "shots": shots, "draw": "tune", "method": "both"}
    return [{**shared, "candidate": str(c), "accuracy": str(a)} for c, a in accuracies.items()]


def test_with_all_images_the_choice_is_between_that_of_fewer_and_the_usual_one(tmp_path):
    found = bench(tmp_path)
    cell = adapters.Cell("colours", "all", "0", "both", -1)

    def of_all():
        return [each.candidate for each in found.cells() if each[1:4] == ("all", "tune", "both")]

    assert of_all() == [], "before there is a choice"
    found.rows = tuned("2", {0: 0.5, 1: 0.6, 2: 0.7, 3: 0.4})
    assert (of_all(), found.chosen(cell)) == ([], 2), "where they are one"
    found.rows = tuned("2", {0: 0.8, 1: 0.6, 2: 0.7, 3: 0.4})
    assert of_all() == [0, 2]
    for accuracies, best in (({0: 0.5, 2: 0.6}, 2), ({0: 0.6, 2: 0.5}, 0)):
        found.rows = tuned("2", {0: 0.8, 1: 0.6, 2: 0.7, 3: 0.4}) + tuned("all", accuracies)
        assert found.chosen(cell) == best
    assert found.chosen(cell._replace(method="head")) == 0


def test_a_reported_draw_has_the_best_candidate_and_the_gentler_of_equals(tmp_path):
    found = bench(tmp_path)
    cell = adapters.Cell("colours", "2", "0", "both", -1)
    for accuracies, best in (((0.5, 0.6), 1), ((0.6, 0.6), 0)):
        found.rows = [
            {
                "dataset": "colours",
                "shots": "2",
                "draw": "tune",
                "method": "both",
                "candidate": str(c),
                "accuracy": str(a),
            }
            for c, a in enumerate(accuracies)
        ]
        assert found.chosen(cell) == best


def test_flowers_are_read_with_their_split(tmp_path):
    write_tar(tmp_path / "flowers-102" / "flowers-102-64px.tar.xz", flower_files(each=3, size=(64, 80)))
    held = load_images("flowers", tmp_path, tmp_path / "cache")
    assert held.labels.tolist() == [*range(102)] * 3
    assert held.parts.tolist() == [TRAIN] * 102 + [VALIDATION] * 102 + [TEST] * 102
    assert held.pixels.shape == (306, 96, 96, 3)
    assert np.abs(held.pixels[204].mean((0, 1)) - (2, 90, 40)).max() < 5


def test_groceries_are_read_with_their_split_once(tmp_path):
    archive = tmp_path / "grocery-store" / "grocery-store-128.tar.xz"
    write_tar(archive, grocery_files(each=3))
    load_images("grocery", tmp_path, tmp_path / "cache")
    archive.unlink()
    held = load_images("grocery", tmp_path, tmp_path / "cache")
    assert held.labels.tolist() == [*range(81)] * 3
    assert held.parts.tolist() == [TRAIN] * 81 + [VALIDATION] * 81 + [TEST] * 81
    assert held.pixels.shape == (243, 128, 128, 3)
    assert np.abs(held.pixels[5].mean((0, 1)) - (15, 90, 40)).max() < 5
    with pytest.raises(UserError, match=r"Expected grocery-store/grocery-store-128\.tar\.xz in"):
        load_images("grocery", tmp_path, tmp_path / "other")
    with pytest.raises(UserError, match="Expected dataset to be one of"):
        load_images("cars", tmp_path, tmp_path)


def _row(method, number, accuracy, **values):
    usual = {"dataset": "flowers", "shots": "5", "candidate": 0, "accuracy_fp16": accuracy, "images": 4, "trained": 30}
    usual |= {"trained_head": 10, "bytes": 220, "bytes_fp16": 120, "fit_seconds": 1, "image_ms": 1, "right": ""}
    row = {**usual, "method": method, "draw": number, "accuracy": accuracy, "made_by": "a test", **values}
    return {key: str(value) for key, value in row.items()}


def test_the_page_pairs_draws(tmp_path):
    rows = [_row("norm", "tune", 0.1)]
    for number, level in enumerate((0.5, 0.9)):
        rows += [_row("norm", number, level), _row("both", number, level + 0.05, bytes_fp16=100)]
        rows.append(_row("km", number, level - 0.1))
    block = adapter_page.Block(rows, "flowers", "5")
    assert str(block.accuracy("norm")) == "70.0 ± 254.1"
    assert str(block.difference("both", "norm")) == "5.0 ± 0.0"
    assert str(block.difference("km", "norm")) == "-10.0 ± 0.0"
    assert block.difference("km", "head") is None
    assert block.beside_head("both") == 80
    assert block.frontier() == ["both"]
    text = adapter_page.write_page(tmp_path, rows, "the status").read_text()
    assert "| KM both | 75.0 ± 254.1 | **+5.0 ± 0.0** |" in text
    assert "20 classes, 5 images, 2 draws (not yet: head alone" in text
    assert "7 cells are done, 6 of them reported" in text
    assert (tmp_path / "frontier.png").read_bytes().startswith(b"\x89PNG")


def test_a_draw_that_is_not_finished_does_not_count():
    rows = [_row(m, d, level) for d, level in enumerate((0.8, 0.8, 0.5)) for m in ("norm", "both", "km")]
    block = adapter_page.Block(rows[:-1], "flowers", "5")
    assert [block.accuracy(method).mean for method in ("norm", "both", "km")] == pytest.approx([80, 80, 80])
    assert adapter_page.Block(rows, "flowers", "5").accuracy("km").mean == pytest.approx(70)


def test_the_page_compares_all_images_one_by_one():
    right = {"norm": [1, 1, 0, 0], "both": [1, 1, 1, 0]}
    rows = [
        _row(method, 0, sum(each) / 4, shots="all", right=as_hex(torch.tensor(each).bool()))
        for method, each in right.items()
    ]
    found = adapter_page.Block(rows, "flowers", "all").difference("both", "norm")
    assert found == pytest.approx((25.0, 100 * 1.96 * np.std([0, 0, 1, 0], ddof=1) / 2))


def test_a_page_without_rows_says_what_is_left(tmp_path):
    assert "in all 3 cells" in adapter_page.write_page(tmp_path, [], "in all 3 cells").read_text()


def test_the_committed_page_is_what_its_rows_give(tmp_path):
    committed = RESULTS.parent / "adapters"
    shutil.copy(committed / "rows.csv", tmp_path)
    bench = adapters.Bench(tmp_path, None, None)
    assert (
        adapter_page.write_page(tmp_path, bench.rows, bench.status() if bench.left() else "").read_text()
        == (committed / "README.md").read_text()
    )
