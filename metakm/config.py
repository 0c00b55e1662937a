"""The configuration of one run: typed, frozen, validated. Flags, help and `config.json` all derive from it."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_type_hints

import tyro

from metakm.cli.flags import flag, require
from metakm.errors import UserError, unknown_name
from metakm.models.modes import BatchNormMode
from metakm.options import SHARED, Options, SharedOptions, flat_name, from_flat, option_types, shared_part, to_flat

PresetName = Literal["quick", "paper", "table3", "tuned"]
Schedule = Literal["constant", "cosine"]
Precision = Literal["fp32", "bf16"]
Selection = Literal["best", "last"]

# Fields that say where and how a run is executed, not what it computes; a resumed run may change them.
EXECUTION_FIELDS = frozenset(
    {"data_root", "out", "resume", "overwrite", "device", "plugin", "dry_run", "task_chunk", "eager", "log_dir"}
    | {"quiet", "json"}
)

# Fields that say which run of which setting this is; every other one that computes belongs to the protocol.
NAMED_IN_ROW = frozenset({"algo", "dataset", "ways", "shots", "preset", "seed"})


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Meta-train one strategy, evaluate it on meta-test tasks, and write its row.

    Defaults follow --algo, --dataset, --ways, --shots and --preset:
    --help beside these flags shows the defaults for them.
    """

    algo: str = "km"
    """Strategy: maml, anil, km, bn, boil, meta-sgd, reptile, protonet, maml-proto, anil-proto, km-proto, or one from a plugin. km is the paper's own."""
    dataset: str = "glyphs"
    """Dataset: glyphs (drawn by metakm, needs no file), omniglot, mini-imagenet, tiny-imagenet, or folder: your own images, one folder a class in train/, val/ and test/ of --data-root; or one from a plugin. glyphs by default, so that every machine can run it."""
    ways: int = 20
    """Classes in an episode. Default from --dataset: 20 for characters, 5 for photographs (Finn et al. 2017)."""
    shots: int = 1
    """Support images of each class. The published settings have 1 and 5."""
    queries: int
    """Query images of each class. Default from --preset; paper: the shots for characters (MAML's code), 15 for photographs."""
    test_queries: int = 0
    """Query images of each class in meta-validation and meta-test; 0: as --queries. With --preset paper: the shots for photographs (MAML's code)."""
    preset: PresetName = "quick"
    """Where the other defaults come from. table3: that of results/table3/, equal for all strategies but for inner rates, inner steps, clipping and meta learning rate, which a search chose for km, maml and anil alike on meta-validation (results/search); other strategies take those of maml, and *-proto those of the strategy without a prototype head. quick: scaled down, chosen for km on the meta-validation of omniglot 20-way 1-shot and only estimated for other settings; paper: the published protocol of Finn et al. 2017 and Raghu et al. 2020 (metakm/presets.py lists what still differs); tuned: longer than quick, with smaller clipping, a zero head and 10 inner steps in the meta-test, for characters with pooling and learned inner rates too, searched on omniglot 20-way 1-shot, in part on 5-shot, and on tiny-imagenet 5-way 1-shot (results/search), and only estimated for other settings."""
    backbone: str
    """conv4-<filters>-stride, conv4-<filters>-pool or resnet<depth>; own where a strategy brings a network of its own; or one from a plugin. Default from --preset; paper: conv4-64-stride for characters, conv4-32-pool for photographs."""
    inner_lr: float
    """Inner learning rate on the mean support cross-entropy. Default from --preset; paper: 2.0 for characters (MAML's 0.1 on ways x mean, 0.4 with 5 ways), 0.05 for photographs (0.01 likewise)."""
    inner_steps: int
    """Inner steps in meta-training. Default from --preset; paper: 5, for 5-way characters 1."""
    test_inner_steps: int
    """Inner steps in meta-validation and meta-test. Default from --preset; paper: 5 for characters (5-way: 3), 10 for photographs."""
    meta_batch: int
    """Tasks in a meta-batch. Default from --preset; paper: 16 for characters (5-way: 32), 4 or 2 for photographs with 1 or 5 shots."""
    meta_lr: float
    """Adam's learning rate in the outer loop. Default from --preset; paper: 1e-3."""
    iterations: int
    """Meta-training iterations. Default from --preset; paper: 60000. 0 evaluates the untrained start."""
    schedule: Schedule
    """Schedule of the meta learning rate. Default from --preset; paper: constant."""
    grad_clip: float
    """Clip each entry of the meta-gradient to +- this value; 0 clips nothing. Default from --preset; paper: 0.133 or 0.667 for photographs with 1 or 5 shots (MAML's 10 on the sum over queries / shots), 0 for characters."""
    options: Options = field(default_factory=Options)
    """The strategy's own; see --algo."""
    ema: float = 0.0
    """Decay of an exponential moving average of all that the outer loop learns, such as 0.999; the average is what is validated, tested and saved. 0, as published: none."""
    augment: bool = False
    """Crop and mirror each image of the meta-training episodes at random, support and query; photographs only. Off as published."""
    bn_mode: BatchNormMode = "transductive"
    """Where batch statistics come from. transductive, as published: the batch at hand; support: the support images alone; running: averages over meta-training when evaluating; frozen: never."""
    precision: Precision = "fp32"
    """Of the convolutions: fp32, on a GPU too (metakm's kernels there keep float32's accuracy), or bf16, faster where the processor has it; parameters, norm statistics and classifier stay fp32."""
    seed: int = 0
    """Seed of the initial weights and of the meta-training episodes. Meta-validation and meta-test episodes are the same for every seed."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:<n>. auto is the first GPU if there is one, else the CPU."""
    data_root: Path | None = None
    """Folder with the data. Without it: the environment variable METAKM_DATA, else the user's cache folder."""
    image_size: int = 0
    """Side in pixels of the square to which the images of --dataset folder are resized; 0 is 84. The other datasets have a size of their own."""
    out: Path = Path("results")
    """Folder for results; the run writes <out>/<dataset>-<ways>w<shots>s/<algo>/seed<seed>/."""
    resume: bool = False
    """Continue from the run folder's checkpoint, to the numbers of an uninterrupted run."""
    overwrite: bool = False
    """Replace an earlier run in the run folder. Without it an earlier run is never touched."""
    dry_run: bool = False
    """Print the config, parameter counts and the estimated time and memory, write nothing, and stop."""
    log_dir: Path | None = None
    """Folder for TensorBoard event files of loss, accuracies and ms an iteration, in <log-dir>/<run id>/; needs tensorboard."""
    quiet: bool = False
    """No progress on standard error; errors and the result stay."""
    json: bool = False
    """For scripts: standard output has one JSON object a line, for progress, each validation and the result, and nothing else."""
    eval_tasks: int = 600
    """Meta-test tasks. 600 as published (Finn et al. 2017)."""
    val_tasks: int
    """Meta-validation tasks at each validation. Default from --preset."""
    select: Selection = "best"
    """Which model the meta-test is of: the best on meta-validation, or the last. Last with --preset paper (MAML's code)."""
    val_every: int
    """Iterations between validations; the last iteration always validates. Default from --preset."""
    task_chunk: int = 0
    """Tasks whose graphs are in memory at once; but for rounding the result does not depend on it. 0: as many as fit into half of the memory, by an estimate; runs of a sweep on one device divide it."""
    eager: bool = False
    """On a GPU, launch the kernels of each meta-gradient one by one. Without it they are recorded once as a CUDA graph and replayed, which is faster; strategies that wait for the GPU cannot be recorded and run as with it."""
    plugin: Annotated[tuple[Path, ...], tyro.conf.arg(help_behavior_hint="(default: none)")] = ()
    """Python files that register strategies, datasets or backbones; they run with your rights."""

    def __post_init__(self) -> None:
        for name, low in _at_least.items():
            require(getattr(self, name) >= low, name, f"at least {low}", getattr(self, name))
        for name, high in _at_most.items():
            require(getattr(self, name) <= high, name, f"at most {high}", getattr(self, name))
        for name in ("inner_lr", "meta_lr"):
            value = getattr(self, name)
            require(math.isfinite(value) and value > 0, name, "a positive number", value)
        require(math.isfinite(self.grad_clip) and self.grad_clip >= 0, "grad_clip", "0 or more", self.grad_clip)
        require(0 <= self.ema < 1, "ema", "0 or more and below 1", self.ema)
        require(self.seed < 2**63, "seed", "below 2**63", self.seed)
        for name, choices in (
            ("preset", PresetName),
            ("schedule", Schedule),
            ("bn_mode", BatchNormMode),
            ("precision", Precision),
            ("select", Selection),
        ):
            if getattr(self, name) not in get_args(choices):
                raise unknown_name(flag(name), getattr(self, name), get_args(choices))
        wanted = options_of(self.algo)
        if type(self.options) is Options:
            object.__setattr__(self, "options", wanted())
        if not isinstance(self.options, wanted):
            raise UserError(
                f"Expected options of {self.algo!r} to be {wanted.__name__}, got {type(self.options).__name__}"
            )
        if self.resume and self.overwrite:
            raise UserError("Expected --resume or --overwrite, got both; drop one of them")

    @property
    def setting(self) -> str:
        """The few-shot setting, such as `omniglot-20w1s`."""
        return f"{self.dataset}-{self.ways}w{self.shots}s"

    @property
    def folder(self) -> Path:
        """Where the run keeps its files."""
        return self.out / self.setting / self.algo / f"seed{self.seed}"

    @property
    def run_id(self) -> str:
        """Readable name of what this run computes, with a digest of every field that matters for it."""
        default = to_flat(self.algo, type(self.options)())
        changed = {name: value for name, value in to_flat(self.algo, self.options).items() if value != default[name]}
        variants = [_spoken(name.rpartition(".")[2], value) for name, value in changed.items()]
        variants += [*(["augment"] if self.augment else []), *([self.precision] if self.precision != "fp32" else [])]
        parts = [self.setting, self.algo, *variants, self.preset, f"seed{self.seed}"]
        return "-".join([*parts, hashlib.sha256(json.dumps(self.identity()).encode()).hexdigest()[:8]])

    def identity(self) -> dict[str, Any]:
        """The fields that determine the numbers of the run."""
        return {k: v for k, v in self.to_json().items() if k not in EXECUTION_FIELDS}

    @property
    def shared(self) -> SharedOptions:
        """The options that strategies share; those that this one lacks have their default."""
        return shared_part(self.options)

    def flat(self) -> dict[str, Any]:
        """All fields, with each option of the strategy in the place of `options`: see `metakm.options.flat_name`."""
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name != "options"}
        return values | to_flat(self.algo, self.options)

    def defaults(self) -> dict[str, Any]:
        """The defaults among what `flat` has, and of shared options that the strategy does not have."""
        values = {f.name: f.default for f in dataclasses.fields(self) if f.default is not dataclasses.MISSING}
        return values | dataclasses.asdict(SharedOptions()) | to_flat(self.algo, type(self.options)())

    @classmethod
    def from_flat(cls, values: Mapping[str, Any]) -> RunConfig:
        """Inverse of `flat`; what is missing has its default.

        Raises:
            UserError: an unknown strategy, an option that it does not have, or a value out of range.
        """
        fields = {field.name for field in dataclasses.fields(cls)}
        options = {name: value for name, value in values.items() if name not in fields}
        own = {name: value for name, value in values.items() if name in fields}
        algo = values.get("algo", cls.algo)
        return cls(**own, options=from_flat(algo, options_of(algo), options))

    def replaced(self, **values: Any) -> RunConfig:
        """The config with other values, given by their flat names.

        Raises:
            UserError: see `from_flat`.
        """
        return self.from_flat({**self.flat(), **values})

    def to_json(self) -> dict[str, Any]:
        """`flat` as JSON values."""
        values = {**self.flat(), "plugin": [str(path) for path in self.plugin]}
        return {k: str(v) if isinstance(v, Path) else v for k, v in values.items()}

    @classmethod
    def from_json(cls, values: Any) -> RunConfig:
        """Inverse of `to_json`.

        Raises:
            UserError: not an object, an unknown or missing key, or a value of the wrong type or out of range.
        """
        if not isinstance(values, dict):
            raise UserError(f"Expected a config to be a JSON object, got {values!r:.200}")
        algo = values.get("algo", cls.algo)
        hints = flat_types(algo if isinstance(algo, str) else cls.algo)
        for key in values:
            if key not in hints:
                raise unknown_name("config key", key, hints)
        for required in (
            f.name for f in dataclasses.fields(cls) if f.name in hints and f.default is dataclasses.MISSING
        ):
            if required not in values:
                raise UserError(f"Expected config key {required!r}, got none; add it")
        for name, value in values.items():
            if not _is_json_of(value, hints[name]):
                raise UserError(f"Expected config key {name!r} to be {hints[name]}, got {value!r:.200}; mend it")
        numbers = {k: _as_float(k, v) for k, v in values.items() if hints[k] is float}
        paths = {k: Path(values[k]) for k in ("data_root", "out", "log_dir") if values.get(k) is not None}
        plugin = tuple(Path(p) for p in values.get("plugin", ()))
        return cls.from_flat({**values, **numbers, **paths, "plugin": plugin})


