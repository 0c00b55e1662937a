"""A corpus of bad input: each ends with exit code 2, one message, no traceback and nothing written."""

import errno
import io
import json
import os
import pickle
import re
import shutil
import subprocess
import sys
import zipfile

import numpy as np
import pandas as pd
import pytest
import safetensors.torch
import torch
from PIL import Image

from metakm.data import omniglot
from metakm.run.__main__ import main
from metakm.run.evaluate import main as evaluate_main

pytestmark = pytest.mark.float32

SMALL = "--ways 3 --queries 2 --backbone conv4-4-stride --meta-batch 2 --val-tasks 2 --eval-tasks 2 --iterations 1"


@pytest.fixture(autouse=True)
def environment(cache, monkeypatch):
    monkeypatch.setenv("METAKM_CACHE", str(cache))
    monkeypatch.delenv("METAKM_DATA", raising=False)


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    def no_route(*_, **__):
        raise OSError("no route to host")

    monkeypatch.setattr("socket.create_connection", no_route)


def refused(capsys, out, *flags, small=True, evaluate=False):
    """Run with `flags`; return the message after checking that it is one, and that nothing was written.

    Args:
        evaluate: `flags` are the whole command line of `metakm evaluate` instead.
    """
    parent = out if os.path.exists(out) else out.parent  # noqa: PTH110 (which does not raise)
    before = files(parent)
    settings = (*(SMALL.split() if small else ()), "--out", str(out))
    try:
        code = evaluate_main([*flags]) if evaluate else main([*settings, *flags])
    except SystemExit as error:  # the parser's own exit
        code = error.code
    output = capsys.readouterr()
    assert code == 2, output
    assert output.out == ""
    assert "Traceback" not in output.err
    assert files(parent) == before
    if output.err.startswith("error: "):
        assert output.err.count("\n") == 1
        assert 30 < len(output.err) < 1000
    else:
        assert output.err.count("For full helptext") == 1, "one box of the parser"
    return output.err


def files(folder):
    """Everything below a folder, files with when they were written; a lock that comes and goes touches its folder."""
    return {p: p.lstat().st_mtime_ns if p.is_file() else None for p in folder.rglob("*")}


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
--first-order yes | --implicit 1 | --resume maybe | --overwrite no | --dry-run 1 | --quiet no | --json 1
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
    return [line.strip().split() for row in text.split("\n") if row for line in row.split("|")]


def names_one(said, flags):
    """Whether a message has the name of a flag of these, or a value of them, as a word of its own."""
    words = [part.partition("=")[0].lstrip("-").replace("_", "-").removeprefix("resnet") for part in flags]
    return any(re.search(rf"(?<![\w.]){re.escape(word)}(?![\w.]\w)", said) for word in words if word)


@pytest.mark.parametrize("flags", corpus(OUT_OF_RANGE + MIXED_TYPES + UNKNOWN + CONFLICTS), ids=" ".join)
def test_flags_that_are_wrong_name_the_flag_or_the_value(tmp_path, capsys, flags):
    said = refused(capsys, tmp_path / "out", *flags).replace("_", "-")
    assert names_one(said, flags)


@pytest.mark.parametrize("flag", ["--algo", "--dataset", "--backbone", "--device", "--preset", "--plugin", "--ways"])
def test_empty_values_are_refused(tmp_path, capsys, flag):
    refused(capsys, tmp_path / "out", flag, "")


PLUGINS = {
    "syntax error": ("def", r"SyntaxError"),
    "raises": ("x = 1\n1 / 0", r"ZeroDivisionError: division by zero \(.*plug \u00fc in\.py:2\)"),
    "raises on many lines": ("raise ValueError('one\\ntwo')", "ValueError: one two"),
    "exits": ("import sys\nsys.exit(0)", "SystemExit"),
    "registers nothing": ("import metakm", "register something, got nothing"),
    "takes a name": ("import metakm\n@metakm.register_strategy('km')\nclass A(metakm.Strategy): pass", "'km', which"),
    "no strategy": ("import metakm\n@metakm.register_strategy('new')\nclass A: pass", "subclass of metakm.Strategy"),
    "is binary": ("\0\1\2", "null bytes|SyntaxError"),
}
BROKEN = {
    "no constructor": ("pass", "", "TypeError"),
    "constructor raises": ("def __init__(self, backbone, ways): 1 / 0", "", "ZeroDivisionError"),
    "no adapted": ("def __init__(self, backbone, ways): super().__init__()", "", "set self.adapted"),
    "no predict": ("{init}", "", "define predict"),
    "predict raises": ("{init}", "def predict(self, adapted, encoded): return self.nothing", "nothing"),
    "wrong shape": ("{init}", "def predict(self, adapted, encoded): return encoded", r"logits \[1, 2, 3\]"),
    "no tensor": ("{init}", "def predict(self, adapted, encoded): return None", r"logits \[1, 2, 3\], got NoneType"),
}
INIT = """def __init__(self, backbone, ways):
        super().__init__()
        self.adapted = metakm.strategies.Classifier(backbone, ways)"""


