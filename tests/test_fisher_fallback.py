"""What the one pass has no formula for, or must refuse."""

from __future__ import annotations

import logging
from collections.abc import Callable

import pytest
import torch
from cases_fisher import CLASSES, Fn, labels, weight
from fisher_checks import close
from references import reference_fisher
from torch import Tensor, nn

from fl_unlearn.fisher import FisherSums, fisher_diagonal, resolve_scope
from fl_unlearn.types import FisherError


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


class Square(torch.autograd.Function):
    """x w² by a weight of its own, with its own backward pass."""

    @staticmethod
    def forward(ctx: object, x: Tensor, w: Tensor) -> Tensor:
        ctx.save_for_backward(x, w)
        return x * w**2

    @staticmethod
    def backward(ctx: object, g: Tensor) -> tuple[Tensor, Tensor]:
        x, w = ctx.saved_tensors
        return g * w**2, (2 * g * x * w).sum(0)


def layers() -> dict[str, nn.Module]:
    return {"a": nn.Linear(4, 4), "fc": nn.Linear(4, CLASSES)}


def unknown_function(m: Fn, x: Tensor) -> Tensor:
    return m.fc(torch.einsum("ni,oi->no", torch.tanh(m.a(x)), m.w))


def custom_autograd_function(m: Fn, x: Tensor) -> Tensor:
    return m.fc(Square.apply(torch.tanh(m.a(x)), m.v))


def custom_function_beside_a_formula(m: Fn, x: Tensor) -> Tensor:
    return m.fc(Square.apply(torch.tanh(m.a(x)), m.v) + m.v)


def samples_innermost(m: Fn, x: Tensor) -> Tensor:
    steps = torch.stack([x, 2 * x, x - 1])  # the samples of each step are neighbours, as nothing shows
    return m.fc(torch.tanh(m.a(steps.flatten(0, 1))).view(3, len(x), 4).sum(0))


def loops_over_samples(m: Fn, x: Tensor) -> Tensor:
    return m.fc(torch.stack([torch.tanh(m.a(row)) for row in x]))


