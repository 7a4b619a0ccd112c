"""The linear probe, relearning and features, on cases whose answer is known."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from references_probes import relearned
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn

from fl_unlearn import probes
from fl_unlearn.types import FisherError, MeasureError


def blobs(n: int, d: int, classes: int, spread: float, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Gaussian clouds around the unit vectors, as many samples of each."""
    generator = torch.Generator().manual_seed(seed)
    y = torch.arange(n) % classes
    return torch.eye(classes, d)[y] + spread * torch.randn(n, d, generator=generator), y


def small_net(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 4))


def state_of(model: nn.Module) -> dict[str, Tensor]:
    return {n: t.clone() for n, t in model.state_dict().items()}


# --------------------------------------------------------------------------- features
def test_features_are_the_input_of_the_head_or_the_output_of_a_layer() -> None:
    model, (x, y) = small_net().train(), blobs(10, 6, 3, 0.5)
    before = state_of(model)
    batches = [(x[:7], y[:7]), (x[:0], y[:0]), {"img": x[7:], "label": y[7:]}]
    h, labels = probes.features(model, batches)
    z, _ = probes.features(model, batches, "0")
    assert model.training, "the mode is put back"
    torch.testing.assert_close(dict(model.state_dict()), before, rtol=0, atol=0)
    model.eval()
    torch.testing.assert_close(h, model[:3](x).detach())
    torch.testing.assert_close(z, model[0](x).detach())
    assert labels.tolist() == y.tolist()
    assert not model[0]._forward_hooks
    assert not model[3]._forward_pre_hooks


def test_features_of_a_convolution_are_flattened_or_reduced() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(18, 3))
    x, y = torch.randn(4, 1, 5, 5), torch.tensor([0, 1, 2, 0])
    maps = model[0](x).detach()
    torch.testing.assert_close(probes.features(model, [(x, y)], "0")[0], maps.flatten(1))
    pooled, _ = probes.features(model, [(x, y)], "0", reduce=lambda t: t.mean((2, 3)))
    torch.testing.assert_close(pooled, maps.mean((2, 3)))


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.used, self.unused, self.head = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.used(self.used(x)))


@pytest.mark.parametrize(
    ("layer", "reduce", "says"),
    [
        ("nowhere", None, "no layer 'nowhere'; there are 'used', 'unused', 'head'"),
        ("used", None, "must be called once a batch and give one tensor; seen: Tensor, Tensor"),
        ("unused", None, "seen: nothing"),
        ("head", lambda t: t.sum(), r"shape \[\] for 4 samples; \(4, d\) is needed"),
    ],
)
def test_features_refuse_a_layer_that_gives_none(
    layer: str, reduce: Callable[[Tensor], Tensor] | None, says: str
) -> None:
    model = Twice()
    with pytest.raises(MeasureError, match=says):
        probes.features(model, [blobs(4, 6, 3, 0.1)], layer, reduce=reduce)
    assert all(m.training and not m._forward_hooks for m in model.modules())


def test_features_refuse_no_samples_and_no_head() -> None:
    with pytest.raises(MeasureError, match="no sample"):
        probes.features(small_net(), [])
    with pytest.raises(FisherError, match=r"no nn\.Linear to be its head"):
        probes.features(nn.Sequential(nn.Conv2d(1, 2, 3)), [])


# --------------------------------------------------------------------------- linear probe
def test_probe_finds_separable_classes_and_only_those_it_is_tested_on() -> None:
    x, y = blobs(300, 5, 3, 0.05)
    a, b = blobs(90, 5, 3, 0.05, seed=1)
    assert probes.linear_probe(x, y, a, b) == {0: 1.0, 1: 1.0, 2: 1.0}
    assert probes.linear_probe(x, y * 3 + 2, a[b == 1], b[b == 1] * 3 + 2) == {5: 1.0}, "any labels do"


def test_probe_of_features_that_say_nothing_guesses_the_most_frequent_class() -> None:
    y = torch.tensor([0] * 5 + [1] * 9 + [2] * 6)
    found = probes.linear_probe(torch.full((20, 4), 0.1), y, torch.randn(20, 4) * 100, y)
    assert found == {0: 0.0, 1: 1.0, 2: 0.0}


