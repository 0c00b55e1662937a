"""Packs in folders laid out as on the Hugging Face Hub."""

import json
import shutil
import sys
from pathlib import Path

import pytest
import torch
from packing import assert_bit_equal, packed_task

import metakm
from metakm.modulation import load_pack, read_pack
from metakm.packs.__main__ import main
from metakm.packs.card import model_card
from metakm.packs.hub import parse, pull, push

FILES = {"README.md", "config.json", "pack.safetensors"}


@pytest.fixture
def task(tmp_path):
    return packed_task(tmp_path)


def names(folder):
    return {path.name for path in folder.iterdir()}


def test_pushed_to_a_folder_and_pulled_it_is_the_same_file(task, tmp_path, capsys):
    base, model, path = task
    assert main(["push", str(path), str(tmp_path / "hub")]) == 0
    assert names(tmp_path / "hub") == FILES
    assert main(["pull", str(tmp_path / "hub"), str(tmp_path / "again" / "birds.safetensors")]) == 0
    again = tmp_path / "again" / "birds.safetensors"
    assert again.read_bytes() == path.read_bytes()
    assert f"{again}: task birds, " in capsys.readouterr().out
    load_pack(base, again)
    x = torch.randn(2, 3, 16, 16)
    assert torch.equal(base.eval()(x), model(x))


def test_config_and_card_say_what_the_pack_says(task, tmp_path):
    _, _, path = task
    push(path, str(tmp_path / "hub"))
    pack = read_pack(path)
    config = json.loads((tmp_path / "hub" / "config.json").read_text())
    assert config == {"library_name": "metakm", "pack": "pack.safetensors", **pack.header()}
    card = (tmp_path / "hub" / "README.md").read_text()
    _, metadata, text = card.split("---\n", 2)
    assert metadata.splitlines()[:2] == ["library_name: metakm", "pipeline_tag: image-classification"]
    assert "# birds\n" in text
    assert "3 classes: owl, wren, kite." in text
    assert "| accuracy | 0.5 |" in text
    assert f"| size | {path.stat().st_size:,} bytes |" in text


def test_names_do_not_break_the_card(task):
    pack = read_pack(task[2])
    odd = type(pack)(pack.tensors, pack.base, "a|b\n# c", tuple(f"<{i}>" for i in range(60)), {}, pack.modulation)
    card = model_card(odd, 1)
    assert "# a\\|b \\# c\n" in card
    assert "\\<0\\>" in card
    assert "\\<49\\>, and 10 more." in card


def test_a_card_that_is_there_is_kept_until_it_is_to_be_replaced(task, tmp_path):
    card = tmp_path / "hub" / "README.md"
    card.parent.mkdir()
    card.write_text("my own words")
    push(task[2], str(tmp_path / "hub"))
    assert card.read_text() == "my own words"
    assert main(["push", str(task[2]), str(tmp_path / "hub"), "--replace-card"]) == 0
    assert "# birds" in card.read_text()


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """huggingface_hub, whose repositories are folders here."""
    package = pytest.importorskip("huggingface_hub", reason="pip install 'metakm[hub]'")
    remote, calls = tmp_path / "remote", []

    def create_repo(name, private, exist_ok):
        assert exist_ok
        calls.append(("create", name, private))
        (remote / name).mkdir(parents=True, exist_ok=True)

    def upload_folder(repo_id, folder_path, revision, commit_message):
        calls.append(("upload", names(Path(folder_path)), revision, commit_message))
        shutil.copytree(folder_path, remote / repo_id, dirs_exist_ok=True)

    def hf_hub_download(name, file, revision, local_dir):
        calls.append(("download", name, revision))
        if not (remote / name / file).exists():
            raise package.errors.LocalEntryNotFoundError(f"no {file}")
        return shutil.copy(remote / name / file, local_dir)

    def file_exists(name, file, revision):
        assert revision in (None, "v2")
        return (remote / name / file).exists()

    monkeypatch.setattr(package, "create_repo", create_repo)
    monkeypatch.setattr(package, "upload_folder", upload_folder)
    monkeypatch.setattr(package, "hf_hub_download", hf_hub_download)
    monkeypatch.setattr(package, "file_exists", file_exists)
    return calls


