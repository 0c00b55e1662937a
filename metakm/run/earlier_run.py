"""What a run or a test takes from an earlier run: its weights, and a check that its classes are new to that."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping

from metakm.config import RunConfig
from metakm.data.alternating import AlternatingDatasets
from metakm.data.overlap import check_unseen
from metakm.errors import UserError, one_line
from metakm.fields import flag
from metakm.io.tensor_file import fingerprint_of
from metakm.learning.learner import Learner
from metakm.models.build import weights_fingerprint
from metakm.run.build import load_splits, make_sampler, with_data_here
from metakm.run.loading import TrainedRun, load_run

_log = logging.getLogger(__name__)


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
    require_unseen_by(earlier, splits, config.image_size)
    try:
        learner.load_checked(earlier.learner.state_dict())
    except (RuntimeError, LookupError, TypeError, ValueError) as error:
        said = one_line(error)
        raise UserError(
            f"Expected --init-from to name a run of {config.algo!r} on the same network, got {config.init_from}: {said}"
        ) from error
    return fingerprint_of(learner.state_dict())


def same_data(run: TrainedRun, config: RunConfig, tested: str) -> bool:
    """Whether a config's data are those that the run was trained on, if that is known; a warning says if they are not.

    Args:
        tested: the split hash of the data to test on. If that is of one split alone, the training data are read, too.
    """
    if run.split_hash in ("", tested):
        return True
    try:
        here = make_sampler(config, "train").dataset.split_hash
    except UserError:  # samplers of the user's own, or a folder with the test split alone
        return True
    if run.split_hash == here:
        return True
    _log.warning(
        "the data called %s are not those that the run was trained on (split_hash %s, not %s): accuracies of both are "
        "not comparable", config.dataset, here, run.split_hash,
    )  # fmt: skip
    return False


def require_unseen_by(run: TrainedRun, splits: Mapping[str, object], image_size: int | None = None) -> None:
    """Refuse classes that a run was trained on, as far as its training data are on this machine.

    Args:
        splits: the datasets to test on, by the names of the splits.
        image_size: theirs, if it may differ from the run's: images of other sizes cannot be compared.

    Raises:
        UserError: see `check_unseen`.
    """
    own = with_data_here(run.config)
    for size in dict.fromkeys((own.image_size, own.image_size if image_size is None else image_size)):
        try:
            trained_on = load_splits(dataclasses.replace(own, image_size=size), "train")
        except UserError:  # data that are elsewhere, or of one size
            continue
        for split, dataset in splits.items():
            check_unseen({"train": AlternatingDatasets(tuple(trained_on)), split: dataset})
