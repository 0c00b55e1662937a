"""The report, from runs to the page in a real browser."""

import csv
import io
import re
import shutil

import numpy as np
import pytest
from PIL import Image
from runs import write_run

from metakm.io.files import write_text
from metakm.report.__main__ import main
from metakm.run.curve import CurvePoint, curve_csv
from metakm.table.collect import read_runs

pytestmark = pytest.mark.float32

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@pytest.fixture(autouse=True)
def environment(cache, monkeypatch):
    monkeypatch.setenv("METAKM_CACHE", str(cache))


@pytest.fixture(scope="module")
def page_file(trained, cache, tmp_path_factory):
    """The report on real runs."""
    path = tmp_path_factory.mktemp("page") / "report.html"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("METAKM_CACHE", str(cache))
        assert main([str(trained), "-o", str(path)]) == 0
    return path


@pytest.fixture(scope="module")
def browser():
    """Chromium, offline as far as the tests can tell: whatever a page asks for is recorded."""
    if CHROMIUM is None:
        pytest.skip("no Chromium on this machine")
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM)
        yield browser
        browser.close()


@pytest.fixture
def load(browser):
    """Open a page file; every console message, page error and further request fails the test."""
    complaints = []
    pages = []

    def open_page(path, width=1280, scheme="light"):
        page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
        pages.append(page)
        page.on("console", lambda message: complaints.append(f"{message.type}: {message.text}"))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("request", lambda request: complaints.append(request.url) if request.url != path.as_uri() else None)
        page.goto(path.as_uri(), wait_until="networkidle")
        return page

    yield open_page
    for page in pages:
        page.close()
    assert complaints == []


def cells_of(page, section, caption):
    """Texts of the table with this caption: a list for each line, header first."""
    return page.evaluate(
        """([section, caption]) => [...document.querySelectorAll(`#${section} table`)]
            .filter(table => table.caption.textContent === caption)
            .flatMap(table => [...table.rows].map(row => [...row.cells].map(cell => cell.innerText.trim())))""",
        [section, caption],
    )


def test_numbers_of_the_page_equal_those_of_the_files(page_file, trained, load):
    page = load(page_file)
    header, *lines = cells_of(page, "runs", "Rows of result.csv")
    rows = {}
    for path in trained.rglob("result.csv"):
        with path.open() as file:
            rows[path.parent.relative_to(trained).as_posix()] = next(csv.DictReader(file))
    assert {line[0] for line in lines} == set(rows)
    for line in lines:
        shown, row = dict(zip(header, line, strict=True)), rows[line[0]]
        assert shown["Accuracy, %"] == f"{100 * float(row['accuracy']):.2f}"
        assert shown["± tasks"] == f"{100 * float(row['ci95']):.2f}"
        assert (shown["Status"], shown["Seed"], shown["Tasks"]) == (row["status"], row["seed"], row["n_tasks"])
    by_algo = {row["algo"]: row for row in rows.values()}
    table = cells_of(page, "table", "glyphs 3-way 1-shot: accuracy, %")
    assert len(table) == 4
    for label, text in table[1:]:
        row = by_algo[label.split(" ")[0]]
        expected = f"{100 * float(row['accuracy']):.2f} ± {100 * float(row['ci95']):.2f} (tasks)"
        assert text.split("\n")[0] == expected
    details = cells_of(page, "table", "glyphs 3-way 1-shot: measured cells")
    adapted = {line[0].split(" ")[0]: line[details[0].index("Adapted")] for line in details[1:]}
    assert {algo: adapted[algo].replace(",", "") for algo in adapted} == {
        algo: row["adapted_parameters"] for algo, row in by_algo.items()
    }


def test_gallery_marks_as_many_queries_right_as_tasks_csv_says(page_file, trained, load):
    shown = load(page_file).evaluate(
        """() => [...document.querySelectorAll('details')].map(one => [
            one.closest('.episode').querySelector('h4').textContent,
            one.querySelector('strong').textContent,
            one.querySelector('summary').textContent,
            one.querySelectorAll('.query.right').length,
            one.querySelectorAll('.query.wrong').length,
            [...one.querySelectorAll('.query.wrong')].filter(q => q.querySelectorAll('svg').length === 2).length,
            one.querySelectorAll('.support svg').length])"""
    )
    assert [(episode, label) for episode, label, *_ in shown] == [
        (f"Episode {number}", algo) for number in (0, 1) for algo in ("maml", "anil", "km")
    ]
    accuracies = {run.row.algo: run.accuracies for run in read_runs(trained).runs}
    for episode, label, summary, right, wrong, with_taken, support in shown:
        assert right == round(6 * accuracies[label][int(episode[-1])])
        assert (right + wrong, with_taken, support) == (6, wrong, 3)
        assert f"{right} of 6 right" in summary
        assert "tasks.csv" not in summary, "nothing differs from the file"


