"""The model and the data. **Synthetic**: Gaussian clusters, one for each class."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

CLASSES, FEATURES = 4, 2048
Loader = DataLoader[tuple[torch.Tensor, ...]]


def new_model(megabytes: int) -> nn.Sequential:
    """A classifier of so many million bytes, nearly all in its first layer; always the same values."""
    hidden = megabytes * 1_000_000 // (4 * FEATURES)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        return nn.Sequential(nn.Linear(FEATURES, hidden), nn.ReLU(), nn.Linear(hidden, CLASSES))


def load_data(client: int, examples: int) -> tuple[Loader, Loader]:
    """One client's training and held-out samples: ``examples`` in all, a quarter of them held out."""
    centres = torch.randn(CLASSES, FEATURES, generator=torch.Generator().manual_seed(0))
    random = torch.Generator().manual_seed(1 + client)
    labels = torch.arange(examples) % CLASSES
    inputs = centres[labels] + torch.randn(examples, FEATURES, generator=random)
    parts = (torch.arange(examples) // CLASSES) % 4 == 0
    held_out, training = (TensorDataset(inputs[part], labels[part]) for part in (parts, ~parts))
    return DataLoader(training, 30, shuffle=True, generator=random), DataLoader(held_out, 64)


def train(model: nn.Module, loader: Loader, exclude: set[int]) -> int:
    """Train in place for a pass; returns the number of samples seen."""
    optimizer, seen = torch.optim.SGD(model.parameters(), lr=0.003), 0
    for inputs, labels in loader:
        keep = ~torch.isin(labels, torch.tensor(sorted(exclude), dtype=labels.dtype))
        if not bool(keep.any()):
            continue
        optimizer.zero_grad()
        torch.autograd.backward(cross_entropy(model(inputs[keep]), labels[keep]))
        optimizer.step()
        seen += int(keep.sum())
    return seen
