"""One meta-learning run, from its data to its row."""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import torch

from metakm.cli.progress import duration
from metakm.cli.signals import Stoppable
from metakm.config import RunConfig
from metakm.data.episodes import SplitSampler
from metakm.data.overlap import datasets_of_imagenet
from metakm.data.splits import SPLITS
from metakm.device import resolve_device
from metakm.distributed.processes import ALONE, Processes
from metakm.distributed.torchrun import local_device
from metakm.learning.outer_loop import OuterLoop
from metakm.learning.phases import seconds_of, trial_phases
from metakm.models.pretrained import PRETRAINED
from metakm.models.registry import ImageShape
from metakm.modulation import write_pack
from metakm.registry import load_plugin
from metakm.run import provenance
from metakm.run.base_pack_file import base_of, run_pack
from metakm.run.build import build_learner, make_sampler, require_fitting, try_losses
from metakm.run.callbacks import Callback, CallbackList, EarlyStopping
from metakm.run.columns import evaluation_columns
from metakm.run.command_line import command
from metakm.run.curve import CurvePoint
from metakm.run.earlier_run import warm_start
from metakm.run.folder import RunFolder
from metakm.run.kind import Accuracies
from metakm.run.peak_memory import reset_peak
from metakm.run.row import ResultRow, Status
from metakm.run.summary import SPLIT_NAMES, summary
from metakm.run.training_run import TrainingRun
from metakm.run.user_files import file_hashes, require_same_files
from metakm.run.weights import weights_file
from metakm.strategies.registry import strategy_class


