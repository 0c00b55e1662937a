"""`--train`: what of a pretrained network a run changes, and the pack that it leaves as a base."""

import dataclasses

import pytest
import torch
from plain_networks import write_weights

import metakm
from metakm.config import RunConfig
from metakm.errors import UserError
from metakm.learning.learner import Learner
from metakm.models.conversion import TaskBackbone
from metakm.modulation import KernelModulator, read_pack, write_pack
from metakm.modulation.base_pack import load_base
from metakm.modulation.norms import is_norm
from metakm.run.__main__ import main
from metakm.run.loading import load_run

pytestmark = pytest.mark.float32
timm = pytest.importorskip("timm")

NETWORK = "timm:test_efficientnet"
QUICK = "--ways 3 --queries 2 --meta-batch 2 --val-tasks 2 --eval-tasks 2 --iterations 2 --val-every 2 --device cpu"
SMALL_STEPS = ["--inner-lr", "0.001"]  # the small network, which learned nothing, bears no larger ones
FLAGS = [*QUICK.split(), *SMALL_STEPS, "--bn-mode", "frozen", "--quiet"]


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A file of weights of the small network, with running statistics that are not those of a new one."""
    return write_weights(NETWORK, tmp_path_factory.mktemp("weights") / "net.pt")


@pytest.fixture
def run(tmp_path, cache, monkeypatch, weights):
    """A run of the small network, by its flags; returns its folder."""
    monkeypatch.setenv("METAKM_CACHE", str(cache))

    def start(*flags):
        out = tmp_path / "-".join(flags).replace("/", "")
        assert main([*FLAGS, "--backbone", NETWORK, "--weights", str(weights), "--out", str(out), *flags]) == 0
        return next(out.glob("*/*/seed0"))

    return start


def learner(part, algo="protonet", weights=None, **options):
    return Learner(
        algo, backbone=NETWORK, weights=str(weights), ways=3, inner_lr=0.1, inner_steps=1, image_shape=(3, 32, 32),
        bn_mode="frozen", train=part, **options,
    )  # fmt: skip


@pytest.mark.parametrize("part", ["norm", "km", "both", "full"])
def test_a_part_of_the_network_is_what_the_outer_loop_trains(part, weights):
    built = learner(part, weights=weights)
    norms = {id(p) for m in built.modules() if is_norm(m) for p in m.parameters(recurse=False)}
    modulators = {id(p) for m in built.modules() if isinstance(m, KernelModulator) for p in m.parameters()}
    wanted = {"norm": norms, "km": modulators, "both": norms | modulators, "full": {id(p) for p in built.parameters()}}
    assert {id(p) for p in built.meta_parameters()} == wanted[part]
    assert bool(modulators) == (part in ("km", "both"))


@pytest.mark.parametrize("algo", ["km", "km-proto"])
def test_a_strategy_with_modulators_gets_no_others(algo, weights):
    built = learner("km", algo, weights, start="exact")
    found = [m for m in built.modules() if isinstance(m, KernelModulator)]
    assert len(found) == len(built.strategy.kernel_names)
    head = {id(p) for name, p in built.strategy.network.named_parameters() if name.startswith("head.")}
    trained = {id(p) for m in found for p in m.parameters()} | head
    assert {id(p) for p in built.meta_parameters()} == trained
    built = learner("norm", algo, weights, start="exact")
    assert not {id(p) for m in built.modules() if isinstance(m, KernelModulator) for p in m.parameters()} & {
        id(p) for p in built.meta_parameters()
    }


def test_features_start_unchanged_whatever_is_trained(weights):
    images = torch.rand(1, 4, 3, 32, 32)
    plain = learner("full", weights=weights).eval()(images)
    for part in ("norm", "km", "both"):
        torch.testing.assert_close(learner(part, weights=weights).eval()(images), plain, rtol=1e-4, atol=1e-5)


def test_modulators_are_refused_where_the_inner_loop_would_adapt_them_with_their_kernels(weights):
    with pytest.raises(UserError, match="Expected --train norm or full with MAML"):
        learner("km", "maml", weights)
    assert learner("norm", "maml", weights).meta_parameters()
    with pytest.raises(UserError, match="Expected train to be one of"):
        learner("head", weights=weights)


@pytest.mark.parametrize("part", ["norm", "both"])
def test_norms_are_refused_where_there_are_none(part):
    backbone = torch.nn.Sequential(torch.nn.Conv2d(1, 3, 3), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten())
    network = metakm.carry_tasks(backbone, (1, 14, 14))
    with pytest.raises(UserError, match=f"norm layers that have weights for --train {part}"):
        metakm.Learner("protonet", backbone=network, ways=3, inner_lr=0.1, inner_steps=1, train=part)


@pytest.mark.parametrize(
    ("algo", "part"),
    [("protonet", p) for p in ("norm", "km", "both", "full")]
    + [("km-proto", "both"), ("anil", "km"), ("maml", "norm"), ("km", "norm"), ("km", "full"), ("km-proto", "full")],
)
def test_a_run_changes_the_part_alone_and_leaves_it_as_a_base(algo, part, run, weights):
    more = ["--km.start", "exact"] if algo == "km" else ["--km-proto.start", "exact"] if algo == "km-proto" else []
    folder = run("--algo", algo, "--train", part, *more, "--meta-lr", "0.01", "--select", "last")
    pack = read_pack(folder / "pack.safetensors")
    norms = {name for name in pack.tensors if not name.partition(".modulator.")[1]}
    assert pack.meta_trained["base"] == NETWORK
    if part != "full":
        assert bool(norms) == (part in ("norm", "both"))
        assert (len(norms) < len(pack.tensors)) == (part in ("km", "both"))
    trained, plain = load_base(str(folder), weights), load_base(NETWORK, weights)
    before, after = plain.network.state_dict(), trained.network.state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    of_norms = {f"{n}.{k}" for n, m in plain.network.named_modules() if is_norm(m) for k in ("weight", "bias")}
    kernels = {name for name, tensor in before.items() if tensor.dim() == 4}
    assert changed & of_norms or part == "km"
    assert changed & kernels or part == "norm"
    assert changed <= {"norm": of_norms, "km": kernels, "both": of_norms | kernels, "full": {*before}}[part]
    images = torch.rand(2, 1, 32, 32)  # of glyphs
    strategy = load_run(folder).strategy
    backbone, found = next(m for m in strategy.modules() if isinstance(m, TaskBackbone)), []
    backbone.register_forward_hook(lambda _, __, features: found.append(features))
    strategy(images[None])  # with the modulators that km and km-proto have apart from it
    normalised = (images - backbone.network.mean) / backbone.network.std
    own = trained.network.forward_head(trained.network.forward_features(normalised), pre_logits=True)
    torch.testing.assert_close(own, found[0][0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--algo", "km", "--train", "norm"], "before adaptation; --km.start exact keeps them the same"),
        (["--algo", "cavia", "--train", "norm"], "are not those that cavia has with it before adaptation"),
    ],
)
def test_no_pack_is_written_of_what_the_network_alone_would_not_give(flags, said, run, weights, capsys):
    folder = run(*flags, "--meta-lr", "0.01", "--select", "last")
    assert said in " ".join(capsys.readouterr().err.split())
    assert not (folder / "pack.safetensors").exists()
    assert (folder / "weights.safetensors").is_file()
    with pytest.raises(UserError, match=r"without pack.safetensors"):
        load_base(str(folder), weights)


def test_a_plugin_with_two_networks_is_trained_and_told_that_it_gets_no_pack(run, tmp_path, capsys):
    (tmp_path / "teacher.py").write_text(
        "import copy, metakm\n"
        "from metakm.strategies.anil import ANIL\n"
        "@metakm.register_strategy('taught')\n"
        "class Taught(ANIL):\n"
        "    def __init__(self, backbone, ways):\n"
        "        super().__init__(backbone, ways)\n"
        "        self.teacher = copy.deepcopy(backbone)\n"
    )
    folder = run("--plugin", str(tmp_path / "teacher.py"), "--algo", "taught")
    assert "pack.safetensors will not be written: taught has 2 backbones" in capsys.readouterr().err
    assert (folder / "tasks.csv").is_file()
    assert not (folder / "pack.safetensors").exists()


def test_fields_that_are_not_given_reach_neither_run_id_nor_config():
    config = RunConfig(algo="protonet", dataset="mini-imagenet", weights="pretrained", backbone="efficientnet-lite0")
    assert not {"train", "protonet.distance", "protonet.scale"} & {*config.to_json()}
    cosine = config.replaced(train="norm", **{"protonet.distance": "cosine"})
    assert {"train": "norm", "protonet.distance": "cosine"}.items() <= cosine.identity().items()
    assert cosine.run_id != config.run_id
    assert RunConfig.from_json(cosine.to_json()) == cosine


def test_a_learner_s_file_keeps_its_part(tmp_path, weights):
    built = learner("both", weights=weights)
    built.save(tmp_path / "net.safetensors")
    loaded = Learner.load(tmp_path / "net.safetensors")
    assert loaded.train_part == "both"
    assert len(loaded.meta_parameters()) == len(built.meta_parameters())


def test_a_base_of_other_weights_or_without_a_pack_is_refused(run, tmp_path, weights):
    folder = run("--algo", "protonet", "--train", "norm")
    with pytest.raises(UserError, match="Expected --weights for a base that was trained from"):
        load_base(str(folder))
    other = tmp_path / "other.pt"
    torch.save({name: tensor + 1 for name, tensor in torch.load(weights).items()}, other)
    with pytest.raises(UserError, match="Expected the base network of the pack"):
        load_base(str(folder), other)
    with pytest.raises(UserError, match=r"got .* without pack\.safetensors"):
        load_base(str(tmp_path))
    pack = read_pack(folder / "pack.safetensors")
    write_pack(dataclasses.replace(pack, meta_trained={}), tmp_path / "plain.safetensors")
    with pytest.raises(UserError, match="Expected the pack of a meta-trained network as base"):
        load_base(str(tmp_path / "plain.safetensors"))


def test_weights_of_another_network_end_a_run_before_anything_is_written(tmp_path, cache, monkeypatch, weights, capsys):
    monkeypatch.setenv("METAKM_CACHE", str(cache))
    flags = ["--algo", "protonet", "--backbone", "timm:test_resnet", "--weights", str(weights)]
    assert main([*FLAGS, *flags, "--out", str(tmp_path / "out")]) == 2
    assert capsys.readouterr().err.count("error:") == 1
    assert not (tmp_path / "out").exists()
    assert main([*FLAGS, "--ways", "200", "--algo", "protonet", "--out", str(tmp_path / "out")]) == 2
    assert not (tmp_path / "out").exists()


def test_python_takes_the_part_as_well(weights, tmp_path, cache, monkeypatch):
    monkeypatch.setenv("METAKM_CACHE", str(cache))
    config = metakm.RunConfig(
        algo="protonet", backbone=NETWORK, weights=str(weights), train="norm", bn_mode="frozen", ways=3, queries=2,
        meta_batch=1, val_tasks=2, eval_tasks=2, iterations=1, val_every=1, out=tmp_path, quiet=True,
    )  # fmt: skip
    assert (metakm.train(config).folder / "pack.safetensors").is_file()
