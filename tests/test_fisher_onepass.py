"""Squared gradients from one forward and one backward pass, against the slow reference."""

from __future__ import annotations

import logging

import pytest
import torch
from cases_fisher import NETWORKS, labels
from fisher_checks import close
from references import reference_fisher
from torch import nn

from fl_unlearn.fisher import fisher_diagonal, resolve_scope


def equal_to_reference(
    model: nn.Module, x: torch.Tensor, kind: str, caplog: pytest.LogCaptureFixture, **kw: object
) -> None:
    """The engine itself must have done it, so nothing may have been said about falling back."""
    batches = [(x, labels(len(x)))]
    want, counts = reference_fisher(model, batches, kind, resolve_scope(model, "all"))
    with caplog.at_level(logging.WARNING, "fl_unlearn"):
        got = fisher_diagonal(model, batches, kind=kind, scope="all", **kw)
    assert not caplog.records, caplog.text
    assert got.counts == counts
    for group, sums in want.items():
        close(got.sums[group], sums)


@pytest.mark.parametrize("kind", ["empirical", "normalized", "true"])
@pytest.mark.parametrize("name", NETWORKS)
def test_equals_the_reference(name: str, kind: str, caplog: pytest.LogCaptureFixture) -> None:
    model, x = NETWORKS[name]()
    equal_to_reference(model, x, kind, caplog)
