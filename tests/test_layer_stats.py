from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from references_erase import covariance, observations, sums
from torch import nn
from torch.testing import assert_close

from fl_unlearn.layer_stats import LayerSums, layer_sums, pool
from fl_unlearn.types import REST, EraseError, FisherError

NETS = {
    "linear": (lambda: nn.Sequential(nn.Linear(5, 4), nn.ReLU(inplace=True), nn.Linear(4, 3)), (5,)),
    "sequence": (lambda: nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Flatten(), nn.Linear(24, 3)), (6, 5)),
    "conv1d": (lambda: nn.Sequential(nn.Conv1d(2, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, 3)), (2, 6)),
    "conv2d": (
        lambda: nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(24, 3)),
        (2, 4, 5),
    ),
    "conv3d": (
        lambda: nn.Sequential(nn.Conv3d(1, 4, 2), nn.ReLU(), nn.Flatten(), nn.Linear(32, 3)),
        (1, 3, 3, 3),
    ),
}


def case(net: str, n: int = 13) -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    make, shape = NETS[net]
    return make().double(), torch.randn(n, *shape, dtype=torch.float64), torch.arange(n) % 3


def batches(x: torch.Tensor, y: torch.Tensor, size: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    return [*zip(x.split(size), y.split(size), strict=True), (x[:0], y[:0])]


def same(a: LayerSums, b: LayerSums) -> None:
    assert a.counts == b.counts
    assert_close(a.sums, b.sums)
    assert_close(a.second, b.second)


@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize(("size", "ignored"), [(13, ()), (4, (0,))])
def test_sums_equal_those_of_one_observation_at_a_time(net: str, size: int, ignored: tuple[int, ...]) -> None:
    model, x, y = case(net)
    got = layer_sums(model, batches(x, y, size), ["0"], [1], ignored=ignored)["0"]
    same(got, LayerSums(*sums(*observations(model, "0", x, y), [1], ignored)))
    got.validate()


def test_large_outputs_go_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x, y = case("conv2d")
    whole = layer_sums(model, batches(x, y, 5), ["0"], [1])["0"]
    monkeypatch.setattr("fl_unlearn.layer_stats._PIECE", 9)
    same(layer_sums(model, batches(x, y, 5), ["0"], [1])["0"], whole)


def test_several_layers_in_one_pass_and_the_model_stays_as_it_was() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Dropout(), nn.Linear(4, 3))
    model[3].eval()
    before = {n: t.clone() for n, t in model.state_dict().items()}
    x, y = torch.randn(9, 5), torch.arange(9) % 3
    got = layer_sums(model, batches(x, y, 4), ["0", "4"], [2])
    assert [s.width for s in got.values()] == [4, 3]
    assert got["4"].counts == {2: 3, REST: 6}
    assert [m.training for m in model] == [True, True, True, False, True]
    assert_close(dict(model.state_dict()), before, atol=0, rtol=0)
    assert not any(m._forward_hooks for m in model.modules())


def test_sums_of_clients_add_and_a_class_can_be_taken_away() -> None:
    model, x, y = case("conv1d")
    whole = layer_sums(model, [(x, y)], ["0"], [1])["0"]
    parts = [layer_sums(model, [(x[i::2], y[i::2])], ["0"], [1])["0"] for i in (0, 1)]
    same(sum(parts), whole)
    one = layer_sums(model, [(x[y == 1], y[y == 1])], ["0"], [1])["0"]
    rest = layer_sums(model, [(x[y != 1], y[y != 1])], ["0"], [1])["0"]
    same(whole - one, rest)
    with pytest.raises(EraseError, match="more observations would be taken away"):
        one - whole
    with pytest.raises(EraseError, match="different width"):
        whole + LayerSums.zeros(3, [1])


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10**6), drift=st.floats(0, 100))
def test_pooling_adds_spreads_within_models_not_drift(seed: int, drift: float) -> None:
    g = torch.Generator().manual_seed(seed)
    models = [torch.randn(40, 3, generator=g, dtype=torch.float64) + drift * i for i in range(3)]
    labels = torch.arange(40) % 4
    parts = [LayerSums(*sums(rows, labels, [1])) for rows in models]
    got = pool(parts)
    centred = torch.cat([rows - rows.mean(0) + models[0].mean(0) for rows in models])
    same(got, LayerSums(*sums(centred, labels.repeat(3), [1])))
    assert_close(got.mean, models[0].mean(0))
    spread = got.second / got.count - torch.outer(got.mean, got.mean)
    within = torch.stack([covariance(rows) for rows in models]).mean(0)
    assert_close(spread, within, atol=1e-6, rtol=1e-6)
    with pytest.raises(EraseError, match="no statistics"):
        pool([])


