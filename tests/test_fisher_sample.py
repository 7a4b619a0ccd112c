"""The reference Fisher from a random part of its rows: exact counts, right on average, clear refusals."""

from __future__ import annotations

import itertools
import math
from collections import Counter

import pytest
import torch
from cases import PROBLEMS, Problem
from fisher_checks import close, run
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from fl_unlearn.fisher import FisherCollector, FisherSums
from fl_unlearn.fisher.sample import Thinning
from fl_unlearn.types import REST, FisherError, SettingsError, UnlearnSettings


def sixty() -> Problem:
    p, random = PROBLEMS["mlp"](), torch.Generator().manual_seed(3)
    p.x = torch.randn(60, p.x.shape[1], generator=random)
    p.y = torch.randint(p.num_classes, (60,), generator=random)
    return p


def thinned(p: Problem, share: float | int | None, seed: int = 0, **kw: object) -> FisherSums:
    return run(p, keep_classes=[0], reference_share=share, seed=seed, **kw)


def equal(a: FisherSums, b: FisherSums) -> bool:
    same = all(torch.equal(a.sums[g][n], b.sums[g][n]) for g in b.sums for n in b.names)
    return a.counts == b.counts and same


@pytest.mark.parametrize("share", [1.0, 10**6])
@pytest.mark.parametrize("name", ["mlp", "cnn_batchnorm"])
def test_all_of_the_rows_is_the_same_as_no_share(name: str, share: float | int) -> None:
    p = PROBLEMS[name]()
    assert equal(thinned(p, share), thinned(p, None))


@pytest.mark.parametrize("scope", ["head", "all"])
@pytest.mark.parametrize("share", [0.4, 5])
def test_what_is_forgotten_is_never_thinned(scope: str, share: float | int) -> None:
    p = sixty()
    whole = run(p, keep_classes=[0], scope=scope)
    for seed in range(5):
        part = thinned(p, share, seed, scope=scope)
        assert part.counts == whole.counts
        close(part.sums[0], whole.sums[0])
        assert any(not torch.equal(part.sums[REST][n], whole.sums[REST][n]) for n in whole.names)
        assert equal(part, thinned(p, share, seed, scope=scope)), "a seed decides"


def test_each_number_of_rows_is_drawn_exactly_and_the_rest_not_run() -> None:
    p = sixty()
    rest = int((p.y != 0).sum())
    seen: list[int] = []
    p.model.register_forward_pre_hook(lambda _, args: seen.append(len(args[0])))
    for number in range(2, rest + 2):
        seen.clear()
        assert thinned(p, number).counts[REST] == rest
        assert sum(seen) == len(p.y) - rest + min(number, rest)


def test_every_set_of_rows_is_as_likely_and_their_mean_is_the_whole() -> None:
    p = sixty()
    rest = (p.y != 0).nonzero().squeeze(1)[:5]
    zero = (p.y == 0).nonzero().squeeze(1)[:2]
    rows = torch.cat([rest, zero])
    p.model.double()
    p.x, p.y = p.x[rows].double(), p.y[rows]
    sets, draws, results = Counter[tuple[int, ...]](), 2000, dict[tuple[int, ...], FisherSums]()
    groups = torch.where(p.y == 0, p.y, REST)
    for seed in range(draws):
        chosen = tuple(i for i in Thinning(2, seed, 5).rows(groups).tolist() if i < 5)
        sets[chosen] += 1
        if chosen not in results:
            results[chosen] = thinned(p, 2, seed)
    assert set(sets) == set(itertools.combinations(range(5), 2))
    expected = draws / 10
    spread = math.sqrt(expected * 0.9)
    assert all(abs(n - expected) < 5 * spread for n in sets.values())
    whole = run(p, keep_classes=[0])
    for name in whole.names:
        mean = sum(r.sums[REST][name] for r in results.values()) / 10
        torch.testing.assert_close(mean, whole.sums[REST][name], rtol=1e-12, atol=0.0)


def test_a_share_is_right_on_average() -> None:
    p = sixty()
    whole = run(p, keep_classes=[0]).sums[REST]["fc2.bias"]
    n = 400
    drawn = torch.stack([thinned(p, 0.5, seed).sums[REST]["fc2.bias"] for seed in range(n)])
    error = (drawn.mean(0) - whole) / (drawn.std(0) / math.sqrt(n))
    assert drawn.std(0).min() > 0
    assert error.abs().max() < 4.5


