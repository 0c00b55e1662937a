"""What a run computes, apart from the options of its strategy."""

from __future__ import annotations

import math
import operator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from metakm.config.ranges import RANGED, read_class_split, read_range
from metakm.errors import UserError, unknown_name
from metakm.fields import flag, require
from metakm.models.modes import BatchNormMode, TrainedPart
from metakm.options import Options

PresetName = Literal["quick", "paper", "table3"]
Schedule = Literal["constant", "cosine"]
Precision = Literal["fp32", "bf16"]
Selection = Literal["best", "last"]

FROM_PRESET: Any = object()
"""Default of a field whose value the preset gives."""
LEGACY_DEFAULTS: dict[str, Any] = {"test_queries": 0, "ema": 0.0, "select": "best"}
"""What a run did before there were these fields, which presets may set."""
OMITTED_DEFAULTS: dict[str, Any] = {
    "init_from": None,
    "weights": None,
    "split": None,
    "split_seed": 0,
    "train_ways": None,
    "train_shots": None,
    "patience": None,
    "second_order_from": 0,
    "train": "full",
    "protonet.distance": "euclidean",
    "protonet.scale": 10.0,
}
"""Fields and options added since the first release, with their defaults. A config's JSON leaves them out at these
values, so that older runs keep their run ids."""


