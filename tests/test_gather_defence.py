"""What one client's Fisher can do to all others'."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from fl_unlearn import evidence
from fl_unlearn.defence import OFF, Defence
from fl_unlearn.fisher import FisherSums, fisher_diagonal
from fl_unlearn.fisher_bounds import head_violation, is_head
from fl_unlearn.gather import FisherGather
from fl_unlearn.merge import merge
from fl_unlearn.types import REST, FisherError

CLASSES = 4


def sums_of(seed: int, labels: list[int], scale: float = 1.0, asked: int = 0) -> FisherSums:
    """What an honest client with these labels answers when class 0 (or another) is asked for."""
    generator = torch.Generator().manual_seed(seed)
    model = nn.Linear(5, CLASSES)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(scale * torch.randn(p.shape, generator=generator))
    x, y = torch.randn(len(labels), 5, generator=generator), torch.tensor(labels)
    own = fisher_diagonal(model, [(x, y)], kind="normalized", scope="all", keep_classes=[asked])
    for group in (asked, REST):
        own.sums.setdefault(group, {n: torch.zeros_like(p).double() for n, p in model.named_parameters()})
        own.counts.setdefault(group, 0)
    return own


def changed(sums: FisherSums, group: int, factor: float, count: int = 1) -> FisherSums:
    new = {n: t * factor for n, t in sums.sums[group].items()}
    counts = {**sums.counts, group: sums.counts[group] * count}
    return FisherSums(sums.kind, sums.scope, sums.num_classes, {**sums.sums, group: new}, counts)


HONEST = {str(i): sums_of(i, [0, 0, 1, 2, 3, 1][: 6 - i % 2]) for i in range(5)}


def gathered(answers: dict[str, FisherSums], defence: Defence = OFF, **kwargs: object) -> FisherGather:
    out = FisherGather("max", defence, head=True, **kwargs)  # type: ignore[arg-type]
    for client, sums in answers.items():
        out.add(client, sums)
    return out


# --------------------------------------------------------------------------- bounds
@given(
    st.integers(0, 10_000),
    st.lists(st.integers(0, CLASSES - 1), min_size=1, max_size=8),
    st.sampled_from([0.01, 1.0, 30.0]),
)
def test_no_honest_fisher_breaks_the_bounds(seed: int, labels: list[int], scale: float) -> None:
    own = sums_of(seed, labels, scale)
    assert is_head(own.sums[REST], CLASSES)
    for group, count in own.counts.items():
        if count:
            assert head_violation(own.sums[group], count, group, [0]) is None


@pytest.mark.parametrize("name", ["weight", "bias"])
def test_made_up_fishers_break_them(name: str) -> None:
    own = HONEST["0"]
    more = {n: t.clone() for n, t in own.sums[0].items()}
    more[name][2] += 3 * more[name].sum(0)
    assert head_violation(more, own.counts[0], 0, [0]) is not None
    rest = {n: t.clone() for n, t in own.sums[REST].items()}
    rest[name][0] += 3 * rest[name].sum(0)
    assert head_violation(rest, own.counts[REST], REST, [0]) is not None
    scaled = {n: 1.1 * t for n, t in own.sums[0].items()}
    assert "must be its 2 samples" in str(head_violation(scaled, 2, 0, [0]))
    assert not is_head({"w": torch.zeros(3, 5)}, CLASSES)
    assert not is_head({"w": torch.zeros(CLASSES, 5, 5)}, CLASSES)


def test_a_liar_is_left_out_and_the_others_are_as_without_it() -> None:
    lie = {**HONEST, "4": changed(HONEST["4"], 0, 1000.0)}
    found = gathered(lie, Defence())
    assert "'bias' adds up to" in found.settle()["4"]
    assert set(found.counts) == set("0123")
    alone = gathered({c: s for c, s in HONEST.items() if c != "4"}, Defence())
    assert alone.settle() == {}
    for a, b in ((found.merged(), alone.merged()), (found.reference(), alone.reference())):
        assert all(torch.equal(a[n], b[n]) for n in b)


def test_where_most_break_the_bounds_they_are_not_used() -> None:
    odd = {c: changed(s, REST, 2.0) for c, s in HONEST.items()}
    found = gathered(odd, Defence(clip=None))
    assert found.settle() == {}
    assert len(found.counts) == 5


# --------------------------------------------------------------------------- sizes and counts
def test_an_honest_federation_is_merged_as_without_defence() -> None:
    with_, without = gathered(HONEST, Defence()), gathered(HONEST)
    assert with_.settle() == without.settle() == {}
    assert with_.scaled == set()
    expected = merge(evidence.parts(HONEST))
    for got in (with_, without):
        assert all(torch.equal(t, expected[n]) for n, t in got.merged().items())
    total = evidence.retained(list(HONEST.values())).mean([REST])
    torch.testing.assert_close(with_.reference(), total, rtol=1e-12, atol=0)
    assert all(torch.equal(t, without.reference()[n]) for n, t in with_.reference().items())


@pytest.mark.parametrize("group", [0, REST])
def test_a_large_fisher_is_scaled_down(group: int) -> None:
    sizes = sorted(float(s.mean([REST])["weight"].sum()) for s in HONEST.values())
    lie = {**HONEST, "4": changed(HONEST["4"], group, 1000.0)}
    found = gathered(lie, Defence(bounds=False, clip=3.0))
    found.settle()
    assert found.scaled == {"4"}
    most = 3.0 * (sizes[-1] if group == REST else sizes[2])
    if group == 0:
        assert float(found.merged()["weight"].sum()) <= most + sum(
            float(s.mean([0])["weight"].sum()) for s in HONEST.values()
        )
    share = HONEST["4"].counts[REST] / sum(s.counts[REST] for s in HONEST.values())
    assert float(found.reference()["weight"].sum()) <= share * most + sizes[-1]
    two = {c: lie[c] for c in "34"}  # there is no telling which of two is right
    pair = gathered(two, Defence(bounds=False, clip=3.0))
    pair.settle()
    assert pair.scaled == set()


def test_samples_count_as_far_as_a_client_was_seen_to_train() -> None:
    empty = changed(HONEST["4"], REST, 1e-9, count=19)
    trained = {c: sum(s.counts.values()) for c, s in HONEST.items()}
    lie, defence = {**HONEST, "4": empty}, Defence(bounds=False, clip=None)
    free, bound = gathered(lie), gathered(lie, defence, trained=trained)
    free.settle()
    bound.settle()
    expected = gathered({c: s for c, s in HONEST.items() if c != "4"})
    expected.settle()
    worse, better, true = (float(g.reference()["weight"].sum()) for g in (free, bound, expected))
    assert worse < 0.25 * true
    assert better > 0.5 * true
    honest = gathered(HONEST, defence, trained=trained)
    honest.settle()
    assert honest.reference()["weight"].sum() == gathered_plain().reference()["weight"].sum()


def gathered_plain() -> FisherGather:
    out = gathered(HONEST)
    out.settle()
    return out


@pytest.mark.parametrize("rule", ["median", "trimmed-mean"])
def test_a_robust_reference_stays_in_the_honest_range(rule: str) -> None:
    lie = {**HONEST, "4": changed(HONEST["4"], REST, 1e9)}
    found = gathered(lie, Defence(bounds=False, clip=None, reference_rule=rule))  # type: ignore[arg-type]
    found.settle()
    for name, tensor in found.reference().items():
        honest = torch.stack([HONEST[c].mean([REST])[name] for c in "0123"])
        assert bool((tensor <= honest.max(0).values * (1 + 1e-12)).all())
        assert bool((tensor >= honest.min(0).values * (1 - 1e-12)).all())


def test_nothing_kept_is_still_an_error() -> None:
    only = {"0": sums_of(0, [0, 0])}
    for defence in (OFF, Defence()):
        found = gathered(only, defence)
        found.settle()
        with pytest.raises(FisherError, match="nothing is kept"):
            found.reference()
