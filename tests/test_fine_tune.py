"""Fine-tuning: rounds of FedAvg on what is kept, and nothing else."""

from __future__ import annotations

import pytest
import torch
from strategy_cases import trained

import strategies
from strategies.errors import StrategyError
from strategies.training import fedavg


def test_it_is_fedavg_on_retained_data_from_the_current_model() -> None:
    case = trained()
    history, first = case.history, case.history.rounds[-1] + 1
    federation = case.federation()
    outcome = strategies.get("fine-tune", rounds=2, lr=0.05).unlearn(federation, history)
    expected = fedavg(
        case.federation(),
        history.current(),
        history.training,
        rounds=2,
        first=first,
        part="retained",
        lr=0.05,
        epochs=1,
    )
    for name, tensor in expected.items():
        torch.testing.assert_close(outcome.state[name], tensor, rtol=0, atol=0)
    assert federation.cost.rounds == 2
    assert outcome.change is None


@pytest.mark.parametrize("values", [{"rounds": 0}, {"lr": -1.0}, {"lr": float("nan")}])
def test_values_that_make_no_sense_are_refused(values) -> None:
    with pytest.raises(StrategyError, match="must be above 0"):
        strategies.get("fine-tune", **values)
