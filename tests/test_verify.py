"""Scores per class, of one model or of many candidates at once, against a slow loop over the samples."""

from __future__ import annotations

import random
from collections import UserDict
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import cases
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from references_verify import dampened_model, reference_scores
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from fl_unlearn.dampen import DampeningUpdate, build_update
from fl_unlearn.erase import Erasure
from fl_unlearn.fisher import resolve_scope
from fl_unlearn.run_store import RunStore
from fl_unlearn.types import ClassScores, CorruptCheckpointError, FisherError, UpdateError, signature_of
from fl_unlearn.update import ErasedLayer
from fl_unlearn.verify import score, score_candidates, score_checkpoints, score_state


def make_update(model: nn.Module, names: list[str], seed: int = 0) -> DampeningUpdate:
    """Random, and the same for tied parameters, as a Fisher is."""
    state = model.state_dict()

    def fisher(offset: int) -> dict[str, torch.Tensor]:
        out, tied = {}, {}
        for i, n in enumerate(names):
            at = tied.setdefault(state[n].data_ptr(), i)
            g = torch.Generator().manual_seed(1000 * seed + 10 * at + offset)
            out[n] = torch.rand(state[n].shape, generator=g, dtype=torch.float64) + 0.05
        return out

    return build_update(fisher(1), fisher(2), threshold=0.7, dampening=0.3, signature=signature_of(state))


def assert_scores(got: ClassScores, expected: ClassScores) -> None:
    assert got.total == dict(sorted(expected.total.items()))
    assert got.correct == {c: expected.correct[c] for c in got.total}
    assert got.loss == pytest.approx(expected.loss, rel=1e-4, abs=1e-5)
    assert all(type(v) is int for v in (*got.total.values(), *got.correct.values()))


def check_candidates(p: cases.Problem, updates: list[DampeningUpdate | None], head: str | None) -> None:
    before = {n: t.clone() for n, t in p.model.state_dict().items()}
    got = score_candidates(p.model, p.batches(), updates, head=head)
    assert len(got) == len(updates)
    for found, update in zip(got, updates, strict=True):
        assert_scores(found, reference_scores(dampened_model(p.model, update), p.batches()))
    for n, t in p.model.state_dict().items():
        torch.testing.assert_close(t, before[n], rtol=0, atol=0)


@pytest.mark.parametrize("name", cases.PROBLEMS)
def test_score_equals_the_slow_loop(name: str) -> None:
    p = cases.PROBLEMS[name]()
    assert_scores(score(p.model, p.batches()), reference_scores(p.model, p.batches()))


@pytest.mark.parametrize(
    ("name", "scope"), [(n, s) for n, make in cases.PROBLEMS.items() for s in make().scopes]
)
def test_candidates_equal_each_dampened_model(name: str, scope: str) -> None:
    p = cases.PROBLEMS[name]()
    names = resolve_scope(p.model, scope, p.head)
    updates = [None, make_update(p.model, names, 1), make_update(p.model, names, 2), None]
    assert updates[1] is not None
    assert updates[1].selected > 0
    check_candidates(p, updates, p.head)


