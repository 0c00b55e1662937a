"""A corpus of bad input: each ends with exit code 2, one message, no traceback and nothing written."""

import pytest

from metakm.run import main
from metakm.strategies import registry

pytestmark = pytest.mark.float32

SMALL = "--ways 3 --queries 2 --backbone conv4-4-stride --meta-batch 2 --val-tasks 2 --eval-tasks 2 --iterations 1"


@pytest.fixture(autouse=True)
def environment(cache, monkeypatch):
    monkeypatch.setenv("METAKM_CACHE", str(cache))
    monkeypatch.delenv("METAKM_DATA", raising=False)
    monkeypatch.setattr(registry, "_registry", dict(registry._registry))
    monkeypatch.setattr(registry, "_plugins", set())


def no_network(*_, **__):
    raise OSError("no network in tests")


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    monkeypatch.setattr("socket.create_connection", no_network)


def refused(capsys, out, *flags, small=True):
    """Run with `flags`; return the message after checking that it is one, and that nothing was written."""
    before = files(out.parent)
    try:
        code = main([*(SMALL.split() if small else ()), "--out", str(out), *flags])
    except SystemExit as error:  # the parser's own exit
        code = error.code
    output = capsys.readouterr()
    assert code == 2, output
    assert output.out == ""
    assert "Traceback" not in output.err
    assert files(out.parent) == before
    assert not out.exists()
    if output.err.startswith("error: "):
        assert output.err.count("\n") == 1
        assert 30 < len(output.err) < 1000
    else:
        assert "Parsing error" in output.err or "Unrecognized options" in output.err or "required" in output.err.lower()
    return output.err


def files(folder):
    return {p: p.stat().st_mtime_ns for p in folder.rglob("*")}


OUT_OF_RANGE = """
--ways 1 | --ways 0 | --ways -5 | --ways 1101 | --ways 99999999999999999999
--shots 0 | --shots -1 | --shots 19 | --shots 999999999999
--queries 0 | --queries -1 | --queries 20 | --queries 99999999999999999999
--inner-lr 0 | --inner-lr -0.1 | --inner-lr nan | --inner-lr inf | --inner-lr -inf | --inner-lr 1e999
--meta-lr 0 | --meta-lr -1 | --meta-lr nan | --meta-lr inf
--grad-clip -0.1 | --grad-clip nan | --grad-clip inf
--inner-steps 0 | --inner-steps -1 | --inner-steps 1000000000
--test-inner-steps -1 | --test-inner-steps 1000000000
--meta-batch 0 | --meta-batch -1 | --meta-batch 1000000000
--iterations -1 | --iterations 99999999999999999999
--eval-tasks 0 | --eval-tasks 1 | --eval-tasks -600 | --eval-tasks 1000000000
--val-tasks 0 | --val-tasks -1 | --val-tasks 1000000000
--val-every 0 | --val-every -1
--task-chunk -1
--seed -1 | --seed 9223372036854775808 | --seed 99999999999999999999
"""
MIXED_TYPES = """
--ways three | --ways 3.0 | --ways nan | --ways 0x10 | --ways 1e1 | --ways
--shots one | --queries 2.5 | --inner-lr fast | --inner-lr 0,1 | --meta-lr
--inner-steps 1.5 | --test-inner-steps x | --meta-batch 2.0 | --iterations 1e3 | --seed x | --eval-tasks 6x
--val-tasks - | --val-every 0.5 | --task-chunk half | --grad-clip ten
--first-order yes | --implicit 1 | --resume maybe | --overwrite no | --dry-run 1
"""
UNKNOWN = """
--algo mmal | --algo KM | --algo ../km | --dataset omniglott | --dataset ../omniglot | --dataset Glyphs
--backbone conv5 | --backbone conv4-0-stride | --backbone conv4--stride | --backbone conv4-64 | --backbone resnet33
--backbone resnet | --backbone conv4-4-pool-pool | --preset fast | --schedule linear | --bn-mode eval
--precision fp16 | --device gpu | --device cuda:99 | --device cuda:-1 | --device meta | --device abacus
--no-such-flag 1 | --inner_learning_rate 1 | extra | -x | --way 5
"""
CONFLICTS = """
--resume --overwrite | --algo anil --implicit | --ways 600 --ways 1 | --shots 10 --queries 11
--dataset glyphs --backbone conv4-4-stride-pool | --resume --overwrite --dry-run
"""


def corpus(text):
    return [line.strip().split() for row in text.strip().splitlines() for line in row.split("|")]


@pytest.mark.parametrize("flags", corpus(OUT_OF_RANGE + MIXED_TYPES + UNKNOWN + CONFLICTS), ids=" ".join)
def test_flags_that_are_wrong_name_the_flag_or_the_value(tmp_path, capsys, flags):
    said = refused(capsys, tmp_path / "out", *flags)
    assert any(part.lstrip("-").replace("-", " ") in said.replace("-", " ") for part in flags)


@pytest.mark.parametrize("flag", ["--algo", "--dataset", "--backbone", "--device", "--preset", "--plugin", "--ways"])
def test_empty_values_are_refused(tmp_path, capsys, flag):
    refused(capsys, tmp_path / "out", flag, "")
