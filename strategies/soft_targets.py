"""Learning from a teacher's probabilities instead of labels."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import kl_div


def probabilities(teacher: nn.Module, x: Any, temperature: float = 1.0) -> Tensor:
    """What a teacher answers, softened: softmax(z / T), shape (B, C); without a graph."""
    with torch.no_grad():
        z: Tensor = teacher(x)
        return (z / temperature).softmax(1)


def divergence(logits: Tensor, targets: Tensor, temperature: float = 1.0) -> Tensor:
    """Kullback-Leibler divergence KL(targets ‖ softmax(logits / T)), mean over the samples, in nats.

    Args:
        logits: The student's, shape (B, C).
        targets: The teacher's probabilities, shape (B, C), at the same temperature; zeros are allowed.
        temperature: T of the softmax.
    """
    return kl_div((logits / temperature).log_softmax(1), targets, reduction="batchmean")
