from __future__ import annotations

import contextlib
import copy
import logging

import pytest
import torch
from cases import PROBLEMS, Mlp, Problem
from hypothesis import given, settings
from hypothesis import strategies as st
from references import reference_fisher
from torch import Tensor, nn

from fl_unlearn import fisher_kernels as kernels
from fl_unlearn.batches import to_device, unpack
from fl_unlearn.fisher import FisherSums, check_model, find_head, fisher_diagonal, resolve_scope
from fl_unlearn.types import FISHER_KINDS, REST, FisherError

CASES = [(name, scope) for name, make in PROBLEMS.items() for scope in make().scopes]


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def close(got: dict[str, Tensor], want: dict[str, Tensor], rtol: float = 1e-5) -> None:
    assert got.keys() == want.keys()
    for n in want:
        atol = 1e-6 * float(want[n].abs().max())
        torch.testing.assert_close(got[n], want[n], rtol=rtol, atol=atol, msg=lambda m, n=n: f"{n}: {m}")


def same_sums(got: FisherSums, sums: dict[int, dict[str, Tensor]], counts: dict[int, int]) -> None:
    assert got.counts == counts
    assert list(got.sums) == sorted(sums)
    for g in sums:
        close(got.sums[g], sums[g])


def run(p: Problem, **kw: object) -> FisherSums:
    return fisher_diagonal(p.model, kw.pop("loader", p.batches()), head=p.head, **kw)


# --------------------------------------------------------------------------- against the reference
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


@pytest.mark.parametrize("chunk_size", [1, 3, 50])
def test_chunks_do_not_matter(chunk_size: int) -> None:
    p = PROBLEMS["cnn_batchnorm"]()
    a, b = (run(p, scope="all", loader=[(p.x, p.y)], chunk_size=c) for c in (chunk_size, None))
    same_sums(a, b.sums, b.counts)


def test_default_chunk_keeps_gradients_below_256_mb() -> None:
    model = nn.Linear(4000, 4000)
    path = kernels.GeneralPath(model, kernels.GroupSums(model, ["weight", "bias"]), None)
    assert path.chunk * 4000 * 4001 * 4 <= 256 * 2**20 < (path.chunk + 1) * 4000 * 4001 * 4