@pytest.mark.parametrize("case", PLUGINS)
def test_plugins_that_do_not_work(tmp_path, capsys, case):
    text, said = PLUGINS[case]
    (tmp_path / "plug \u00fc in.py").write_text(text)
    assert re.search(said, refused(capsys, tmp_path / "out", "--plugin", str(tmp_path / "plug \u00fc in.py")))


@pytest.mark.parametrize("case", BROKEN)
def test_strategies_of_plugins_that_do_not_work(tmp_path, capsys, case):
    init, predict, said = BROKEN[case]
    lines = ["import metakm", "", "@metakm.register_strategy('mine')", "class Mine(metakm.Strategy):"]
    body = [init.replace("{init}", INIT), predict]
    (tmp_path / "mine.py").write_text("\n".join([*lines, *(f"    {line}" for line in body)]))
    message = refused(capsys, tmp_path / "out", "--plugin", str(tmp_path / "mine.py"), "--algo", "mine")
    assert re.search(said, message), message


@pytest.mark.parametrize(
    "path", ["missing.py", ".", "a" * 300 + ".py", "folder.py/x", "no\u0308 such \U0001f4a5.py", "notes.txt"]
)
def test_plugins_that_are_no_python_file(tmp_path, capsys, path):
    (tmp_path / "notes.txt").write_text("x = 1")
    assert "--plugin" in refused(capsys, tmp_path / "out", "--plugin", str(tmp_path / path))


def test_a_plugin_that_is_missing_is_named_before_the_names_that_it_would_have_added(tmp_path, capsys):
    message = refused(capsys, tmp_path / "out", "--plugin", str(tmp_path / "mien.py"), "--algo", "mine")
    assert re.search("Expected --plugin to name a Python file, got .*mien.py", message)


@pytest.mark.parametrize("dataset", ["glyphs", "omniglot", "mini-imagenet", "tiny-imagenet"])
def test_a_data_root_that_is_a_file_is_named(tmp_path, capsys, dataset):
    root = tmp_path / "not a folder \u00e9"
    root.write_text("")
    said = refused(capsys, tmp_path / "out", "--dataset", dataset, "--data-root", str(root))
    assert f"Expected --data-root to be a folder, got {root}" in said


@pytest.mark.parametrize("variable", ["", "METAKM_DATA", "METAKM_CACHE"])
def test_the_home_of_a_user_that_is_not_known_is_refused(tmp_path, capsys, monkeypatch, variable):
    flags = ("--data-root", "~no such user/data")
    if variable:
        monkeypatch.setenv(variable, flags[1])
        flags = ()
    assert f"Expected {variable or flags[0]} to be a path" in refused(capsys, tmp_path / "out", *flags)


@pytest.mark.parametrize("root", ["empty folder", "missing \u4e2d", "a" * 300])
@pytest.mark.parametrize("dataset", ["omniglot", "mini-imagenet", "tiny-imagenet"])
def test_a_data_root_with_nothing_in_it_says_what_belongs_there(tmp_path, capsys, dataset, root):
    (tmp_path / "empty folder").mkdir()
    said = refused(capsys, tmp_path / "out", "--dataset", dataset, "--data-root", str(tmp_path / root), small=False)
    assert str(tmp_path / root) in said
    if not root.startswith("a"):  # a name too long for the file system is refused as such
        assert ("got none" if root == "empty folder" else "got no such folder") in said


def zipped(path, **members):
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data)


def write(path, data):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def tables(root, train):
    for split in ("train", "val", "test"):
        write(root / f"{split}.csv", train if split == "train" else b"filename,label\na.jpg,n01\n")
    image = io.BytesIO()
    Image.new("RGB", (8, 8)).save(image, "JPEG")
    write(root / "images" / "a.jpg", image.getvalue())


def pickles(root, data):
    for split in ("train", "val", "test"):
        write(root / f"mini-imagenet-cache-{split}.pkl", data)


