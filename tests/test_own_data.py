"""A client's own data, as its project returns it and as a question parts it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import BatchSampler, DataLoader, RandomSampler, SequentialSampler, TensorDataset

from fl_unlearn.flower import records
from fl_unlearn.flower.own_data import in_order, own_data, split
from fl_unlearn.flower.targets import LEFT_OUT, NAMED, Share, Targets
from fl_unlearn.forget_set import forget_mask
from fl_unlearn.types import AnswerError, ForgetRequest, MeasureError, RequestError

BATCH = (torch.zeros(2, 3), torch.tensor([0, 1]))
TRAIN, HELD = [BATCH], [BATCH, BATCH]


def test_training_and_held_out_data() -> None:
    assert split((TRAIN, HELD)) == (TRAIN, HELD)
    assert split((TRAIN, None)) == (TRAIN,)
    assert split(TRAIN) == (TRAIN,)
    assert split(([], HELD)) == ([], HELD)
    assert split(BATCH)[0] is BATCH


@pytest.mark.parametrize("data", [None, (None, HELD), (None, None)])
def test_held_out_data_never_stands_in_for_training_data(data: Any) -> None:
    with pytest.raises(MeasureError, match="`data` gave None for this client's training loader"):
        split(data)


# --------------------------------------------------------------------------- what a question names
def rows_of(batches: Any) -> list[int]:
    return [int(v) for x, _ in batches for v in x]


def data_of(labels: torch.Tensor, size: int, *, shuffle: bool) -> DataLoader[Any]:
    return DataLoader(TensorDataset(torch.arange(len(labels)), labels), size, shuffle=shuffle)


requests = st.one_of(
    st.sets(st.sampled_from("abc"), min_size=1).map(lambda c: ForgetRequest(clients=tuple(sorted(c)))),
    st.dictionaries(
        st.sampled_from("abc"), st.sets(st.integers(0, 6), min_size=1).map(tuple), min_size=1
    ).map(lambda s: ForgetRequest(samples=s)),
)


@settings(max_examples=60)
@given(
    request=requests,
    earlier=st.lists(requests, max_size=2),
    ignored=st.sets(st.integers(0, 3)),
    labels=st.lists(st.integers(0, 3), min_size=7, max_size=11),
    size=st.integers(1, 5),
)
def test_the_parts_are_those_of_the_mask(
    request: ForgetRequest, earlier: list[ForgetRequest], ignored: set[int], labels: list[int], size: int
) -> None:
    y = torch.tensor(labels)
    targets = Targets.after(request, [r.to_json() for r in earlier])
    head = records.head(classes=[], clients=[], ignored=sorted(ignored), **targets.told("a"))
    own = own_data(data_of(y, size, shuffle=True), head, "a", None)
    gone, counted = torch.zeros(len(y), dtype=torch.bool), torch.tensor([v not in ignored for v in labels])
    for one in earlier:
        gone |= forget_mask(one, "a", y)
    named = forget_mask(request, "a", y)
    everything = torch.arange(len(y))
    assert rows_of(own.forget()) == everything[named & counted].tolist()
    assert rows_of(own.rest()) == everything[~named & ~gone & counted].tolist()
    if gone.any():
        assert rows_of(own.kept()) == everything[~gone].tolist()
    assert own.asks


@settings(max_examples=60)
@given(
    keys=st.lists(st.sampled_from(["p", "q", "r", "s"]), min_size=1, max_size=8),
    named=st.sets(st.sampled_from(["p", "q", "r", "s"])),
    more=st.sets(st.integers(0, 7)),
)
def test_keys_are_looked_up(keys: list[str], named: set[str], more: set[int]) -> None:
    share = Share(positions=tuple(sorted(more)), keys=tuple(sorted(named)))
    if not named <= set(keys):
        with pytest.raises(RequestError, match="of no training sample of this client") as caught:
            share.located(keys)
        assert not any(repr(k) in str(caught.value) for k in set(keys) - named)
        return
    expected = {i for i, key in enumerate(keys) if key in named} | more
    assert set(share.located(keys).positions) == expected
    assert share.kept(8, keys) == [i for i in range(8) if i not in expected]
    assert share.located({k: i for i, k in enumerate(keys)}).keys == ()


def test_all_is_all() -> None:
    assert Share(all=True).kept(3) == []
    assert (Share(all=True) | Share(positions=(1,))).all
    assert Share().kept(2) == [0, 1]


@given(
    share=st.builds(
        Share,
        st.booleans(),
        st.sets(st.integers(0, 2**40)).map(lambda s: tuple(sorted(s))),
        st.sets(st.text()).map(lambda s: tuple(sorted(s))),
    )
)
def test_a_share_travels(share: Share) -> None:
    assert Share.from_text(share.to_text()) == share


@pytest.mark.parametrize(
    "text",
    [
        3,
        "",
        "[]",
        "null",
        "[" * 10**5,
        '{"all": 1}',
        '{"some": true}',
        '{"positions": 3}',
        '{"positions": [-1]}',
        '{"positions": [true]}',
        '{"positions": [1.5]}',
        '{"positions": [1e999]}',
        f'{{"positions": [{2**63}]}}',
        '{"keys": [1]}',
        '{"keys": {"a": 1}}',
    ],
)
def test_what_is_no_share_is_an_error(text: object) -> None:
    with pytest.raises(AnswerError, match="what is named of a client's samples"):
        Share.from_text(text)


def test_a_question_that_names_nothing_leaves_the_loader_alone() -> None:
    loader = data_of(torch.tensor([0, 1]), 1, shuffle=True)
    own = own_data((loader, HELD), records.head(classes=[1], clients=[]), "a", None)
    assert own.kept() is loader
    assert not own.asks
    assert (own.held_out, own.ignored) == (HELD, ())
    left = own_data(loader, records.head(**{LEFT_OUT: Share(positions=(0,)).to_text()}), "a", None)
    assert rows_of(left.kept()) == [1]
    assert NAMED not in records.head()


def test_a_loader_in_order() -> None:
    labels = torch.arange(7)
    data = TensorDataset(labels, labels)
    for sampler in (RandomSampler(data), SequentialSampler(data)):
        loader = DataLoader(data, batch_sampler=BatchSampler(sampler, 2, drop_last=True))
        assert rows_of(in_order(loader)) == list(range(7))
    assert in_order(DataLoader(data, sampler=RandomSampler(data, replacement=True))) is None
    assert in_order(DataLoader(data, sampler=RandomSampler(data, num_samples=3))) is None
    assert in_order(DataLoader(data, sampler=[3, 1])) is None
    assert in_order(DataLoader(data, batch_sampler=[[0, 1]])) is None
    assert in_order(TRAIN) is TRAIN
    whole = DataLoader(data, batch_size=None, sampler=RandomSampler(data))
    assert [int(x) for x, _ in in_order(whole)] == list(range(7))
