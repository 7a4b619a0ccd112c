"""A client's ledger of per-class Fishers: right or absent, whatever becomes of its files."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from cases import PROBLEMS, Problem
from fisher_checks import run
from ledger_checks import exact, fill, no_data
from torch import nn

from fl_unlearn.files import LocalFiles
from fl_unlearn.fisher import FisherSums, fisher_diagonal
from fl_unlearn.fisher_ledger import FisherLedger, model_digest
from fl_unlearn.types import REST, FisherError, StoreFullError

NAMES = ["mlp", "cnn_batchnorm", "tied_head", "text_lstm", "head_over_a_sequence"]


@pytest.fixture
def mlp() -> Problem:
    return PROBLEMS["mlp"]()


# --------------------------------------------------------------------------- what it answers
@pytest.mark.parametrize("kind", ["normalized", "empirical", "true"])
@pytest.mark.parametrize("name", NAMES)
def test_a_request_is_answered_as_from_the_data(name: str, kind: str, tmp_path: Path) -> None:
    p = PROBLEMS[name]()
    ledger = FisherLedger(tmp_path, "data")
    with ledger.collect(p.model, kind=kind, scopes=("head", "all"), head=p.head) as forward:
        for x, y in p.batches():
            z = forward(x, y)
            assert not z.requires_grad
            assert torch.equal(z, p.model(x))
    for scope in ("head", "all"):
        for classes, ignored in (([0], []), ([0, 1], []), ([1], [0]), ([p.num_classes - 1], [])):
            got, held = FisherLedger(tmp_path, "data").answer(
                p.model, no_data, classes=classes, ignored=ignored, kind=kind, scope=scope, head=p.head
            )
            assert held
            want = run(p, kind=kind, scope=scope, keep_classes=[*classes, *ignored])
            # One pass sums a group's squares in float32 before float64, and these are other groups.
            exact(got, want.without(ignored), rtol=1e-6)


def test_whole_minus_forgotten_is_what_is_retained(mlp: Problem) -> None:
    every = run(mlp, scope="all")
    request = every.pooled([0, 2])
    whole, count = every.total()
    assert request.counts == {REST: count - every.counts[0], 0: every.counts[0], 2: 0} | (
        {2: every.counts[2], REST: count - every.counts[0] - every.counts[2]} if 2 in every.counts else {}
    )
    for name in every.names:
        forgotten = request.sums[0][name] + request.sums[2][name]
        torch.testing.assert_close(
            request.sums[REST][name], whole[name] - forgotten, rtol=0.0, atol=1e-14 * float(whole[name].max())
        )
    request.validate()


def test_adding_the_others_keeps_the_digits_that_subtracting_loses() -> None:
    sums = {0: {"w": torch.tensor([1e9], dtype=torch.float64)}, 1: {"w": torch.tensor([1e-9]).double()}}
    every = FisherSums("normalized", "head", 2, sums, {0: 1, 1: 1})
    assert every.pooled([0]).sums[REST]["w"] == sums[1]["w"]
    assert every.total()[0]["w"] - sums[0]["w"] == 0.0


def test_what_cannot_be_pooled_is_refused(mlp: Problem, tmp_path: Path) -> None:
    with pytest.raises(FisherError, match="unknown class 4 among 4"):
        run(mlp).pooled([4])
    with pytest.raises(FisherError, match="mini-batches"):
        run(mlp, kind="batch").pooled([0])
    with pytest.raises(FisherError, match="of no data"):
        run(mlp, loader=[]).pooled([0])
    ledger = FisherLedger(tmp_path, "data")
    with pytest.raises(FisherError, match="every class apart"):
        ledger.put("d", run(mlp, keep_classes=[0]))
    with pytest.raises(FisherError, match="every class apart"):
        ledger.put("d", run(mlp, kind="batch"))
    with pytest.raises(FisherError, match="not kept in a ledger"), ledger.collect(mlp.model, kind="batch"):
        pass
    with pytest.raises(FisherError, match="keep must be at least 1"):
        FisherLedger(tmp_path, "data", keep=0)


def test_the_data_is_gone_through_once_and_what_it_gave_is_kept(mlp: Problem, tmp_path: Path) -> None:
    ledger, calls = FisherLedger(tmp_path / "made" / "for it", "data"), []

    def data() -> list[object]:
        calls.append(1)
        return mlp.batches()

    for classes, ignored in (([0], ()), ([1], ()), ([0, 2], (1,))):
        got, held = ledger.answer(mlp.model, data, classes=classes, ignored=ignored)
        assert held == (len(calls) == 1 and classes != [0])
        exact(got, run(mlp, keep_classes=[*classes, *ignored]).without(ignored))
    assert len(calls) == 1


def test_nothing_is_kept_where_nothing_is_to_be(mlp: Problem, tmp_path: Path) -> None:
    for ledger, kw in (
        (FisherLedger(tmp_path, "data"), {"keep": False}),
        (FisherLedger(tmp_path, "data"), {"kind": "batch"}),
        (FisherLedger(tmp_path, "data", max_bytes=8 * 4 * 32 - 1), {}),
    ):
        got, held = ledger.answer(mlp.model, mlp.batches, classes=[0], **kw)
        assert not held
        exact(got, run(mlp, keep_classes=[0], kind=kw.get("kind", "normalized")))
    assert list(tmp_path.iterdir()) == []
    FisherLedger(tmp_path, "data", max_bytes=8 * 4 * 32).answer(mlp.model, mlp.batches, classes=[0])
    assert len(list(tmp_path.iterdir())) == 1


def test_a_client_without_data_answers_too(mlp: Problem, tmp_path: Path) -> None:
    ledger = FisherLedger(tmp_path, "data")
    for data in (list, lambda: iter(())):
        got, held = ledger.answer(mlp.model, data, classes=[0])
        assert not held
        exact(got, run(mlp, keep_classes=[0], loader=[]))
    mlp.y.zero_()
    fill(ledger, mlp, without=[0])
    assert list(tmp_path.iterdir()) == []
    fill(ledger, mlp)
    got, held = ledger.answer(mlp.model, no_data, classes=[1], ignored=[0])
    assert held
    exact(got, run(mlp, keep_classes=[0, 1]).without([0]))


def test_the_order_of_the_data_does_not_matter(mlp: Problem, tmp_path: Path) -> None:
    ledger = FisherLedger(tmp_path, "data")
    with ledger.collect(mlp.model) as forward:
        for x, y in reversed(mlp.batches(3)):
            forward(x, y)
    want = fisher_diagonal(mlp.model, mlp.batches(), keep_classes=[0])
    exact(
        ledger.answer(mlp.model, no_data, classes=[0])[0], want, rtol=1e-6
    )  # float32 logits of other batches


# --------------------------------------------------------------------------- for what it holds
def change_weight(p: Problem) -> None:
    with torch.no_grad():
        p.model.fc1.bias[0] += 1e-7


def change_dtype(p: Problem) -> None:
    p.model.double()


def freeze(p: Problem) -> None:
    p.model.fc2.bias.requires_grad_(False)


@pytest.mark.parametrize("change", [change_weight, change_dtype, freeze])
def test_another_model_is_not_answered_for(
    change: Callable[[Problem], None], mlp: Problem, tmp_path: Path
) -> None:
    ledger = FisherLedger(tmp_path, "data")
    fill(ledger, mlp)
    assert ledger.get(mlp.model) is not None
    change(mlp)
    assert ledger.get(mlp.model) is None
    mlp.x = mlp.x.to(mlp.model.fc1.weight.dtype)
    got, held = ledger.answer(mlp.model, mlp.batches, classes=[0])
    assert not held
    exact(got, run(mlp, keep_classes=[0]))
    assert ledger.answer(mlp.model, no_data, classes=[1])[1]


@pytest.mark.parametrize(
    "other", [{"kind": "true"}, {"scope": "all"}, {"scope": "fc2.*"}, {"head": "fc2"}, {"data_key": "more"}]
)
def test_other_questions_are_not_answered(other: dict[str, str], mlp: Problem, tmp_path: Path) -> None:
    fill(FisherLedger(tmp_path, "data"), mlp)
    ledger = FisherLedger(tmp_path, other.pop("data_key", "data"))
    assert ledger.get(mlp.model, **other) is None


def test_the_digest_covers_names_dtypes_shapes_and_buffers() -> None:
    def digest(change: Callable[[nn.Module], object]) -> str:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
        change(model)
        return model_digest(model)

    changes: list[Callable[[nn.Module], object]] = [
        lambda m: None,
        lambda m: m.half(),
        lambda m: m.register_module("another name", m[0]),
        lambda m: m[0].weight.data.copy_(m[0].weight.data.flip(0)),
        lambda m: setattr(m[0], "weight", nn.Parameter(m[0].weight.data.reshape(2, 3))),
        lambda m: m[1].running_mean.add_(1),
    ]
    assert digest(changes[0]) == digest(lambda m: m.train().requires_grad_(False))
    assert len({digest(change) for change in changes}) == len(changes)


def test_the_last_models_are_kept(mlp: Problem, tmp_path: Path) -> None:
    ledger, states = FisherLedger(tmp_path, "data", keep=2), []
    for _ in range(4):
        change_weight(mlp)
        states.append({n: t.clone() for n, t in mlp.model.state_dict().items()})
        fill(ledger, mlp, ("head", "all"))
        fill(ledger, mlp)
        for path in tmp_path.iterdir():  # file systems with coarse times
            os.utime(path, (path.stat().st_mtime - 10,) * 2)
    assert len(list(tmp_path.iterdir())) == 4
    for i, state in enumerate(states):
        mlp.model.load_state_dict(state)
        assert (ledger.get(mlp.model) is not None) == (i >= 2)
        assert (ledger.get(mlp.model, scope="all") is not None) == (i >= 2)


def test_what_was_forgotten_is_removed_and_not_noted_again(mlp: Problem, tmp_path: Path) -> None:
    ledger = FisherLedger(tmp_path, "data")
    (tmp_path / "else.txt").touch()
    fill(ledger, mlp, ("head", "all"))
    (tmp_path / "torn.fisher.partial").touch()
    assert ledger.clear() == 2
    assert [f.name for f in tmp_path.iterdir()] == ["else.txt"]
    assert ledger.clear() == 0
    fill(ledger, mlp, without=[0])
    assert ledger.get(mlp.model) is None
    held = ledger.get(mlp.model, without=[0, 3])
    assert held is not None
    assert 0 not in held.counts
    got, answered = ledger.answer(mlp.model, no_data, classes=[1], ignored=[0])
    assert answered
    exact(got, run(mlp, keep_classes=[0, 1]).without([0]))
    again, answered = ledger.answer(mlp.model, mlp.batches, classes=[0])
    assert not answered, "the class that was left out is needed now"
    assert again.counts[0] > 0


# --------------------------------------------------------------------------- passes that are no good
def test_a_pass_that_fails_or_ends_early_leaves_nothing(mlp: Problem, tmp_path: Path) -> None:
    ledger = FisherLedger(tmp_path, "data")
    mlp.y[-1] = mlp.num_classes
    with pytest.raises(FisherError, match="label 4, but"):
        fill(ledger, mlp)
    mlp.y[-1] = 0
    with ledger.collect(mlp.model, examples=len(mlp.y)) as forward:
        forward(*mlp.batches()[0])
    hook = mlp.model.register_forward_hook(lambda *_: change_weight(mlp))
    with pytest.raises(FisherError, match="model changed"):
        fill(ledger, mlp)
    hook.remove()
    training = PROBLEMS["cnn_batchnorm"]()
    training.model.train()
    with pytest.raises(FisherError, match=r"call model\.eval"):
        fill(ledger, training)
    assert list(tmp_path.iterdir()) == []
    fill(ledger, mlp, examples=len(mlp.y))
    assert len(list(tmp_path.iterdir())) == 1


def test_a_scope_that_is_too_large_is_passed_over(mlp: Problem, tmp_path: Path) -> None:
    ledger = FisherLedger(tmp_path, "data", max_bytes=8 * 4 * 32)
    fill(ledger, mlp, ("head", "all"))
    assert ledger.get(mlp.model) is not None
    assert ledger.get(mlp.model, scope="all") is None
    tiny = FisherLedger(tmp_path / "tiny", "data", max_bytes=1)
    with tiny.collect(mlp.model) as forward:
        assert torch.equal(forward(mlp.x, mlp.y), mlp.model(mlp.x))
    assert forward.examples == len(mlp.y)
    assert not (tmp_path / "tiny").exists()


def test_a_full_disk_loses_the_entry_and_nothing_else(
    mlp: Problem, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*_: object) -> None:
        raise StoreFullError("no room")

    monkeypatch.setattr(LocalFiles, "write", full)
    ledger = FisherLedger(tmp_path, "data")
    fill(ledger, mlp)
    exact(ledger.answer(mlp.model, mlp.batches, classes=[0])[0], run(mlp, keep_classes=[0]))
    assert caplog.text.count("no room") == 2
    with pytest.raises(StoreFullError):
        ledger.put("d", run(mlp))