@pytest.mark.parametrize(
    ("forward", "names", "reason"),
    [
        (unknown_function, ["w"], "einsum has no formula"),
        (custom_autograd_function, ["v"], "differ from those of plain autograd"),
        (custom_function_beside_a_formula, ["v"], "differ from those of plain autograd"),
        (samples_innermost, ["a.weight", "a.bias"], "differ from those of plain autograd"),
        (loops_over_samples, ["a.weight", "a.bias", "fc.weight", "fc.bias"], "steps depend on the data"),
    ],
    ids=lambda v: v.__name__ if callable(v) else "",
)
@pytest.mark.parametrize("kind", ["empirical", "true"])
@pytest.mark.filterwarnings("ignore:There is a performance drop")
def test_what_has_no_formula_falls_back_and_says_so_once(
    forward: Callable[..., Tensor], names: list[str], reason: str, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    model = Fn(forward, **layers(), w=weight(4, 4), v=weight(4)).eval()
    for name, p in model.named_parameters():
        p.requires_grad_(name.startswith(("a.", "fc.")) or name in names)
    batches = [(torch.randn(n, 4), labels(n)) for n in (4, 3, 1)]
    with caplog.at_level(logging.WARNING, "fl_unlearn"):
        got = fisher_diagonal(model, batches, kind=kind, scope="all")
    told = [r for r in caplog.records if "torch.func" in r.message]
    assert len(told) == 1
    assert reason in told[0].message
    assert told[0].message.startswith(f"squared gradients by {', '.join(map(repr, names))} come from")
    want, _ = reference_fisher(model, batches, kind, got.names)
    for group, sums in want.items():
        close(got.sums[group], sums)


def test_each_parameter_falls_back_for_its_own_reason(caplog: pytest.LogCaptureFixture) -> None:
    def forward(m: Fn, x: Tensor) -> Tensor:
        return m.fc(Square.apply(torch.einsum("ni,oi->no", x, m.w), m.v))

    model = Fn(forward, w=weight(4, 4), v=weight(4), fc=nn.Linear(4, CLASSES)).eval()
    fisher_diagonal(model, [(torch.randn(3, 4), labels(3))], scope="all")
    told = [r.message for r in caplog.records if "torch.func" in r.message]
    assert [m.split("'")[1] for m in told] == ["w", "v"]


def test_steps_that_change_between_batches_fall_back_from_then_on(caplog: pytest.LogCaptureFixture) -> None:
    def forward(m: Fn, x: Tensor) -> Tensor:
        h = torch.tanh(m.a(x))
        return m.fc(torch.tanh(m.a(h)) if x.sum() > 0 else h)

    model = Fn(forward, **layers()).eval()
    x = torch.rand(3, 4)
    batches = [(x, labels(3)), (-x, labels(3)), (x + 1, labels(3))]
    got = fisher_diagonal(model, batches, scope="all")
    assert ["depend on the data" in r.message for r in caplog.records if "torch.func" in r.message] == [True]
    want, _ = reference_fisher(model, batches, "normalized", got.names)  # row by row it takes the same turns
    for group, sums in want.items():
        close(got.sums[group], sums)


def test_batches_of_other_lengths_are_taken_as_they_come(caplog: pytest.LogCaptureFixture) -> None:
    model = Fn(lambda m, x: m.fc(torch.tanh(m.a(x)).mean(1)), **layers()).eval()
    batches = [(torch.randn(n, length, 4), labels(n)) for n, length in ((3, 4), (2, 2), (3, 3), (1, 4))]
    got = fisher_diagonal(model, batches, scope="all")
    assert not caplog.records
    want, _ = reference_fisher(model, batches, "normalized", got.names)
    for group, sums in want.items():
        close(got.sums[group], sums)


def by_their_first_feature(m: Fn, x: Tensor) -> Tensor:
    order = x[:, 0].argsort()
    return m.fc(torch.tanh(m.a(x[order])))[order.argsort()]


@pytest.mark.parametrize("sort", [False, True])
@pytest.mark.parametrize("rows", [2, 3, 9])
def test_a_model_that_sorts_its_samples_falls_back(
    rows: int, sort: bool, caplog: pytest.LogCaptureFixture
) -> None:
    for seed in range(6):
        torch.manual_seed(seed)
        model = Fn(by_their_first_feature, **layers()).eval()
        batches = [(torch.randn(rows, 4), labels(rows)) for _ in range(3)]
        if sort:
            batches[0] = batches[0][0].sort(0).values, batches[0][1]
        got = fisher_diagonal(model, batches, scope="all")
        want, _ = reference_fisher(model, batches, "normalized", got.names)
        for group, sums in want.items():
            close(got.sums[group], sums)
    assert "torch.func" in caplog.text


def neighbours_from_length_two(m: Fn, x: Tensor) -> Tensor:
    h = torch.tanh(m.a(x.transpose(0, 1).reshape(-1, 4)))
    return m.fc(h.view(-1, len(x), 4).sum(0))


def custom_from_length_two(m: Fn, x: Tensor) -> Tensor:
    h = torch.tanh(m.a(x)).sum(1)
    return m.fc(Square.apply(h, m.v) if x.shape[1] > 1 else h * m.v)


@pytest.mark.parametrize("forward", [neighbours_from_length_two, custom_from_length_two])
def test_inputs_of_every_shape_are_compared(forward: Callable[..., Tensor]) -> None:
    model = Fn(forward, **layers(), v=weight(4)).eval()
    batches = [(torch.randn(5, length, 4), labels(5)) for length in (1, 3, 1)]
    got = fisher_diagonal(model, batches, scope="all")
    want, _ = reference_fisher(model, batches, "normalized", got.names)
    for group, sums in want.items():
        close(got.sums[group], sums)


def test_a_parameter_used_by_its_sum_has_a_formula(caplog: pytest.LogCaptureFixture) -> None:
    model = Fn(lambda m, x: m.fc(torch.tanh(m.a(x))) + m.fc.weight.sum(), **layers()).eval()
    batches = [(torch.randn(4, 4), labels(4))]
    got = fisher_diagonal(model, batches, scope="all")
    assert not caplog.records
    want, _ = reference_fisher(model, batches, "normalized", got.names)
    for group, sums in want.items():
        close(got.sums[group], sums)


# --------------------------------------------------------------------------- bad input
def test_an_input_changed_in_place_is_refused() -> None:
    def forward(m: Fn, x: Tensor) -> Tensor:
        h = torch.tanh(m.a(x))
        z = m.fc(h)
        h.zero_()
        return z

    model = Fn(forward, **layers()).eval()
    with pytest.raises(FisherError, match=r"input of linear with 'fc\.weight' was changed in place"):
        fisher_diagonal(model, [(torch.randn(3, 4), labels(3))], scope="all")
    assert all(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize("how", ["transposed", "every second", "expanded", "channels last"])
def test_inputs_need_not_be_contiguous(how: str, caplog: pytest.LogCaptureFixture) -> None:
    x = {
        "transposed": torch.randn(6, 6, 2, 5).transpose(0, 3),
        "every second": torch.randn(10, 2, 6, 12)[::2, :, :, ::2],
        "expanded": torch.randn(1, 2, 6, 6).expand(5, -1, -1, -1),
        "channels last": torch.randn(5, 2, 6, 6).to(memory_format=torch.channels_last),
    }[how]
    x = x.transpose(1, 2) if how == "transposed" else x
    conv = nn.Conv2d(2, 3, 3).to(memory_format=torch.channels_last)
    model = nn.Sequential(
        conv, nn.BatchNorm2d(3), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(48, CLASSES)
    )
    kept, strides = x.clone(), [p.stride() for p in model.parameters()]
    got = fisher_diagonal(model.eval(), [(x, labels(5))], scope="all")
    assert not caplog.records
    want, _ = reference_fisher(model, [(x, labels(5))], "normalized", got.names)
    for group, sums in want.items():
        close(got.sums[group], sums)
    assert torch.equal(x, kept)
    assert [p.stride() for p in model.parameters()] == strides


def cnn() -> nn.Module:
    layers = nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.Conv2d(4, 4, 3), nn.GELU()
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(16, CLASSES)).eval()


def off(got: FisherSums, want: dict[int, dict[str, Tensor]]) -> float:
    """The largest relative error of a group's parameter, by norms."""
    return max(float((got.sums[g][n] - t).norm() / t.norm()) for g, s in want.items() for n, t in s.items())


@pytest.mark.parametrize(("half", "allowed"), [(torch.bfloat16, 0.1), (torch.float16, 0.02)])
@pytest.mark.parametrize("kind", ["normalized", "empirical"])
def test_half_precision_accumulates_in_float32(
    half: torch.dtype, allowed: float, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    model, x = cnn().to(half), torch.randn(7, 2, 6, 6).to(half)
    got = fisher_diagonal(model, [(x, labels(7))], kind=kind, scope="all")
    want, _ = reference_fisher(model, [(x, labels(7))], kind, got.names)
    assert not caplog.records
    assert off(got, want) < allowed
    once, _ = got.total()
    many = fisher_diagonal(model, [(x, labels(7))] * 50, kind=kind, scope="all").total()[0]
    close(many, {n: 50 * t for n, t in once.items()}, rtol=1e-9)


def test_autocast_works(caplog: pytest.LogCaptureFixture) -> None:
    model, x = cnn(), torch.randn(7, 2, 6, 6)
    want, _ = reference_fisher(model, [(x, labels(7))], "normalized", resolve_scope(model, "all"))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = fisher_diagonal(model, [(x, labels(7))], scope="all")
    assert not caplog.records
    assert off(got, want) < 0.1


def test_works_in_inference_mode(caplog: pytest.LogCaptureFixture) -> None:
    model = cnn()
    with torch.inference_mode():
        x = torch.randn(5, 2, 6, 6)
        got = fisher_diagonal(model, [(x, labels(5))], scope="all")
    assert not caplog.records
    want, _ = reference_fisher(model, [(x.clone(), labels(5))], "normalized", got.names)
    assert off(got, want) < 1e-5


def test_the_faintest_gradients_are_not_lost(caplog: pytest.LogCaptureFixture) -> None:
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, CLASSES)).eval()
    with torch.no_grad():
        model[2].bias.copy_(torch.tensor([60.0, 0.0, 0.0]))
    x, y = torch.randn(6, 4), torch.zeros(6, dtype=torch.int64)
    got = fisher_diagonal(model, [(x, y)], kind="empirical", scope="all")
    assert not caplog.records
    assert 0 < float(got.sums[0]["2.weight"].max()) < 1e-45
    u = model.double()(x.double()).softmax(1)[:, 1:]  # the cotangents of the classes not meant
    h = torch.tanh(model[0](x.double()))
    close({"w": got.sums[0]["2.weight"][1:]}, {"w": (u**2).T @ h**2})


