"""Commands whose reader goes away, or which never had one: no traceback, and the exit code of the work itself."""

import io
import os
import pty
import shlex
import subprocess
import sys

import pytest
import torch
from convnets import Mixed
from readers import nobody_reads

from metakm.__main__ import command_module, commands
from metakm.__main__ import main as metakm_main
from metakm.cli.exit_code import exit_code
from metakm.cli.progress import log_line
from metakm.modulation import modulate, save_pack

pytestmark = [
    pytest.mark.float32,
    pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning:submitit.local.debug"),  # its log handlers
]

SMALL = "--ways 3 --queries 2 --backbone conv4-4-stride --meta-batch 2 --val-tasks 2 --eval-tasks 2 --iterations 1"


@pytest.fixture(autouse=True)
def environment(cache, monkeypatch):
    monkeypatch.setenv("METAKM_CACHE", str(cache))
    monkeypatch.delenv("METAKM_DATA", raising=False)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


COMMANDS = {
    "run": f"run {SMALL} --out {{out}}",
    "run --json": f"run {SMALL} --json --out {{out}}",
    "run --dry-run": f"run {SMALL} --dry-run --out {{out}}",
    "evaluate": "evaluate {trained}/glyphs-3w1s/km/seed0",
    "sweep": f"sweep glyphs --shots 1 --seeds 1 --algo anil --executor debug {SMALL} --device cpu --out {{out}}",
    "sweep --dry-run": f"sweep glyphs --shots 1 --seeds 1 --algo anil --dry-run {SMALL} --out {{out}}",
    "table": "table {trained}",
    "table --format json": "table {trained} --format json",
    "report": "report {trained} --episodes 0 --out {out}/page.html",
    "packs plan": "packs plan --base shufflenet_v2_x0_5 --tasks 2",
    "packs inspect": "packs inspect {pack}",
    "the list": "--help",
    "the version": "--version",
}


def words_of(name, tmp_path, trained):
    torch.manual_seed(0)
    pack = tmp_path / "a.safetensors"
    if "{pack}" in COMMANDS[name]:
        save_pack(modulate(Mixed()), pack)
    return COMMANDS[name].format(out=tmp_path / "out", trained=trained, pack=pack).split()


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_does_its_work_although_nobody_reads(name, tmp_path, trained):
    with nobody_reads():
        assert metakm_main(words_of(name, tmp_path, trained)) == 0
    if name in ("run", "run --json", "sweep"):
        assert [p.name for p in (tmp_path / "out").rglob("weights.safetensors")]
    if name == "report":
        assert (tmp_path / "out" / "page.html").is_file()


@pytest.mark.parametrize("name", ["run", "table", "packs inspect"])
def test_a_command_does_its_work_without_standard_streams(name, tmp_path, trained, monkeypatch):
    monkeypatch.setattr(sys, "stdout", None)
    monkeypatch.setattr(sys, "stderr", None)
    assert metakm_main(words_of(name, tmp_path, trained)) == 0
    assert (sys.stdout, sys.stderr) == (None, None)


@pytest.mark.parametrize("name", commands())
def test_the_help_of_a_command_ends_quietly_too(name):
    with nobody_reads(), pytest.raises(SystemExit) as end:
        command_module(name).main(["--help"])
    assert end.value.code == 0


@pytest.mark.parametrize(
    "words",
    [["run", "--ways", "1"], ["table", "nowhere"], ["report", "nowhere"], ["packs", "inspect", "nowhere"], ["x"]],
)
def test_the_users_mistake_keeps_its_exit_code(words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with nobody_reads():
        assert metakm_main(words) == 2


def shell(line, tmp_path):
    """Exit code of the first command of a pipe, and what it left on the terminal's standard error."""
    done = subprocess.run(
        ["bash", "-c", f"{line}; exit ${{PIPESTATUS[0]}}"], cwd=tmp_path, capture_output=True, text=True
    )
    return done.returncode, done.stderr


@pytest.mark.parametrize("rest", ["2>&1 | head -c 1", "<&- >&- 2>&-"])
def test_a_process_ends_quietly_and_leaves_whole_files(rest, tmp_path):
    code, error = shell(
        f"{shlex.quote(sys.executable)} -m metakm.run {SMALL} --json --quiet --out out {rest}", tmp_path
    )
    assert (code, error) == (0, "")
    row, curve = (tmp_path / "out/glyphs-3w1s/km/seed0" / name for name in ("result.csv", "curve.csv"))
    assert row.read_text().count("\n") == 2
    assert curve.read_text().startswith("iteration,")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full")  # noqa: PTH110
def test_output_that_cannot_be_written_is_an_error(tmp_path, trained):
    code, error = shell(f"{shlex.quote(sys.executable)} -m metakm.table {trained} > /dev/full", tmp_path)
    assert code == 1
    assert error == "error: [Errno 28] No space left on device; fix this, then repeat the same command\n"


def test_a_terminal_that_was_closed_is_a_reader_that_has_gone(monkeypatch):
    master, slave = pty.openpty()
    with os.fdopen(slave, "w") as terminal:
        monkeypatch.setattr(sys, "stderr", terminal)

        def work():
            os.close(master)
            log_line("lost")
            log_line("lost too")
            return 0

        assert exit_code(work) == 0


def test_an_input_output_error_of_a_file_is_reported(monkeypatch, capsys):
    class Broken(io.StringIO):
        def write(self, _text):
            raise OSError(5, "Input/output error")

    monkeypatch.setattr(sys, "stdout", Broken())
    assert exit_code(lambda: sys.stdout.write("x")) == 1
    assert "Input/output error; fix this, then repeat the same command" in capsys.readouterr().err
