"""The trials of a search, from proposal to result, in storage that several processes share."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.trial import FrozenTrial, TrialState, create_trial

from metakm.config import all_flat_types
from metakm.errors import UserError
from metakm.io.files import write_text
from metakm.io.lock import InUseError
from metakm.learning.statistics import interval_over_tasks
from metakm.run.checkpoint import config_changes
from metakm.run.folder import RunFolder
from metakm.search.journal import WaitingLock, open_journal
from metakm.search.plan import SearchPlan, StrategySearch
from metakm.search.space import Dimension, Range, active
from metakm.search.trial import TrialOutcome


class Claimed(NamedTuple):
    """A trial that belongs to this process until the lock of its folder is released."""

    study: optuna.Study
    number: int
    values: dict[str, Any]
    folder: RunFolder
    resumed: bool


class Studies:
    """The storage of a search in its folder: one of Optuna's studies for each strategy.

    Raises:
        UserError: the folder has another search, or cannot be written.
    """

    def __init__(self, plan: SearchPlan) -> None:
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self.plan, self.out = plan, plan.out
        try:
            self.out.mkdir(parents=True, exist_ok=True)
            self.lock = WaitingLock(self.out / ".search.lock")
            with self.lock:
                self._check_protocol()
                self.storage = open_journal(self.out / "journal.log")
                self.studies = {search.algo: self._open(search) for search in plan.searches}
        except OSError as error:
            raise UserError(f"Expected to write to {self.out}, got {error}; choose another --out") from error

    def all_studies(self) -> dict[str, optuna.Study]:
        """The studies of all strategies in the storage, by strategy."""
        names = optuna.get_all_study_names(self.storage)
        return {name: optuna.load_study(study_name=name, storage=self.storage) for name in names}

    def claim(self, search: StrategySearch) -> Claimed | None:
        """An interrupted trial, else a new one; None if none is left, or other processes work on those left."""
        study, options = self.studies[search.algo], self.plan.options
        with self.lock:
            trials = study.get_trials(deepcopy=False)
            for trial in trials:
                if trial.state == TrialState.RUNNING and (claimed := self._take(study, trial, resumed=True)):
                    return claimed
            spent = sum(trial.user_attrs.get("seconds", 0.0) for trial in trials)
            if len(trials) >= options.trials or (options.seconds and spent >= options.seconds):
                return None
            params, distributions = _propose(search, trials, options.seed)
            # One line of the journal: if this process is killed, the whole trial is there or nothing.
            study.add_trial(create_trial(state=TrialState.RUNNING, params=params, distributions=distributions))
            return self._take(study, study.get_trials(deepcopy=False)[-1], resumed=False)

    def should_prune(self, claimed: Claimed, iteration: int, accuracy: float) -> bool:
        """Report a validation, and return whether the pruner gives up the trial."""
        frozen = claimed.study.get_trials(deepcopy=False)[claimed.number]
        live = optuna.trial.Trial(claimed.study, frozen._trial_id)
        if iteration not in frozen.intermediate_values:
            live.report(accuracy, iteration)
        return live.should_prune()

    def finish(self, claimed: Claimed, outcome: TrialOutcome) -> None:
        """Record how a trial ended. The sampler counts one that diverged or was given up as bad."""
        frozen = claimed.study.get_trials(deepcopy=False)[claimed.number]
        attributes: dict[str, Any] = {"state": outcome.state, "note": outcome.note, "seconds": outcome.seconds}
        value = None
        if outcome.state == "done":
            value = float(outcome.accuracies[outcome.best_steps].mean())
            attributes["test_steps"] = outcome.best_steps
            attributes["ci95"] = interval_over_tasks(outcome.accuracies[outcome.best_steps])
            attributes["by_steps"] = {str(steps): float(a.mean()) for steps, a in outcome.accuracies.items()}
        for name, attribute in attributes.items():
            self.storage.set_trial_user_attr(frozen._trial_id, name, attribute)
        claimed.study.tell(claimed.number, value, state=TrialState.PRUNED if value is None else None)

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Keep other processes from claiming trials and writing summaries."""
        with self.lock:
            yield

    def folder(self, algo: str, number: int) -> Path:
        """Folder of a trial."""
        return self.out / "trials" / algo / str(number)

    def _take(self, study: optuna.Study, trial: FrozenTrial, *, resumed: bool) -> Claimed | None:
        folder = RunFolder(self.folder(study.study_name, trial.number))
        try:
            with folder.locked():
                claimed = Claimed(study, trial.number, dict(trial.params), folder, resumed)
        except InUseError:
            return None
        if study.get_trials(deepcopy=False)[trial.number].state != TrialState.RUNNING:  # it ended after it was listed
            folder.release()
            return None
        return claimed

    def _open(self, search: StrategySearch) -> optuna.Study:
        study = optuna.create_study(
            study_name=search.algo,
            storage=self.storage,
            direction="maximize",
            load_if_exists=True,
            pruner=optuna.pruners.MedianPruner(n_startup_trials=5),
        )
        before = study.user_attrs.get("config")
        if before is not None and (changes := config_changes(before, search.config)):
            raise UserError(
                f"Expected the search of {search.algo} in {self.out}, got different settings: {changes}; {_REMEDY}"
            )
        followers = [config.to_json() for config in search.followers]
        page = {"dropped": search.dropped, "outside": search.outside, "followers": followers}
        fresh = {**page, "config": search.config.identity()}
        for name, value in json.loads(json.dumps(fresh)).items():
            if study.user_attrs.get(name) != value:
                study.set_user_attr(name, value)
        return study

    def _check_protocol(self) -> None:
        path, protocol = self.out / "search.json", self.plan.protocol()
        if not path.exists():
            write_text(path, json.dumps(protocol, indent=2) + "\n")
            return
        try:
            # Older searches have not recorded these.
            added: dict[str, Any] = {name: protocol[name] for name in ("split_hash", "files") if name in protocol}
            before, now = _flat({**added, **json.loads(path.read_text(encoding="utf-8"))}), _flat(protocol)
            changed = [name for name in {**before, **now} if before.get(name) != now.get(name)]
        except (ValueError, TypeError, AttributeError) as error:
            raise UserError(f"Expected a search in {path}, got {error}; {_REMEDY}") from error
        if changed:
            said = ", ".join(f"{name} {before.get(name, 'absent')} (now {now.get(name, 'absent')})" for name in changed)
            raise UserError(f"Expected the search in {self.out}, got different settings: {said}; {_REMEDY}")