# --------------------------------------------------------------------------- drawn labels
def test_drawn_labels_are_unbiased_and_seeded() -> None:
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 6)).eval()
    batches = [(torch.randn(40, 4), torch.zeros(40, dtype=torch.int64))]
    kw = {"kind": "true", "scope": "all"}
    exact = fisher_diagonal(model, batches, **kw).sums[0]
    drawn = [fisher_diagonal(model, batches, **kw, true_samples=2, seed=s).sums[0] for s in range(60)]
    for n, t in exact.items():
        values = torch.stack([d[n] for d in drawn])
        assert float((values.mean(0) - t).norm() / t.norm()) < 0.1
        assert float((values[0] - t).norm() / t.norm()) > 0.02
    same = fisher_diagonal(model, batches, **kw, true_samples=2, seed=7).sums[0]
    assert all(torch.equal(same[n], drawn[7][n]) for n in same)
    close(fisher_diagonal(model, batches, **kw, true_samples=6).sums[0], exact, rtol=1e-12)
    parts = [(batches[0][0][i : i + 7], batches[0][1][i : i + 7]) for i in range(0, 40, 7)]
    close(fisher_diagonal(model, parts, **kw, true_samples=2, seed=7).sums[0], same)
    close(fisher_diagonal(model, batches, **kw, true_samples=2, seed=7, memory=1).sums[0], same)