class Run(TrainingRun[OuterLoop]):
    """One run of a config, from its data to its row.

    Args:
        samplers: of each split; None for those of the config's dataset.

    Raises:
        UserError: on construction, for anything that would make the run fail later: unknown names, missing data,
            episodes that cannot be drawn, a folder that is in use or cannot be written.
    """

    config: RunConfig
    stage: ClassVar[str] = "meta-"
    test_unit: ClassVar[str] = "task"
    validates_first: ClassVar[bool] = True
    remedy: ClassVar[str] = "restore the strategy if it was changed, or "

    def __init__(
        self,
        config: RunConfig,
        stop: Stoppable,
        processes: Processes = ALONE,
        callbacks: Sequence[Callback] = (),
        samplers: Mapping[str, SplitSampler] | None = None,
    ) -> None:
        self.config = config
        for plugin in config.plugin:
            load_plugin(plugin)
        self.files = file_hashes(config)
        strategy_class(config.algo)
        self.device = resolve_device(local_device(config.device))
        reset_peak(self.device)  # of runs before it in this process
        self.samplers = samplers or {split: make_sampler(config, split) for split in SPLITS}
        require_fitting(config, self.samplers)
        folder = RunFolder(config.folder)
        begun = config.resume and folder.checkpoint.is_file()  # has its weights there
        start = dataclasses.replace(config, weights=None) if begun else config
        classes = self.samplers["train"].dataset.n_episode_classes
        learner = build_learner(start, self.image_shape, classes)
        tested = {split: self.samplers[split].dataset for split in ("val", "test")}
        self.init_weights = "" if begun else warm_start(learner, config, tested)
        loop = OuterLoop(learner, self.samplers["train"], config, self.device, processes)
        try_losses(learner, self.samplers["train"].batch(index=0, tasks=1), config)
        self.train_classes = learner.train_classes
        self.base = base_of(config)
        if self.base is not None and not begun:  # to say now, not after the training, that there will be no pack
            facts = {"size": self.image_shape[-1]}
            self.base = self.base if run_pack(copy.deepcopy(self.base), learner.strategy, config, facts) else None
        weights_file(config, self.image_shape, loop.model_state())  # to fail now, not after the training
        self.best: dict[str, Any] = {"val_accuracy": -math.inf}
        patience = [] if config.patience is None else [EarlyStopping(config.patience)]
        super().__init__(
            config,
            loop,
            owner=config.algo,
            iterations=config.iterations,
            val_every=config.val_every,
            split_hashes={split: sampler.dataset.split_hash for split, sampler in self.samplers.items()},
            folder=folder,
            stop=stop,
            processes=processes,
            callbacks=CallbackList([*callbacks, *patience], learner),
        )
        if begun and config.dry_run:  # which does not claim the folder, and with it take up the checkpoint
            self._load()

    @property
    def image_shape(self) -> ImageShape:
        """(C, H, W) of the dataset's images."""
        return self.samplers["train"].dataset.image_shape

    def announcement(self) -> str:
        """Strategy, network, device, and an estimate of time and memory."""
        adapted, total = self.loop.learner.strategy.parameter_counts()
        where = provenance.device_name(self.device, self.processes.size)
        c = self.config
        drawn = f"{c.train_ways or c.ways} ways and {c.train_shots or c.shots} shots for each meta-batch"
        varies = f"  meta-training draws {drawn}; tests are {c.ways}-way {c.shots}-shot\n" if c.varies else ""
        seen = datasets_of_imagenet(c.dataset) if c.weights == PRETRAINED else []
        known = f"  ImageNet's weights have seen the test classes of {', '.join(seen)}\n" if seen else ""
        return (
            f"{varies}{known}  {c.algo} on {c.backbone}: adapts {adapted:,} of {total:,} parameters"
            f"{'' if adapted else '; the inner learning rate and steps have no effect'}\n"
            f"  {where}, {torch.get_num_threads()} threads, {self.loop.chunks.training} tasks at a time\n"
            f"  {self._estimate()}"
        )

    def _estimate(self) -> str:
        """Time and memory of the meta-training that is left; validation and meta-test come on top."""
        if self.loop.iteration >= self.config.iterations:
            return "no meta-training left"
        left = seconds_of(trial_phases(self.loop))
        seconds = left / (self.config.iterations - self.loop.iteration)
        gigabytes = self.loop.chunks.training * self.loop.chunks.task_bytes / 1e9
        return f"about {1000 * seconds:.0f} ms per iteration, {duration(left)} of meta-training, {gigabytes:.1f} GB"

    def how_to_reproduce(self) -> str:
        """The command that resumes this run."""
        again = dataclasses.replace(self.config, resume=True, overwrite=False)
        return f". To reproduce it: {command(again)}"

    def accuracies(self, split: str, tasks: int, progress: Callable[[int], None] = lambda _: None) -> Accuracies:
        """Accuracies `[tasks]` on the first tasks of a split; see `OuterLoop.accuracies`."""
        return self.loop.accuracies(self.samplers[split], tasks, progress)

    def validation_accuracy(self) -> float:
        """Mean over the meta-validation tasks."""
        return float(self.accuracies("val", self.config.val_tasks).mean())

    def keep(self, point: CurvePoint) -> None:
        """Keep the model that the meta-test will be of, as `--select` says."""
        best = self.best["val_accuracy"]
        if point.val_accuracy > best or not best > -math.inf or self.config.select == "last":  # a metric may be NaN
            self.best = {"val_accuracy": point.val_accuracy, "model": self.loop.model_state()}

    @property
    def test_total(self) -> int:
        """Meta-test tasks."""
        return self.config.eval_tasks

    def test_accuracies(self, progress: Callable[[int], None]) -> Accuracies:
        """Meta-test accuracies `[eval_tasks]` of the model that was kept."""
        self.loop.load_model_state(self.best["model"])
        return self.accuracies("test", self.config.eval_tasks, progress)

    def write_results(self, tested: Accuracies | None) -> None:
        """tasks.csv, curve.png, weights.safetensors and, of a pretrained network, pack.safetensors."""
        if tested is not None:
            self.folder.write_tasks(tested)
        self.folder.write_picture(self.history.curve, f"{self.config.algo}, {self.config.setting}")
        weights = weights_file(self.config, self.image_shape, self.loop.model_state(), self.train_classes)
        self.folder.write_weights(weights)
        if self.base is not None:
            learner = copy.deepcopy(self.loop.learner).cpu()
            learner.load_state_dict(self.loop.model_state())
            measured = {"seconds": round(self.history.train_seconds), "val_accuracy": self.best["val_accuracy"]}
            facts = {"size": self.image_shape[-1], "commit": self.history.origin["git_commit"], **measured}
            if (pack := run_pack(self.base, learner.strategy, self.config, facts)) is not None:
                write_pack(pack, self.folder.pack)

    def own_state(self) -> dict[str, Any]:
        """The model that was kept, and what it was trained on and from."""
        built = {"image_shape": list(self.image_shape), "train_classes": self.train_classes}
        return {**built, "files": self.files, "best": self.best, "init_weights": self.init_weights}

    def load_own_state(self, state: dict[str, Any]) -> None:
        """Inverse of `own_state`."""
        require_same_files(state.get("files", {}), self.files)  # an older checkpoint has none
        self.best = {"val_accuracy": float(state["best"]["val_accuracy"]), "model": state["best"]["model"]}
        self.init_weights = str(state.get("init_weights", ""))
        self.loop.load_model_state(self.best["model"])  # to fail now, not after the training

    def row(self, status: Status, tested: Accuracies | None) -> ResultRow:
        """See `ResultRow`."""
        return ResultRow(
            **evaluation_columns(self.config, self.loop.evaluator, self.samplers["test"], self.history.origin, tested),
            **self.progress_columns(),
            status=status,
            started_at=self.history.started_at,
            init_weights=self.init_weights,
            stopped=self.stopped,
        )

    def progress_columns(self) -> dict[str, Any]:
        """Also the accuracy of the model that was kept."""
        accuracy = self.best["val_accuracy"] if self.history.curve else None
        return {"val_accuracy": accuracy, **super().progress_columns()}

    def summary(self, row: dict[str, Any], ending: str) -> str:
        """The run and its meta-test accuracy."""
        return summary(self.config, row["accuracy"], row["ci95"], ending, SPLIT_NAMES["test"])