def test_pictures_can_be_seen(page_file, load):
    page = load(page_file)
    unresolved = page.evaluate(
        """() => [...document.querySelectorAll('use, a')]
            .map(e => e.getAttribute('href') || e.getAttribute('xlink:href'))
            .filter(ref => ref[0] !== '#' || !document.getElementById(ref.slice(1)))"""
    )
    assert unresolved == []
    boxes = page.evaluate("() => [...document.querySelectorAll('.chart')].map(c => c.getBoundingClientRect().width)")
    assert len(boxes) == 6  # forest, curves, accuracy by parameters, MAML's kernels, KM's before and after
    assert min(boxes) > 300
    thumb = page.locator("details[open] .thumb").first.screenshot()
    darkest, lightest = Image.open(io.BytesIO(thumb)).convert("L").getextrema()
    assert lightest - darkest > 128, "a drawn character is no even area"


@pytest.mark.parametrize("width", [360, 1280])
def test_nothing_makes_the_page_scroll_sideways(page_file, load, width):
    page = load(page_file, width=width)
    page.evaluate("document.querySelectorAll('details').forEach(one => one.open = true)")
    assert page.evaluate("document.documentElement.scrollWidth") == width
    scrolling = page.evaluate("[...document.querySelectorAll('.scroll')].some(s => s.scrollWidth > s.clientWidth)")
    assert scrolling or width > 360, "wide tables scroll in their own box"
    small = page.evaluate(
        "[...document.querySelectorAll('.chart text')].filter(t => t.getBoundingClientRect().height < 8).length"
    )
    assert small == 0


def test_long_names_do_not_run_into_each_other_in_the_forest_plot(trained, tmp_path, load):
    page_file = tmp_path / "report.html"
    assert main([str(trained), "--all", "-o", str(page_file)]) == 0
    boxes = load(page_file).evaluate(
        """() => [...document.querySelectorAll('#forest text')].map(t => t.getBoundingClientRect())
            .map(b => [b.left, b.right, (b.top + b.bottom) / 2, b.height])"""
    )
    assert len(boxes) > 20
    for n, (left, right, middle, height) in enumerate(boxes):
        for other_left, other_right, other_middle, _ in boxes[:n]:
            apart = other_right < left or right < other_left
            assert apart or abs(middle - other_middle) > 0.7 * height


def luminance(colour):
    channels = np.array([int(c) for c in re.findall(r"\d+", colour)[:3]]) / 255
    linear = np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
    return float(linear @ [0.2126, 0.7152, 0.0722])


def test_dark_mode_changes_the_page_and_stays_legible(page_file, load):
    seen = {}
    for scheme in ("light", "dark"):
        page = load(page_file, scheme=scheme)
        seen[scheme] = page.evaluate(
            """() => {
                const background = getComputedStyle(document.documentElement).backgroundColor;
                const texts = [...document.querySelectorAll('h1, p, td, th, a, .part, .name, li, summary, .key')];
                const drawn = [...document.querySelectorAll('.chart text')].map(e => getComputedStyle(e).fill);
                const strokes = [...document.querySelectorAll('.chart path[style*="series"]')]
                    .map(e => getComputedStyle(e).stroke).filter(s => s !== 'none');
                return [background, [...texts.map(e => getComputedStyle(e).color), ...drawn], strokes];
            }"""
        )
    for scheme, (background, texts, strokes) in seen.items():
        ground = luminance(background)
        assert (ground > 0.9) == (scheme == "light")
        for colours, least in ((texts, 4.5), (strokes, 3.0)):
            assert colours
            for colour in set(colours):
                dark, light = sorted((luminance(colour), ground))
                assert (light + 0.05) / (dark + 0.05) >= least, (scheme, colour)


def test_chart_colours_are_all_the_pages(page_file):
    charts = re.findall(r'<svg class="chart".*?</svg>', page_file.read_text(), re.DOTALL)
    assert charts
    assert [colour for chart in charts for colour in re.findall(r"#[0-9a-f]{6}", chart)] == []


