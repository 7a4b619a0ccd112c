"""A client's own data, as its project returns it."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from fl_unlearn.flower.own_data import split
from fl_unlearn.types import MeasureError

BATCH = (torch.zeros(2, 3), torch.tensor([0, 1]))
TRAIN, HELD = [BATCH], [BATCH, BATCH]


def test_training_and_held_out_data() -> None:
    assert split((TRAIN, HELD)) == (TRAIN, HELD)
    assert split((TRAIN, None)) == (TRAIN,)
    assert split(TRAIN) == (TRAIN,)
    assert split(([], HELD)) == ([], HELD)
    assert split(BATCH)[0] is BATCH


@pytest.mark.parametrize("data", [None, (None, HELD), (None, None)])
def test_held_out_data_never_stands_in_for_training_data(data: Any) -> None:
    with pytest.raises(MeasureError, match="`data` gave None for this client's training loader"):
        split(data)
