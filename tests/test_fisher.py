"""Diagonal Fisher against the slow reference, over models, scopes and kinds."""

from __future__ import annotations

import copy
import logging

import pytest
import torch
from cases import PROBLEMS, Mlp, Problem
from fisher_checks import close, run, same_sums
from hypothesis import given, settings
from hypothesis import strategies as st
from references import reference_fisher
from torch import Tensor, nn

from fl_unlearn.fisher import computation as fisher_kernels
from fl_unlearn.fisher import cotangents as fisher_cotangents
from fl_unlearn.fisher import fisher_diagonal, resolve_scope
from fl_unlearn.fisher import head as fisher_head
from fl_unlearn.types import FISHER_KINDS, REST, FisherError

CASES = [(name, scope) for name, make in PROBLEMS.items() for scope in make().scopes]


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize("kind", FISHER_KINDS)
@pytest.mark.parametrize(("name", "scope"), CASES, ids=[f"{n}-{s}" for n, s in CASES])
@pytest.mark.filterwarnings("ignore:There is a performance drop")
def test_equals_the_reference(name: str, scope: str, kind: str) -> None:
    p = PROBLEMS[name]()
    got = run(p, kind=kind, scope=scope)
    assert got.names == resolve_scope(p.model, scope, p.head)
    assert (got.kind, got.scope, got.num_classes) == (kind, scope, p.num_classes)
    assert all(t.dtype == torch.float64 for s in got.sums.values() for t in s.values())
    got.validate()
    same_sums(got, *reference_fisher(p.model, p.batches(), kind, got.names))


@pytest.mark.parametrize("kind", FISHER_KINDS)
@pytest.mark.parametrize("scope", ["head", "fc*"])
def test_keeps_named_classes_and_pools_the_rest(scope: str, kind: str) -> None:
    p = PROBLEMS["mlp"]()
    got = run(p, kind=kind, scope=scope, keep_classes={1, 3})
    sums, counts = reference_fisher(p.model, p.batches(), kind, got.names, keep_classes={1, 3})
    sums[3] = {n: torch.zeros_like(t) for n, t in sums[1].items()}  # class 3 does not occur
    same_sums(got, sums, {**dict(sorted(counts.items())), 3: 0})


@pytest.mark.parametrize("kind", ["empirical", "normalized", "true"])
def test_pooled_is_the_sum_of_the_others(kind: str) -> None:
    p = PROBLEMS["mlp"]()
    apart, pooled = run(p, kind=kind), run(p, kind=kind, keep_classes=[1])
    others, count = apart.without([1]).total()
    close(pooled.sums[REST], others, rtol=1e-12)
    assert pooled.counts[REST] == count
    close(pooled.sums[1], apart.sums[1], rtol=1e-12)


