"""Sums of Fisher diagonals: adding, storing, refusing."""

from __future__ import annotations

import contextlib

import pytest
import torch
from cases import PROBLEMS
from fisher_checks import close, run, same_sums
from hypothesis import given, settings
from hypothesis import strategies as st

from fl_unlearn.fisher import FisherSums
from fl_unlearn.types import FISHER_KINDS, FisherError


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


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