def test_structure_serves_readers_who_do_not_see(page_file, load):
    page = load(page_file)
    levels = page.evaluate("[...document.querySelectorAll('h1,h2,h3,h4')].map(h => +h.tagName[1])")
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in zip([0, *levels], levels, strict=False))
    nameless = page.evaluate(
        """() => [...document.querySelectorAll('svg, table, [role=region]')].filter(e =>
            !e.closest('[aria-hidden]') && !e.getAttribute('aria-label') && !e.caption?.textContent).length"""
    )
    assert nameless == 0
    ids = page.evaluate("[...document.querySelectorAll('[id]')].map(e => e.id)")
    assert len(ids) == len(set(ids))
    assert page.evaluate("document.documentElement.lang") == "en"


def test_print_is_light_whole_and_fits_the_paper(page_file, load):
    page = load(page_file, width=687, scheme="dark")  # A4 without its margins
    page.emulate_media(media="print")
    assert page.evaluate("getComputedStyle(document.documentElement).backgroundColor") == "rgb(255, 255, 255)"
    assert page.evaluate("document.documentElement.scrollWidth") <= 687
    assert page.pdf().startswith(b"%PDF")


def test_names_from_files_stay_text(tmp_path, load):
    hostile = '<script>console.log("run")</script><img src=x onerror=alert(1)>"\'{{7*7}}$\\frac$'
    write_run(tmp_path / "a", hostile)
    write_run(tmp_path / "<b onclick=1>", "km")
    for folder in ("a", "<b onclick=1>"):
        write_text(tmp_path / folder / "curve.csv", curve_csv([CurvePoint(0, None, None, 0.5, 1.0)]))
    assert main([str(tmp_path), "--out", str(tmp_path / "page.html")]) == 0
    page = load(tmp_path / "page.html")
    assert page.evaluate("document.querySelectorAll('script, img, b, [onclick], [onerror]').length") == 0
    assert hostile in page.inner_text("#table")
    drawn = " ".join(page.text_content("#setting-0 .chart").split())
    assert hostile in drawn, "no formula, no tag"


def test_the_same_results_give_the_same_page(page_file, trained, tmp_path):
    assert main([str(trained), "-o", str(tmp_path / "again.html")]) == 0
    assert (tmp_path / "again.html").read_bytes() == page_file.read_bytes()


def test_runs_without_checkpoint_or_curve_are_named(tmp_path):
    write_run(tmp_path / "bare")
    assert main([str(tmp_path), "-o", str(tmp_path / "page.html")]) == 0
    page = (tmp_path / "page.html").read_text()
    assert "bare: no learning curve" in page
    assert "without weights.safetensors or checkpoint.pt" in page
    assert "No test episodes and kernels of this setting" in page
    assert 'class="episode' not in page
    assert main([str(tmp_path), "-o", str(tmp_path / "page.html"), "--episodes", "0"]) == 0
    assert "checkpoint.pt" not in (tmp_path / "page.html").read_text()


def test_an_accuracy_that_differs_from_tasks_csv_is_told(trained, tmp_path):
    shutil.copytree(trained / "glyphs-3w1s/km/seed0", tmp_path / "km")
    lines = (tmp_path / "km/tasks.csv").read_text().splitlines()
    first, second = lines[1].split(",")[1], lines[2].split(",")[1]
    assert first != second, "choose runs whose first episodes differ"
    lines[1:3] = [f"0,{second}", f"1,{first}"]  # the mean stays
    write_text(tmp_path / "km/tasks.csv", "\n".join(lines) + "\n")
    assert main([str(tmp_path), "-o", str(tmp_path / "page.html")]) == 0
    page = (tmp_path / "page.html").read_text()
    assert f"but {100 * float(second):.2f} % in tasks.csv, from cpu and torch" in page


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "Expected a folder of results"),
        (["empty"], "Expected a result.csv below empty"),
        (["runs", "--episodes", "-1"], "Expected --episodes to be 0 or more"),
        (["runs", "--out", "empty"], "Expected --out to be a page that ends in .html"),
        (["runs", "--out", "/dev/null/x.html"], "Expected --out to be a file in a folder"),
        (["runs", "--plugin", "none.py"], "Expected --plugin to name a Python file"),
    ],
)
def test_a_mistake_is_one_line_and_code_2(tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    write_run(tmp_path / "runs")
    (tmp_path / "empty").mkdir()
    before = sorted(tmp_path.rglob("*"))
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {message}")
    assert error.count("\n") == 1
    assert sorted(tmp_path.rglob("*")) == before