@pytest.mark.parametrize("kind", FISHER_KINDS)
def test_a_head_in_closed_form_needs_no_backward(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise AssertionError("the general path was taken")

    monkeypatch.setattr(kernels.GeneralPath, "add", fail)
    run(PROBLEMS["cnn_batchnorm"](), kind=kind)
    run(PROBLEMS["mlp"](), kind=kind, scope="fc2.*")


def test_heads_without_a_closed_form_are_known_from_their_modules() -> None:
    class Scaled(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return 2 * super().forward(x)

    tied, mlp, scaled = PROBLEMS["tied_head"]().model, Mlp(), Scaled(2, 2)
    assert "shares" in kernels.head_problem(tied, tied.head, [tied.head.bias])
    assert "own" in kernels.head_problem(mlp, mlp.fc2, [mlp.fc1.bias])
    assert "plain" in kernels.head_problem(scaled, scaled, [scaled.bias])
    assert kernels.head_problem(mlp, mlp.fc2, [mlp.fc2.bias]) is None


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
    torch.testing.assert_close(kernels.direction(z, y), want)
    assert not kernels.direction(torch.ones(1, 1), y).any()


@given(st.lists(st.floats(-30, 30), min_size=2, max_size=6), st.data())
@settings(deadline=None, derandomize=True, max_examples=60)
def test_cotangents_agree_with_their_definitions(logits: list[float], data: st.DataObject) -> None:
    z = torch.tensor([logits], dtype=torch.float64)
    y = torch.tensor([data.draw(st.integers(0, len(logits) - 1))])
    p = z.softmax(1)
    e = p - nn.functional.one_hot(y, len(logits))
    torch.testing.assert_close(kernels.residual(z, y), e)
    assert abs(float(kernels.residual(z, y).sum())) < 1e-15
    torch.testing.assert_close(kernels.direction(z, y).norm(), torch.tensor(1.0, dtype=torch.float64))
    torch.testing.assert_close(
        kernels.direction(z, y) * kernels.residual(z, y).norm(), kernels.residual(z, y)
    )
    each = sum(u.square() for u in kernels.cotangents("true", z, y))
    torch.testing.assert_close(kernels.squared_cotangents("true", z, y), each, rtol=1e-12, atol=1e-300)


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


# --------------------------------------------------------------------------- sums
@pytest.mark.parametrize("kind", FISHER_KINDS)
def test_sums_over_parts_add_up_to_the_whole(kind: str) -> None:
    p = PROBLEMS["mlp"]()
    batches = p.batches(4)
    parts = [run(p, kind=kind, loader=b) for b in (batches[:1], batches[1:3], batches[3:], [])]
    whole = run(p, kind=kind, loader=batches)
    added = sum(parts)
    same_sums(added, whole.sums, dict(whole.counts))
    close(added.mean([0, 1]), whole.mean([0, 1]))
    total, count = whole.total([0])
    close(whole.mean([0]), {n: t / count for n, t in total.items()})
    close(total, whole.sums[0])


def test_groups_of_either_side_are_kept() -> None:
    p = PROBLEMS["mlp"]()
    whole = run(p)
    one, other = whole.without([0]), whole.without([1, 2])
    assert set((one + other).counts) == set(whole.counts)
    close((one + other).total()[0], whole.total()[0])
    assert whole.total([3])[1] == 0
    assert not any(t.any() for t in whole.total([3])[0].values())
    with pytest.raises(FisherError, match=r"no samples in groups \[3\]"):
        whole.mean([3])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "true"}, "different kind"),
        ({"scope": "fc2.*"}, "different scope"),
        ({"num_classes": 5}, "different num_classes"),
        ({"sums": {0: {"a": torch.ones(2)}}}, "other parameters"),
        ({"sums": {0: {"fc2.weight": torch.ones(2), "fc2.bias": torch.ones(4)}}}, r"\[2\] where \[4, 7\]"),
    ],
    ids=["kind", "scope", "classes", "names", "shapes"],
)
def test_what_does_not_fit_does_not_add(change: dict, message: str) -> None:
    f = run(PROBLEMS["mlp"]())
    fields = {"kind": f.kind, "scope": f.scope, "num_classes": 4, "sums": f.sums, "counts": f.counts} | change
    with pytest.raises(FisherError, match=message):
        f + FisherSums(**fields)


def test_only_sums_add() -> None:
    with pytest.raises(TypeError):
        run(PROBLEMS["mlp"]()) + 1


@pytest.mark.parametrize("name", ["mlp", "tied_head", "cnn_batchnorm"])
def test_bytes_round_trip(name: str) -> None:
    f = run(PROBLEMS[name](), scope="all", keep_classes=[1])
    f.sums = {g: {f"a/{n} é": t for n, t in s.items()} for g, s in f.sums.items()}
    data = f.to_bytes()
    back = FisherSums.from_bytes(data)
    assert (back.kind, back.scope, back.num_classes, back.counts) == (
        f.kind,
        f.scope,
        f.num_classes,
        f.counts,
    )
    assert back.names == f.names
    for g, sums in f.sums.items():
        for n, t in sums.items():
            torch.testing.assert_close(back.sums[g][n], t, rtol=0, atol=0)
    assert back.to_bytes() == data


def test_empty_sums_round_trip_and_add_neutrally() -> None:
    p = PROBLEMS["mlp"]()
    empty = FisherSums.from_bytes(run(p, loader=[]).to_bytes())
    assert (empty.sums, empty.counts, empty.num_classes, empty.names) == ({}, {}, 4, [])
    empty.validate()
    same_sums(empty + run(p), run(p).sums, run(p).counts)
    with pytest.raises(FisherError, match="no samples"):
        empty.mean()


@pytest.mark.parametrize(
    "data", [b"", b"\xff" * 40, b"\x02\0\0\0\0\0\0\0{}"], ids=["none", "noise", "no header"]
)
def test_other_bytes_are_refused(data: bytes) -> None:
    with pytest.raises(FisherError, match="no Fisher sums"):
        FisherSums.from_bytes(data)


@given(st.integers(0, 10_000), st.integers(0, 255))
@settings(deadline=None, derandomize=True, max_examples=150)
def test_damaged_bytes_give_sums_or_a_fisher_error(position: int, value: int) -> None:
    f = FisherSums("true", "all", 2, {1: {"a/b": torch.ones(2, 2), "c": torch.ones(1)}}, {1: 3})
    data = bytearray(f.to_bytes())
    data[position % len(data)] = value
    with contextlib.suppress(FisherError):
        assert isinstance(FisherSums.from_bytes(bytes(data)), FisherSums)


