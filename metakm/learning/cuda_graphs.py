"""Meta-gradients as CUDA graphs: captured once, then replayed.

A second-order meta-gradient is thousands of small kernels. Launched one by one from Python they leave a GPU idle most
of the time; as a graph they start with one call. The kernels and their order are the same.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from metakm.data import Episodes
from metakm.errors import one_line
from metakm.learning.memory import is_out_of_memory

_log = logging.getLogger(__name__)


class MetaGradient(NamedTuple):
    """What one batch of episodes gives to the outer loop."""

    loss: Tensor  # scalar
    accuracy: Tensor  # [T]
    gradients: tuple[Tensor | None, ...]  # of each learned parameter; None where the loss does not depend on it


_TENSORS = ("support_images", "support_labels", "query_images", "query_labels", "classes")
Differentiate = Callable[[Episodes], MetaGradient]


class CudaGraphs:
    """Meta-gradients on a GPU, captured for each number of tasks that comes up twice.

    The first call of each size runs eagerly, which also loads the kernels that a capture needs. The next replay
    overwrites the result of the last. Code that synchronizes with the GPU cannot be captured and runs eagerly; the log
    says so. Memory: one call's for each size, kept until `clear`.
    """

    def __init__(self) -> None:
        self._graphs: dict[int, _CudaGraph | None] = {}
        self._refused = False

    def run(self, differentiate: Differentiate, episodes: Episodes) -> MetaGradient:
        """Replay, capture or run `differentiate(episodes)`, which must be the same function at every call.

        Batches with the same number of tasks must have images of the same shape.
        """
        size = len(episodes)
        if self._refused or size not in self._graphs:
            self._graphs[size] = None
            return differentiate(episodes)
        graph = self._graphs[size] or self._capture(differentiate, episodes)
        if graph is None:
            return differentiate(episodes)
        self._graphs[size] = graph
        return graph.replay(episodes)

    def clear(self) -> None:
        """Forget the graphs, and free their memory."""
        self._graphs.clear()

    def _capture(self, differentiate: Differentiate, episodes: Episodes) -> _CudaGraph | None:
        try:
            return _CudaGraph(differentiate, episodes)
        except RuntimeError as error:
            if is_out_of_memory(error):
                raise
            _log.warning("no CUDA graph (%s); continuing without", one_line(error, 200))
            self._refused = True
            self.clear()
            return None


class _CudaGraph:
    def __init__(self, differentiate: Differentiate, episodes: Episodes) -> None:
        self._names = [name for name in _TENSORS if getattr(episodes, name) is not None]
        self._held = dataclasses.replace(episodes, **{name: getattr(episodes, name).clone() for name in self._names})
        self._graph = torch.cuda.CUDAGraph()
        device = self._held.support_images.device
        # The outer stream is there to come back to: a capture that fails leaves its own one current.
        with torch.cuda.device(device), torch.cuda.stream(torch.cuda.current_stream()), torch.cuda.graph(self._graph):
            self._result = differentiate(self._held)

    def replay(self, episodes: Episodes) -> MetaGradient:
        for name in self._names:
            getattr(self._held, name).copy_(getattr(episodes, name))
        self._graph.replay()
        return self._result
