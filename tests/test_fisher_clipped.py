"""Clipped Fisher sums against a slow reference, and what clipping is for: one sample changes only so much."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from references import reference_fisher
from torch import nn

from fl_unlearn.fisher import fisher_diagonal
from fl_unlearn.fisher.clipped import clipped_fisher
from fl_unlearn.types import REST, FisherError


def net(tied: bool = False) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 3))
        if tied:
            model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 3))
            model[2].weight = model[0].weight
    return model.eval()


def samples(count: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, 4, generator=generator), torch.randint(0, 3, (count,), generator=generator)


@settings(max_examples=30)
@given(
    st.integers(0, 9),
    st.sampled_from(["empirical", "normalized"]),
    st.sampled_from([0.01, 1.0, 1e9]),
    st.booleans(),
)
def test_sums_are_those_of_clipped_samples(count: int, kind: str, clip: float, tied: bool) -> None:
    model, (x, y) = net(tied), samples(count)
    got = clipped_fisher(model, [(x, y)], clip=clip, keep_classes=[1], num_classes=3, kind=kind, scope="all")
    assert sorted(got.sums) == [REST, 1]
    expected = {g: {n: torch.zeros_like(t) for n, t in own.items()} for g, own in got.sums.items()}
    counts = dict.fromkeys(expected, 0)
    for i in range(count):
        one, _ = reference_fisher(model, [(x[i : i + 1], y[i : i + 1])], kind, got.names, [1])
        (group,) = one
        norm = torch.cat([t.flatten() for t in one[group].values()]).norm()
        counts[group] += 1
        for n, t in one[group].items():
            expected[group][n] += t * min(1.0, clip / float(norm)) if norm else t
    assert got.counts == counts
    for group, own in expected.items():
        torch.testing.assert_close(got.sums[group], own, rtol=2e-4, atol=1e-7)


def test_without_clipping_it_is_the_plain_one() -> None:
    model, data = net(), [samples(20)]
    plain = fisher_diagonal(model, data, keep_classes=[0], scope="all")
    got = clipped_fisher(model, data, clip=1e12, keep_classes=[0], num_classes=3, scope="all")
    for group in plain.sums:
        torch.testing.assert_close(got.sums[group], plain.sums[group], rtol=1e-4, atol=1e-8)


@given(st.integers(0, 1000))
@settings(max_examples=20)
def test_one_sample_more_changes_the_sums_by_the_clip_at_most(seed: int) -> None:
    model, (x, y) = net(), samples(6, seed)

    def vector(rows: int) -> torch.Tensor:
        sums = clipped_fisher(model, [(x[:rows], y[:rows])], clip=0.3, keep_classes=[0, 1], num_classes=3)
        return torch.cat([t.flatten() for own in sums.sums.values() for t in own.values()])

    assert float((vector(6) - vector(5)).norm()) <= 0.3 * (1 + 1e-9)


def test_kinds_that_are_no_sum_over_samples_are_refused() -> None:
    with pytest.raises(FisherError, match="kind must be one of empirical, normalized; got 'batch'"):
        clipped_fisher(net(), [], clip=1.0, keep_classes=[], num_classes=3, kind="batch")