def test_probe_finds_a_class_no_better_than_chance_where_it_looks_like_another() -> None:
    x, y = blobs(4000, 6, 4, 0.3)
    x[y == 3] = x[y == 2].flip(0)  # the same distribution
    a, b = blobs(4000, 6, 4, 0.3, seed=1)
    a[b == 3] = a[b == 2].flip(0)
    found = probes.linear_probe(x, y, a, b)
    assert found[2] + found[3] == pytest.approx(1.0, abs=0.15)
    assert min(found[0], found[1]) > 0.9


@pytest.mark.parametrize("spread", [0.4, 3.0])
def test_probe_is_the_optimum_that_scikit_learn_finds(spread: float) -> None:
    x, y = blobs(240, 7, 4, spread)
    x[:, 6] = 2.5  # constant: left out
    x = x * torch.tensor([1.0, 100.0, 1e-3, 1.0, 5.0, 1.0, 1.0]) + 10.0
    a, b = x.flip(0), y.flip(0)
    scaled = ((x.double() - x.double().mean(0)) / x.double().std(0, correction=0))[:, :6].numpy()
    slow = LogisticRegression(C=1 / (240 * 1e-2), tol=1e-10, max_iter=10_000).fit(scaled, y.numpy())
    W, bias = probes._fit(torch.from_numpy(scaled), y, 4, 1e-2, 1000)
    torch.testing.assert_close(W, torch.from_numpy(slow.coef_), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(bias, torch.from_numpy(slow.intercept_), rtol=1e-4, atol=1e-4)
    right = torch.from_numpy(slow.predict(scaled) == y.numpy())
    wanted = {c: right[y == c].double().mean().item() for c in range(4)}
    assert probes.linear_probe(x, y, a, b, l2=1e-2) == pytest.approx(wanted)


def test_probe_knows_no_order() -> None:
    (x, y), (a, b) = blobs(200, 5, 4, 1.0), blobs(200, 5, 4, 1.0, seed=1)
    order = torch.randperm(200, generator=torch.Generator().manual_seed(0))
    assert probes.linear_probe(x, y, a, b) == probes.linear_probe(x[order], y[order], a, b)


def test_probe_refuses_what_it_cannot_fit() -> None:
    x, y = blobs(9, 3, 3, 0.1)
    bad = x.clone()
    bad[4, 1] = torch.nan
    for arguments, says in [
        ((x[:0], y[:0], x, y), "training features .* N > 0"),
        ((x, y[:8], x, y), r"\[9, 3\] and \[8\]"),
        ((x, y, x[:, :2], y), "3 columns, test features 2"),
        ((bad, y, x, y), "training features are not finite"),
        ((x, y, bad, y), "test features are not finite"),
        ((x[y < 2], y[y < 2], x, y), r"missing: \[2\]"),
        ((x[y < 1], y[y < 1], x[y < 1], y[y < 1]), "missing: a second class"),
    ]:
        with pytest.raises(MeasureError, match=says):
            probes.linear_probe(*arguments)
    for l2 in (0.0, -1.0, float("nan")):
        with pytest.raises(MeasureError, match="l2 must be"):
            probes.linear_probe(x, y, x, y, l2=l2)


# --------------------------------------------------------------------------- relearning
def test_relearning_takes_the_steps_that_the_slow_form_takes() -> None:
    model, (x, y) = small_net(), blobs(10, 6, 4, 0.5)
    model[0].weight.requires_grad_(False)
    before, test = state_of(model), blobs(40, 6, 4, 0.5, seed=2)
    torch.manual_seed(5)
    curve = probes.relearning_curve(model, (x, y), [test], steps=(7, 0, 2), lr=0.3, batch=4, seed=3)
    torch.testing.assert_close(dict(model.state_dict()), before, rtol=0, atol=0)
    assert list(curve) == [0, 2, 7]
    order = torch.Generator().manual_seed(3)
    rows = [r for _ in range(4) for r in torch.randperm(10, generator=order).split(4)[:2]]
    x_test, y_test = test
    for steps, scores in curve.items():
        slow = relearned(model, x, y, rows[:steps], lr=0.3, momentum=0.9).eval()
        z = slow(x_test.double()).detach()
        losses = nn.functional.cross_entropy(z, y_test, reduction="none")
        for c in range(4):
            own = y_test == c
            assert scores.correct[c] == int((z[own].argmax(1) == c).sum()), (steps, c)
            assert scores.loss[c] == pytest.approx(losses[own].sum().item(), rel=1e-4)


def test_relearning_learns_a_masked_class_again() -> None:
    x, y = blobs(400, 6, 4, 0.2)
    model = nn.Sequential(nn.Linear(6, 4))
    with torch.no_grad():
        model[0].weight.copy_(4 * torch.eye(4, 6))
        model[0].bias.zero_()
        model[0].weight[3], model[0].bias[3] = 0.0, -1.0
    curve = probes.relearning_curve(model, (x[:80], y[:80]), [(x, y)], steps=(0, 60), lr=0.1)
    assert curve[0].accuracy([3]) == 0.0
    assert curve[60].accuracy([3]) > 0.9


def test_relearning_is_repeatable_and_leaves_the_random_state_alone() -> None:
    model, mix, test = small_net(), blobs(50, 6, 4, 0.5), [blobs(40, 6, 4, 0.5, seed=2)]
    torch.manual_seed(1)
    first = probes.relearning_curve(copy.deepcopy(model), mix, test, steps=(9,), batch=8)
    after = torch.rand(1)
    torch.manual_seed(1)
    assert torch.rand(1) == after
    assert probes.relearning_curve(model, mix, test, steps=(9,), batch=8) == first
    assert probes.relearning_curve(model, mix, test, steps=(9,), batch=8, seed=1) != first


def test_relearning_refuses_what_makes_no_sense() -> None:
    model, (x, y) = small_net(), blobs(8, 6, 4, 0.5)
    for arguments, options in [
        (((x[:0], y[:0]), [(x, y)]), {}),
        (((x, y), [(x, y)]), {"batch": 0}),
        (((x, y), [(x, y)]), {"steps": ()}),
        (((x, y), [(x, y)]), {"steps": (-1, 3)}),
    ]:
        with pytest.raises(MeasureError, match="relearning needs"):
            probes.relearning_curve(model, *arguments, **options)
    with pytest.raises(FisherError, match="one row a sample, 7"):
        probes.relearning_curve(model, (x, y[:7]), [(x, y)])


def test_relearning_time_is_where_the_curve_first_gets_there() -> None:
    model, mix, test = small_net(), blobs(50, 6, 4, 0.5), [blobs(40, 6, 4, 0.5, seed=2)]
    options = {"lr": 0.1, "batch": 8, "seed": 4}
    curve = probes.relearning_curve(model, mix, test, steps=range(31), **options)
    found = {n: scores.accuracy() for n, scores in curve.items()}
    assert found[0] < 0.4 < 0.8 < max(found.values())
    for accuracy in (found[0], 0.4, 0.6, 0.8):
        slow = next(n for n in range(31) if found[n] >= accuracy)
        assert probes.relearning_time(model, mix, test, accuracy, most=30, **options) == slow
        coarse = next((n for n in range(0, 31, 5) if found[n] >= accuracy), None)
        assert probes.relearning_time(model, mix, test, accuracy, most=30, every=5, **options) == coarse
    assert probes.relearning_time(model, mix, test, 1.01, most=4, **options) is None


def test_relearning_time_refuses_what_makes_no_sense() -> None:
    model, mix = small_net(), blobs(8, 6, 4, 0.5)
    for options in ({"every": 0}, {"most": -1}, {"most": 10, "every": 3}):
        with pytest.raises(MeasureError, match="most must be a multiple of every"):
            probes.relearning_time(model, mix, [mix], 0.5, **options)
    with pytest.raises(MeasureError, match="no sample to score"):
        probes.relearning_time(model, mix, [], 0.5)
