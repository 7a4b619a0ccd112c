"""Weight negation: what is negated, and that retained data bring the rest back."""

from __future__ import annotations

import pytest
import torch
from strategy_cases import trained
from torch import nn

import strategies
from strategies.errors import StrategyError, UnsupportedError
from strategies.not_ import layers, negated


def test_the_first_layer_with_a_weight_is_negated_and_nothing_else() -> None:
    model = nn.Sequential(nn.BatchNorm2d(1), nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8, 2))
    state = model.state_dict()
    assert list(layers(state)) == ["1", "4"]
    out = negated(state, "1")
    for name, tensor in state.items():
        torch.testing.assert_close(out[name], -tensor if name in ("1.weight", "1.bias") else tensor)
    with torch.no_grad():
        x = torch.randn(3, 1, 4, 4)
        wanted = -model[1](x)
        model.load_state_dict(out)
        torch.testing.assert_close(model[1](x), wanted)


def test_the_class_is_gone_and_the_rest_comes_back() -> None:
    case = trained()
    current = case.history.current()
    broken = case.accuracy(negated(current, "features.0"), "retained")
    outcome = strategies.get("not").unlearn(case.federation(), case.history)
    again = strategies.get("not").unlearn(case.federation(), case.history)
    assert case.accuracy(current, "forget") > 0.9
    assert broken < 0.5
    assert case.accuracy(outcome.state, "forget") == 0
    assert case.accuracy(outcome.state, "retained") > 0.7
    assert all(torch.equal(t, again.state[n]) for n, t in outcome.state.items())
    assert outcome.facts["layer"] == "features.0"


def test_a_clients_backdoor_goes_when_it_takes_no_part() -> None:
    case = trained("digits-client", alpha=1.0)
    outcome = strategies.get("not").unlearn(case.federation(), case.history)
    assert case.accuracy(case.history.current(), "triggered") > 0.5
    assert case.accuracy(outcome.state, "triggered") < 0.2


def test_another_layer_can_be_named() -> None:
    case = trained(forget_classes="", forget_samples="0:40")
    outcome = strategies.get("not", layer="fc", rounds=1).unlearn(case.federation(), case.history)
    assert outcome.facts["layer"] == "fc"
    with pytest.raises(UnsupportedError, match=r"no layer 'fc1': they are features\.0, .*, fc, head"):
        strategies.get("not", layer="fc1").check(case.federation(), case.history)


@pytest.mark.parametrize("bad", [{"rounds": 0}, {"lr": -0.1}])
def test_bad_hyper_parameters_are_refused(bad) -> None:
    with pytest.raises(StrategyError, match=next(iter(bad))):
        strategies.get("not", **bad)
