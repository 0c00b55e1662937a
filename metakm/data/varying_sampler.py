"""Episodes whose ways and shots are drawn anew for each batch."""

from __future__ import annotations

from metakm.data.dataset import FewShotDataset
from metakm.data.episodes import Episodes, require_episode_numbers
from metakm.data.rng import raw_words, stream_key
from metakm.data.sampler import EpisodeSampler


class VaryingSampler(EpisodeSampler):
    """Draws batches of episodes, each with ways and shots out of ranges, all equally likely; queries are a number.

    The ways and shots of a batch depend only on the dataset's name and split, the seed and the number of its first
    episode. But for them, its episodes are those of an `EpisodeSampler` of these ways and shots. `draw` and `hash` are
    of the largest ways and shots.

    Args:
        ways, shots: such as `range(5, 21)`; `range(5, 6)` is always 5.

    Raises:
        UserError: what `EpisodeSampler` refuses, of the largest ways and shots.
    """

    def __init__(
        self,
        dataset: FewShotDataset,
        ways: range,
        shots: range,
        queries: int,
        seed: int = 0,
        augment: bool = False,
    ) -> None:
        super().__init__(dataset, max(ways), max(shots), queries, seed, augment)
        self._ranges = ways, shots
        self._samplers = {(n, k): EpisodeSampler(dataset, n, k, queries, seed, augment) for n in ways for k in shots}
        self._numbers_key = stream_key("metakm ways and shots 1", dataset.name, dataset.split, self.seed)

    def drawn(self, index: int) -> tuple[int, int]:
        """Ways and shots of the batch that begins with episode `index`."""
        first, second = (int(word) for word in raw_words(self._numbers_key, [index], 2)[0])
        ways, shots = self._ranges
        return ways[first % len(ways)], shots[second % len(shots)]  # the bias is below 1e-12

    def batch(self, index: int, tasks: int) -> Episodes:
        """Build episodes number `index`, ..., `index + tasks - 1`: see `EpisodeSampler.batch`."""
        require_episode_numbers(index, tasks)
        return self._samplers[self.drawn(index)].batch(index, tasks)
