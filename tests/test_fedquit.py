"""FedQUIT: the virtual teacher, and what the holders and the recovery do."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from references_teaching import reference_virtual_teacher
from strategy_cases import trained

import strategies
from strategies.errors import StrategyError
from strategies.fedquit import virtual_teacher


@given(
    seed=st.integers(0, 10_000),
    samples=st.integers(1, 6),
    classes=st.integers(2, 7),
    kind=st.sampled_from(("logits", "softmax")),
)
def test_the_virtual_teacher_is_that_of_the_paper(seed: int, samples: int, classes: int, kind: str) -> None:
    generator = torch.Generator().manual_seed(seed)
    z = torch.randn(samples, classes, generator=generator, dtype=torch.float64) * 5
    y = torch.randint(classes, (samples,), generator=generator)
    torch.testing.assert_close(virtual_teacher(z, y, kind), reference_virtual_teacher(z, y, kind))


def test_a_teacher_that_was_certain_still_teaches_the_other_classes() -> None:
    z = torch.tensor([[500.0, 1.0, 0.0]])
    p = virtual_teacher(z, torch.tensor([0]), "softmax")
    torch.testing.assert_close(p, torch.tensor([[0.0, 0.7310586, 0.2689414]]))


def test_the_holders_students_forget_the_class_and_recovery_keeps_the_rest() -> None:
    case = trained()
    outcome = strategies.get("fedquit").unlearn(case.federation(), case.history)
    assert case.accuracy(case.history.current(), "forget") > 0.9
    assert case.accuracy(outcome.state, "forget") < 0.1
    assert case.accuracy(outcome.state, "retained") > 0.95
    hardly = strategies.get("fedquit", lr=1e-9).unlearn(case.federation(), case.history)
    assert case.accuracy(hardly.state, "forget") > 0.9


def test_a_client_forgets_its_backdoor() -> None:
    case = trained("digits-client", rounds=10)
    outcome = strategies.get("fedquit").unlearn(case.federation(), case.history)
    before = case.accuracy(case.history.current(), "triggered")
    assert case.accuracy(outcome.state, "triggered") < before / 2
    assert case.accuracy(outcome.state, "held-out") > 0.8


def test_only_the_holder_of_the_samples_distils() -> None:
    case = trained(forget_classes="", forget_samples="0:10")
    federation = case.federation()
    asked = []
    ask = federation.ask
    federation.ask = lambda task, *rest: asked.append((task, rest)) or ask(task, *rest)
    outcome = strategies.get("fedquit", epochs=1, recovery=1).unlearn(federation, case.history)
    assert [(task, rest[2]) for task, rest in asked] == [("fedquit.forget", ["0"]), ("train", None)]
    assert outcome.facts["rounds"] == federation.cost.rounds == 2


@pytest.mark.parametrize("virtual", ["logits", "softmax"])
def test_the_same_seed_gives_the_same_model(virtual: str) -> None:
    case = trained()
    strategy = strategies.get("fedquit", virtual=virtual, epochs=2, recovery=1)
    one, two = (strategy.unlearn(case.federation(), case.history).state for _ in range(2))
    for name, tensor in one.items():
        torch.testing.assert_close(tensor, two[name], rtol=0, atol=0)


def test_wrong_hyper_parameters_are_refused() -> None:
    with pytest.raises(StrategyError, match="fedquit: virtual must be one of logits, softmax; got 'logit'"):
        strategies.get("fedquit", virtual="logit")
    with pytest.raises(StrategyError, match="fedquit: epochs must be above 0, got 0"):
        strategies.get("fedquit", epochs=0)
    with pytest.raises(StrategyError, match="fedquit: lr must be above 0, got nan"):
        strategies.get("fedquit", lr=float("nan"))
