"""Count the trained parameters of a model, by part."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from metakm.modulation.attachment import attachment, is_modulated, unwrap, within
from metakm.modulation.norms import is_norm

_MODULATORS = "modulators"


@dataclass(frozen=True)
class TrainableReport:
    """Parameters by part: `modulators`, `norms`, `classifier`, `convolutions` and `others`.

    Attributes:
        trainable: trained parameters of each part.
        total: all parameters of each part.
    """

    trainable: dict[str, int]
    total: dict[str, int]

    @property
    def n_trainable(self) -> int:
        """Trained parameters in all."""
        return sum(self.trainable.values())

    @property
    def n_total(self) -> int:
        """Parameters in all, modulators included."""
        return sum(self.total.values())

    @property
    def n_full(self) -> int:
        """Parameters of the unmodulated model: what full training trains."""
        return self.n_total - self.total[_MODULATORS]

    @property
    def reduction(self) -> float:
        """Ratio of all parameters to trained ones (the paper's "75X"); infinite if nothing is trained."""
        return self.n_full / self.n_trainable if self.n_trainable else float("inf")

    def __str__(self) -> str:
        lines = [f"{'part':<14}{'trainable':>14}{'all':>14}"]
        lines += [f"{part:<14}{self.trainable[part]:>14,}{n:>14,}" for part, n in self.total.items() if n]
        lines.append(f"{'in all':<14}{self.n_trainable:>14,}{self.n_total:>14,}")
        lines.append(f"{self.reduction:.2f} times fewer than the {self.n_full:,} parameters without modulators")
        return "\n".join(lines)


def count_trainable(model: nn.Module) -> TrainableReport:
    """Count the parameters of any model, modulated or not, each once."""
    model = unwrap(model)
    parts = (_MODULATORS, "norms", "classifier", "convolutions", "others")
    trainable, total = dict.fromkeys(parts, 0), dict.fromkeys(parts, 0)
    classifier = attachment(model).classifier if is_modulated(model) else None
    for name, parameter in model.named_parameters():
        part = _part(model, name, classifier)
        total[part] += parameter.numel()
        trainable[part] += parameter.numel() if parameter.requires_grad else 0
    return TrainableReport(trainable, total)


def trainable_report(model: nn.Module) -> TrainableReport:
    """Print and return how many parameters of each part of `model` are trained, out of how many."""
    report = count_trainable(model)
    print(report)  # noqa: T201 (a report is for reading)
    return report


def _part(model: nn.Module, name: str, classifier: str | None) -> str:
    owner, marker, leaf = name.partition(".parametrizations.weight.")
    if marker and leaf != "original" and is_modulated(model) and owner in attachment(model).layers:
        return _MODULATORS
    if within(name, classifier):
        return "classifier"
    module = model.get_submodule(owner if marker else name.rpartition(".")[0])
    if is_norm(module):
        return "norms"
    return "convolutions" if isinstance(module, nn.Conv2d) else "others"