def flat_types(algo: str) -> dict[str, Any]:
    """The type of each field that `RunConfig.flat` may have for a strategy, shared options that it lacks included.

    Raises:
        UserError: an unknown strategy.
    """
    own = {flat_name(algo, name): hint for name, hint in option_types(options_of(algo)).items()}
    return {**_common_types(), **own}


@functools.cache
def _common_types() -> dict[str, Any]:
    hints = {**get_type_hints(RunConfig), **option_types(SharedOptions)}
    return {name: hint for name, hint in hints.items() if name != "options"}


def all_flat_types() -> dict[str, Any]:
    """The type of each field that the run of some known strategy may have."""
    from metakm.strategies.registry import available_strategies  # brings torch along

    return {name: hint for algo in available_strategies() for name, hint in flat_types(algo).items()}


def options_of(algo: str) -> type[Options]:
    """The class of a strategy's options.

    Raises:
        UserError: an unknown strategy.
    """
    from metakm.strategies.registry import strategy_class  # brings torch along

    return strategy_class(algo).options


_at_least = {
    "ways": 2,
    "shots": 1,
    "queries": 1,
    "test_queries": 0,
    "inner_steps": 1,
    "test_inner_steps": 0,
    "meta_batch": 1,
    "iterations": 0,
    "seed": 0,
    "eval_tasks": 2,
    "val_tasks": 1,
    "val_every": 1,
    "task_chunk": 0,
    "image_size": 0,
}
# Beyond these a slip of the keyboard asks for more memory or time than there is, before the first iteration.
_at_most = {
    "inner_steps": 10_000,
    "test_inner_steps": 10_000,
    "meta_batch": 100_000,
    "iterations": 10**9,
    "eval_tasks": 100_000,
    "val_tasks": 100_000,
}


def _spoken(name: str, value: object) -> str:
    """A changed option in a run id: its name, with its value unless that is "on"."""
    said = name.replace("_", "-")
    return said if isinstance(value, bool) or name in SHARED else f"{said}-{value}"


def _as_float(field: str, value: float) -> float:
    """A JSON number; 1 and 1.0 are the same value, so they must give the same run_id."""
    try:
        return float(value)
    except OverflowError:
        raise UserError(f"Expected {flag(field)} to be a number below 1e308, got a larger one") from None


def _is_json_of(value: object, hint: Any) -> bool:
    if hint in (int, float, bool, str):
        number = hint is float and isinstance(value, int) and not isinstance(value, bool)
        return number or (isinstance(value, hint) and (hint is bool or not isinstance(value, bool)))
    if hint == tuple[Path, ...]:
        return isinstance(value, list) and all(isinstance(item, str) for item in value)
    if hint == Path | None:
        return value is None or isinstance(value, str)
    return isinstance(value, str)  # Path, Literal
