"""weights.safetensors: the tested model of a finished run, in a file small enough to travel with its row."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from metakm.config import RunConfig
from metakm.errors import UserError
from metakm.learning.learner_file import SavedLearner, learner_file, read_learner_file
from metakm.models.registry import ImageShape
from metakm.run.checkpoint import config_changes


def weights_file(
    config: RunConfig, image_shape: ImageShape, model: dict[str, Any], train_classes: int | None = None
) -> bytes:
    """The file of a model as `OuterLoop.model_state` gives it.

    Args:
        train_classes: that of the learner.

    Raises:
        UserError: tensors of a strategy that safetensors does not have, such as sparse ones.
    """
    return learner_file(SavedLearner(config.identity(), image_shape, model, train_classes))


def read_run_weights(path: Path, config: RunConfig) -> tuple[ImageShape, int | None, dict[str, Any]]:
    """(C, H, W) of the images trained on, the learner's `train_classes`, and the model for its `load_state_dict`.

    Raises:
        UserError: the file is damaged, foreign, of another format, or of a run with another config; the fields are
            named.
    """
    header, image_shape, state, train_classes = read_learner_file(path)
    try:
        trained = RunConfig.from_json(header)  # fields that are newer than the file have their defaults
    except UserError as error:
        raise UserError(
            f"Expected the header of a trained run in {path}, got another: {error}; copy it again"
        ) from error
    if changes := config_changes(trained.identity(), config):
        raise UserError(
            f"Expected weights of the run in {path.with_name('config.json')}, got those of another: {changes}; copy "
            "the folder again"
        )
    if image_shape is None:
        raise UserError(f"Expected the header of a trained run in {path}, got one without image_shape; copy it again")
    return image_shape, train_classes, state
