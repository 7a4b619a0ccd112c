"""The order of a curriculum: the confidences belong to the samples that they order."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st
from references_teaching import reference_curriculum, reference_softmax
from strategy_cases import trained
from torch import nn

from strategies.client import LARGE
from strategies.curriculum import by_confidence, confidences, samples, spread


@given(seed=st.integers(0, 10_000), count=st.integers(1, 40))
def test_the_order_is_by_falling_confidence(seed: int, count: int) -> None:
    z = torch.randn(count, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    assert by_confidence(_Same(), z).tolist() == reference_curriculum(z)


def test_each_confidence_is_that_of_its_own_sample() -> None:
    """Beyond one batch of `confidences`, too."""
    case = trained()
    client = case.clients[0]
    x, y = samples(client, "retained")
    x, y = x.repeat(2, 1, 1, 1), y.repeat(2)
    assert len(x) > LARGE
    model = client.model(case.history.current())
    found = confidences(model, x)
    for i in range(0, len(x), 37):
        with torch.no_grad():
            expected = max(reference_softmax(model(x[i : i + 1])[0].tolist()))
        torch.testing.assert_close(found[i].item(), expected, rtol=1e-5, atol=1e-6)
    assert torch.equal(y[: len(y) // 2], client.labels[client.labels != 3])
    falling = confidences(model, x[by_confidence(model, x)])
    assert bool((falling[1:] <= falling[:-1] + 1e-6).all())
    assert falling[0] > falling[-1]


@given(seed=st.integers(0, 10_000), kept=st.integers(0, 30), others=st.integers(0, 30))
def test_what_is_spread_among_it_leaves_the_order(seed: int, kept: int, others: int) -> None:
    order = torch.randperm(kept, generator=torch.Generator().manual_seed(seed))
    mixed = spread(order, torch.arange(kept, kept + others), seed)
    assert sorted(mixed.tolist()) == list(range(kept + others))
    assert [i for i in mixed.tolist() if i < kept] == order.tolist()


def test_it_is_spread_over_the_whole_epoch() -> None:
    places = (spread(torch.arange(300), torch.arange(300, 400), 1) >= 300).nonzero().squeeze(1)
    assert places.min() < 40
    assert places.max() > 360


class _Same(nn.Module):
    """Its inputs are its logits."""

    def __init__(self) -> None:
        super().__init__()
        self.device_of = nn.Parameter(torch.zeros(1))

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        return z
