"""The Fisher of named samples against that of the others, as the slow reference sums it."""

from __future__ import annotations

import pytest
import torch
from cases import PROBLEMS
from fisher_checks import close
from references import reference_fisher

from fl_unlearn.fisher import fisher_diagonal
from fl_unlearn.fisher.named import fisher_of_named
from fl_unlearn.forget_set import NAMED
from fl_unlearn.types import REST


@pytest.mark.parametrize("kind", ["empirical", "normalized", "true"])
@pytest.mark.parametrize("split", [0, 3, None])
def test_named_samples_are_one_group_whatever_their_labels(kind: str, split: int | None) -> None:
    p = PROBLEMS["mlp"]()
    batches = p.batches(2)
    x, y = (torch.cat([b[i] for b in batches]) for i in (0, 1))
    rows = len(y) if split is None else split
    named, rest = ([(x[part], y[part])] if len(y[part]) else [] for part in (slice(rows), slice(rows, None)))
    sums = fisher_of_named(p.model, named, rest, kind=kind, scope="all")
    assert sums.counts == {NAMED: rows, REST: len(y) - rows}
    for group, part in ((NAMED, named), (REST, rest)):
        if part:
            want, _ = reference_fisher(p.model, part, kind, sums.names, None)
            close(sums.sums[group], {n: sum(own[n] for own in want.values()) for n in sums.names})
        else:
            assert not any(bool(t.any()) for t in sums.sums[group].values())


def test_a_share_of_the_rest_is_of_the_rest_only() -> None:
    p = PROBLEMS["mlp"]()
    batches = p.batches(2)
    got = fisher_of_named(p.model, batches[:1], batches[1:], reference_share=0.5)
    close(got.sums[NAMED], fisher_diagonal(p.model, batches[:1], keep_classes=[]).sums[REST])
    rest = fisher_diagonal(p.model, batches[1:], keep_classes=[], reference_share=0.5)
    close(got.sums[REST], rest.sums[REST])
    assert got.counts[REST] == rest.counts[REST]