def test_to_changes_the_dtype_only() -> None:
    f = run(PROBLEMS["mlp"]())
    low = f.to(torch.float32)
    assert low.counts == f.counts
    for n, t in low.sums[0].items():
        torch.testing.assert_close(t, f.sums[0][n].float(), rtol=0, atol=0)
    direct = run(PROBLEMS["mlp"](), dtype=torch.float32).sums[0]
    torch.testing.assert_close(direct["fc2.bias"], low.sums[0]["fc2.bias"], rtol=0, atol=0)


@pytest.mark.parametrize(
    ("sums", "counts", "message"),
    [
        ({0: {"a": torch.tensor([1.0, torch.nan])}}, {0: 1}, "finite"),
        ({0: {"a": torch.tensor([1.0, torch.inf])}}, {0: 1}, "finite"),
        ({0: {"a": torch.tensor([1.0, -1e-9])}}, {0: 1}, "0 or more"),
        ({0: {"a": torch.tensor([1, 2])}}, {0: 1}, "floating-point"),
        ({0: {"a": torch.ones(2)}}, {0: -1}, "count -1"),
        ({0: {"a": torch.ones(2)}}, {0: 0}, "its count is 0"),
        ({0: {"a": torch.ones(2)}}, {1: 1}, "counts"),
        ({7: {"a": torch.ones(2)}}, {7: 1}, "group 7"),
        ({0: {"a": torch.ones(2)}, 1: {"a": torch.ones(3)}}, {0: 1, 1: 1}, r"\[3\] where \[2\]"),
        ({0: {"a": torch.ones(2)}, 1: {"b": torch.ones(2)}}, {0: 1, 1: 1}, "other parameters: a, b"),
    ],
    ids=lambda v: v.replace("\\", "") if isinstance(v, str) else "",
)
def test_validate_refuses(sums: dict, counts: dict, message: str) -> None:
    with pytest.raises(FisherError, match=message):
        FisherSums("true", "all", 3, sums, counts).validate()


# --------------------------------------------------------------------------- head and scope
def test_find_head() -> None:
    model = Mlp()
    assert find_head(model) == ("fc2", model.fc2)
    assert find_head(model, "fc1") == ("fc1", model.fc1)
    assert find_head(model.fc1)[0] == ""
    with pytest.raises(FisherError, match="'fc1', 'fc2'"):
        find_head(model, "fc3")
    with pytest.raises(FisherError, match=r"no nn\.Linear"):
        find_head(nn.Conv2d(1, 1, 1))


@pytest.mark.parametrize(
    ("name", "scope", "names"),
    [
        ("mlp", "head", ["fc2.weight", "fc2.bias"]),
        ("mlp", "fc2.bias, fc1.*", ["fc1.weight", "fc1.bias", "fc2.bias"]),
        ("mlp", "*.[w]eight", ["fc1.weight", "fc2.weight"]),
        ("frozen_body", "all", ["fc2.weight"]),
        ("tied_head", "head", ["encoder.weight", "head.weight", "head.bias"]),
        ("tied_body", "b.weight", ["a.weight", "b.weight"]),
    ],
)
def test_resolve_scope(name: str, scope: str, names: list[str]) -> None:
    assert resolve_scope(PROBLEMS[name]().model, scope) == names


@pytest.mark.parametrize(
    ("scope", "message"),
    [
        ("fc3.weight", "'fc3.weight' matches no parameter; the nearest are .*'fc2.weight'"),
        ("fc2.weight,FC1.*", r"'FC1\.\*' matches no parameter"),
        ("fc2.weight,fc1.*", r"'fc1\.\*' has no trainable parameter"),
        (" , ", "is empty"),
    ],
)
def test_scopes_that_name_nothing_are_refused(scope: str, message: str) -> None:
    with pytest.raises(FisherError, match=message):
        resolve_scope(PROBLEMS["frozen_body"]().model, scope)