DAMAGED = {
    "omniglot zip of nothing": ("omniglot", lambda root: [write(root / f"{p}.zip", b"") for p in omniglot.PARTS]),
    "omniglot zip of text": ("omniglot", lambda root: [write(root / f"{p}.zip", b"<html>") for p in omniglot.PARTS]),
    "omniglot zip, empty": ("omniglot", lambda root: [zipped(root / f"{p}.zip") for p in omniglot.PARTS]),
    "omniglot folders, empty": ("omniglot", lambda root: [(root / p).mkdir() for p in omniglot.PARTS]),
    "tiny zip of text": ("tiny-imagenet", lambda root: write(root / "tiny-imagenet-200.zip", b"PK\3\4 no")),
    "tiny zip, empty": ("tiny-imagenet", lambda root: zipped(root / "tiny-imagenet-200.zip")),
    "tiny folder, empty": ("tiny-imagenet", lambda root: (root / "tiny-imagenet-200").mkdir()),
    "table, empty": ("mini-imagenet", lambda root: tables(root, b"")),
    "table, only a header": ("mini-imagenet", lambda root: tables(root, b"filename,label\n")),
    "table of other columns": ("mini-imagenet", lambda root: tables(root, b"name;class\na.jpg;n01\n")),
    "table of bytes": ("mini-imagenet", lambda root: tables(root, b"filename,label\n\xff\xfe,n01\n")),
    "table with a NUL": ("mini-imagenet", lambda root: tables(root, b"filename,label\n\0,n01\n")),
    "table with a long field": ("mini-imagenet", lambda root: tables(root, b'filename,label\n"' + b"a" * 200_000)),
    "table that leads out": ("mini-imagenet", lambda root: tables(root, b"filename,label\n../a.jpg,n01\n")),
    "table of the folder": ("mini-imagenet", lambda root: tables(root, b"filename,label\n..,n01\n")),
    "table of what is not there": ("mini-imagenet", lambda root: tables(root, b"filename,label\nb.jpg,n01\n")),
    "table, too few classes": ("mini-imagenet", lambda root: tables(root, b"filename,label\na.jpg,n01\n")),
    "pickle of nothing": ("mini-imagenet", lambda root: pickles(root, b"")),
    "pickle of text": ("mini-imagenet", lambda root: pickles(root, b"version https://git-lfs")),
    "pickle of a list": ("mini-imagenet", lambda root: pickles(root, pickle.dumps([1, 2]))),
    "pickle that calls": ("mini-imagenet", lambda root: pickles(root, b"cos\nsystem\n(S'true'\ntR.")),
    "pickle with no classes": (
        "mini-imagenet",
        lambda root: pickles(root, pickle.dumps({"image_data": np.zeros((1, 84, 84, 3), np.uint8), "class_dict": {}})),
    ),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_damaged_data_are_named(tmp_path, capsys, case):
    dataset, damage = DAMAGED[case]
    root = tmp_path / "data \u00e4 b"
    root.mkdir()
    damage(root)
    said = refused(capsys, tmp_path / "out", "--dataset", dataset, "--data-root", str(root))
    assert str(root) in said or dataset in said


@pytest.fixture(scope="module")
def finished(tmp_path_factory, cache):
    """The files of a finished run."""
    out = tmp_path_factory.mktemp("finished")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("METAKM_CACHE", str(cache))
        assert main([*SMALL.split(), "--out", str(out)]) == 0
    return out


def truncated(data):
    return data[: len(data) // 2]


def one_bit(data):
    """Changed in the largest tensor, of which torch.load makes no complaint."""
    changed = bytearray(data)
    state = torch.load(io.BytesIO(data), weights_only=True)
    weights = max(state["loop"]["model"].values(), key=torch.numel)
    changed[
        data.index(weights.contiguous(memory_format=torch.channels_last).permute(0, 2, 3, 1).numpy().tobytes())
    ] ^= 1
    torch.load(io.BytesIO(bytes(changed)), weights_only=True)
    return bytes(changed)


def torch_file(value):
    out = io.BytesIO()
    torch.save(value, out)
    return out.getvalue()


class Malicious:
    def __reduce__(self):
        return os.mkdir, ("malicious",)


CHECKPOINTS = {
    "nothing": lambda _: b"",
    "text": lambda _: b"no checkpoint",
    "half": truncated,
    "one bit": one_bit,
    "a list": lambda _: torch_file([1, 2]),
    "an empty dict": lambda _: torch_file({}),
    "another format": lambda _: torch_file({"format": 99, "config": "{}"}),
    "a config that is no JSON": lambda _: torch_file({"format": 1, "config": "{"}),
    "a config that is a list": lambda _: torch_file({"format": 1, "config": "[]"}),
    "a zip": lambda _: b"PK\5\6" + bytes(18),
    "a call": lambda _: torch_file({"format": 1, "config": Malicious()}),
    "a plain pickle that calls": lambda _: pickle.dumps(Malicious()),
    "a whole module": lambda _: torch_file(torch.nn.Linear(1, 1)),
}


@pytest.mark.parametrize("case", CHECKPOINTS)
def test_a_checkpoint_that_is_none_is_refused_and_nothing_of_it_is_run(tmp_path, capsys, monkeypatch, finished, case):
    monkeypatch.chdir(tmp_path)
    out = tmp_path / "out"
    shutil.copytree(finished, out)
    [path] = out.rglob("checkpoint.pt")
    path.write_bytes(CHECKPOINTS[case](path.read_bytes()))
    said = refused(capsys, out, "--resume")
    assert not (tmp_path / "malicious").exists()
    assert str(path) in said
    assert "--overwrite" in said


OF_EVALUATE = """
--ways 5 | --ways=5 | --seed 1 | --algo anil | --iterations 3 | --inner-lr 1 | --inner_lr 1
--dataset glyps | --shots 0 | --test-queries -1
--val-tasks 2 | --bn-mode running | --precision bf16 | --preset paper | --preset slow | --queries x
--resume | --overwrite | --dry-run | --out elsewhere | --log-dir elsewhere
--no-such-flag 1 | --evl-tasks 4 | extra | -x
--eval-tasks 1 | --eval-tasks 0 | --eval-tasks -6 | --eval-tasks 1000000000 | --eval-tasks six | --eval-tasks 6.0
--split train | --split | --split vall
--test-inner-steps -1 | --test-inner-steps x | --test-inner-steps 1000000000 | --task-chunk -1 | --task-chunk half
--device gpu | --device cuda:99 | --device meta | --plugin missing.py | --plugin . | --data-root config.json
"""


@pytest.mark.parametrize("flags", corpus(OF_EVALUATE), ids=" ".join)
def test_flags_of_evaluate_that_are_wrong_name_the_flag_or_the_value(tmp_path, capsys, monkeypatch, finished, flags):
    out = tmp_path / "out"
    shutil.copytree(finished / "glyphs-3w1s" / "km" / "seed0", out)
    monkeypatch.chdir(out)
    said = refused(capsys, out, str(out), *flags, evaluate=True).replace("_", "-")
    assert names_one(said, flags)


def test_the_flag_that_became_a_command_says_so(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert "python -m metakm evaluate RUN" in refused(capsys, tmp_path, "--evaluate=results", small=False)


@pytest.mark.parametrize(
    "name", ["missing", "a file", "a file/below", "empty", "a" * 300, "\u4e2d \U0001f600", "", "up"]
)
def test_a_folder_to_evaluate_that_holds_no_run_is_named(tmp_path, capsys, finished, name):
    (tmp_path / "a file").write_text("")
    (tmp_path / "empty").mkdir()
    shutil.copytree(finished, tmp_path / "up")  # the folder of folders
    assert str(tmp_path / name / "config.json") in refused(capsys, tmp_path, str(tmp_path / name), evaluate=True)


def test_evaluate_without_a_folder_is_refused(tmp_path, capsys):
    assert "RUN" in refused(capsys, tmp_path, evaluate=True)


def rewritten(data, change):
    """With changed metadata of the file."""
    tensors = safetensors.torch.load(data)
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])["__metadata__"]
    return safetensors.torch.save(tensors, change(header["metakm.run"]))


def update(**values):
    return lambda data: rewritten(data, lambda text: {"metakm.run": json.dumps({**json.loads(text), **values})})


def one_tensor_less(data):
    tensors = safetensors.torch.load(data)
    tensors.popitem()
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])["__metadata__"]
    return safetensors.torch.save(tensors, header)


