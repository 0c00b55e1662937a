"""Memory of a meta-gradient, and how many tasks fit at once."""

from __future__ import annotations

import contextlib
import logging
import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from metakm.config import RunConfig
from metakm.distributed.torchrun import processes_here
from metakm.errors import UserError, one_line
from metakm.models.registry import ImageShape
from metakm.strategies import Strategy

_log = logging.getLogger(__name__)
RUNS_HERE = "METAKM_RUNS_HERE"  # set by a sweep for its runs: how many of them share a device
TESTED_AT_ONCE = 64  # tasks, on a GPU that has the memory
CONTAINER_LIMIT = Path("/sys/fs/cgroup/memory.max")
# Peak memory of a second-order meta-gradient in units of the backbone's activations: for one support image and inner
# step, and for one query image. An estimate, not a bound: fixed costs come on top, which weigh most with few images and
# steps, and strategies that do not run the backbone in every step (ANIL) need less.
SUPPORT_FACTOR, QUERY_FACTOR = 5.0, 3.0


def task_bytes(strategy: Strategy, image_shape: ImageShape, config: RunConfig, device: torch.device) -> float:
    """Estimated peak memory of one task's meta-gradient.

    Raises:
        UserError: strategy or backbone do not fit the images, or do not give logits.
    """
    ways, shots = max(config.train_range("ways")), max(config.train_range("shots"))
    support = ways * shots * config.inner_steps * SUPPORT_FACTOR
    query = ways * config.queries * QUERY_FACTOR
    return _activation_bytes(strategy, image_shape, config.ways, device) * (support + query)


class TaskChunks:
    """How many tasks of a run to hold in memory at once.

    Attributes:
        task_bytes: see the function of that name.
        training: tasks whose graphs are held at once; `OuterLoop` lowers it when memory runs out.
    """

    def __init__(self, strategy: Strategy, image_shape: ImageShape, config: RunConfig, device: torch.device) -> None:
        self.task_bytes = task_bytes(strategy, image_shape, config, device)
        self._config, self._device, self._sharing = config, device, sharing(device, processes_here())
        self.training = config.task_chunk or self._automatic(config.meta_batch)

    @property
    def testing(self) -> int:
        """Tasks to test at once: more on a GPU, since evaluation keeps no graph and small batches leave it idle."""
        if self._device.type == "cpu" or self._config.task_chunk:
            return self.training
        return max(self.training, self._automatic(TESTED_AT_ONCE))

    def _automatic(self, tasks: int) -> int:
        return automatic_chunk(self.task_bytes * self._sharing, tasks, self._device)


def automatic_chunk(bytes_per_task: float, meta_batch: int, device: torch.device) -> int:
    """How many tasks' graphs fit in half of the device's memory; at least 1, at most the meta-batch."""
    return max(1, min(meta_batch, int(device_memory(device) / 2 / bytes_per_task)))


def sharing(device: torch.device, processes: int) -> int:
    """How many processes share the memory of a device: runs of a sweep that share it, times a run's processes there.

    Args:
        processes: those of a run on this machine. On a GPU it has one.
    """
    runs = os.environ.get(RUNS_HERE, "")
    count = max(1, int(runs)) if runs.isdecimal() else 1
    return count * processes if device.type == "cpu" else count


class TooLittleMemoryError(RuntimeError):
    """Not even a single task fits into memory."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a GPU, PyTorch's CPU allocator or Python ran out of memory."""
    # PyTorch's CPU allocator raises a plain RuntimeError: "DefaultCPUAllocator: can't allocate memory: you tried ..."
    return isinstance(error, torch.cuda.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error)


def halved(chunk: int) -> int:
    """The chunk to continue with after running out of memory; logged as a warning.

    Raises:
        TooLittleMemoryError: the chunk is a single task already.
    """
    if chunk == 1:
        raise TooLittleMemoryError(
            "Out of memory with a single task at a time; lower --queries, --ways, --shots or "
            "--inner-steps, choose a smaller --backbone, or try --precision bf16"
        )
    _log.warning("out of memory with %d tasks at a time; continuing with %d", chunk, chunk // 2)
    return chunk // 2


def device_memory(device: torch.device) -> int:
    """Bytes of the GPU; else of the machine, its container or the SLURM job that this process runs in, the least."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    with contextlib.suppress(OSError, ValueError):  # no such file, or "max"
        physical = min(physical, int(CONTAINER_LIMIT.read_text()))
    return min(physical, _slurm_memory() or physical)


def _slurm_memory() -> int:
    """Bytes that SLURM gave to this job on this node; 0 where it says nothing, or all."""
    of_node, of_cpu, cpus = (
        int(value) if (value := os.environ.get(f"SLURM_{name}", "")).isdecimal() else 0
        for name in ("MEM_PER_NODE", "MEM_PER_CPU", "CPUS_ON_NODE")
    )
    return (of_node or of_cpu * cpus) * 2**20  # SLURM counts in MiB


def _activation_bytes(strategy: Strategy, image_shape: ImageShape, ways: int, device: torch.device) -> int:
    """Bytes of all leaf modules' outputs for one image."""
    total = 0

    def count(_module: nn.Module, _inputs: Any, output: Any) -> None:
        nonlocal total
        if isinstance(output, Tensor):
            total += output.numel() * output.element_size()

    leaves = [m for m in strategy.modules() if not list(m.children())]
    hooks = [m.register_forward_hook(count) for m in leaves]
    pair = torch.zeros(1, 2, *image_shape, device=device)
    try:
        with torch.no_grad():
            logits = strategy(pair)
    except UserError:
        raise
    except Exception as error:  # a plugin's code may raise anything
        raise UserError(
            f"Expected a strategy and backbone that fit images of {image_shape}, got {type(error).__name__}: "
            f"{one_line(error)}"
        ) from error
    finally:
        for hook in hooks:
            hook.remove()
    if type(strategy).forward is not Strategy.forward:  # no logits before a support set
        return max(1, total // 2)
    if not isinstance(logits, Tensor) or logits.shape != (1, 2, ways):
        got = list(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise UserError(f"Expected {type(strategy).__qualname__} to predict logits [1, 2, {ways}], got {got}")
    return max(1, total // 2)
