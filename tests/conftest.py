"""Settings for all tests: no telemetry, one thread per test process, no network."""

import os

os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("HF_DATASETS_OFFLINE", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from hypothesis import settings

torch.set_num_threads(1)

# A deadline would make a busy machine fail a test.
settings.register_profile("no deadline", deadline=None)
settings.load_profile("no deadline")