WEIGHTS = {
    "nothing": lambda _: b"",
    "text": lambda _: b"no weights",
    "half": truncated,
    "without the last byte": lambda data: data[:-1],
    "one byte more": lambda data: data + b"\0",
    "one bit": lambda data: data[:-1] + bytes([data[-1] ^ 1]),
    "one tensor less": one_tensor_less,
    "a length without end": lambda data: b"\xff" * 8 + data[8:],
    "a checkpoint": lambda _: torch_file({"format": 1, "config": "{}"}),
    "a call": lambda _: pickle.dumps(Malicious()),
    "no header": lambda data: rewritten(data, lambda _: {}),
    "a pack's header": lambda data: rewritten(data, lambda text: {"metakm": text}),
    "a header that is no JSON": lambda data: rewritten(data, lambda _: {"metakm.run": "{"}),
    "a header that is a list": lambda data: rewritten(data, lambda _: {"metakm.run": "[1]"}),
    "a header that is a number": lambda data: rewritten(data, lambda _: {"metakm.run": "1"}),
    "a header without end": lambda data: rewritten(data, lambda _: {"metakm.run": "[" * 100_000}),
    "another format": update(format=99),
    "a format that is text": update(format="1" * 10_000),
    "another config": update(config={}),
    "another image shape": update(image_shape=[3, 84, 84]),
    "another digest": update(digest="0" * 64),
}