@pytest.mark.parametrize(
    ("model", "head", "message"),
    [
        (nn.Sequential(nn.Linear(3, 3), nn.Softmax(1)), None, "does not return the model's output"),
        (nn.Sequential(nn.Linear(3, 3), nn.ReLU(inplace=True)), None, "does not return the model's output"),
        (nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3)), "0", "head '0' does not return the model's output"),
    ],
    ids=["softmax", "changed in place", "hidden layer"],
)
def test_a_head_that_does_not_give_the_logits_is_refused(model: nn.Module, head: str, message: str) -> None:
    batch = torch.randn(4, 3), torch.tensor([0, 1, 2, 0])
    with pytest.raises(FisherError, match=message):
        fisher_diagonal(model, [batch], head=head)
    got = fisher_diagonal(model, [batch], scope="0.*")
    same_sums(got, *reference_fisher(model, [batch], "normalized", got.names))


def test_a_head_never_called_is_refused() -> None:
    p = PROBLEMS["mlp_named_head_transposed_input"]()
    with pytest.raises(FisherError, match=r"head 'extra' is not called .* head=\.\.\."):
        fisher_diagonal(p.model, p.batches())


# --------------------------------------------------------------------------- refusals
def test_all_reasons_come_at_once() -> None:
    model = nn.Sequential(
        nn.Conv1d(2, 2, 1), nn.BatchNorm1d(2), nn.SyncBatchNorm(2), nn.Dropout2d(0.1), nn.Dropout(0.0)
    )
    model.append(nn.InstanceNorm1d(2, track_running_stats=True)).append(nn.InstanceNorm1d(2))
    model.append(nn.LSTM(2, 2, num_layers=2, dropout=0.2)).append(nn.MultiheadAttention(2, 1, dropout=0.1))
    model.append(nn.RReLU()).append(nn.Linear(2, 2))
    with pytest.raises(FisherError) as e:
        fisher_diagonal(model, [], scope="nothing")
    text = str(e.value)
    for part in ("BatchNorm1d '1'", "SyncBatchNorm '2'", "Dropout2d '3'", "InstanceNorm1d '5'", "LSTM '7'"):
        assert part in text
    for part in ("MultiheadAttention '8'", "RReLU '9'", "'nothing' matches no parameter", "model.eval()"):
        assert part in text
    for part in ("'4'", "InstanceNorm1d '6'", "Linear"):
        assert part not in text
    fisher_diagonal(model.eval(), [], scope="10.*")


def test_check_model_names_what_is_wrong_with_parameters() -> None:
    model = nn.Sequential(nn.LazyLinear(2), nn.BatchNorm1d(2, track_running_stats=False))
    model.register_parameter("c", nn.Parameter(torch.zeros(2, dtype=torch.complex64)))
    with pytest.raises(FisherError) as e:
        check_model(model.eval(), ["0.weight", "c", "d"])
    for part in ("'0.weight' has no shape", "'c' is torch.complex64", "'d' is no parameter", "in every mode"):
        assert part in str(e.value)
    with pytest.raises(FisherError, match="no trainable parameter is in scope"):
        check_model(nn.Linear(1, 1), [])


class Returns(nn.Module):
    def __init__(self, make: object) -> None:
        super().__init__()
        self.fc, self.make = nn.Linear(3, 2), make

    def forward(self, x: Tensor) -> object:
        return self.make(self.fc(x))


X, Y = torch.zeros(4, 3), torch.tensor([0, 1, 0, 1])


@pytest.mark.parametrize("scope", ["head", "fc.weight"])
@pytest.mark.parametrize(
    ("make", "batch", "message"),
    [
        (lambda z: z, (X, Y + 1), "batch 1: label 2, but the model has 2 classes"),
        (lambda z: z, (X, Y[:3]), "batch 1: 4 rows of logits, but 3 labels"),
        (lambda z: z, (X * torch.nan, Y), "batch 1: the logits of row 0 are not finite"),
        (lambda z: z, (X[:, None], Y), r"batch 1: logits must have shape \(N, C\).*\[4, 1, 2\]"),
        (lambda z: {"logits": z}, (X, Y), "logits as a tensor, got dict"),
        (lambda z: torch.cat([z, z], 1), (X, Y), "batch 0: 4 logits a row, but 2"),
    ],
    ids=["label", "rows", "nan", "shape", "dict", "classes"],
)
def test_data_that_do_not_fit_are_refused(make: object, batch: tuple, message: str, scope: str) -> None:
    with pytest.raises(FisherError, match=message):
        fisher_diagonal(Returns(make), [(X, Y), batch], scope=scope, num_classes=2)


