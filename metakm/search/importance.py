"""How much each hyper-parameter mattered, as a picture."""

from __future__ import annotations

import warnings
from collections.abc import Mapping

import optuna
from optuna.trial import TrialState

from metakm.io.figure import figure_bytes, new_figure

LEAST_TRIALS = 4  # measured ones; with fewer, importances mean nothing


def importances(study: optuna.Study) -> dict[str, float]:
    """Importance of each parameter for the better trials (PED-ANOVA); empty if there are too few trials."""
    done = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    if len(done) < LEAST_TRIALS or len({trial.value for trial in done}) == 1:
        return {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about parameters with few trials; the page says so for all
        try:
            return dict(optuna.importance.get_param_importances(study))
        except (ValueError, RuntimeError):  # no parameter varied
            return {}


def importances_png(found: Mapping[str, Mapping[str, float]]) -> bytes:
    """The importances of each strategy side by side, as a PNG file's bytes."""
    rows = max(len(values) for values in found.values())
    figure = new_figure(figsize=(4 * len(found), 1 + 0.25 * rows), layout="constrained")
    for axes, (algo, values) in zip(figure.subplots(1, len(found), squeeze=False)[0], found.items(), strict=True):
        names = list(values)[::-1]
        axes.barh(names, [values[name] for name in names], color="#1f6fb2")
        axes.set(title=algo, xlabel="importance", xlim=(0, 1))
        axes.grid(axis="x", alpha=0.3)
    return figure_bytes(figure)
