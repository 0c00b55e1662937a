"""The configuration of one run: typed, frozen, validated. Flags, help and `config.json` all derive from it."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from metakm.config.execution import SHARED_EXECUTION_FIELDS, ExecutionOptions
from metakm.config.json_values import json_value
from metakm.config.protocol import FROM_PRESET, LEGACY_DEFAULTS, OMITTED_DEFAULTS, RunProtocol
from metakm.config.ranges import both_ranges, read_range
from metakm.errors import UserError
from metakm.fields import require
from metakm.options import SHARED, Options, SharedOptions, from_flat, shared_part, to_flat

# Fields that say where and how a run is executed, not what it computes; a resumed run may change them.
EXECUTION_FIELDS = SHARED_EXECUTION_FIELDS | {"task_chunk", "eager", "plugin"}

# Fields that say which run of which setting this is; every other one that computes belongs to the protocol.
NAMED_IN_ROW = frozenset({"algo", "dataset", "ways", "shots", "preset", "seed"})


@dataclass(frozen=True, kw_only=True)
class RunConfig(ExecutionOptions, RunProtocol):
    """Meta-train one strategy, evaluate it on meta-test tasks, and write its row.

    Defaults follow --algo, --dataset, --ways, --shots and --preset:
    --help beside these flags shows the defaults for them.
    """

    task_chunk: int | None = None
    """Tasks whose graphs are in memory at once; except for rounding and for networks with dropout, such as resnet12, the result does not depend on it. Without it: as many as fit into half of the memory, by an estimate; runs of a sweep on one device divide it."""
    eager: bool = False
    """On a GPU, launch the kernels of each meta-gradient one by one. Without it they are captured once as a CUDA graph and replayed, which is faster; a strategy that synchronises with the GPU cannot be captured and runs as with --eager."""
    plugin: Annotated[tuple[Path, ...], tyro.conf.arg(help_behavior_hint="(default: none)")] = ()
    """Python files that register strategies, datasets or backbones; they run with your permissions."""

    def __post_init__(self) -> None:
        self._take_ranges()
        self._follow_preset()
        RunProtocol.__post_init__(self)
        ExecutionOptions.__post_init__(self)
        require(self.task_chunk is None or self.task_chunk >= 1, "task_chunk", "at least 1", self.task_chunk)
        if self.init_from is not None and self.weights is not None:
            raise UserError("Expected --init-from or --weights, got both; drop one of them")
        self._check_ranges()
        wanted = options_of(self.algo)
        if type(self.options) is Options:
            object.__setattr__(self, "options", wanted())
        if type(self.options) is not wanted:
            raise UserError(
                f"Expected options of {self.algo!r} to be {wanted.__name__}, got {type(self.options).__name__}; "
                "build the config of another strategy with preset_config"
            )
        if self.shared.multi_step_loss and self.inner_steps == 1:
            raise UserError("Expected --inner-steps above 1 with --multi-step-loss, got 1; drop one of them")

    def _take_ranges(self) -> None:
        """A range given as `ways` or `shots` is one of meta-training; the tests have the default number."""
        for name, default in (("ways", FROM_PRESET), ("shots", 1)):
            value: Any = getattr(self, name)
            if isinstance(value, str):
                if getattr(self, f"train_{name}") is not None:
                    raise both_ranges(name)
                object.__setattr__(self, f"train_{name}", value)
                object.__setattr__(self, name, default)

    def _check_ranges(self) -> None:
        from metakm.strategies.registry import strategies_of_any_ways  # brings torch along

        if self.train_ways is not None and self.algo not in (able := strategies_of_any_ways()):
            raise UserError(
                f"Expected --ways to be one number for {self.algo!r}, whose head has as many outputs as it was built "
                f"with, got {self.train_ways}; name one, or take {', '.join(able)}"
            )

    def train_range(self, name: Literal["ways", "shots"]) -> range:
        """The ways or shots that meta-training draws from; of one number where they are not drawn."""
        text: str | None = getattr(self, f"train_{name}")
        own: int = getattr(self, name)
        return range(own, own + 1) if text is None else read_range(text, name)

    def queries_of(self, split: str) -> int:
        """Query images per class of a split's episodes."""
        return self.queries if split == "train" else self.test_queries or self.queries

    @property
    def varies(self) -> bool:
        """Whether the ways or shots of meta-training are drawn out of a range."""
        return self.train_ways is not None or self.train_shots is not None

    def _follow_preset(self) -> None:
        missing = [f.name for f in dataclasses.fields(self) if getattr(self, f.name) is FROM_PRESET]
        if not missing:
            return
        from metakm.presets import preset_values  # brings torch along

        ways = None if "ways" in missing else self.ways
        values = preset_values(self.preset, self.algo, self.dataset, ways, self.shots)
        fields = {f.name for f in dataclasses.fields(self)}
        options = {name: value for name, value in values.items() if name not in fields}
        values["options"] = from_flat(self.algo, options_of(self.algo), options)
        for name in missing:
            object.__setattr__(self, name, values[name])

    @property
    def execution(self) -> ExecutionOptions:
        """How and where the run is executed."""
        return self

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
        variants = [_id_part(name.rpartition(".")[2], value) for name, value in changed.items()]
        ranges = {name: text for name in ("train_ways", "train_shots") if (text := getattr(self, name)) is not None}
        variants += [_id_part(name, text) for name, text in ranges.items()]
        variants += [] if self.split is None else [f"split-{self.split.replace('/', '-')}"]
        variants += [*(["augment"] if self.augment else []), *([self.precision] if self.precision != "fp32" else [])]
        parts = [self.setting, self.algo, *variants, self.preset, f"seed{self.seed}"]
        return "-".join([*parts, hashlib.sha256(json.dumps(self.identity()).encode()).hexdigest()[:8]])

    def may_change(self, earlier: Mapping[str, Any]) -> frozenset[str]:
        """A run may be resumed for more iterations if nothing that it did depends on their number."""
        from metakm.strategies.registry import strategy_class  # brings torch along

        done = earlier.get("iterations", 0)
        validated = isinstance(done, int) and done % self.val_every == 0  # at its end, as a longer one would have
        same = self.schedule == "constant" and not self.shared.second_order_from and validated
        longer = same and not strategy_class(self.algo).uses_progress
        return frozenset({"iterations"} if longer and done <= self.iterations else ())

    def identity(self) -> dict[str, Any]:
        """The fields that determine the results of the run."""
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
        values = {f.name: f.default for f in dataclasses.fields(self) if f.default is not FROM_PRESET}
        return values | LEGACY_DEFAULTS | dataclasses.asdict(SharedOptions()) | to_flat(self.algo, type(self.options)())

    @classmethod
    def from_flat(cls, values: Mapping[str, Any]) -> RunConfig:
        """Inverse of `flat`; options that are missing have their default, other fields the preset's value.

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
        """`flat` as JSON values, without `OMITTED_DEFAULTS` where they are not given."""
        values = {name: json_value(value) for name, value in self.flat().items()}
        return {
            name: value
            for name, value in values.items()
            if name not in OMITTED_DEFAULTS or value != OMITTED_DEFAULTS[name]
        }

    @classmethod
    def from_json(cls, values: Any) -> RunConfig:
        """Inverse of `to_json`.

        Raises:
            UserError: not an object, an unknown or missing key, or a value of the wrong type or out of range.
        """
        from metakm.config.field_types import checked_values

        return cls.from_flat({**LEGACY_DEFAULTS, **checked_values(values)})


def options_of(algo: str) -> type[Options]:
    """The class of a strategy's options.

    Raises:
        UserError: an unknown strategy.
    """
    from metakm.strategies.registry import strategy_class  # brings torch along

    return strategy_class(algo).options


def _id_part(name: str, value: object) -> str:
    """A changed option in a run id: its name, followed by its value unless that is a switch."""
    words = name.replace("_", "-")
    return words if isinstance(value, bool) or name in SHARED else f"{words}-{value}"
