import random

import pytest
import references_defence as reference
import torch
from hypothesis import given
from hypothesis import strategies as st

from fl_unlearn import spool
from fl_unlearn.merge import FisherPart, merge
from fl_unlearn.merge_robust import REDUCTIONS, Spooled
from fl_unlearn.spool import Spool

RULES = ["median", "trimmed-mean"]
values = st.floats(0, 1e6, allow_nan=False)
drawn_parts = st.lists(st.tuples(st.integers(0, 2), st.lists(values, min_size=3, max_size=3)), min_size=1)


def wide(values: float | list[float]) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


@pytest.mark.parametrize("rule", RULES)
@given(drawn_parts)
def test_rule_equals_reference(rule: str, drawn: list[tuple[int, list[float]]]) -> None:
    parts = [
        FisherPart(str(i), label, {"b": wide(v[0]), "w": wide(v[1:])}, 1 + i)
        for i, (label, v) in enumerate(drawn)
    ]
    got = merge(parts, rule)
    for k in range(3):
        by_class = {label: [v[k] for own, v in drawn if own == label] for label, _ in drawn}
        expected = max(reference.middle(v, rule) for v in by_class.values())
        value = got["b"] if k == 0 else got["w"][k - 1]
        assert float(value) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("rule", RULES)
def test_neither_order_nor_pieces_matter(rule: str, monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    tensors = [{"w": torch.rand(4, 5, generator=generator, dtype=torch.float64)} for _ in range(7)]
    parts = [FisherPart(str(i), i % 2, t, 3) for i, t in enumerate(tensors)]
    whole = merge(parts, rule)["w"]
    random.Random(0).shuffle(parts)
    monkeypatch.setattr(spool, "_PIECE", 9)  # two or three values of each at a time
    monkeypatch.setattr(spool, "IN_MEMORY", 1)  # in a file from the first
    assert torch.equal(merge(parts, rule)["w"], whole)


@pytest.mark.parametrize("rule", RULES)
@given(st.lists(values, min_size=5, max_size=9), st.lists(st.floats(0, 1e30), min_size=1, max_size=2))
def test_a_minority_cannot_leave_the_honest_range(rule: str, honest: list[float], lies: list[float]) -> None:
    spooled = Spooled(REDUCTIONS[rule])
    for v in (*lies[: 1 if len(honest) < 6 else 2], *honest):
        spooled.add({"w": torch.tensor([v], dtype=torch.float64)})
    value = float(spooled.result()["w"])
    assert min(honest) * (1 - 1e-9) <= value <= max(honest) * (1 + 1e-9)


def test_names_may_come_in_another_order() -> None:
    spooled = Spooled(REDUCTIONS["median"])
    spooled.add({"a": torch.zeros(2), "b": torch.ones(1)})
    spooled.add({"b": torch.ones(1), "a": torch.zeros(2)})
    got = spooled.result()
    assert got["a"].tolist() == [0.0, 0.0]
    assert got["b"].tolist() == [1.0]


def test_spool_gives_back_what_it_was_given() -> None:
    rows = torch.arange(12.0).reshape(3, 4)
    with Spool(torch.float32) as kept:
        assert [kept.append(r) for r in rows] == [0, 1, 2]
        assert torch.equal(kept.row(1), rows[1].double())
        pieces = list(kept.columns([2, 0]))
        assert torch.equal(torch.cat([p for _, p in pieces], dim=1), rows[[2, 0]].double())
