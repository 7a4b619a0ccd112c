"""Slow, obvious implementations of the models for texts: one text without padding, word by word."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def lstm(model: nn.Module, ids: list[int]) -> Tensor:
    """The mean over a text's words of an LSTM's outputs, by its equations, into the head."""
    weights = model.lstm
    h = torch.zeros(weights.hidden_size, dtype=torch.float64)
    c, total = h, h
    for i in ids:
        x = model.embedding.weight[i]
        gates = weights.weight_ih_l0 @ x + weights.bias_ih_l0 + weights.weight_hh_l0 @ h + weights.bias_hh_l0
        write, forget, new, show = gates.chunk(4)
        c = forget.sigmoid() * c + write.sigmoid() * new.tanh()
        h = show.sigmoid() * c.tanh()
        total = total + h
    return model.head.weight @ (total / max(1, len(ids))) + model.head.bias


def gated_convolutions(model: nn.Module, ids: list[int]) -> Tensor:
    """h + (W h + b) ⊙ σ(V h + c), block by block and position by position; their mean into the head."""
    width = model.embedding.embedding_dim
    nothing = torch.zeros(width, dtype=torch.float64)
    h = [model.embedding.weight[i] for i in ids]
    for convolution in model.blocks:
        around = [nothing, *h, nothing]
        new = []
        for t in range(len(h)):
            both = convolution.bias
            for k in range(3):
                both = both + convolution.weight[:, :, k] @ around[t + k]
            new.append(h[t] + both[:width] * both[width:].sigmoid())
        h = new
    return model.head.weight @ (sum(h, nothing) / max(1, len(ids))) + model.head.bias
