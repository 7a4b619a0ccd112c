"""The tiny federation with requests that erase, and what its hidden layer ought to be afterwards."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import federation as fed
import torch
from references_erase import dense_map, observations

from fl_unlearn.types import (
    UnlearnSettings,
)

DEEP = UnlearnSettings.preset("deep")
State = dict[str, torch.Tensor]


def all_data(clients: Any = range(fed.CLIENTS)) -> tuple[torch.Tensor, torch.Tensor]:
    x, y = zip(*(fed.client_data(p) for p in clients), strict=True)
    return torch.cat(x), torch.cat(y)


def hidden_of(state: State, x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    model = fed.build_model()
    model.load_state_dict(state)
    return observations(model, "hidden", x, y)


def expected_erasure(state: State, x: torch.Tensor, y: torch.Tensor, classes: list[int]) -> State:
    """The hidden layer's tensors after the map of the formula, from the data itself."""
    rows, labels = hidden_of(state, x, y)
    dense, mean = dense_map(rows, labels, classes), rows.mean(0)
    bias = dense @ (state["hidden.bias"].double() - mean) + mean
    return {
        "hidden.weight": (dense @ state["hidden.weight"].double()).float(),
        "hidden.bias": bias.float(),
    }


def deep(folder: Path, **kwargs: Any) -> Any:
    return fed.trained(folder, **{"settings": DEEP, **kwargs})
