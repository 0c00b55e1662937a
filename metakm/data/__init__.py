"""Few-shot datasets and the episodes drawn from them."""

from metakm.data.catalogue import available_datasets, load_dataset
from metakm.data.dataset import FewShotDataset
from metakm.data.episodes import Episodes, EpisodeSampler, EpisodeSource
from metakm.data.pictures import read_images

__all__ = [
    "EpisodeSampler",
    "EpisodeSource",
    "Episodes",
    "FewShotDataset",
    "available_datasets",
    "load_dataset",
    "read_images",
]
