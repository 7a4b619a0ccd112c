"""The settings of the paper's code: whose Fisher of which model over which samples, and what comes of it."""

from __future__ import annotations

import pytest
import torch
from references import reference_fisher
from references_update import dampened
from strategy_cases import trained

import strategies
from strategies.errors import UnsupportedError

HEAD = ["head.weight", "head.bias"]


def batch_fisher(model, batches):
    """Mean over mini-batches of the squared gradient of the batch's mean loss, of the head."""
    sums, counts = reference_fisher(model, batches, "batch", HEAD, keep_classes=[])
    return {n: t / counts[-1] for n, t in sums[-1].items()}


def test_it_is_the_rule_of_the_papers_code() -> None:
    """By hand: roots of the holders, forget Fisher on each, maximum / 5 per further root, own reference."""
    case = trained("digits-class", alpha=100.0, forget_clients="0,2")
    outcome = strategies.get("fiun-paper", threshold=2.0).unlearn(case.federation(), case.history)
    forget = []
    for i in (0, 2):
        model = case.clients[i].model(case.history.store.load(f"r0001-client-{i}").state)
        forget.append(batch_fisher(model, case.clients[i].batches("forget", size=32)))
    merged = {n: torch.maximum(forget[0][n], forget[1][n]) / 5 for n in HEAD}
    batches = [b for c in case.clients for b in c.batches("train", size=32)]
    assert outcome.facts["roots"] == 2
    assert outcome.change is not None
    early = case.history.global_model(2)
    for before, after in ((case.history.current(), outcome.state), (early, outcome.change(early))):
        reference = batch_fisher(case.clients[0].model(before), batches)
        for name, wanted in dampened(before, merged, reference, 2.0, 1.0).items():
            assert torch.equal(wanted, before[name].double()) != (name in HEAD)
            torch.testing.assert_close(after[name].double(), wanted, rtol=1e-3, atol=1e-6)


def test_it_forgets_and_the_same_twice() -> None:
    case = trained()
    strategy = strategies.get("fiun-paper", threshold=1.0, merge_rule="max")
    outcome, other = (strategy.unlearn(case.federation(), case.history) for _ in range(2))
    assert case.accuracy(case.history.current(), "forget") > 0.9
    assert case.accuracy(outcome.state, "forget") < 0.05
    for name, tensor in outcome.state.items():
        torch.testing.assert_close(tensor, other.state[name], rtol=0, atol=0)


def test_a_client_is_no_target() -> None:
    case = trained("digits-client")
    with pytest.raises(UnsupportedError, match="fiun-paper: it cannot forget a client, only classes"):
        strategies.get("fiun-paper").check(case.federation(), case.history)


def test_without_the_clients_updates_it_says_so() -> None:
    case = trained()
    history = type(case.history)(case.history.store, case.history.training, case.history.head)
    history.has_updates = False
    with pytest.raises(UnsupportedError, match="fiun-paper: it needs the clients' updates of every round"):
        strategies.get("fiun-paper").check(case.federation(), history)