@dataclass(frozen=True, kw_only=True)
class RunProtocol:
    """Fields that determine the results. What is not given has the preset's value."""

    algo: str = "km"
    """Strategy: maml, anil, km, bn, boil, meta-sgd, reptile, protonet, maml-proto, anil-proto, km-proto, r2d2, cavia, meta-curvature, imaml, baseline, baseline++, simpleshot, finetune, or one from a plugin. km is kernel modulation (Hu & Liu 2022, "the paper")."""
    dataset: str = "glyphs"
    """Dataset: glyphs (drawn by metakm, needs no file), omniglot, mini-imagenet, tiered-imagenet, tiny-imagenet, cifar-fs, fc100, cub, flowers, grocery-store, or folder: your own images, one folder per class in train/, val/ and test/ of --data-root, or directly in it with --split; or one from a plugin. Several, such as --dataset flowers grocery-store, alternate episode by episode. glyphs by default, so that every machine can run it."""
    ways: int = FROM_PRESET
    """Classes per episode. Default from --dataset: 20 for characters, 5 for photographs (Finn et al. 2017). A range such as 5-20 applies to meta-training alone, like --train-ways; validation and test then have the default."""
    shots: int = 1
    """Support images per class. The published settings have 1 and 5. A range such as 1-5 applies to meta-training alone, like --train-shots; validation and test then have 1."""
    train_ways: str | None = None
    """Range of ways, such as 5-20, from which each meta-batch draws its own, for strategies whose head takes any number of classes. Without it: --ways."""
    train_shots: str | None = None
    """Range of shots, such as 1-5, from which each meta-batch draws its own. Without it: --shots."""
    queries: int = FROM_PRESET
    """Query images per class. Default from --preset; paper: the shots for characters (MAML's code), 15 for photographs."""
    test_queries: int = FROM_PRESET
    """Query images per class in meta-validation and meta-test; 0: as --queries. With --preset table3, and paper for photographs: as many as --shots (MAML's code)."""
    preset: PresetName = "quick"
    """Where the other defaults come from. table3: the protocol of results/table3/, the same for all strategies, chosen on meta-validation (results/search). quick: scaled down, chosen for km on the meta-validation of omniglot 20-way 1-shot and only estimated for other settings; paper: the published protocol of Finn et al. 2017 and Raghu et al. 2020 (metakm/presets.py lists what still differs)."""
    backbone: str = FROM_PRESET
    """conv4-<filters>-stride, conv4-<filters>-pool, resnet12, resnet<depth> (of CIFAR) or wrn-<depth>-<k>; efficientnet-lite0; any network as timm:NAME, torchvision:NAME or file.py:Class (the file runs with your permissions); own, where a strategy brings a network of its own; or one from a plugin. Default from --preset; paper: conv4-64-stride for characters, conv4-32-pool for photographs."""
    inner_lr: float = FROM_PRESET
    """Inner learning rate on the mean support cross-entropy. Default from --preset; paper: 0.1 x ways for characters (0.4 x ways with 5 ways) and 0.01 x ways for photographs, because MAML's loss is a sum over classes: 2.0 with 20-way and 5-way characters, 0.05 with 5-way photographs."""
    inner_steps: int = FROM_PRESET
    """Inner steps in meta-training. Default from --preset; paper: 5, for 5-way characters 1."""
    test_inner_steps: int = FROM_PRESET
    """Inner steps in meta-validation and meta-test. Default from --preset; paper: 5 for characters (5-way: 3), 10 for photographs."""
    meta_batch: int = FROM_PRESET
    """Tasks per meta-batch. Default from --preset; paper: 16 for characters (5-way: 32), 4 or 2 for photographs with 1 or 5 shots."""
    meta_lr: float = FROM_PRESET
    """Adam's learning rate in the outer loop. Default from --preset; paper: 1e-3."""
    iterations: int = FROM_PRESET
    """Meta-training iterations. Default from --preset; paper: 60000. 0 evaluates the untrained model."""
    schedule: Schedule = FROM_PRESET
    """Schedule of the meta learning rate. Default from --preset; paper: constant."""
    grad_clip: float = FROM_PRESET
    """Clip each entry of the meta-gradient to +- this value; 0 clips nothing. Default from --preset; paper: 0.133 or 0.667 for photographs with 1 or 5 shots (MAML's 10 on the sum over queries / shots), 0 for characters."""
    options: Options = FROM_PRESET
    """The strategy's own; see --algo."""
    ema: float = FROM_PRESET
    """Decay of an exponential moving average of all that the outer loop learns, such as 0.999; the average is what is validated, tested and saved. 0, as published: none."""
    augment: bool = False
    """Crop and mirror each image of the meta-training episodes at random, support and query; photographs only. Off as published."""
    bn_mode: BatchNormMode = "transductive"
    """Where batch statistics come from. transductive, as published: the current batch, support or query; support: the support images, for both; running: the current batch in training, running averages from meta-training in evaluation; frozen: the stored averages, in training too."""
    precision: Precision = "fp32"
    """Precision in which the convolutions are computed: fp32, on a GPU too (metakm's kernels there keep float32's accuracy), or bf16, faster where the processor has it; parameters, norm statistics and head stay fp32."""
    seed: int = 0
    """Seed of the initial weights and of the meta-training episodes. Meta-validation and meta-test episodes are the same for every seed."""
    image_size: int = 0
    """Side in pixels of the square to which images are resized; 0 is 84, or 32 for cifar-fs and fc100. Refused for glyphs, omniglot and tiny-imagenet, whose size is fixed."""
    split: str | None = None
    """Numbers of training, validation and test classes, such as 64/16/20, into which --dataset folder divides one folder of class folders at random, by --split-seed; not the --split of metakm evaluate. Without it: the folders train, val and test."""
    split_seed: int = 0
    """Seed with which --split divides the classes. It is independent of --seed, so that runs of all seeds have the same classes."""
    init_from: Path | None = None
    """Folder of a trained run whose weights this one starts from. It must have the same strategy and backbone and, unless the strategy's head takes any number of classes, the same ways. Without it: weights by --seed."""
    weights: str | None = None
    """Trained weights for the backbone: a file, or pretrained for the published ones of efficientnet-lite0, timm:NAME or torchvision:NAME, whose images are normalised as these expect. A file's tensors are matched by name or, if it has none of the network's names and is not a safetensors file, by order. Without it: weights by --seed."""
    train: TrainedPart = "full"
    """What the outer loop trains of the backbone: full, everything; norm, the scales and shifts of its norm layers; km, kernel modulators, which are then attached to its convolutions unless the strategy has its own; both, norm and km. The rest keeps its initial values. What the inner loop adapts depends on the strategy, and what a strategy has besides the backbone is always trained."""
    eval_tasks: int = 600
    """Meta-test tasks. 600 as published (Finn et al. 2017)."""
    val_tasks: int = FROM_PRESET
    """Meta-validation tasks at each validation. Default from --preset."""
    select: Selection = FROM_PRESET
    """Which model is meta-tested: the best on meta-validation, or the last. Last with --preset table3 and paper (MAML's code)."""
    val_every: int = FROM_PRESET
    """Iterations between validations; the last iteration always validates. Default from --preset."""
    patience: int | None = None
    """Stop the meta-training after this many validations in a row without a new best accuracy. Without it: after --iterations."""

    def __post_init__(self) -> None:
        for name in RANGED:
            if (text := getattr(self, f"train_{name}")) is not None:
                read_range(text, name)
        if self.split is None:
            if self.split_seed:
                raise UserError(f"Expected --split with --split-seed {self.split_seed}, got none; give both or neither")
        else:
            read_class_split(self.split)
        for name, low in _at_least.items():
            value = getattr(self, name)
            require(hasattr(value, "__index__"), name, "a whole number", repr(value))
            value = operator.index(value)  # also of numpy's
            object.__setattr__(self, name, value)
            require(value >= low, name, f"at least {low}", value)
        for name, high in _at_most.items():
            require(getattr(self, name) <= high, name, f"at most {high}", getattr(self, name))
        require(self.patience is None or self.patience >= 1, "patience", "at least 1", self.patience)
        for name in ("inner_lr", "meta_lr"):
            value = getattr(self, name)
            require(isinstance(value, int | float), name, "a number", repr(value))
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
            ("train", TrainedPart),
        ):
            if getattr(self, name) not in get_args(choices):
                raise unknown_name(flag(name), getattr(self, name), get_args(choices))


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
    "image_size": 0,
    "split_seed": 0,
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
