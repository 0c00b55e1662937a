"""Features of photos by the frozen base, computed once for all parts of a fit."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor, nn

from metakm.errors import UserError
from metakm.models.pretrained import Pretrained
from metakm.photos.augmentation import random_views
from metakm.photos.store import PhotoStore, normalise

VIEWS = 4  # random ones of each photo, where photos are few; one of each where they are many
FEW = 500


def frozen_features(
    base: Pretrained,
    store: PhotoStore,
    seed: int,
    *,
    augment: bool,
    progress: Callable[[int, int], None] = lambda *_: None,
) -> Tensor:
    """Features `[V, n, D]` of each photo as it is (the first) and of random views of it.

    `base.network` is in evaluation mode.

    Args:
        progress: called after each batch with (images done, all); may raise to end the computation.

    Raises:
        UserError: features that are not finite.
    """
    device = next(base.network.parameters()).device
    views = (VIEWS if len(store) <= FEW else 1) if augment else 0

    def batches(view: int) -> Iterator[Tensor]:
        done = 0
        for pixels in store.batches(range(len(store))):
            seen = random_views(pixels, (seed * 1_000_003 + 10**8 * view + done) % 2**63) if view else pixels
            yield normalise(seen.to(device), base.preprocessing)
            done += len(pixels)
            progress(view * len(store) + done, (views + 1) * len(store))

    found = torch.stack([features(base.network, base.classifier, batches(view)) for view in range(views + 1)])
    if not found.isfinite().all():
        raise UserError(
            f"Expected finite features from {base.name}, got NaN or infinite ones; check its weights (--weights)"
        )
    return found


@torch.no_grad()
def features(network: nn.Module, classifier: str, batches: Iterable[Tensor]) -> Tensor:
    """What the classifier of a network in evaluation mode is given, `[n, D]`, means over pixels if it is a convolution.

    Args:
        batches: normalised images `[b, 3, S, S]`.
    """
    found: list[Tensor] = []

    def keep(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        given = inputs[0]
        found.append(given.mean((2, 3)) if given.dim() == 4 else given)

    handle = network.get_submodule(classifier).register_forward_pre_hook(keep)
    try:
        for batch in batches:
            network(batch)
    finally:
        handle.remove()
    return torch.cat(found)