@pytest.mark.parametrize("case", WEIGHTS)
def test_weights_that_are_none_are_refused_and_nothing_of_them_is_run(tmp_path, capsys, monkeypatch, finished, case):
    """Also where a whole checkpoint lies beside them: a damaged file is not passed over in silence."""
    monkeypatch.chdir(tmp_path)
    out = tmp_path / "out"
    shutil.copytree(finished / "glyphs-3w1s" / "km" / "seed0", out)
    path = out / "weights.safetensors"
    path.write_bytes(WEIGHTS[case](path.read_bytes()))
    assert str(path) in refused(capsys, out, str(out), evaluate=True)
    assert not (tmp_path / "malicious").exists()


ROWS = {
    "nothing": "",
    "text": "no row",
    "bytes": b"\xff\xfe\0",
    "other columns": "a,b\n1,2\n",
    "two rows": "status\ndone\ndone\n",
    "ragged": "a,b\n1,2,3\n4\n",
}


@pytest.mark.parametrize("case", ROWS)
def test_a_row_that_cannot_be_read_is_made_anew_from_the_checkpoint(tmp_path, capsys, finished, case):
    """Not the user's mistake alone: the checkpoint has all that is needed."""
    out = tmp_path / "out"
    shutil.copytree(finished, out)
    [path] = out.rglob("result.csv")
    whole = pd.read_csv(path)
    path.write_bytes(ROWS[case] if isinstance(ROWS[case], bytes) else ROWS[case].encode())
    assert main([*SMALL.split(), "--out", str(out), "--resume"]) == 0
    assert "Traceback" not in capsys.readouterr().err
    assert pd.read_csv(path).accuracy[0] == whole.accuracy[0]


@pytest.mark.parametrize("name", ["a file", "a file/below", "a" * 300, "link to nowhere/a"])
def test_an_output_folder_that_cannot_be_made(tmp_path, capsys, name):
    (tmp_path / "a file").write_text("")
    (tmp_path / "link to nowhere").symlink_to(tmp_path / "a file")
    assert str(tmp_path / name) in refused(capsys, tmp_path / name)


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES, errno.ENOSPC, errno.EDQUOT])
def test_an_output_folder_that_cannot_be_written_is_named_before_the_work(tmp_path, capsys, monkeypatch, number):
    """Tests may run as root, whom permissions do not bind, so the write itself is made to fail."""
    out = tmp_path / "read-only"
    (out / "glyphs-3w1s" / "km" / "seed0").mkdir(parents=True)

    def refuse(*_, **__):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("tempfile.TemporaryFile", refuse)
    said = refused(capsys, out)
    assert f"Expected to write to {out}" in said
    assert os.strerror(number) in said


def test_spaces_and_unicode_in_every_path_are_no_mistake(tmp_path, capsys):
    place = tmp_path / "a b \u00e4\u4e2d \U0001f600 'x' $HOME *"
    (place / "data").mkdir(parents=True)
    plugin = [
        "import metakm",
        "from metakm.strategies.anil import ANIL",
        "metakm.register_strategy('mine')(type('M', (ANIL,), {}))",
    ]
    (place / "plug in.py").write_text("\n".join(plugin))
    paths = ["--out", place / "out", "--data-root", place / "data", "--plugin", place / "plug in.py"]
    assert main([*SMALL.split(), "--algo", "mine", *map(str, paths)]) == 0
    assert "done" in capsys.readouterr().out
    assert len(list((place / "out" / "glyphs-3w1s" / "mine" / "seed0").iterdir())) == 7


@pytest.mark.parametrize("flags", [["--ways", "1"], ["--no-such-flag"]], ids=" ".join)
def test_a_real_process_exits_with_2_and_prints_no_traceback(tmp_path, flags):
    command = [sys.executable, "-m", "metakm.run", *flags, "--out", str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()
