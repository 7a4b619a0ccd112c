"""How tests fill a ledger, and compare what it answers."""

from __future__ import annotations

import torch
from cases import Problem

from fl_unlearn.fisher import FisherSums
from fl_unlearn.fisher.ledger import FisherLedger


def no_data() -> list[object]:
    raise AssertionError("the data was asked for")


def fill(ledger: FisherLedger, p: Problem, scopes: tuple[str, ...] = ("head",), **kw: object) -> None:
    with ledger.collect(p.model, scopes=scopes, head=p.head, **kw) as forward:
        for x, y in p.batches():
            forward(x, y)


def exact(a: FisherSums, b: FisherSums, rtol: float = 1e-12) -> None:
    assert a.counts == b.counts
    assert (a.kind, a.scope, a.num_classes, a.names) == (b.kind, b.scope, b.num_classes, b.names)
    for group in b.sums:
        for name, want in b.sums[group].items():
            torch.testing.assert_close(a.sums[group][name], want, rtol=rtol, atol=0.0)
