"""A slow, obvious mean of models: exact fractions, one number at a time."""

from __future__ import annotations

from fractions import Fraction

import torch


def slow_average(models: list[tuple[dict[str, torch.Tensor], float]]) -> dict[str, torch.Tensor]:
    """Weighted means; of whole numbers the nearest one, of two the even one. In the first one's dtypes."""
    total = sum(Fraction(weight) for _, weight in models)
    out = {}
    for name, first in models[0][0].items():
        numbers = []
        for i in range(first.numel()):
            mean = sum(Fraction(w) * Fraction(state[name].flatten()[i].item()) for state, w in models) / total
            numbers.append(float(mean) if first.is_floating_point() else round(mean))
        wide = torch.float64 if first.is_floating_point() else torch.int64
        out[name] = torch.tensor(numbers, dtype=wide).reshape(first.shape).to(first.dtype)
    return out
