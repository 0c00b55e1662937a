"""What a run or a test takes from an earlier run: its weights, and a check that its classes are new to that."""

from __future__ import annotations

from collections.abc import Mapping

from metakm.config import RunConfig
from metakm.data.in_turn import DatasetsInTurn
from metakm.data.overlap import check_unseen
from metakm.errors import UserError, one_line
from metakm.fields import flag
from metakm.io.tensor_file import fingerprint_of
from metakm.learning.learner import Learner
from metakm.models.build import weights_fingerprint
from metakm.run.build import load_splits, with_data_here
from metakm.run.loading import TrainedRun, load_run


def warm_start(learner: Learner, config: RunConfig, splits: Mapping[str, object]) -> str:
    """Give the learner the weights of the run that `--init-from` names; return the fingerprint of trained weights.

    Args:
        splits: the datasets that the learner will be validated and tested on.

    Raises:
        UserError: weights of another network, or of a run that was trained on these classes.
    """
    if config.init_from is None:
        return weights_fingerprint(learner)
    earlier = load_run(config.init_from)
    for name in ("algo", "backbone"):
        ours, theirs = getattr(config, name), getattr(earlier.config, name)
        if ours != theirs:
            raise UserError(
                f"Expected --init-from to name a run of {flag(name)} {ours}, got {config.init_from} of {theirs}; "
                "choose another run, or the same settings"
            )
    require_unseen_by(earlier, splits)
    try:
        learner.load_checked(earlier.learner.state_dict())
    except (RuntimeError, LookupError, TypeError, ValueError) as error:
        said = one_line(error)
        raise UserError(
            f"Expected --init-from to name a run of {config.algo!r} on the same network, got {config.init_from}: {said}"
        ) from error
    return fingerprint_of(learner.state_dict())


def require_unseen_by(run: TrainedRun, splits: Mapping[str, object]) -> None:
    """Refuse classes that a run was trained on, as far as its training data are on this machine.

    Args:
        splits: the datasets to test on, by the names of the splits.

    Raises:
        UserError: see `check_unseen`.
    """
    try:
        trained_on = load_splits(with_data_here(run.config), "train")
    except UserError:  # data that are elsewhere
        return
    for split, dataset in splits.items():
        check_unseen({"train": DatasetsInTurn(tuple(trained_on)), split: dataset})