@pytest.mark.parametrize("kind", FISHER_KINDS)
def test_a_head_in_closed_form_needs_no_backward(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise AssertionError("the general path was taken")

    monkeypatch.setattr(fisher_kernels.Computation, "_add_backwards", fail)
    monkeypatch.setattr(fisher_kernels.Computation, "_add_mini_batches", fail)
    run(PROBLEMS["cnn_batchnorm"](), kind=kind)
    run(PROBLEMS["mlp"](), kind=kind, scope="fc2.*")


def test_heads_without_a_closed_form_are_known_from_their_modules() -> None:
    class Scaled(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return 2 * super().forward(x)

    tied, mlp, scaled = PROBLEMS["tied_head"]().model, Mlp(), Scaled(2, 2)
    assert "shares" in fisher_head.head_problem(tied, tied.head, [tied.head.bias])
    assert "own" in fisher_head.head_problem(mlp, mlp.fc2, [mlp.fc1.bias])
    assert "plain" in fisher_head.head_problem(scaled, scaled, [scaled.bias])
    assert fisher_head.head_problem(mlp, mlp.fc2, [mlp.fc2.bias]) is None


def test_model_that_vmap_refuses_is_looped_over_with_one_warning(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "fl_unlearn"):
        run(PROBLEMS["branching_with_unused_parameter"](), scope="all")
    assert len([r for r in caplog.records if "vmap" in r.message]) == 1


def test_unused_parameters_get_zero() -> None:
    total, _ = run(PROBLEMS["branching_with_unused_parameter"](), scope="unused,a.bias").total()
    assert not total["unused"].any()
    assert total["a.bias"].any()


def test_works_under_no_grad() -> None:
    p = PROBLEMS["branching_with_unused_parameter"]()
    with torch.no_grad():
        got = run(p, scope="all")
    same_sums(got, *reference_fisher(p.model, p.batches(), "normalized", got.names))


@pytest.mark.parametrize("half", [torch.float16, torch.bfloat16])
def test_half_precision_models_accumulate_in_float64(half: torch.dtype) -> None:
    model = Mlp().to(half).eval()
    x, y = torch.randn(4000, 6).to(half), torch.zeros(4000, dtype=torch.int64)
    got = fisher_diagonal(model, [(x, y)], kind="normalized")
    with torch.no_grad():
        h = torch.tanh(model.fc1(x)).double()
        z = model(x).double()
    e = z.softmax(1) - nn.functional.one_hot(y, 4)
    u2 = (e / e.norm(dim=1, keepdim=True)) ** 2
    close(got.sums[0], {"fc2.weight": u2.T @ h**2, "fc2.bias": u2.sum(0)}, rtol=1e-9)


# --------------------------------------------------------------------------- extreme values
@pytest.mark.parametrize("scope", ["head", "weight,bias"])
@pytest.mark.parametrize("kind", FISHER_KINDS)
def test_extreme_logits_stay_finite(scope: str, kind: str) -> None:
    model = nn.Linear(3, 4)
    with torch.no_grad():
        model.weight.mul_(1e4)
    x, y = torch.randn(20, 3), torch.arange(20) % 4
    fisher_diagonal(model.eval(), [(x, y)], kind=kind, scope=scope).validate()


def test_normalized_keeps_the_direction_of_the_surest_sample() -> None:
    z, y = torch.tensor([[1e4, 0.0, 0.0]]), torch.tensor([0])
    want = torch.tensor([[-2.0, 1.0, 1.0]], dtype=torch.float64) / 6**0.5
    torch.testing.assert_close(fisher_cotangents.direction(z, y), want)
    assert not fisher_cotangents.direction(torch.ones(1, 1), y).any()


@given(st.lists(st.floats(-30, 30), min_size=2, max_size=6), st.data())
@settings(deadline=None, derandomize=True, max_examples=60)
def test_cotangents_agree_with_their_definitions(logits: list[float], data: st.DataObject) -> None:
    z = torch.tensor([logits], dtype=torch.float64)
    y = torch.tensor([data.draw(st.integers(0, len(logits) - 1))])
    p = z.softmax(1)
    e = p - nn.functional.one_hot(y, len(logits))
    torch.testing.assert_close(fisher_cotangents.residual(z, y), e)
    assert abs(float(fisher_cotangents.residual(z, y).sum())) < 1e-15
    torch.testing.assert_close(
        fisher_cotangents.direction(z, y).norm(), torch.tensor(1.0, dtype=torch.float64)
    )
    torch.testing.assert_close(
        fisher_cotangents.direction(z, y) * fisher_cotangents.residual(z, y).norm(),
        fisher_cotangents.residual(z, y),
    )
    each = sum(u.square() for u in fisher_cotangents.cotangents("true", z, y))
    torch.testing.assert_close(
        fisher_cotangents.squared_cotangents("true", z, y), each, rtol=1e-12, atol=1e-300
    )


# --------------------------------------------------------------------------- nothing is changed
class Counting(nn.Module):
    """Writes to its buffers in eval mode, in place and by a new tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(6, 4)
        self.register_buffer("seen", torch.zeros(()))
        self.register_buffer("last", None)

    def forward(self, x: Tensor) -> Tensor:
        self.seen += len(x)
        self.last = x.detach().mean(0)
        return self.fc(x)


@pytest.mark.parametrize("scope", ["head", "all", "*.weight"])
@pytest.mark.parametrize("fails", [False, True], ids=["done", "failing"])
@pytest.mark.parametrize("make", [PROBLEMS["mlp"], PROBLEMS["tied_body"], Counting], ids=lambda m: m.__name__)
def test_model_is_left_as_it_was(make: object, scope: str, fails: bool) -> None:
    made = make()
    model, x = (made.model, made.x) if isinstance(made, Problem) else (made, torch.randn(4, 6))
    model.train()
    for p in model.parameters():
        p.grad = torch.full_like(p, 3.0)
    state = copy.deepcopy(model.state_dict())
    objects = {n: id(t) for n, t in [*model.named_parameters(), *model.named_buffers()]}
    batches = [(x, torch.zeros(len(x), dtype=torch.int64))]
    if fails:
        with pytest.raises(FisherError, match="batch 1: label 99"):
            fisher_diagonal(model, [*batches, (x[:1], torch.tensor([99]))], scope=scope)
    else:
        fisher_diagonal(model, batches, scope=scope)
    assert {n: id(t) for n, t in [*model.named_parameters(), *model.named_buffers()]} == objects
    assert model.state_dict().keys() == state.keys()
    for n, t in model.state_dict().items():
        torch.testing.assert_close(t, state[n], rtol=0, atol=0)
    assert all(torch.equal(p.grad, torch.full_like(p, 3.0)) for p in model.parameters())
    assert all(p.requires_grad for p in model.parameters())
    assert all(m.training for m in model.modules())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


@pytest.mark.parametrize("kind", ["empirical", "batch"])
def test_gradients_that_share_memory_are_not_spoilt_by_squaring(kind: str) -> None:
    class TwoShifts(nn.Module):
        """Both shifts have the same gradient, which autograd gives as one tensor."""

        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Parameter(torch.randn(1, 3)), nn.Parameter(torch.randn(1, 3))
            self.fc = nn.Linear(3, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(torch.tanh(x + (self.a + self.b)))

    torch.manual_seed(3)
    model, x, y = TwoShifts().double().eval(), torch.randn(5, 3).double(), torch.randint(0, 4, (5,))
    names = [n for n, _ in model.named_parameters()]
    want, _ = reference_fisher(model, [(x, y)], kind, names, [])
    got = fisher_diagonal(model, [(x, y)], kind=kind, scope="all", keep_classes=[])
    for n in names:
        torch.testing.assert_close(got.sums[-1][n], want[-1][n])
