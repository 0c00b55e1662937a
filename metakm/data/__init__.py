"""Few-shot datasets and the episodes drawn from them."""

from metakm.data.alternating import AlternatingSampler
from metakm.data.dataset import FewShotDataset
from metakm.data.decode import read_images
from metakm.data.episodes import Episodes, EpisodeSource
from metakm.data.loading import load_dataset
from metakm.data.registry import available_datasets, register_dataset
from metakm.data.sampler import EpisodeSampler
from metakm.registry import import_modules

import_modules(__name__)

__all__ = [
    "AlternatingSampler",
    "EpisodeSampler",
    "EpisodeSource",
    "Episodes",
    "FewShotDataset",
    "available_datasets",
    "load_dataset",
    "read_images",
    "register_dataset",
]
