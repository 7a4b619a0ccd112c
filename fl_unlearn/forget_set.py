"""Which of a client's samples a request is about."""

from __future__ import annotations

import torch
from torch import Tensor

from fl_unlearn.types import ForgetRequest, RequestError

NAMED = 0
"""The group of all samples that a request for a client or samples names, whatever their labels."""


def forget_mask(request: ForgetRequest, client: str, labels: Tensor) -> Tensor:
    """Which samples of one client's training data a request asks to forget; the others are retained.

    Args:
        request: The request.
        client: The client's name.
        labels: Labels of its training samples, shape (N,), in the order of its data set.

    Returns:
        Booleans of shape (N,), on the labels' device.

    Raises:
        RequestError: If the request names a sample that the client does not have, or names the client's
            samples by keys that have not been turned into positions.
    """
    if request.kind == "samples":
        mask = torch.zeros(len(labels), dtype=torch.bool, device=labels.device)
        rows = request.positions(client)
        if rows and rows[-1] >= len(labels):
            raise RequestError(
                f"client {client!r} has {len(labels)} training samples, 0 to {len(labels) - 1}; the request "
                f"names sample {rows[-1]}"
            )
        mask[list(rows)] = True
        return mask
    named = not request.clients or client in request.clients
    if request.kind == "client" or not named:
        return torch.full(labels.shape, named, device=labels.device)
    return torch.isin(labels.long(), torch.tensor(request.classes, device=labels.device))
