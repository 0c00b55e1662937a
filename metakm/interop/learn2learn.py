"""learn2learn's tasks as metakm's episodes, metakm's data as learn2learn's, and KM for learn2learn's own loops.

Only this module imports learn2learn (Arnold et al. 2020). It is written for release 0.2.0, the last one.
"""

from __future__ import annotations

import operator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from metakm.data import Episodes, FewShotDataset
from metakm.data.episodes import require_episode_numbers
from metakm.data.rng import stream_key
from metakm.errors import UserError
from metakm.interop.generators import global_generators
from metakm.modulation.modulators import Activation, Initialisation, Start
from metakm.strategies.km import Modulation
from metakm.strategies.network import call_with

try:
    import learn2learn as l2l
except ImportError as problem:
    raise ImportError(
        f"Expected learn2learn 0.2.0, got {problem}; a plain pip install does not build it on Python 3.11 and later, "
        "so run `make peers` or `bash benchmarks/install_peers.sh python` in metakm's repository; on 3.10 "
        "`pip install 'metakm[learn2learn]'` does"
    ) from problem


class TasksetSampler:
    """Any learn2learn `Taskset` of images as episodes: `batch` is that of `metakm.EpisodeSampler`.

    A `Taskset` draws from global generators, and one with `num_tasks` keeps what it drew first. Here each episode is
    drawn anew, bypassing that store, with Python's, numpy's and torch's global generators set from (seed, index) and
    restored afterwards. So episode i depends only on the data, the transforms, the seed and i (modulo `num_tasks`, if
    the `Taskset` has it), and drawing it has no side effects. Two things are out of reach: a transform's own source of
    randomness, which the constructor detects by drawing episode 0 twice; and the order of Python sets, by which
    learn2learn numbers string labels and which differs between processes (use integer labels, or set PYTHONHASHSEED).
    Not thread-safe, because the global generators are shared.

    Args:
        taskset: makes tasks (images `[N*(K+Q), C, H, W]`, labels `[N*(K+Q)]` in 0..N-1), in any order, with K+Q
            images of each class: `NWays(data, N)`, `KShots(data, K + Q)`, `LoadData(data)`, `RemapLabels(data)`. Values
            become float32 as they are, uint8 [0, 1].
        shots: K; the first K images of a class are its support set.
        queries: Q.

    Raises:
        UserError: tasks in another form, or that differ between two draws.
    """

    def __init__(self, taskset: Any, shots: int, queries: int, seed: int = 0) -> None:
        for name, number in (("shots", shots), ("queries", queries)):
            if number < 1:
                raise UserError(f"Expected {name} >= 1, got {number}; raise it")
        self.taskset, self.shots, self.queries, self.seed = taskset, shots, queries, operator.index(seed)
        images, labels = self._draw(0)
        again, same = self._draw(0)
        if not (torch.equal(images, again) and torch.equal(labels, same)):
            raise UserError(
                "Expected a Taskset that draws from the global generators of random, numpy and torch, got two "
                "different tasks from the same state; make the transform draw its random numbers from one of them"
            )
        self.ways, self._shape = len(labels) // (shots + queries), tuple(images.shape)

    def batch(self, index: int, tasks: int) -> Episodes:
        """Build episodes number `index`, ..., `index + tasks - 1`, on the CPU.

        Raises:
            UserError: `tasks` is below 1, `index` negative, or a task whose form differs from the first.
        """
        require_episode_numbers(index, tasks)
        drawn = [self._draw(i) for i in range(index, index + tasks)]
        for found, _ in drawn:
            if found.shape != self._shape:
                raise UserError(
                    f"Expected tasks of images {self._shape}, as the first, got {tuple(found.shape)}; make the Taskset "
                    "draw the same ways, images per class and image size every time"
                )
        images = torch.stack([each for each, _ in drawn])  # [T, N*(K+Q), C, H, W]
        labels = torch.stack([each for _, each in drawn])  # [T, N*(K+Q)]
        (support_images, query_images), (support_labels, query_labels) = self._halves(images), self._halves(labels)
        return Episodes(support_images, support_labels, query_images, query_labels, range(index, index + tasks))

    def _draw(self, index: int) -> tuple[Tensor, Tensor]:
        """Images `[N*(K+Q), C, H, W]` and labels `[N*(K+Q)]` of one episode, class-major."""
        number = index if self.taskset.num_tasks < 0 else index % self.taskset.num_tasks
        with global_generators(stream_key("metakm taskset 1", self.seed, number)):
            task = self.taskset.get_task(self.taskset.sample_task_description())
        images, labels = self._checked(task)
        order = torch.argsort(labels, stable=True)
        unit = images.float() / 255 if images.dtype == torch.uint8 else images.float()
        return unit[order], labels[order].long()

    def _checked(self, task: Any) -> tuple[Tensor, Tensor]:
        parts = tuple(task) if isinstance(task, tuple | list) else (task,)
        if len(parts) != 2 or not all(isinstance(part, Tensor) for part in parts):
            kinds = ", ".join(type(part).__name__ for part in parts)
            raise UserError(f"Expected a Taskset of (images, labels), got ({kinds}); add LoadData and image tensors")
        images, labels = parts
        if images.dim() != 4 or labels.shape != images.shape[:1]:
            raise UserError(
                f"Expected images [n, C, H, W] with labels [n], got {list(images.shape)} and {list(labels.shape)}; "
                "fix the dataset or the collate function"
            )
        values, counts = labels.unique(return_counts=True)
        if values.tolist() != list(range(len(values))):
            raise UserError(f"Expected labels 0..N-1, got {values.tolist()}; add RemapLabels to the task transforms")
        each = self.shots + self.queries
        if set(counts.tolist()) != {each} or len(values) < 2:
            raise UserError(
                f"Expected shots + queries = {each} images of each of 2 classes or more, got {counts.tolist()}; "
                f"use NWays and KShots with k={each}"
            )
        return images, labels

    def _halves(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """`[T, N*(K+Q), ...]` to `[T, N*K, ...]` and `[T, N*Q, ...]`."""
        by_class = values.reshape(len(values), self.ways, -1, *values.shape[2:])  # [T, N, K+Q, ...]
        return by_class[:, :, : self.shots].flatten(1, 2), by_class[:, :, self.shots :].flatten(1, 2)


def meta_dataset(dataset: FewShotDataset) -> Any:
    """Return a metakm dataset as a learn2learn `MetaDataset` of (image, class).

    Images are float32 `[C, H, W]` in [0, 1], classes integers in 0..n_classes-1, in the order of `class_names`; no
    image is read before it is needed. Rotating classes by 90 degrees is done by metakm's sampler and is not part of the
    data: if `dataset.rotations` is set, add a rotation to the task transforms.
    """
    rows = zip(dataset.offsets[:-1].tolist(), dataset.offsets[1:].tolist(), strict=True)
    labels_to_indices = {label: list(range(start, stop)) for label, (start, stop) in enumerate(rows)}
    return l2l.data.MetaDataset(_Images(dataset), labels_to_indices=labels_to_indices)


class _Images(Dataset[tuple[Tensor, int]]):
    def __init__(self, dataset: FewShotDataset) -> None:
        self.images = np.asarray(dataset.images)  # a memory map stays mapped
        self.labels = np.repeat(np.arange(dataset.n_classes), dataset.counts)  # [M]

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return torch.from_numpy(np.divide(self.images[index], 255, dtype=np.float32)), int(self.labels[index])


class KernelModulation(l2l.algorithms.base_learner.BaseLearner):  # type: ignore[misc]
    """KM as a learn2learn algorithm: `clone()` and `adapt(loss)`, as `l2l.algorithms.MAML(model, lr)`.

    Adaptation changes the kernel modulators U of every `nn.Conv2d`, and directly all parameters of the model that are
    neither convolution kernels nor norm affine (Hu & Liu, Sec. III-A and IV-C; see `metakm.strategies.km`)::

        logits = model(images; g(W; U), biases, classifier),    phi' = phi - lr * grad_phi loss

    `clone()` copies what adapts, not the model: its kernels W and norm affine are shared, and get their meta-gradient
    through the clone. Updates and clones are learn2learn's own, one task at a time; memory grows with adapted
    parameters x steps, plus the graphs of the losses.

    Args:
        model: any network with `nn.Conv2d` layers that maps images to logits; used in place, not copied.
        lr: inner learning rate.
        first_order, allow_unused, allow_nograd: as in `l2l.algorithms.MAML`.
        implicit: adapt the norm affine too (Sec. III-B).
        depth, activation, init: of each `metakm.modulation.KernelModulator`.
        start: `paper`, or `exact` for a model that has been trained (see `metakm.strategies.km.KM`).

    Raises:
        UserError: a model without convolutions, or an unknown activation or initialisation.
    """

    def __init__(
        self,
        model: nn.Module,
        lr: float,
        first_order: bool = False,
        allow_unused: bool | None = None,
        allow_nograd: bool = False,
        *,
        implicit: bool = False,
        depth: int = 2,
        activation: Activation = "tanh",
        init: Initialisation = "identity",
        start: Start = "paper",
    ) -> None:
        modulation = Modulation.from_network(model, implicit, depth, activation, init, start)
        super().__init__(model)
        self.kernel_names = modulation.modulators.weight_names
        # Move them to the kernels: the model may already be on its device, and in its precision.
        modulation.modulators.to(model.get_parameter(self.kernel_names[0]))
        self.inner = l2l.algorithms.MAML(modulation, lr, first_order, allow_unused, allow_nograd)

    def forward(self, images: Tensor) -> Tensor:
        """Logits of the model with its kernels modulated."""
        kernels = {name: self.module.get_parameter(name) for name in self.kernel_names}  # W: [O, C, kh, kw]
        return call_with(self.module, self.inner(kernels), images)

    def adapt(self, loss: Tensor, **options: Any) -> None:
        """Take one gradient step on `loss`, in place; options as in `l2l.algorithms.MAML.adapt`."""
        self.inner.adapt(loss, **options)

    def clone(self, **options: Any) -> KernelModulation:
        """Return a copy to adapt, through which losses reach this learner; options as in learn2learn's `MAML.clone`."""
        twin = KernelModulation.__new__(type(self))
        nn.Module.__init__(twin)
        twin.module, twin.kernel_names = self.module, self.kernel_names
        twin.inner = self.inner.clone(**options)
        return twin
