"""The configuration of one run: typed, frozen, validated. Flags, help and `config.json` all derive from it."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_type_hints

import tyro

from metakm.cli.flags import flag, require
from metakm.errors import UserError, unknown_name
from metakm.models.layers import BatchNormMode

PresetName = Literal["quick", "paper", "tuned"]
Schedule = Literal["constant", "cosine"]
Precision = Literal["fp32", "bf16"]
Selection = Literal["best", "last"]

# Fields that say where and how a run is executed, not what it computes; a resumed run may change them.
EXECUTION_FIELDS = frozenset(
    {"data_root", "out", "resume", "overwrite", "device", "plugin", "dry_run", "task_chunk", "eager", "log_dir"}
    | {"quiet", "json"}
)

# Fields that change the strategies which name them among their `variants`; the others refuse them.
VARIANTS = (
    "first_order", "learn_inner_lr", "inner_lr_per_step", "nonnegative_inner_lr", "first_head_lr", "zero_head",
    "normal_head", "scaled_distance", "multi_step_loss",
)  # fmt: skip

# Fields that are refused unless another one is on.
NEEDS = {
    "inner_lr_per_step": "learn_inner_lr",
    "nonnegative_inner_lr": "learn_inner_lr",
    "first_head_lr": "inner_lr_per_step",
}


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Meta-train one strategy, evaluate it on meta-test tasks, and write its row.

    With --evaluate FOLDER, test a finished run again: see --evaluate --help.

    Defaults follow --algo, --dataset, --ways, --shots and --preset:
    --help beside these flags shows the defaults for them.
    """

    algo: str = "km"
    """Strategy: maml, anil, km, bn, boil, meta-sgd, reptile, protonet, maml-proto, anil-proto, km-proto, or one from a plugin. km is the paper's own."""
    dataset: str = "glyphs"
    """Dataset: glyphs (drawn by metakm, needs no file), omniglot, mini-imagenet, tiny-imagenet, or folder: your own images, one folder a class in train/, val/ and test/ of --data-root. glyphs by default, so that every machine can run it."""
    ways: int = 20
    """Classes in an episode. Default from --dataset: 20 for characters, 5 for photographs (Finn et al. 2017)."""
    shots: int = 1
    """Support images of each class. The published settings have 1 and 5."""
    queries: int
    """Query images of each class. Default from --preset; paper: the shots for characters (MAML's code), 15 for photographs."""
    test_queries: int = 0
    """Query images of each class in meta-validation and meta-test; 0: as --queries. With --preset paper: the shots for photographs (MAML's code)."""
    preset: PresetName = "quick"
    """Where the other defaults come from. quick: scaled down, chosen for km on the meta-validation of omniglot 20-way 1-shot and only estimated for other settings; paper: the published protocol of Finn et al. 2017 and Raghu et al. 2020 (metakm/presets.py lists what still differs); tuned: longer than quick, with smaller clipping, a zero head and 10 inner steps in the meta-test, for characters with pooling and learned inner rates too, searched on omniglot 20-way 1-shot, in part on 5-shot, and on tiny-imagenet 5-way 1-shot (results/search), and only estimated for other settings."""
    backbone: str
    """conv4-<filters>-stride, conv4-<filters>-pool or resnet<depth>; own where a strategy brings a network of its own. Default from --preset; paper: conv4-64-stride for characters, conv4-32-pool for photographs."""
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
    """Course of the meta learning rate. Default from --preset; paper: constant."""
    grad_clip: float
    """Clip each entry of the meta-gradient to +- this value; 0 clips nothing. Default from --preset; paper: 0.133 or 0.667 for photographs with 1 or 5 shots (MAML's 10 on the sum over queries / shots), 0 for characters."""
    first_order: bool = False
    """Treat the inner gradients as constants (first-order MAML). Off as published."""
    implicit: bool = False
    """Adapt the affine parameters of the norm layers too (KM's implicit modulation). Off as published."""
    learn_inner_lr: bool = False
    """Learn one inner learning rate for each adapted tensor, from --inner-lr on. Off as published."""
    inner_lr_per_step: bool = False
    """With --learn-inner-lr: one for each inner step too, as in MAML++. Off as published."""
    nonnegative_inner_lr: bool = False
    """With --learn-inner-lr: after each outer step set rates below 0 to 0. Off as published."""
    first_head_lr: float = 0.0
    """With --inner-lr-per-step: where the rate of the classifier's weight in the first step starts; 0: at --inner-lr, as everything else."""
    zero_head: bool = False
    """Start the classifier at zero in every task (Kao et al. 2022), so that no class is unlike another before the first inner step, which then moves the classifier alone. Off as published: its start is learned."""
    multi_step_loss: int = 0
    """Iterations over which the outer loss moves from the mean of the query losses after all inner steps to the one after the last (MAML++, Antoniou et al. 2019); each step then costs a pass over the queries. 0, as published: the last alone."""
    ema: float = 0.0
    """Decay of an exponential moving average of all that the outer loop learns, such as 0.999; the average is what is validated, tested and saved. 0, as published: none."""
    augment: bool = False
    """Crop and mirror each image of the meta-training episodes at random, support and query; photographs only. Off as published."""
    normal_head: bool = False
    """Draw the classifier's first weights from N(0, 1), with a bias of 0, instead of from U(-1/sqrt(F), 1/sqrt(F)) for F features. On with --preset paper for characters (MAML's code)."""
    scaled_distance: bool = False
    """Where class means are compared by squared distance (protonet, *-proto): multiply it by 8 / (number of features), if that is below 1. On with every preset; off as published, which starts from a loss above 50 on photographs."""
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
    """Python files that register strategies; they run with your rights."""

    def __post_init__(self) -> None:
        for field, low in _at_least.items():
            require(getattr(self, field) >= low, field, f"at least {low}", getattr(self, field))
        for field, high in _at_most.items():
            require(getattr(self, field) <= high, field, f"at most {high}", getattr(self, field))
        for field in ("inner_lr", "meta_lr"):
            value = getattr(self, field)
            require(math.isfinite(value) and value > 0, field, "a positive number", value)
        for field in ("grad_clip", "first_head_lr"):
            value = getattr(self, field)
            require(math.isfinite(value) and value >= 0, field, "0 or more", value)
        require(0 <= self.ema < 1, "ema", "0 or more and below 1", self.ema)
        require(self.seed < 2**63, "seed", "below 2**63", self.seed)
        for field, choices in (
            ("preset", PresetName),
            ("schedule", Schedule),
            ("bn_mode", BatchNormMode),
            ("precision", Precision),
            ("select", Selection),
        ):
            if getattr(self, field) not in get_args(choices):
                raise unknown_name(flag(field), getattr(self, field), get_args(choices))
        for field, needed in NEEDS.items():
            if getattr(self, field) and not getattr(self, needed):
                raise UserError(f"Expected {flag(needed)} with {flag(field)}, got none; add it or drop the other")
        if self.zero_head and self.normal_head:
            raise UserError("Expected --zero-head or --normal-head, got both; drop one of them")
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
        variants = [name for name in ("implicit", "augment", *VARIANTS) if getattr(self, name)]
        variants += [self.precision] if self.precision != "fp32" else []
        parts = [self.setting, self.algo, *(v.replace("_", "-") for v in variants), self.preset, f"seed{self.seed}"]
        return "-".join([*parts, hashlib.sha256(json.dumps(self.identity()).encode()).hexdigest()[:8]])

    def identity(self) -> dict[str, Any]:
        """The fields that determine the numbers of the run."""
        return {k: v for k, v in self.to_json().items() if k not in EXECUTION_FIELDS}

    def to_json(self) -> dict[str, Any]:
        """All fields as JSON values."""
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        values["plugin"] = [str(path) for path in self.plugin]
        return {k: str(v) if isinstance(v, Path) else v for k, v in values.items()}

    @classmethod
    def from_json(cls, values: Any) -> RunConfig:
        """Inverse of `to_json`.

        Raises:
            UserError: not an object, an unknown or missing key, or a value of the wrong type or out of range.
        """
        if not isinstance(values, dict):
            raise UserError(f"Expected a config to be a JSON object, got {values!r:.200}")
        fields = {f.name: f for f in dataclasses.fields(cls)}
        for key in values:
            if key not in fields:
                raise unknown_name("config key", key, fields)
        hints = get_type_hints(cls)
        for name, field in fields.items():
            if name not in values and field.default is dataclasses.MISSING:
                raise UserError(f"Expected config key {name!r}, got none; add it")
            if name in values and not _is_json_of(values[name], hints[name]):
                raise UserError(f"Expected config key {name!r} to be {hints[name]}, got {values[name]!r:.200}; mend it")
        numbers = {k: _as_float(k, values[k]) for k, hint in hints.items() if hint is float and k in values}
        paths = {k: Path(values[k]) for k in ("data_root", "out", "log_dir") if values.get(k) is not None}
        plugin = tuple(Path(p) for p in values.get("plugin", ()))
        return cls(**{**values, **numbers, **paths, "plugin": plugin})


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
    "multi_step_loss": 0,
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
