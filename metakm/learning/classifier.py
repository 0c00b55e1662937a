"""From a few labelled images to a classifier: a strategy adapted once, outside of meta-training."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from metakm.data.labels import check_labels, plain_label
from metakm.errors import UserError
from metakm.learning.inner_loop import GradientDescent
from metakm.learning.inner_rates import copied
from metakm.strategies.base import Strategy
from metakm.strategies.interfaces import InnerLR

Images = Tensor | npt.NDArray[Any]
"""`[n, C, H, W]`, uint8, or floats in [0, 1] as in metakm's episodes."""
Labels = Sequence[Any] | Tensor | npt.NDArray[Any]
"""`[n]`, one string or number per image."""


def adapt(
    strategy: Strategy,
    support_images: Images,
    support_labels: Labels,
    *,
    inner_lr: InnerLR,
    inner_steps: int,
) -> AdaptedClassifier:
    """Adapt a copy of `strategy`, in evaluation mode, to one support set; the strategy itself stays as it is.

    Args:
        support_images: `[n, C, H, W]`, any number of each class.
        support_labels: `[n]`, one string or number an image; as many different ones as the strategy has ways.
        inner_lr, inner_steps: see `meta_loss`; a trained run has both (`load_run`).

    Raises:
        UserError: labels that are missing, or do not fit the images or the strategy's ways; images that do not fit
            its network.
    """
    return AdaptedClassifier(strategy, support_images, support_labels, inner_lr, inner_steps)


class AdaptedClassifier:
    """Images `[n, C, H, W]` to logits `[n, N]`, to probabilities or to labels. Made by `adapt`.

    No result has a graph. It can be copied and, unless its backbone has modulators attached, pickled; what was adapted
    is then adapted again from the support images, to the same result. What a prediction depends on is the batch-norm
    mode's choice (`bn_mode`): with `transductive`, as published, the images of one call are normalised together and
    influence each other, so one image alone may be classified differently than among others. With the other modes each
    image stands for itself.

    Attributes:
        classes_: the N labels, sorted; column i of logits and probabilities belongs to `classes_[i]`.
    """

    def __init__(
        self,
        strategy: Strategy,
        support_images: Images,
        support_labels: Labels,
        inner_lr: InnerLR,
        inner_steps: int,
    ) -> None:
        self._inner_lr, self._inner_steps = copied(inner_lr), inner_steps
        with torch.inference_mode(False), torch.no_grad():
            self._learn(strategy, support_images, support_labels)

    def _learn(
        self,
        strategy: Strategy,
        support_images: Images,
        support_labels: Labels,
    ) -> None:
        self._strategy = copy.deepcopy(strategy).eval()
        self._support = self._batch(support_images)
        marks = _plain(support_labels)
        if len(marks) != self._support.shape[1]:
            raise UserError(f"Expected one label per image, got {len(marks)} for {self._support.shape[1]} images")
        self.classes_ = sorted(set(marks))
        self._classes = torch.tensor([[self.classes_.index(mark) for mark in marks]], device=self._support.device)
        self._adapted = self._adapt(self._encode(self._classes))

    def _adapt(self, encoded: Tensor) -> Any:
        inner = GradientDescent(self._strategy, self._inner_lr, self._inner_steps, progress=1.0)
        return self._strategy.adapt(inner, encoded, self._classes)

    def __repr__(self) -> str:
        return f"AdaptedClassifier({len(self.classes_)} classes, images {list(self._support.shape[2:])})"

    def __getstate__(self) -> dict[str, Any]:
        """All but what `higher` patched, which cannot be pickled and is computed again from the support set."""
        return {name: value for name, value in vars(self).items() if name != "_adapted"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        with torch.inference_mode(False), torch.no_grad():
            self._adapted = self._adapt(self._strategy.encode(self._support))

    @torch.no_grad()
    def __call__(self, images: Images) -> Tensor:
        """Logits `[n, N]`."""
        batch = self._batch(images)
        if batch.shape[2:] != self._support.shape[2:]:
            raise UserError(
                f"Expected images of {list(self._support.shape[2:])} as in the support set, got {list(batch.shape[2:])}"
            )
        return self._strategy.query_logits(self._adapted, self._support, batch)[0]

    def predict_proba(self, images: Images) -> Tensor:
        """Softmax of the logits, `[n, N]`."""
        return self(images).softmax(dim=-1)

    def predict(self, images: Images) -> list[Any]:
        """The most likely label of each image."""
        return [self.classes_[i] for i in self(images).argmax(dim=-1).tolist()]

    @property
    def labels(self) -> list[Any]:
        """The name of `classes_` in metakm 0.2."""
        _deprecated("labels", "classes_")
        return self.classes_

    def probabilities(self, images: Images) -> Tensor:
        """The name of `predict_proba` in metakm 0.2."""
        _deprecated("probabilities", "predict_proba")
        return self.predict_proba(images)

    def _batch(self, images: Images) -> Tensor:
        """One task of images in [0, 1], `[1, n, C, H, W]`, where and in which precision the strategy is."""
        try:
            batch = torch.as_tensor(images)
        except (TypeError, ValueError, RuntimeError) as error:
            got = type(images).__name__
            raise UserError(f"Expected images as [n, C, H, W], got {got}; metakm.read_images reads files") from error
        if batch.dim() != 4 or batch.numel() == 0:
            raise UserError(f"Expected images as [n, C, H, W], got {list(batch.shape)}; add the missing axis")
        if batch.dtype != torch.uint8 and not (batch.is_floating_point() and batch.min() >= 0 and batch.max() <= 1):
            raise UserError(
                f"Expected uint8 images, or floats from 0 to 1, got {batch.dtype} from {batch.min():g} to "
                f"{batch.max():g}; scale them"
            )
        like = next(self._strategy.parameters())
        scaled = batch.to(like) / 255 if batch.dtype == torch.uint8 else batch.to(like)
        usable = scaled.clone() if scaled.is_inference() and not torch.is_inference_mode_enabled() else scaled
        return usable.unsqueeze(0)

    def _encode(self, classes: Tensor) -> Tensor:
        """The encoded support set, once the strategy is known to fit it."""
        strategy = self._strategy
        try:
            encoded = strategy.encode(self._support)
            inner = GradientDescent(strategy, 0.0, 0, progress=1.0)
            outputs = strategy.predict(strategy.adapt(inner, encoded, classes), encoded)
        except RuntimeError as error:
            shape = list(self._support.shape[2:])
            raise UserError(f"Expected images that fit the strategy, got {shape}: {error}; resize them") from error
        if outputs.shape[-1] != len(self.classes_):
            raise UserError(
                f"Expected {outputs.shape[-1]} different labels, the ways of the strategy, got {len(self.classes_)}; "
                f"add classes or leave some out, or train with --ways {len(self.classes_)}"
            )
        return encoded


def _deprecated(name: str, new: str) -> None:
    warnings.warn(f"AdaptedClassifier.{name} is deprecated; use {new}", DeprecationWarning, stacklevel=3)


def _plain(labels: Labels) -> list[Any]:
    """The labels as Python's own numbers or strings, checked."""
    listed = labels.tolist() if isinstance(labels, Tensor | np.ndarray) else list(labels)
    plain = [plain_label(label) for label in listed]
    check_labels(plain)
    return plain
