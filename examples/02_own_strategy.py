"""A strategy of your own: adapt the convolution biases and the head.

Run this file to compare it with ANIL, or train it as any other strategy:

    python -m metakm.run --algo biases --plugin examples/02_own_strategy.py
"""

import torch
from torch import Tensor, nn

import metakm
from metakm.strategies import Classifier, SharedParameters, call_with


@metakm.register_strategy("biases")
class Biases(metakm.Strategy):
    """The inner loop moves the convolutions' biases and the head; everything else is meta-learned and stays."""

    def __init__(self, backbone: nn.Module, ways: int) -> None:
        super().__init__()
        self.network = Classifier(backbone, ways)
        names = [name for name, _ in self.network.named_parameters() if name.endswith("conv.bias") or "head" in name]
        self.adapted = SharedParameters(self.network, names)

    def predict(self, adapted: SharedParameters, encoded: Tensor) -> Tensor:
        """Images `[T, n, C, H, W]` to logits `[T, n, N]`, with the adapted parameters `[T, ...]` in place."""
        return call_with(self.network, adapted(), encoded)


def main() -> None:
    """Adapt both untrained strategies to the same episodes."""
    episodes = metakm.EpisodeSampler(metakm.load_dataset("glyphs"), ways=5, shots=1, queries=5).batch(index=0, tasks=8)
    for algo in ("anil", "biases"):
        torch.manual_seed(0)
        strategy = metakm.make_strategy(algo, backbone=metakm.Conv4(in_channels=1, filters=16), ways=5)
        adapted, total = strategy.parameter_counts()
        result = metakm.meta_loss(strategy, episodes, inner_lr=0.5, inner_steps=3)
        result.loss.backward()
        print(f"{algo}: adapts {adapted} of {total} parameters, accuracy {result.accuracy.mean():.1%}")


if __name__ == "__main__":
    main()