def _flat(protocol: Mapping[str, Any]) -> dict[str, Any]:
    """The values of a protocol, those of its parts `space` and `flags` by their own names."""
    parts = {name: value if isinstance(value, dict) else {"": value} for name, value in protocol.items()}
    return {f"{name} {own}".rstrip(): value for name, part in parts.items() for own, value in part.items()}


_REMEDY = "use the earlier values, or another --out"


def _propose(
    search: StrategySearch, trials: list[FrozenTrial], seed: int
) -> tuple[dict[str, Any], dict[str, BaseDistribution]]:
    """Values of the next trial, a function of the seed and the trials before it, in whatever process."""
    number = len(trials)
    digest = hashlib.sha256(f"{seed} {number}".encode()).digest()
    sampler = optuna.samplers.TPESampler(seed=int.from_bytes(digest[:4], "big"))
    study = optuna.create_study(direction="maximize", sampler=sampler)
    study.add_trials(trials)
    distributions = {field: distribution(field, dimension) for field, dimension in search.space.items()}
    if number == 0:
        own_values = search.config.flat()
        study.enqueue_trial({field: own_values[field] for field in search.space if field not in search.outside})
    trial = study.ask()
    params: dict[str, Any] = {}
    for field, own in distributions.items():
        if active(field, params, search.config):
            params[field] = _suggest(trial, field, own)
    return params, {field: distributions[field] for field in params}


def _suggest(trial: optuna.Trial, field: str, own: BaseDistribution) -> Any:
    if isinstance(own, CategoricalDistribution):
        return trial.suggest_categorical(field, own.choices)
    if isinstance(own, IntDistribution):
        return trial.suggest_int(field, own.low, own.high, log=own.log)
    assert isinstance(own, FloatDistribution)
    return trial.suggest_float(field, own.low, own.high, log=own.log)


def distribution(field: str, dimension: Dimension) -> BaseDistribution:
    """A dimension of the space as Optuna's distribution."""
    if not isinstance(dimension, Range):
        return CategoricalDistribution(dimension.values)
    if all_flat_types()[field] is int:
        return IntDistribution(int(dimension.low), int(dimension.high), log=dimension.log)
    return FloatDistribution(dimension.low, dimension.high, log=dimension.log)
