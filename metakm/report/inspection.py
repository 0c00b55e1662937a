"""Inspect a trained run: its predictions on the first meta-test episodes, and what adaptation did to its kernels."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from metakm.data import AlternatingSampler, Episodes, EpisodeSampler
from metakm.device import compute_dtype
from metakm.errors import UserError
from metakm.learning.inner_loop import evaluate_episodes
from metakm.learning.learner import Learner
from metakm.report.gallery import EpisodePictures, Inspection
from metakm.report.modulated_kernels import LayerKernels, Weights
from metakm.run.build import build_learner, make_sampler, with_data_here
from metakm.run.earlier_run import warm_start
from metakm.run.loading import load_run
from metakm.strategies import Strategy
from metakm.table.cells import Cell
from metakm.table.collect import RecordedRun


def inspect_cells(
    cells: Iterable[Cell], episodes: int, data_root: Path | None = None
) -> tuple[dict[Path, Inspection], tuple[str, ...]]:
    """Inspect the first run of each cell that can be; return what was seen, by the path of the run's result.csv.

    Also returns why the others could not be inspected, one sentence per cell. Arguments as of `inspect_run`.
    """
    seen, reasons = {}, []
    for cell in cells:
        failed = []
        for run in cell.runs:
            try:
                seen[run.path] = inspect_run(run, episodes, data_root)
                break
            except UserError as error:
                failed.append(f"{run.name}: {error}")
        else:
            reasons += failed
    return seen, tuple(reasons)


def inspect_run(run: RecordedRun, episodes: int, data_root: Path | None = None) -> Inspection:
    """Adapt the tested model of a run to its first meta-test episodes, on the CPU.

    The sampler, the number of inner steps, the rates and the precision are the run's own, so the predictions are
    those behind the first lines of its `tasks.csv`. A plugin named in `config.json` is not loaded: that file may come
    from elsewhere.

    Args:
        run: one that is done.
        episodes: how many, at most those that were tested.
        data_root: where to look for data, in place of the run's own `data_root`.

    Raises:
        UserError: the model, config or data are missing, damaged, or not those of the row.
    """
    folder = run.path.parent
    trained = load_run(folder)
    config = with_data_here(trained.config, data_root)
    sampler = make_sampler(config, "test")
    if sampler.hash(index=0, tasks=config.eval_tasks) != run.row.episodes_hash:
        raise UserError(
            f"Expected the test episodes of {folder} (hash {run.row.episodes_hash}), got others; use the data of "
            "that run"
        )
    batch = sampler.batch(index=0, tasks=min(episodes, run.row.n_tasks))
    ready = batch.to(torch.device("cpu"), compute_dtype(config.precision))
    untrained = build_learner(config, sampler.dataset.image_shape, trained.learner.train_classes)
    warm_start(untrained, config, {})
    start = _kernels(untrained.eval(), ready[0])
    learned = _kernels(trained.learner, ready[0])
    with _record_kernels(trained.strategy) as used:
        predictions = _predict(trained.learner, ready, config.test_inner_steps)  # [E, N, Q]
    layers = [
        LayerKernels(
            name, *start[name], *learned[name], _to_numpy(used[name].expand(len(batch), *learned[name][0].shape))
        )
        for name in learned
    ]
    return Inspection(_pictures(sampler, batch), predictions, tuple(layers))


def _kernels(learner: Learner, episode: Episodes) -> dict[str, tuple[Weights, Weights]]:
    """W and what the network convolves with before adaptation, by layer, each `[O, C, kh, kw]`."""
    with _record_kernels(learner.strategy) as used:
        _predict(learner, episode, inner_steps=0)
    own = dict(learner.strategy.named_parameters())
    kernels = {name: own[f"{name}.weight"] for name in used if f"{name}.weight" in own}
    return {name: (_to_numpy(kernel), _to_numpy(used[name].reshape(kernel.shape))) for name, kernel in kernels.items()}


@contextlib.contextmanager
def _record_kernels(strategy: Strategy) -> Iterator[dict[str, Tensor]]:
    """Collect the weight of each convolution, `[O, C, kh, kw]` or `[T, O, C, kh, kw]`, in its latest forward pass."""
    latest: dict[str, Tensor] = {}
    names = {module: name for name, module in strategy.named_modules() if isinstance(module, nn.Conv2d)}

    def note(module: nn.Module, _inputs: object) -> None:
        latest[names[module]] = module.weight.detach()  # type: ignore[index, operator]

    hooks = [module.register_forward_pre_hook(note) for module in names]
    try:
        yield latest
    finally:
        for hook in hooks:
            hook.remove()


def _predict(learner: Learner, episodes: Episodes, inner_steps: int) -> npt.NDArray[np.int64]:
    """The predicted class of each query, `[E, N, Q]`."""
    logits = evaluate_episodes(learner.strategy, episodes, inner_lr=learner.inner_lr, inner_steps=inner_steps).logits
    return logits.argmax(dim=-1).reshape(len(episodes), logits.shape[-1], -1).numpy()


def _to_numpy(weights: Tensor) -> Weights:
    copied: Weights = weights.detach().numpy().copy()
    return copied


def _pictures(sampler: EpisodeSampler | AlternatingSampler, batch: Episodes) -> tuple[EpisodePictures, ...]:
    shape = sampler.dataset.image_shape

    def by_class(images: Tensor) -> npt.NDArray[np.uint8]:
        pixels = (images.numpy() * 255).round().astype(np.uint8)
        return pixels.reshape(sampler.ways, -1, *shape)  # [N, n, C, H, W]

    return tuple(
        EpisodePictures(index, by_class(support), by_class(query))
        for index, support, query in zip(batch.index, batch.support_images, batch.query_images, strict=True)
    )
