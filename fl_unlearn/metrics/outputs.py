"""What models say of the same samples: their output distributions, row by row."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from fl_unlearn.batches import check_logits, device_of, evaluating, filled, to_device


def distributions(models: Sequence[nn.Module], batches: Iterable[Any]) -> list[Tensor]:
    """Softmax outputs of several models, in one pass, so that rows belong together however batches come.

    Args:
        models: Classifiers; evaluated in eval mode.
        batches: As `batches.unpack` takes them; empty ones are skipped.

    Returns:
        One float64 tensor of shape (N, C) per model, on the CPU; (0, 0) without samples.

    Raises:
        FisherError: If a model gives something other than finite logits.
    """
    rows: list[list[Tensor]] = [[] for _ in models]
    with ExitStack() as stack:
        for model in models:
            stack.enter_context(evaluating(model))
        for i, (x, y) in enumerate(filled(batches)):
            for model, out in zip(models, rows, strict=True):
                z = model(to_device(x, device_of(model)))
                check_logits(z, y, None, f"batch {i}")
                out.append(z.double().softmax(1).cpu())
    return [torch.cat(out) if out else torch.zeros(0, 0, dtype=torch.float64) for out in rows]
