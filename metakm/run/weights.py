"""weights.safetensors: the tested model of a finished run, in a file small enough to travel with its row."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from metakm.config import RunConfig
from metakm.errors import UserError
from metakm.io.tensor_file import TensorFile
from metakm.run.checkpoint import config_changes

ImageShape = tuple[int, int, int]

_FILE = TensorFile("weights file", key="metakm.run", version=1, source="a run writes one when it is done")


def weights_file(config: RunConfig, image_shape: ImageShape, model: dict[str, Any]) -> bytes:
    """The file of a model as `OuterLoop.model_state` gives it.

    Raises:
        UserError: tensors of a strategy that safetensors does not have, such as sparse ones.
    """
    rates = {f"rates.{i}": rate for i, rate in enumerate(model["rates"])}
    strategy = {f"strategy.{name}": tensor for name, tensor in model["strategy"].items()}
    header = {"config": config.identity(), "image_shape": list(image_shape)}
    return _FILE.to_bytes(header, {**strategy, **rates})


def read_weights(path: Path, config: RunConfig) -> tuple[ImageShape, dict[str, Any]]:
    """(C, H, W) of the images trained on, and the model as `OuterLoop.load_model_state` takes it.

    Raises:
        UserError: the file is damaged, foreign, of another format, or of a run with another config; the fields are
            named.
    """
    header, tensors = _FILE.read(path)
    try:
        channels, height, width = shape = header["image_shape"]
        if not all(type(side) is int and side > 0 for side in shape):
            raise ValueError(f"image_shape {shape!r:.80}")
        trained = RunConfig.from_json(header["config"])  # fields that are newer than the file have their defaults
    except (UserError, ValueError, LookupError, TypeError) as error:
        raise UserError(
            f"Expected the header of a trained run in {path}, got another: {error}; copy it again"
        ) from error
    if changes := config_changes(trained.identity(), config):
        raise UserError(
            f"Expected weights of the run in {path.with_name('config.json')}, got those of another: {changes}; copy "
            "the folder again"
        )
    rates = sorted((name for name in tensors if name.startswith("rates.")), key=_number)
    strategy = {name.removeprefix("strategy."): tensor for name, tensor in tensors.items() if name not in rates}
    return (channels, height, width), {"strategy": strategy, "rates": [tensors[name] for name in rates]}


def _number(name: str) -> int:
    """Of a rate, whose names do not sort as their numbers do."""
    number = name.removeprefix("rates.")
    return int(number) if number.isdecimal() else -1