def test_bytes_there_and_back() -> None:
    model, x, y = case("conv2d")
    got = layer_sums(model, [(x, y)], ["0"], [1])["0"]
    tensors = got.to_tensors()
    assert tensors["second"].shape == (10,)
    same(LayerSums.from_tensors(got.counts, tensors), got)
    with pytest.raises(EraseError, match="not"):
        LayerSums.from_tensors(got.counts, {"second": tensors["second"]})
    for packed in (torch.zeros(9), torch.zeros(0), torch.zeros(2, 5)):
        with pytest.raises(EraseError, match="triangle"):
            LayerSums.from_tensors(got.counts, {**tensors, "second": packed})


def test_what_no_observations_can_give_is_refused() -> None:
    model, x, y = case("linear")
    good = layer_sums(model, [(x, y)], ["0"], [1])["0"]
    d, zero = 4, torch.zeros(4, dtype=torch.float64)
    skew = good.second.clone()
    skew[0, 1] += 1
    bad = {
        "counts of": replace(good, counts={1: 4}),
        "second moments of shape": replace(good, second=good.second[:2]),
        "groups are labels": replace(good, counts={1: -1, REST: 9}),
        "must have shape": replace(good, sums={1: zero[:2], REST: zero}),
        "finite": replace(good, second=good.second * math.inf),
        "float64": replace(good, second=good.second.float()),
        "symmetric": replace(good, second=skew),
        "trace": replace(good, second=torch.full((d, d), 1e308, dtype=torch.float64)),
        "smaller than": replace(good, sums={g: 10 * s for g, s in good.sums.items()}),
        "count is 0": replace(good, counts={1: 0, REST: 13}),
    }
    negative = replace(good, second=good.second - 2 * torch.diag(good.second.diagonal()))
    for match, sums_ in [*bad.items(), ("smaller than", negative)]:
        with pytest.raises(EraseError, match=match):
            sums_.validate()
    LayerSums.zeros(3, [1, REST]).validate()


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.a(self.a(x)))


def test_layers_that_give_no_statistics_are_refused() -> None:
    model, x, y = Twice(), torch.randn(6, 4), torch.arange(6) % 3
    with pytest.raises(EraseError, match="called more than once"):
        layer_sums(model, [(x, y)], ["a"], [1])
    with pytest.raises(EraseError, match="'b' is not called"):
        layer_sums(model, [(x, y)], ["b"], [1])
    with pytest.raises(EraseError, match=r"'c' is no nn\.Linear"):
        layer_sums(model, [(x, y)], ["c"], [1])
    with pytest.raises(EraseError, match="not finite"):
        layer_sums(model, [(x * math.nan, y)], ["head"], [1])
    folded = nn.Sequential(nn.Flatten(0, 1), nn.Linear(4, 3), nn.Unflatten(0, (3, 2)), nn.Flatten())
    with pytest.raises(EraseError, match="first dimension"):
        layer_sums(folded, [(x.reshape(3, 2, 4), y[:3])], ["1"], [1])
    mixing = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3, track_running_stats=False))
    with pytest.raises(FisherError, match="mixes the samples"):
        layer_sums(mixing, [(x, y)], ["0"], [1])