class WithEnd(nn.Module):
    def __init__(self, end: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.body, self.head, self.end = nn.Linear(6, 7), nn.Linear(7, 4), end

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.end(self.head(torch.relu(self.body(x))))


class ByKeyword(cases.Mlp):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc2(input=torch.tanh(self.fc1(x)))


class SecondHead(cases.Mlp):
    """Its logits are the head's plus those of a skip connection."""

    def __init__(self) -> None:
        super().__init__()
        self.skip, self.fc2 = nn.Linear(6, 4), nn.Linear(7, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) + self.skip(x)


ENDS: dict[str, Callable[[], nn.Module]] = {
    "log softmax": lambda: WithEnd(lambda z: z.log_softmax(1)),
    "temperature": lambda: WithEnd(lambda z: z / 3),
    "relu that may do nothing": lambda: WithEnd(lambda z: torch.where(z > 1e9, 0.0, z)),
    "head called by keyword": ByKeyword,
    "skip connection": SecondHead,
}


@pytest.mark.parametrize("which", ENDS)
@pytest.mark.parametrize("touched", ["head", "all"])
def test_models_that_go_on_after_the_head(which: str, touched: str) -> None:
    torch.manual_seed(3)
    model = ENDS[which]().eval()
    p = cases.Problem(model, torch.randn(11, 6), cases.labels(11, 4), 4, ())
    check_candidates(p, [make_update(model, resolve_scope(model, touched)), None], None)


def test_updates_of_different_tensors_together() -> None:
    p = cases.PROBLEMS["mlp"]()
    updates = [make_update(p.model, names) for names in (["fc1.weight"], ["fc2.bias"], ["fc2.weight"])]
    check_candidates(p, [*updates, None], None)
    check_candidates(p, [DampeningUpdate({}, 1.0), updates[1]], None)
    check_candidates(p, [DampeningUpdate({}, 1.0)], None)


def erasing(model: nn.Module, layer: str, update: DampeningUpdate, seed: int = 0) -> DampeningUpdate:
    """The same update after a random erasure in one layer."""
    state, g = model.state_dict(), torch.Generator().manual_seed(seed)
    weight, bias = f"{layer}.weight", f"{layer}.bias"
    d = len(state[bias])
    a, b = torch.linalg.qr(torch.randn(d, 2, generator=g, dtype=torch.float64))[0], torch.rand(2)
    a, b = a * (1 + b), a / (1 + b)
    mean = torch.randn(d, generator=g, dtype=torch.float64)
    specs = signature_of(state)
    layer_ = ErasedLayer(Erasure(a, b, mean), weight, bias, "bias", specs[weight], specs[bias])
    return replace(update, erasures={layer: layer_})


def test_candidates_that_erase() -> None:
    p = cases.PROBLEMS["mlp"]()
    heads = [make_update(p.model, ["fc2.weight", "fc2.bias"], seed) for seed in range(3)]
    first, second = erasing(p.model, "fc1", heads[0]), erasing(p.model, "fc1", heads[0], 1)
    variants = [first, replace(first, entries=heads[1].entries), replace(first, entries={})]
    check_candidates(p, [None, *variants, heads[2], second, DampeningUpdate({}, 1.0)], None)
    body = erasing(p.model, "fc1", make_update(p.model, ["fc1.weight", "fc2.bias"]))
    check_candidates(p, [None, body, *variants], None)
    check_candidates(p, [erasing(p.model, "fc2", heads[0]), None], None)
    for end in ENDS.values():
        torch.manual_seed(3)
        model = end().eval()
        layer = "body" if hasattr(model, "body") else "fc1"
        own = cases.Problem(model, torch.randn(11, 6), cases.labels(11, 4), 4, ())
        update = erasing(model, layer, make_update(model, resolve_scope(model, "head")))
        check_candidates(own, [update, None, replace(update, entries={})], None)


def test_features_are_computed_once_for_all_that_erase_alike() -> None:
    p = cases.PROBLEMS["mlp"]()
    calls: list[int] = []
    p.model.fc1.register_forward_hook(lambda *_: calls.append(1))  # type: ignore[union-attr, operator]
    first = erasing(p.model, "fc1", make_update(p.model, ["fc2.weight"]))
    updates = [replace(make_update(p.model, ["fc2.weight"], s), erasures=first.erasures) for s in range(20)]
    batches = p.batches(3)
    score_candidates(p.model, batches, [None, *updates])
    assert len(calls) == 2 * len(batches) + 1


def test_features_are_computed_once_for_candidates_of_the_head() -> None:
    p = cases.PROBLEMS["mlp"]()
    calls: list[int] = []
    p.model.fc1.register_forward_hook(lambda *_: calls.append(1))  # type: ignore[union-attr, operator]
    batches = p.batches(3)
    score_candidates(p.model, batches, [make_update(p.model, ["fc2.weight"], s) for s in range(20)])
    assert len(calls) == len(batches) + 1  # one candidate of the first batch is checked in full


@given(
    seed=st.integers(0, 10**6),
    classes=st.integers(1, 6),
    sizes=st.lists(st.integers(0, 5), max_size=5),
    norm=st.booleans(),
    scale=st.sampled_from([1e-3, 1.0, 300.0]),
)
@settings(max_examples=60, deadline=None)
def test_generated_models(seed: int, classes: int, sizes: list[int], norm: bool, scale: float) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        middle = nn.BatchNorm1d(5) if norm else nn.ReLU()
        model = nn.Sequential(nn.Linear(3, 5), middle, nn.Dropout(0.9), nn.Linear(5, classes))
        for _ in range(3):
            model(torch.randn(8, 3))  # running statistics of its own
        batches = [(scale * torch.randn(n, 3), torch.randint(0, classes, (n,))) for n in sizes]
    updates = [None, make_update(model, ["3.weight", "3.bias"]), make_update(model, ["0.weight", "3.bias"])]
    for got, update in zip(score_candidates(model, batches, updates), updates, strict=True):
        assert_scores(got, reference_scores(dampened_model(model, update), batches))
    assert model.training


# --------------------------------------------------------------------------- loaders and modes
@pytest.mark.parametrize(
    "batch",
    [lambda x, y: {"img": x, "label": y}, lambda x, y: UserDict(image=x, fine_label=y), lambda *b: [*b]],
)
def test_batches_in_other_forms(batch: Any) -> None:
    p = cases.PROBLEMS["mlp"]()
    expected = reference_scores(p.model, p.batches())
    assert_scores(score(p.model, [batch(x, y) for x, y in p.batches()]), expected)
    loader = DataLoader(
        TensorDataset(p.x, p.y),
        batch_size=4,
        collate_fn=lambda rows: batch(*map(torch.stack, zip(*rows, strict=True))),
    )
    assert_scores(score(p.model, loader), expected)


@pytest.mark.parametrize("batches", [[], [(torch.empty(0, 6), torch.empty(0, dtype=torch.int64))]])
def test_empty_loaders_score_nothing(batches: Any) -> None:
    p = cases.PROBLEMS["mlp"]()
    assert score(p.model, batches) == ClassScores()
    got = score_candidates(p.model, batches, [None, make_update(p.model, ["fc2.bias"])])
    assert got == [ClassScores(), ClassScores()]
    assert got[0].accuracy() is None
    full = p.batches()
    assert score(p.model, [*batches, *full, *batches]) == score(p.model, full)


@pytest.mark.parametrize("fails", [False, True])
def test_training_modes_are_restored_module_by_module(fails: bool) -> None:
    p = cases.PROBLEMS["cnn_batchnorm"]()
    modules = list(p.model.modules())
    for seed in range(4):
        chosen = random.Random(seed)
        modes = [chosen.random() < 0.5 for _ in modules]
        for module, mode in zip(modules, modes, strict=True):
            module.training = mode
        expected = reference_scores(p.model, p.batches())
        if fails:
            with pytest.raises(FisherError):
                score(p.model, [(p.x, p.y + 99)])
        else:
            assert_scores(score(p.model, p.batches()), expected)
        assert [m.training for m in modules] == modes
        assert int(p.model.norm.num_batches_tracked) == 0  # type: ignore[union-attr, arg-type]


def test_half_precision() -> None:
    p = cases.PROBLEMS["mlp"]()
    p.model.bfloat16()
    update = make_update(p.model, ["fc2.weight"])
    batches = [(x.bfloat16(), y) for x, y in p.batches()]
    for got, u in zip(score_candidates(p.model, batches, [None, update]), [None, update], strict=True):
        logits = torch.cat([dampened_model(p.model, u)(x) for x, _ in batches]).float().detach()
        loss = nn.functional.cross_entropy(logits, p.y, reduction="sum")
        assert sum(got.loss.values()) == pytest.approx(float(loss), rel=1e-4)
        assert sum(got.correct.values()) == int((logits.argmax(1) == p.y).sum())


# --------------------------------------------------------------------------- refused
@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda x, y: (x, y + 4), r"label \d, but the model has 4 classes"),
        (lambda x, y: (x, y - 9), "labels must be 0 or more"),
        (lambda x, y: (x, y.float()), "integer dtype"),
        (lambda x, y: (x, y[:, None]), "shape"),
        (lambda x, y: (x, y[:-1]), "13 rows of logits, but 12 labels"),
        (lambda x, y: (x * float("nan"), y), "logits of row 0 are not finite"),
        (lambda x, y: (x[:, None], y), "logits must have shape"),
        (lambda x, y: (x, y, y), "pair"),
        (lambda x, y: {"img": x}, "no labels"),
    ],
    ids=["label too high", "negative", "float", "2-D", "too few", "NaN", "3-D logits", "triple", "no label"],
)
@pytest.mark.parametrize("head", [False, True])
def test_bad_batches_are_refused(head: bool, change: Any, match: str) -> None:
    p = cases.PROBLEMS["mlp"]()
    updates = [None, make_update(p.model, ["fc2.weight"])] if head else [None]
    with pytest.raises(FisherError, match=match):
        score_candidates(p.model, [change(p.x, p.y)], updates)


