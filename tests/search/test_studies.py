"""Proposals: a function of the seed and the trials before, whichever process asks."""

import pytest

pytest.importorskip("optuna")

from optuna.trial import TrialState, create_trial

from metakm.presets import preset_config
from metakm.search.journal import open_journal
from metakm.search.plan import StrategySearch
from metakm.search.space import Choices, Range
from metakm.search.studies import _propose, optuna

SEARCH = StrategySearch(
    preset_config("quick", "km"),
    {"meta_lr": Range(1e-4, 1e-1, log=True), "learn_inner_lr": Choices((False, True)), "ema": Choices((0.0, 0.9))}
    | {"inner_lr_per_step": Choices((False, True))},
    {},
)


def proposals(count, seed=0, storage=None):
    """Trials whose accuracy is the better the smaller the meta learning rate."""
    study = optuna.create_study(direction="maximize", storage=storage, load_if_exists=True, study_name="km")
    for _ in range(len(study.trials), count):
        params, distributions = _propose(SEARCH, study.get_trials(), seed)
        study.add_trial(create_trial(state=TrialState.RUNNING, params=params, distributions=distributions))
        study.tell(study.trials[-1].number, 1 - params["meta_lr"])
    return [trial.params for trial in study.trials]


def test_a_storage_that_is_opened_again_proposes_what_an_unbroken_search_would(tmp_path):
    unbroken = proposals(14)  # the last 4 by the sampler's model, the first 10 at random
    path = tmp_path / "journal.log"
    assert proposals(11, storage=open_journal(path)) == unbroken[:11]
    assert proposals(14, storage=open_journal(path)) == unbroken
    assert proposals(3, seed=1)[1:] != unbroken[1:3]


def test_the_sampler_learns_from_earlier_trials():
    rates = [params["meta_lr"] for params in proposals(20)]
    assert sorted(rates[10:])[5] < sorted(rates[:10])[5]


def test_an_option_without_its_need_is_not_proposed():
    found = proposals(12)
    assert {"inner_lr_per_step" in params for params in found} == {False, True}
    assert all(params["learn_inner_lr"] for params in found if "inner_lr_per_step" in params)


def test_the_first_trial_has_the_values_of_the_preset_where_the_space_has_them():
    first = proposals(1)[0]
    assert (first["meta_lr"], first["ema"], first["learn_inner_lr"]) == (3e-3, 0.0, False)