def test_only_a_head_does_without_one_row_a_sample() -> None:
    folded = nn.Sequential(nn.Flatten(0, 1), nn.Linear(3, 2), nn.Identity())
    batch = X.view(2, 2, 3), Y
    assert fisher_diagonal(folded, [batch]).counts == {0: 2, 1: 2}
    with pytest.raises(FisherError, match=r"batch 0: inputs need one row a sample, 4, .* \[2, 2, 3\]"):
        fisher_diagonal(folded.append(nn.ReLU()), [batch], scope="all")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"kind": "exact"}, "kind must be one of .*'exact'"),
        ({"dtype": torch.int64}, "dtype must be"),
        ({"num_classes": 0}, "num_classes must be at least 1, got 0"),
        ({"chunk_size": 0}, "chunk_size must be at least 1"),
        ({"keep_classes": [-1]}, r"keep_classes must be whole numbers from 0 up, got \[-1\]"),
        ({"keep_classes": [4]}, "keep_classes names class 4, but there are 4"),
        ({"device": "cuda"}, "model is on 'cpu'"),
        ({"head": "fc9"}, "head='fc9'"),
    ],
    ids=lambda v: next(iter(v)) if isinstance(v, dict) else "",
)
def test_arguments_are_checked(arguments: dict, message: str) -> None:
    p = PROBLEMS["mlp"]()
    with pytest.raises(FisherError, match=message):
        fisher_diagonal(p.model, p.batches(), **arguments)


def test_empty_loaders_and_batches() -> None:
    p = PROBLEMS["mlp"]()
    kept = run(p, loader=[], keep_classes=[2], scope="all")
    assert (kept.counts, kept.num_classes) == ({REST: 0, 2: 0}, 4)
    assert not any(t.any() for s in kept.sums.values() for t in s.values())
    assert run(p, loader=[(p.x[:0], p.y[:0]), *p.batches()]).counts == run(p).counts
    conv = nn.Sequential(nn.Conv2d(1, 2, 1), nn.Flatten())
    with pytest.raises(FisherError, match="give num_classes"):
        fisher_diagonal(conv, [], scope="all")
    assert fisher_diagonal(conv, [], scope="all", num_classes=2).num_classes == 2


# --------------------------------------------------------------------------- batches
@pytest.mark.parametrize(
    "batch",
    [
        (X, Y),
        [X, Y.to(torch.uint8)],
        {"img": X, "label": Y, "extra": Y},
        {"pixel_values": X, "labels": Y.int()},
        {"image": X, "fine_label": Y, "coarse_label": Y * 0},
        {"signal": X, "target": Y},
        {"input_ids": X, "attention_mask": torch.ones(4, 3), "labels": Y},
    ],
    ids=lambda b: "-".join(b) if isinstance(b, dict) else type(b).__name__,
)
def test_unpack(batch: object) -> None:
    x, y = unpack(batch)
    assert x is X
    torch.testing.assert_close(y, Y)


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        ((X, Y, Y), "got 3 elements"),
        (X, "got Tensor"),
        ({"img": X, "class": Y}, "its keys are 'img', 'class'"),
        ({"a": X, "b": X, "label": Y}, "2 fit; its keys are 'a', 'b', 'label'"),
        ({"label": Y}, "0 fit"),
        ({"input_ids": X, "attention_mask": torch.zeros(4, 3), "labels": Y}, "attention_mask"),
        ((X, [0, 1]), "must be a tensor, got list"),
        ((X, Y.float()), "integer dtype, got torch.float32"),
        ((X, Y > 0), "integer dtype, got torch.bool"),
        ((X, Y[:, None]), r"shape \(N,\), got \[4, 1\]"),
        ((X, Y - 1), "0 or more, got -1"),
    ],
    ids=lambda v: v if isinstance(v, str) else "",
)
def test_unpack_refuses(batch: object, message: str) -> None:
    with pytest.raises(FisherError, match=message):
        unpack(batch)


def test_to_device_looks_into_containers() -> None:
    moved = to_device({"a": [X, (Y, "text")], "b": 3}, "meta")
    assert moved["a"][0].device.type == moved["a"][1][0].device.type == "meta"
    assert (moved["a"][1][1], moved["b"]) == ("text", 3)