def test_an_update_of_another_model_is_refused() -> None:
    p, other = cases.PROBLEMS["mlp"](), cases.PROBLEMS["layernorm"]()
    with pytest.raises(UpdateError, match="which this model does not have"):
        score_candidates(p.model, p.batches(), [None, make_update(other.model, ["3.weight"])])


# --------------------------------------------------------------------------- checkpoints
def test_every_checkpoint_is_scored_in_order(tmp_path: Path) -> None:
    p = cases.PROBLEMS["cnn_batchnorm"]()
    names, told = ["new", "b", "a"], []
    expected = {}
    with RunStore(tmp_path) as store:
        for i, name in enumerate(names):
            torch.manual_seed(i)
            model = cases.Cnn(nn.BatchNorm2d)
            model(torch.randn(4, 2, 6, 6))
            store.record(name, model.state_dict(), kind="aggregate", round_=i)
            expected[name] = reference_scores(model, p.batches())
            assert_scores(score_state(p.model, model.state_dict(), p.batches()), expected[name])
        store.record("without", None, kind="aggregate", round_=4)
        got = score_checkpoints(store, p.model, p.batches(), progress=lambda *n: told.append(n))
        assert list(got) == names
        for name in names:
            assert_scores(got[name], expected[name])
        assert told == [(1, 3), (2, 3), (3, 3)]
        store.checkpoints.delete("b")
        with pytest.raises(CorruptCheckpointError, match=r"b.safetensors is missing"):
            score_checkpoints(store, p.model, p.batches())
