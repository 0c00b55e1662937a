"""The model that a run trains: a strategy with its inner learning rates and inner steps."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from metakm.data import EpisodeSource
from metakm.data.alternating import AlternatingSampler
from metakm.errors import UserError, one_line
from metakm.io.files import atomic_write, expanded
from metakm.learning.built_strategy import construction_of, constructor_options, require_known
from metakm.learning.classifier import AdaptedClassifier, Images, Labels, adapt
from metakm.learning.evaluation import Evaluation, accuracies
from metakm.learning.head_init import start_head
from metakm.learning.inner_loop import MetaLoss, meta_loss
from metakm.learning.inner_rates import learned_rates
from metakm.learning.learner_file import SavedLearner, flat_state, learner_file, read_learner_file, require_same_kind
from metakm.learning.trained_part import attach_modulators, freeze_rest
from metakm.models.build import given_backbone
from metakm.models.modes import BatchNormMode, TrainedPart
from metakm.models.registry import OWN, ImageShape
from metakm.options import SharedOptions, flat_name, from_keywords, option_types, shared_part, to_flat
from metakm.strategies import Strategy, make_strategy
from metakm.strategies.interfaces import EpisodeBatch, InnerLR
from metakm.strategies.registry import registered_name, strategy_class, takes_train_classes

_DESCRIBED = ("backbone", "bn_mode", "ways", "inner_lr", "inner_steps", "test_inner_steps")


class Learner(nn.Module):
    """A strategy with all that its inner loop needs: train it, evaluate it, adapt it to a task, save it.

    Any optimiser of torch over `meta_parameters()` trains it on `meta_loss(episodes).loss`; a run uses Adam. Only a run
    acts on `multi_step_loss`, `nonnegative_inner_lr` and bn_mode="running": see `track_statistics` of the strategy.

    Attributes:
        strategy: the network, and what of it the inner loop adapts.
        rates: learned inner learning rates, one for each tensor of `strategy.adapted`; empty where the rate is fixed.
        inner_steps: in meta-training.
        test_inner_steps: in `evaluate` and `adapt`.
        options: of the strategy, see `metakm.options`.
    """

    _frozen: Sequence[nn.Parameter] = ()

    def __init__(
        self,
        strategy: str | Strategy,
        *,
        backbone: str | nn.Module | None = None,
        ways: int | None = None,
        inner_lr: float,
        inner_steps: int,
        test_inner_steps: int | None = None,
        image_shape: ImageShape | None = None,
        bn_mode: BatchNormMode = "transductive",
        weights: str | None = None,
        train: TrainedPart = "full",
        train_classes: int | None = None,
        **options: Any,
    ) -> None:
        """Build an untrained learner; the initial weights follow `torch.manual_seed`.

        Args:
            strategy: the name of a registered one, which is then built for `ways` on `backbone`; or one that is built.
            backbone: a network, or the name of a registered one; None for a strategy with a network of its own.
            ways: classes of a task; None for a strategy that is built.
            inner_lr: the inner learning rate alpha; where learned rates start.
            inner_steps, test_inner_steps: in meta-training, and at the test (None: as many).
            image_shape, bn_mode, weights: of a named backbone: (C, H, W); see `--bn-mode`; a file, or "pretrained".
            train: what of the backbone an outer loop trains, for a strategy that is named; see `trained_part`.
            train_classes: `FewShotDataset.n_episode_classes`, for strategies that learn to classify these.
            options: of the strategy, such as `first_order=True`, `learn_inner_lr=True`, or `depth=1` for km.

        Raises:
            UserError: a name or an option that does not exist, or a backbone that does not fit the strategy.
        """
        super().__init__()
        cls = strategy_class(strategy) if isinstance(strategy, str) else type(strategy)
        self.algo = strategy if isinstance(strategy, str) else registered_name(cls)
        if not isinstance(strategy, str):
            told = {"backbone": backbone, "weights": weights, "train": train, "train_classes": train_classes}
            ways, train_classes, options = construction_of(self.algo, strategy, ways, options, told)
        self.options = from_keywords(self.algo, cls.options, options)
        self.backbone = OWN if cls.own_network else backbone if isinstance(backbone, str) else None
        self.ways, self.image_shape, self.bn_mode, self.train_part = ways, image_shape, bn_mode, train
        self.train_classes = train_classes if takes_train_classes(cls) else None
        self.strategy = self._build(strategy, cls, backbone, weights) if isinstance(strategy, str) else strategy
        start_head(self.strategy, self.shared)
        self._inner_lr, self.inner_steps = float(inner_lr), inner_steps
        self.test_inner_steps = inner_steps if test_inner_steps is None else test_inner_steps
        self.rates = learned_rates(self.strategy, self.shared, self._inner_lr, inner_steps)

    def _build(self, algo: str, cls: type[Strategy], backbone: str | nn.Module | None, weights: str | None) -> Strategy:
        if self.ways is None:
            raise UserError(f"Expected ways, the number of classes of a task, to build {algo!r}, got none; pass it")
        backbone = given_backbone(backbone, self.image_shape, self.bn_mode, weights)
        attach_modulators(backbone, self.train_part, cls)
        options = {name: getattr(self.options, name) for name in constructor_options(cls)}
        strategy = make_strategy(algo, backbone, self.ways, train_classes=self.train_classes, **options)
        self._frozen = freeze_rest(strategy, backbone, self.train_part)
        return strategy

    @property
    def shared(self) -> SharedOptions:
        """The options that strategies share; those that this one lacks have their default."""
        return shared_part(self.options)

    @property
    def inner_lr(self) -> InnerLR:
        """The inner learning rate, or the learned ones, as `metakm.meta_loss` takes them."""
        return list(self.rates) if len(self.rates) else self._inner_lr

    def meta_parameters(self) -> list[nn.Parameter]:
        """What an outer loop trains: all but what `train` leaves out and a head that starts at zero in each task."""
        fixed = {id(p) for p in self.strategy.head_parameters().values()} if self.shared.zero_head else set()
        left_out = fixed | {id(p) for p in self._frozen}
        return [p for p in (*self.strategy.parameters(), *self.rates) if id(p) not in left_out]

    def meta_loss(
        self, episodes: EpisodeBatch, step_weights: Sequence[float] | None = None, progress: float | None = None
    ) -> MetaLoss:
        """Adapt to each task and return the outer loss, ready for `backward()`: see `metakm.meta_loss`.

        Raises:
            UserError: with the option `second_order_from`, no `progress`; see `metakm.meta_loss` for others.
        """
        shared = self.shared
        if shared.second_order_from and progress is None:
            raise UserError("Expected the progress of training for second_order_from, got none; pass progress=")
        early = progress is not None and progress < shared.second_order_from
        return meta_loss(
            self.strategy,
            episodes,
            inner_lr=self.inner_lr,
            inner_steps=self.inner_steps,
            first_order=shared.first_order or early,
            step_weights=step_weights,
            progress=progress,
        )

    def forward(self, images: Tensor) -> Tensor:
        """Logits `[T, n, N]` of images `[T, n, C, H, W]` before any adaptation."""
        logits: Tensor = self.strategy(images)
        return logits

    def evaluate(
        self,
        sampler: EpisodeSource,
        tasks: int = 600,
        *,
        inner_steps: int | None = None,
        tasks_at_once: int = 8,
        progress: Callable[[int], None] = lambda _: None,
    ) -> Evaluation:
        """Accuracy on the sampler's first episodes, in evaluation mode.

        Args:
            inner_steps: None for `test_inner_steps`.
            tasks_at_once: how many to hold in memory; but for rounding the result does not depend on it.
            progress: called with the number of tasks just done.

        Raises:
            UserError: tasks of other ways than the learner's, or none.
            TooLittleMemoryError: a single task does not fit into memory.
        """
        if tasks < 1:
            raise UserError(f"Expected tasks to be at least 1, got {tasks}")
        like = next(self.parameters())
        found = accuracies(
            self.strategy,
            sampler,
            tasks=tasks,
            inner_lr=self.inner_lr,
            inner_steps=self.test_inner_steps if inner_steps is None else inner_steps,
            chunk=tasks_at_once,
            device=like.device,
            dtype=like.dtype,
            progress=progress,
        )
        return Evaluation(found, len(sampler.samplers) if isinstance(sampler, AlternatingSampler) else 1)

    def adapt(self, images: Images, labels: Labels, *, inner_steps: int | None = None) -> AdaptedClassifier:
        """A classifier of the classes in a labelled support set: see `metakm.adapt`.

        Args:
            images, labels: `[n, C, H, W]` and `[n]`, as many different labels as the strategy has ways.
            inner_steps: None for `test_inner_steps`.
        """
        steps = self.test_inner_steps if inner_steps is None else inner_steps
        return adapt(self.strategy, images, labels, inner_lr=self.inner_lr, inner_steps=steps)

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Inverse of `state_dict`; takes the form of checkpoints before metakm 0.3, too. Not by `assign`."""
        if assign:
            raise UserError("Expected assign=False, got True, which would untie shared parameters; leave it out")
        return super().load_state_dict(flat_state(state_dict), strict)

    def load_checked(self, state: Mapping[str, Any]) -> None:
        """Like `load_state_dict`, for tensors from a file: refuses precisions that would be rounded, too.

        Raises:
            RuntimeError, LookupError, TypeError, ValueError: not the state of this learner.
        """
        require_same_kind(flat_state(state), self.state_dict())
        self.load_state_dict(state)

    def save(self, path: Path | str) -> None:
        """Write a file that `load` reads, in the format of a run's weights.safetensors.

        Raises:
            UserError: tensors that safetensors lacks, such as sparse ones; or a built strategy not of `make_strategy`.
        """
        require_known(self.strategy, self.ways)
        own = {name: getattr(self, name) for name in _DESCRIBED} | {"inner_lr": self._inner_lr}
        own |= {} if self.train_part == "full" else {"train": self.train_part}
        config = {"algo": self.algo, **own, **to_flat(self.algo, self.options)}
        data = learner_file(SavedLearner(config, self.image_shape, self.state_dict(), self.train_classes))
        with atomic_write(expanded(path, "the learner's path")) as file:
            file.write(data)

    @classmethod
    def load(cls, path: Path | str, *, backbone: nn.Module | None = None) -> Learner:
        """Read a learner's file, or a run's weights.safetensors; in evaluation mode, on the CPU.

        Args:
            backbone: the network that the learner was built on, untrained, unless that was one of metakm's by name.

        Raises:
            UserError: a damaged or foreign file, an unknown strategy, or a backbone that is missing or does not fit.
        """
        config, image_shape, state, train_classes = read_learner_file(path)
        try:
            algo = config["algo"]
            known = {flat_name(algo, option) for option in option_types(strategy_class(algo).options)}
            own = {name: config[name] for name in (*_DESCRIBED, "train", *known) if name in config}
            if backbone is None and own["backbone"] is None:
                raise UserError(f"Expected backbone, the network that {path} was saved with, got none; pass it")
            named = None if own["backbone"] == OWN else own["backbone"]
            own |= {"backbone": backbone or named, "train_classes": train_classes}
            learner = cls(algo, image_shape=image_shape, **own)
            learner.load_checked(state)
        except (RuntimeError, LookupError, TypeError, ValueError) as error:
            raise UserError(f"Expected the learner of {path} to fit its description, got: {one_line(error)}") from error
        return learner.eval()
