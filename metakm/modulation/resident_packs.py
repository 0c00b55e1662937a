"""Many tasks on one base at once: a batch whose rows belong to different tasks, in one pass through the network."""

from __future__ import annotations

import copy
import json
import threading
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from metakm.errors import UserError, unknown_name
from metakm.modulation.attachment import attachment, detach, is_modulated, modulated_layers, unwrap, within
from metakm.modulation.modulators.registry import classes_called
from metakm.modulation.pack import check_base, check_shapes, modulate_as
from metakm.modulation.pack_file import Pack, read_pack
from metakm.modulation.partition import base_fingerprint, partition_tensors
from metakm.modulation.resident_layers import resident_layer
from metakm.modulation.resident_rows import ResidentRows, ResidentTask, current_rows, pack_tensors

_UNUSED = "num_batches_tracked"  # in evaluation


@dataclass(frozen=True)
class _Template:
    """What packs of the same arguments of `modulate` have in common: their modulators, and tensors to compare with."""

    kind: str
    modulators: dict[str, nn.Module]
    tensors: dict[str, Tensor]


class ResidentPacks:
    """A base network with the packs of many tasks, for batches whose rows belong to different tasks.

    `resident(images, tasks=["shop", "birds"])` returns what `swap` and a forward pass in evaluation mode would give
    each image, to rounding, in one pass. Layers that are the same for all tasks run on the whole batch. The others run
    on it too where they can: batch norm and grouped convolutions side by side on the channel axis, dense convolutions
    as matrix products with W~, which is computed in every call, a few channels at a time, and not kept. Other norms,
    modulators other than the published one, and classifiers of several layers run task by task, layer by layer.

    Memory is that of the base, which is shared with `model`, and of the packs' tensors. `model` itself is not changed.
    For inference only: no gradients, and autocast has no effect. Calls in several threads run one after the other.

    Args:
        model: the base, plain or modulated, in any mode. Its frozen tensors must not be written to afterwards.
        packs: `add`ed under the names of their tasks.

    Raises:
        UserError: see `add`.
    """

    def __init__(self, model: nn.Module, packs: Iterable[Pack | Path | str] = ()) -> None:
        model = unwrap(model)
        self._own: type[nn.Module] | None = None
        self._plain = _twin(model)
        if is_modulated(model):
            self._own = attachment(model).modulator
            detach(self._plain)
        self._network = _twin(self._plain).eval()
        names = {id(module): name for name, module in self._plain.named_modules()}
        modules = self._plain.named_modules(remove_duplicate=False)
        self._names = {name: names[id(module)] for name, module in modules}  # by each name of a module its first
        self._layers: set[str] = set()  # of the network, that are layers for all tasks now
        self._classifier: str | None = None
        self._templates: dict[str, _Template] = {}
        self._fingerprints: dict[tuple[Any, ...], str] = {}
        self._tasks: dict[str, ResidentTask] = {}
        self._lock = threading.RLock()  # a call puts tensors into the base's layers for a moment
        for pack in packs:
            self.add(pack)

    @property
    def tasks(self) -> tuple[str, ...]:
        """The names of the tasks, in the order in which they were added."""
        return tuple(self._tasks)

    def classes(self, task: str) -> tuple[str, ...]:
        """Names of a task's classes in the order of the logits; empty where its pack has none.

        Raises:
            UserError: an unknown task.
        """
        return self._task(task).classes

    @property
    def nbytes(self) -> int:
        """Bytes of the packs' tensors on the device, without the base."""
        return sum(task.data.nbytes for task in self._tasks.values())

    def add(self, pack: Pack | Path | str, name: str | None = None) -> str:
        """Make a task resident, and return its name: `name`, or that in the pack.

        The base is hashed with the first pack.

        Raises:
            UserError: a file that `read_pack` refuses, a name that is empty or taken, a pack of another base, with
                tensors of other shapes, an unknown modulator, or another classifier than the packs before.
        """
        pack = pack if isinstance(pack, Pack) else read_pack(pack)
        name = pack.task if name is None else name
        if not name or name in self._tasks:
            raise UserError(f"Expected a new name for the task, got {name!r}; pass add(pack, name=...)")
        with self._lock:
            self._add(pack, name)
        return name

    def _add(self, pack: Pack, name: str) -> None:
        template = self._template(pack)
        classifier = pack.modulation["classifier"]
        tensors = self._by_layer(pack, classifier)
        self._make_room(tensors, classifier)
        head = {layer: tensors.pop(layer) for layer in [classifier] if layer is not None and layer in tensors}
        data, places = pack_tensors({**tensors, **head})
        common = min([place.start for own in head for place in places[own].values()], default=len(data))
        places = next((task.places for task in self._tasks.values() if task.places == places), places)  # one for all
        data = data.to(next(self._plain.parameters()).device)
        self._tasks[name] = ResidentTask(data, places, template.modulators, pack.classes, template.kind, common)

    def remove(self, task: str) -> None:
        """Forget a task.

        Raises:
            UserError: an unknown task.
        """
        with self._lock:
            self._task(task)
            del self._tasks[task]

    @torch.no_grad()
    def __call__(self, images: Tensor, tasks: str | Sequence[str]) -> Tensor:
        """Logits `[n, most classes]` of `images` `[n, C, H, W]`; minus infinity for classes that a row's task lacks.

        Args:
            tasks: the task of each image, or one for all.

        Raises:
            UserError: an unknown task, another number of tasks than of images, no image, or a network that does not
                keep images on the first axis of its feature maps.
        """
        names = [tasks] * len(images) if isinstance(tasks, str) else list(tasks)
        if not 0 < len(names) == len(images):
            raise UserError(f"Expected a task for each of 1 or more images, got names {names} for {len(images)}")
        with self._lock:
            return self._logits(images, names)

    def _logits(self, images: Tensor, names: list[str]) -> Tensor:
        distinct = sorted(set(names))
        rows = ResidentRows(tuple(self._task(name) for name in distinct), tuple(names.count(name) for name in distinct))
        order = torch.tensor(sorted(range(len(names)), key=names.__getitem__), device=images.device)
        token = current_rows.set(rows)
        try:
            with torch.autocast(images.device.type, enabled=False):
                logits: Tensor = self._network(images[order])
        finally:
            current_rows.reset(token)
        return rows.without_absent(logits)[order.argsort()]

    def _task(self, name: str) -> ResidentTask:
        if name not in self._tasks:
            raise unknown_name("task", name, self._tasks)
        return self._tasks[name]

    def _by_layer(self, pack: Pack, classifier: str | None) -> dict[str, dict[str, Tensor]]:
        """The pack's tensors by layer and by name in the layer, in an order that all packs of a kind share."""
        tensors: dict[str, dict[str, Tensor]] = {}
        for full, tensor in sorted(pack.tensors.items()):
            layer, leaf = _place(full, classifier, self._names)
            if leaf != _UNUSED and self._names[layer] == layer:  # a module under two names has its tensors twice
                tensors.setdefault(layer, {})[leaf] = tensor
        return tensors

    def _template(self, pack: Pack) -> _Template:
        """What the pack must look like; made once for packs of the same arguments of `modulate`."""
        wanted = pack.modulation
        classifier, implicit = wanted["classifier"], wanted["implicit"]
        if self._layers and classifier != self._classifier:
            raise UserError(
                f"Expected packs that share the classifier {self._classifier!r}, got one with {classifier!r}; put it "
                "into ResidentPacks of its own"
            )
        modulator = self._modulator(wanted["modulator"])
        if classifier is not None and classifier not in dict(self._plain.named_modules()):
            raise UserError(f"Expected a model with the pack's classifier {classifier!r}, got one without")
        partition = implicit, classifier, wanted["statistics"]
        if partition not in self._fingerprints:
            self._fingerprints[partition] = base_fingerprint(self._plain, *partition)
        check_base(self._fingerprints[partition], pack)
        key = json.dumps({**wanted, "init": wanted["init"] == "diagonal"}, sort_keys=True)
        if key not in self._templates:
            self._templates[key] = self._new_template({**wanted, "modulator": modulator}, key)
        check_shapes(self._templates[key].tensors, pack, classifier)
        return self._templates[key]

    def _modulator(self, name: str) -> type[nn.Module]:
        """The class that a pack names: that of the model, or else the registered one."""
        known = [self._own] if self._own is not None and self._own.__name__ == name else classes_called(name)
        if len(known) != 1:
            raise UserError(
                f"Expected a model modulated with {name} for a pack of that modulator, got another, and {len(known)} "
                "registered modulators of that class name; pass the modulated model as the base"
            )
        return known[0]

    def _new_template(self, wanted: Mapping[str, Any], kind: str) -> _Template:
        model = _twin(self._plain)
        modulate_as(model, wanted)
        layers = modulated_layers(model).items()
        modulators = {name: layer.get_submodule("parametrizations.weight.0") for name, layer in layers}
        tensors = partition_tensors(
            model, bool(wanted["implicit"]), attachment(model).classifier, wanted["statistics"]
        ).task
        return _Template(kind, modulators, {name: torch.empty_like(t, device="meta") for name, t in tensors.items()})

    def _make_room(self, names: Iterable[str], classifier: str | None) -> None:
        """Let the layers `names` of the network serve several tasks."""
        self._classifier = classifier
        for name in names:
            if name in self._layers:
                continue
            module = self._network.get_submodule(name)
            layer = resident_layer(name, module, whole=name == classifier)
            for parent in list(self._network.modules()):  # a module under two names is replaced under both
                for child in [name for name, found in parent._modules.items() if found is module]:
                    parent._modules[child] = layer
            if module is self._network:
                self._network = layer
            self._layers.add(name)


def _place(full: str, classifier: str | None, layers: Mapping[str, str]) -> tuple[str, str]:
    """The layer of a pack's tensor, and its name there."""
    if classifier is not None and within(full, classifier):
        return classifier, full.removeprefix(f"{classifier}.") if classifier else full
    layer, _, leaf = full.rpartition(".")
    if layer not in layers:
        layer, _, rest = full.partition(".modulator.")
        leaf = f"modulator.{rest}"
    return layer, leaf


def _twin(model: nn.Module) -> nn.Module:
    """A copy with modules of its own that shares the values of all tensors, none of which takes gradients."""
    shared: dict[int, object] = {id(p): nn.Parameter(p.detach(), requires_grad=False) for p in model.parameters()}
    shared |= {id(b): b.detach() for b in model.buffers()}
    return copy.deepcopy(model, shared)
