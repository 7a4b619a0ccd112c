"""Data sets for the scenarios (placeholder until the real loader lands)."""
from functools import lru_cache
from torch.utils.data import TensorDataset
from simulations.datasets.bundle import Bundle, Inputs, Part
from simulations.quickstart.fl_unlearn_quickstart.data import load as _load

DATASETS = {"digits": 0, "parquet": 0}

@lru_cache(maxsize=2)
def load(name, root="", *, seed=0, max_train=0, max_test=0, image_size=0, tokens=64, vocabulary=20000, download=False):
    b = _load(name, root, seed=seed, max_train=max_train)
    n = max_test or len(b.test.labels)
    return Bundle(
        Part(TensorDataset(b.train.images, b.train.labels), b.train.labels),
        Part(TensorDataset(b.test.images[:n], b.test.labels[:n]), b.test.labels[:n]),
        b.num_classes, Inputs(b.image_shape), name)
