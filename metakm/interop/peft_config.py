"""The configuration of kernel modulation as a method of peft."""

from __future__ import annotations

from dataclasses import dataclass, field

from peft.config import PeftConfig

from metakm.interop.peft_type import add_peft_type
from metakm.modulation.modulators import Activation, Initialisation, Start, modulator_class

KM = add_peft_type("KM")


@dataclass
class KernelModulationConfig(PeftConfig):
    """What is modulated, and how; fields without a word here are those of `metakm.modulation.modulate`.

    Attributes:
        target_modules: as for peft's other methods, names (or their ends) or a regular expression; of the modules that
            match, the 2-D convolutions are modulated. All convolutions by default.
        exclude_modules: likewise, convolutions that stay as they are.
        modules_to_save: modules trained and saved as they are, such as `["fc"]`. Neither their convolutions nor their
            norms are modulated.
        implicit: train the affine parameters of the norm layers, all but those in `modules_to_save`. Their running
            statistics belong to the adapter, with `implicit` or without.
        modulator: the name of a registered modulator.
    """

    target_modules: list[str] | str | None = field(default=None)
    exclude_modules: list[str] | str | None = field(default=None)
    modules_to_save: list[str] | None = field(default=None)
    implicit: bool = field(default=True)
    activation: Activation = field(default="tanh")
    init: Initialisation = field(default="identity")
    depth: int = field(default=2)
    modulator: str = field(default="kernel")
    start: Start = field(default="exact")

    def __post_init__(self) -> None:
        super().__post_init__()  # type: ignore[no-untyped-call]
        self.peft_type = KM
        modulator_class(self.modulator)  # refuses an unknown one
