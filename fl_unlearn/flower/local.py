"""What one question of the server finds at a client: who it is, its data, its models' shape, its ledger."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from flwr.app import ArrayRecord
from torch import nn

from fl_unlearn.fisher import find_head
from fl_unlearn.fisher.ledger import FisherLedger
from fl_unlearn.types import FisherError, RequestError


@dataclass(frozen=True)
class Local:
    """A client, as one question finds it.

    Attributes:
        client: Its name.
        load: Gives the project's model with the values of a message, and its names to the message's names.
        data: Gives this client's training loader, or (training, held-out).
        device: Where to compute.
        ledger: Gives the ledger that it keeps of its training data, if any.
    """

    client: str
    load: Callable[[ArrayRecord], tuple[nn.Module, dict[str, str]]]
    data: Callable[[], Any]
    device: torch.device
    ledger: Callable[[], FisherLedger | None]


def check_classes(model: nn.Module, classes: list[int], head: str | None) -> None:
    """Check that the model has the classes of a request.

    Raises:
        RequestError: If it has not.
    """
    try:
        count = find_head(model, head)[1].out_features
    except FisherError:
        return
    if unknown := [c for c in classes if c >= count]:
        raise RequestError(f"unknown class {unknown[0]}: the model has the classes 0 to {count - 1}")
