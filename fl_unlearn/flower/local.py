"""What one question of the server finds at a client: who it is, its data, its models' shape, its ledger."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from flwr.app import ArrayRecord, ConfigRecord, RecordDict
from torch import nn

from fl_unlearn.fisher import find_head
from fl_unlearn.fisher.ledger import FisherLedger
from fl_unlearn.flower.own_data import OwnData, own_data
from fl_unlearn.flower.targets import Keys
from fl_unlearn.privacy import Privacy
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
        state: What it remembers between questions of a run.
        privacy: What it insists on.
        sample_keys: Gives its keys of its training samples; None: it has none.
    """

    client: str
    load: Callable[[ArrayRecord], tuple[nn.Module, dict[str, str]]]
    data: Callable[[], Any]
    device: torch.device
    ledger: Callable[[], FisherLedger | None]
    state: RecordDict
    privacy: Privacy
    sample_keys: Callable[[], Keys] | None = None

    def own(self, record: ConfigRecord) -> OwnData:
        """This client's data, parted as a question asks.

        Raises:
            RequestError: If what the question names cannot be found.
        """
        return own_data(self.data(), record, self.client, self.sample_keys)


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