def test_a_share_takes_the_same_rows_however_the_data_is_batched_and_whatever_is_asked() -> None:
    groups = torch.randint(REST, 4, (97,), generator=torch.Generator().manual_seed(0))
    rest = set((groups == REST).nonzero().squeeze(1).tolist())
    whole = set(Thinning(0.3, 7).rows(groups).tolist())
    thinning, at, pieces = Thinning(0.3, 7), 0, set[int]()
    for part in groups.split([1, 16, 40, 3, 37]):
        pieces |= {at + i for i in thinning.rows(part).tolist()}
        at += len(part)
    assert pieces == whole
    assert (thinning.seen, thinning.used) == (len(rest), len(whole & rest))
    others = set(Thinning(0.3, 7).rows(torch.full_like(groups, REST)).tolist())
    assert whole & rest == others & rest
    assert set(Thinning(0.3, 8).rows(groups).tolist()) != whole


@given(st.floats(0.01, 1.0), st.integers(0, 2**32), st.lists(st.integers(0, 3), min_size=1, max_size=40))
def test_counts_scale_and_groups_for_any_share(share: float, seed: int, labels: list[int]) -> None:
    y = torch.tensor(labels)
    model = nn.Linear(3, 4).eval()
    fisher = FisherCollector(model, keep_classes=[1], thinning=(thinning := Thinning(share, seed)))
    rows = sum(len(fisher.add(part[:, None].float().expand(-1, 3), part)) for part in y.split(7))
    got, ones = fisher.result(), int((y == 1).sum())
    got.validate()
    assert thinning.seen == len(y) - ones
    assert rows == ones + thinning.used
    assert got.counts == {REST: thinning.seen if thinning.used else 0, 1: ones}


def test_clients_of_different_size_keep_their_weights() -> None:
    p = sixty()
    batches = p.batches()
    small, large = batches[:1], batches[1:]
    parts = [thinned(p, 2, loader=small), thinned(p, 2, loader=large)]
    assert sum(parts).counts[REST] == run(p, keep_classes=[0]).counts[REST]


def test_a_share_that_draws_nothing_leaves_no_estimate(caplog: pytest.LogCaptureFixture) -> None:
    p = sixty()
    part = thinned(p, 1e-9)
    assert part.counts[REST] == 0
    part.validate()
    assert "none of the" in caplog.text


def test_labels_out_of_range_are_found_in_rows_that_are_not_run() -> None:
    p = sixty()
    p.y[-1] = p.num_classes
    with pytest.raises(FisherError, match=f"label {p.num_classes}, but the model has"):
        thinned(p, 1e-9)


@pytest.mark.parametrize("share", [0, 0.0, 1, -0.1, 1.5, -3, True, float("nan"), "0.5"])
def test_a_share_that_makes_no_sense_is_refused(share: object) -> None:
    with pytest.raises(FisherError, match="reference_share must be"):
        thinned(sixty(), share)
    with pytest.raises(SettingsError, match="reference_share must be"):
        UnlearnSettings(reference_share=share)


def test_what_cannot_be_thinned_is_refused() -> None:
    p = sixty()
    with pytest.raises(FisherError, match="gone through twice"):
        thinned(p, 3, loader=iter(p.batches()))
    with pytest.raises(FisherError, match="other than 'batch'"):
        thinned(p, 0.5, kind="batch")
    with pytest.raises(SettingsError, match="'batch' sums mini-batches"):
        UnlearnSettings(reference_share=0.5, fisher_kind="batch")
    with pytest.raises(FisherError, match="needs keep_classes"):
        run(p, reference_share=0.5)
    with pytest.raises(FisherError, match="give available"):
        Thinning(3)


class Forgetful(list):
    """Gives fewer, or more, batches the second time."""

    def __init__(self, batches: list, change: int) -> None:
        super().__init__(batches)
        self.change, self.times = change, 0

    def __iter__(self):
        self.times += 1
        batches = list(super().__iter__())
        if self.times == 1:
            return iter(batches)
        return iter(batches[:-1] if self.change < 0 else batches * 2)


@pytest.mark.parametrize("change", [-1, 1])
def test_data_that_changes_while_it_is_counted_is_refused(change: int) -> None:
    p = sixty()
    with pytest.raises(FisherError, match="the same samples every time"):
        thinned(p, 3, loader=Forgetful(p.batches(), change))
