"""Options of strategies: frozen dataclasses, from which flags, help, config, run id and row derive.

A strategy names its class of options where it is registered. Options that several strategies share are fields of the
classes here, and flags of their own name (`--first-order`); those that one strategy adds are flags behind its name
(`--km.depth`). A strategy refuses the options that its class does not have.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeVar, get_args, get_origin, get_type_hints

import numpy as np
import tyro

from metakm.errors import UserError, unknown_name
from metakm.fields import flag, require

_T = TypeVar("_T")
_Shared = tyro.conf.arg(prefix_name=False)
SharedBool = Annotated[bool, _Shared]
SharedInt = Annotated[int, _Shared]
SharedFloat = Annotated[float, _Shared]


@dataclass(frozen=True, kw_only=True)
class Options:
    """What a strategy can be given besides a backbone and the ways. Values are int, float, bool, str or a Literal.

    numpy's numbers become Python's.

    Raises:
        UserError: a value that is none of its field's choices.
    """

    def __post_init__(self) -> None:
        for name, hint in option_types(type(self)).items():
            if isinstance(value := getattr(self, name), np.generic):
                object.__setattr__(self, name, value.item())
            if get_origin(hint) is Literal and getattr(self, name) not in get_args(hint):
                raise unknown_name(name, getattr(self, name), get_args(hint))


@dataclass(frozen=True, kw_only=True)
class GradientOptions(Options):
    """Options of strategies whose meta-gradient goes through gradient descent."""

    first_order: SharedBool = False
    """Treat the inner gradients as constants (first-order MAML). Off as published."""
    multi_step_loss: SharedInt = 0
    """Iterations over which the outer loss moves from the mean of the query losses after all inner steps to the one after the last (MAML++, Antoniou et al. 2019); each step then costs a pass over the queries. 0, as published: the last alone."""
    second_order_from: SharedFloat = 0.0
    """Fraction of --iterations that use first-order gradients, before the second-order ones (MAML++'s derivative-order annealing), such as 0.3. 0, as published: second-order from the start."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(0 <= self.second_order_from < 1, "second_order_from", "0 or more and below 1", self.second_order_from)
        if self.first_order and self.second_order_from:
            raise UserError("Expected --first-order or --second-order-from, got both; drop one of them")
        require(self.multi_step_loss >= 0, "multi_step_loss", "at least 0", self.multi_step_loss)


@dataclass(frozen=True, kw_only=True)
class RateOptions(GradientOptions):
    """Options of strategies whose inner learning rates can be learned."""

    learn_inner_lr: SharedBool = False
    """Learn one inner learning rate per adapted tensor, starting from --inner-lr. Off as published."""
    inner_lr_per_step: SharedBool = False
    """With --learn-inner-lr: one for each inner step too, as in MAML++. Off as published."""
    nonnegative_inner_lr: SharedBool = False
    """With --learn-inner-lr: after each outer step set rates below 0 to 0. Off as published."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, needed in NEEDS.items():
            if getattr(self, name, None) and not getattr(self, needed):
                raise UserError(f"Expected {flag(needed)} with {flag(name)}, got none; add it or drop the other")


@dataclass(frozen=True, kw_only=True)
class HeadOptions(RateOptions):
    """Options of strategies with a linear head that starts at its own parameters."""

    first_head_lr: SharedFloat = 0.0
    """With --inner-lr-per-step: initial learning rate of the head's weight in the first inner step; 0: --inner-lr, as for everything else."""
    zero_head: SharedBool = False
    """Start the head at zero in every task (Kao et al. 2022), so that no class differs from another before the first inner step, which then moves the head alone. Off as published: its initial weights are learned."""
    normal_head: SharedBool = False
    """Draw the head's initial weights from N(0, 1), with a bias of 0, instead of from U(-1/sqrt(F), 1/sqrt(F)) for F features. On with --preset paper for characters (MAML's code)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(0 <= self.first_head_lr < float("inf"), "first_head_lr", "0 or more", self.first_head_lr)
        if self.zero_head and self.normal_head:
            raise UserError("Expected --zero-head or --normal-head, got both; drop one of them")


@dataclass(frozen=True, kw_only=True)
class NormOptions(Options):
    """Options of strategies that may adapt the norm layers or leave them to the outer loop."""

    implicit: SharedBool = False
    """Adapt the affine parameters of the norm layers too (KM's implicit modulation). Off as published."""


@dataclass(frozen=True, kw_only=True)
class PrototypeOptions(Options):
    """Options of strategies that compare class means by squared distance."""

    scaled_distance: SharedBool = False
    """Multiply squared distances to class means by 8 / (number of features), if that is below 1. On with every preset; off as published, which starts from a loss above 50 on photographs."""


@dataclass(frozen=True, kw_only=True)
class SharedOptions(HeadOptions, NormOptions, PrototypeOptions):
    """All options that are not one strategy's own."""


# Options that are refused unless another one is on.
NEEDS = {
    "inner_lr_per_step": "learn_inner_lr",
    "nonnegative_inner_lr": "learn_inner_lr",
    "first_head_lr": "inner_lr_per_step",
}
SHARED = tuple(field.name for field in dataclasses.fields(SharedOptions))
OF_THE_LEARNER = {*SHARED} - {"implicit", "scaled_distance"}
"""Those that the learner acts on; all others are keywords of a strategy's constructor."""


def shared_part(options: Options) -> SharedOptions:
    """The shared ones among the options of a strategy; those that it lacks have their default."""
    own = option_types(type(options))
    return SharedOptions(**{name: getattr(options, name) for name in SHARED if name in own})


def option_types(options: type[Options]) -> dict[str, Any]:
    """The type of each option, in order."""
    hints = get_type_hints(options)
    return {field.name: hints[field.name] for field in dataclasses.fields(options)}


def flat_name(algo: str, option: str) -> str:
    """What an option is called among the fields of a run: its own name if it is shared, else such as `km.depth`."""
    return option if option in SHARED else f"{algo}.{option}"


def to_flat(algo: str, options: Options) -> dict[str, Any]:
    """The values of options by their flat names."""
    return {flat_name(algo, name): getattr(options, name) for name in option_types(type(options))}


def from_flat(algo: str, options: type[Options], values: Mapping[str, Any]) -> Options:
    """Inverse of `to_flat`; what is not given has its default.

    Raises:
        UserError: an option that the strategy does not have, unless its value is that of a run without it.
    """
    own = {flat_name(algo, name): name for name in option_types(options)}
    for name, value in values.items():
        if name not in own and not (name in SHARED and value == getattr(SharedOptions(), name)):
            raise refused_option(algo, name, own)
    return options(**{own[name]: value for name, value in values.items() if name in own})


def from_keywords(algo: str, options: type[Options], given: Mapping[str, Any]) -> Options:
    """Options by their own names, or by their flat ones; see `from_flat`.

    Raises:
        UserError: a name that is none of them.
    """
    own = option_types(options)
    flat = {of: flat_name(algo, name) for name in own for of in (name, flat_name(algo, name))}
    for name in given:
        if own and name not in flat and name not in SHARED:
            raise unknown_name(f"an option of {algo!r}", name, sorted(set(flat.values())))
    return from_flat(algo, options, {flat.get(name, name): value for name, value in given.items()})


def refused_option(algo: str, name: str, known: Iterable[str]) -> UserError:
    """The error for an option, by its flat name, that a strategy does not have.

    Args:
        known: what it has.
    """
    if name not in SHARED:
        own = [each for each in known if "." in each]
        return (
            unknown_name(f"an option of {algo!r}", name, own)
            if own
            else UserError(f"{algo!r} has no options of its own, got {flag(name)}; leave it out")
        )
    return UserError(f"{flag(name)} has no effect with {algo!r}; leave it out")
