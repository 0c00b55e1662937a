"""`python -m metakm`, and the help of every command that it lists."""

import re
from pathlib import Path

import pytest

import metakm
from metakm.__main__ import command_module, commands, main

PACKAGE = Path(metakm.__file__).parent


def test_every_module_that_runs_as_a_command_is_listed_in_one_line_of_80_columns(capsys):
    runnable = {
        ".".join(["metakm", *path.relative_to(PACKAGE).with_suffix("").parts])
        for path in PACKAGE.rglob("*.py")
        if '__name__ == "__main__"' in path.read_text()
    }
    functions = {c.module for name, c in commands().items() if name in metakm.__all__}  # no module can bear these names
    assert {c.module for c in commands().values()} - functions == runnable - {"metakm.__main__"}
    assert next(iter(commands())) == "run"
    assert main([]) == 0
    listed = capsys.readouterr().out
    assert max(map(len, listed.splitlines())) <= 80
    for name, (_, summary) in commands().items():
        assert re.search(rf"^  {re.escape(name)} +\S.{{15,}}$", listed, re.MULTILINE), name
        assert "`" not in summary
        assert summary.removesuffix(".") in listed, "shorten it: one line of the list has room for it"


@pytest.mark.parametrize("name", commands())
def test_the_help_of_each_command_fits_into_80_columns(name, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "80")
    command = command_module(name)
    with pytest.raises(SystemExit) as end:
        command.main(["--help"])
    text = capsys.readouterr().out
    assert end.value.code == 0
    assert f"python -m metakm {name}" in text.replace("metakm.", "metakm ", 1)
    assert max(map(len, text.splitlines())) <= 80
    assert "{None}" not in text
    assert "(default: )" not in text


def test_the_help_of_predict_names_what_it_takes(capsys):
    with pytest.raises(SystemExit):
        main(["predict", "--help"])
    text = capsys.readouterr().out
    assert text.splitlines()[0].endswith(" PACK PHOTO [PHOTO ...]")
    assert "\n\n\n" not in text


def test_a_command_runs_with_the_arguments_behind_it(tmp_path, capsys):
    assert main(["run", "--ways", "1", "--out", str(tmp_path)]) == 2
    assert capsys.readouterr().err == "error: Expected --ways to be at least 2, got 1\n"


def test_ctrl_c_while_a_command_is_imported_ends_it_without_a_traceback(monkeypatch, capsys):
    def interrupted(_):
        raise KeyboardInterrupt

    monkeypatch.setattr("importlib.import_module", interrupted)
    assert main(["run"]) == 130
    assert capsys.readouterr().err == "Stopped.\n"


def test_the_version_is_the_packages(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"metakm {metakm.__version__}\n"


@pytest.mark.parametrize(("wrong", "near"), [("rum", "run"), ("--versoin", "--version")])
def test_a_wrong_name_brings_the_nearest(capsys, wrong, near):
    assert main([wrong]) == 2
    error = capsys.readouterr().err
    assert error.endswith(f"got {wrong!r}; did you mean {near!r}?\n")
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "near"),
    [
        (["--bn-mode", "suport"], "did you mean 'support'?"),
        (["--schedule=cosin"], "did you mean 'cosine'?"),
        (["--dataset", "glyfs"], "did you mean 'glyphs'?"),
        (["--algo", "kmm"], "did you mean 'km'?"),
        (["--backbone", "conv4-64-strid"], "conv4-<filters>-stride"),
    ],
)
def test_a_wrong_value_of_run_brings_the_nearest(tmp_path, capsys, arguments, near):
    assert main(["run", *arguments, "--out", str(tmp_path)]) == 2
    assert near in capsys.readouterr().err


def test_a_wrong_flag_of_run_brings_the_nearest(capsys):
    with pytest.raises(SystemExit) as end:
        main(["run", "--inner-lrr", "3"])
    assert end.value.code == 2
    assert "--inner-lr FLOAT" in capsys.readouterr().err