def test_pushed_to_a_repository_and_pulled_it_is_the_same_file(hub, task, tmp_path):
    _, _, path = task
    assert push(path, "hf://me/birds", private=True) == "hf://me/birds"
    assert names(tmp_path / "remote" / "me" / "birds") == FILES
    push(path, "hf://me/birds@v2")  # the card that is there is kept
    assert hub == [
        ("create", "me/birds", True),
        ("upload", FILES, None, "Task pack birds"),
        ("create", "me/birds", False),
        ("upload", FILES - {"README.md"}, "v2", "Task pack birds"),
    ]
    pack = pull("hf://me/birds@v2", tmp_path / "birds.safetensors")
    assert hub[-1] == ("download", "me/birds", "v2")
    assert (tmp_path / "birds.safetensors").read_bytes() == path.read_bytes()
    assert_bit_equal(pack.tensors, read_pack(path).tensors)


def test_places():
    assert parse("hub/birds") is None
    assert parse("hf://me/birds") == ("me/birds", None)
    assert parse("hf://me/birds@refs/pr/1") == ("me/birds", "refs/pr/1")
    for wrong in ("hf://birds", "hf://me/birds/pack.safetensors", "hf://"):
        with pytest.raises(metakm.UserError, match="Expected hf://owner/name, got"):
            parse(wrong)


def test_mistakes_leave_nothing_behind(task, tmp_path, capsys):
    _, _, path = task
    new, out, theirs = tmp_path / "new", tmp_path / "out.safetensors", tmp_path / "theirs"
    theirs.mkdir()
    (theirs / "config.json").write_text('{"mine": 1}')
    damaged = tmp_path / "damaged"
    push(path, str(damaged))
    (damaged / "pack.safetensors").write_bytes(path.read_bytes()[:-1])
    for command, message in (
        (["push", str(tmp_path / "nothing"), str(new)], "Expected a pack, got no file"),
        (["push", str(path), str(path)], "Expected a folder or hf://owner/name, got the file"),
        (["push", str(path), str(theirs)], f"Expected a new folder or one of a pack, got {theirs} with another config"),
        (["pull", str(damaged), str(theirs)], f"Expected a file to write the pack to, got the folder {theirs}"),
        (["push", str(theirs), str(new)], f"Expected a pack, got the folder {theirs}; name the file in it"),
        (["pull", str(tmp_path / "nowhere"), str(out)], "Expected a folder with pack.safetensors, got"),
        (["pull", str(damaged), str(out)], "Expected a pack, got a truncated or foreign file"),
    ):
        assert main(command) == 2
        captured = capsys.readouterr()
        assert message in captured.err
        assert (captured.err.count("\n"), captured.out) == (1, "")
    assert not new.exists()
    assert not out.exists()
    assert [each.read_text() for each in theirs.iterdir()] == ['{"mine": 1}']


@pytest.mark.usefixtures("hub")
def test_a_repository_without_a_pack_is_the_users_to_mend(tmp_path):
    with pytest.raises(metakm.UserError, match=r"Expected to reach hf://me/none, got no pack.safetensors; check its"):
        pull("hf://me/none", tmp_path / "out.safetensors")
    assert not (tmp_path / "out.safetensors").exists()


def test_an_error_of_the_client_below_the_hubs_library_is_the_users_to_mend(hub, task, monkeypatch):
    class ConnectError(Exception):
        pass

    def create_repo(*_, **__):
        raise ConnectError("no route")

    monkeypatch.setattr(sys.modules["huggingface_hub"], "create_repo", create_repo)
    with pytest.raises(metakm.UserError, match="Expected to reach hf://me/birds, got no route; check its name"):
        push(task[2], "hf://me/birds")
    assert not hub


def test_offline(task, tmp_path, monkeypatch):
    package = pytest.importorskip("huggingface_hub", reason="pip install 'metakm[hub]'")
    monkeypatch.setattr(package.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(package.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    for call in (lambda: push(task[2], "hf://me/birds"), lambda: pull("hf://me/birds", tmp_path / "out.safetensors")):
        with pytest.raises(metakm.UserError, match="Expected to reach hf://me/birds, got"):
            call()
    assert not (tmp_path / "out.safetensors").exists()


def test_the_extra_is_named(task, monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(metakm.UserError, match=r"Expected huggingface_hub for places .*metakm\[hub\]"):
        push(task[2], "hf://me/birds")
