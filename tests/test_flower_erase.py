"""Requests that erase in hidden layers: the map is that of the clients' sums, for every model and layer."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import federation as fed
import pytest
import torch
from federation_checks import THREE, unchanged
from federation_erase import DEEP, State, all_data, deep, expected_erasure, hidden_of
from flwr.app import ArrayRecord, Message
from flwr.clientapp import ClientApp
from references_erase import class_covariance, dense_map, observations
from torch import nn
from torch.testing import assert_close

from fl_unlearn.calibration import Candidate, explain_refusal
from fl_unlearn.dampen import apply_update
from fl_unlearn.erase import CUTOFF
from fl_unlearn.flower import UnlearningStrategy, attach, forget, records
from fl_unlearn.lineage import NodeKind
from fl_unlearn.run_store import RunStore
from fl_unlearn.store import KeepPolicy
from fl_unlearn.types import (
    EraseError,
    ForgetRequest,
    UnlearnSettings,
)
from fl_unlearn.update import DampeningUpdate


# --------------------------------------------------------------------------- the whole of it
def test_a_deep_request_reaches_every_model(tmp_path: Path) -> None:
    strategy, grid, result = deep(tmp_path, keep=KeepPolicy(client_updates=True))
    store = strategy.store
    before = {n: store.load(n).state for n in store.kept()}
    grid.log.clear()
    outcome = strategy.forget(grid, THREE, result.arrays)

    assert outcome.committed
    assert list(outcome.update.erasures) == ["hidden"]
    assert "erased in 'hidden', and" in outcome.message
    asked = [kind.removeprefix("query.unlearn_") for kind, node in grid.log if node == 100]
    assert asked == ["statistics", "fisher", "score", "apply", "score"]
    final = result.arrays.to_torch_state_dict()
    expected = expected_erasure(before["r0004-global"], *all_data(), [3])
    for name, tensor in expected.items():
        assert_close(final[name], tensor, atol=1e-5, rtol=1e-4)
    rows, labels = hidden_of(final, *all_data())
    assert_close(class_covariance(rows, labels, [3]), torch.zeros(24, 1).double(), atol=1e-6, rtol=0)
    assert fed.accuracy(final, 3) == 0.0
    assert sum(fed.accuracy(final, c) for c in (0, 1, 2)) / 3 > 0.95
    assert set(outcome.affected) >= {"r0001-global", "r0004-client-2"}
    for name in before:
        wanted = apply_update(before[name], outcome.update) if name in outcome.affected else before[name]
        assert_close(store.load(name).state, wanted, atol=0, rtol=0)
    weight = store.load("r0002-global").state["hidden.weight"]
    assert not torch.equal(weight, before["r0002-global"]["hidden.weight"])
    assert outcome.after is not None
    assert outcome.after[0].accuracy() == 0.0
    recorded = store.operations.all()[0].request["settings"]
    assert (recorded["erase"], recorded["erase_strength"]) == ("auto", 1.0)


def test_the_fisher_is_that_of_the_erased_model(tmp_path: Path) -> None:
    strategy, grid, result = deep(tmp_path)
    sent: dict[str, State] = {}

    def tamper(request: Message, reply: Message) -> Message:
        kind = request.metadata.message_type
        if records.MODEL in request.content.array_records:
            sent[kind] = request.content.array_records[records.MODEL].to_torch_state_dict()
        return reply

    grid.tamper = tamper
    before = {n: t.clone() for n, t in result.arrays.to_torch_state_dict().items()}
    outcome = strategy.forget(grid, THREE, result.arrays)
    alone = DampeningUpdate({}, 1.0, 1.0, outcome.update.erasures)
    assert_close(sent["query.unlearn_fisher"], apply_update(before, alone), atol=0, rtol=0)


def test_strength_and_several_classes(tmp_path: Path) -> None:
    settings = UnlearnSettings.preset("deep", erase_strength=0.5)
    strategy, grid, result = deep(tmp_path, settings=settings)
    before = {n: t.clone() for n, t in result.arrays.to_torch_state_dict().items()}
    outcome = strategy.forget(grid, ForgetRequest((1, 3)), result.arrays)
    assert outcome.committed
    assert outcome.update.erasures["hidden"].erasure.a.shape == (24, 2)
    rows, labels = hidden_of(before, *all_data())
    old = class_covariance(rows, labels, [1, 3])
    rows, labels = hidden_of(result.arrays.to_torch_state_dict(), *all_data())
    assert_close(class_covariance(rows, labels, [1, 3]), old / 2, atol=1e-5, rtol=1e-3)


def test_named_clients_only(tmp_path: Path) -> None:
    """Class 3 of client 1 is erased; what client 2 has of it counts as all the rest."""
    settings = UnlearnSettings.preset("deep", max_retain_drop=1.0, forget_tolerance=1.0)
    strategy, grid, result = deep(tmp_path, settings=settings)
    before = {n: t.clone() for n, t in result.arrays.to_torch_state_dict().items()}
    outcome = strategy.forget(grid, ForgetRequest((3,), clients=("1",)), result.arrays)
    assert outcome.committed
    x, y = all_data()
    own = (torch.arange(len(y)) >= 45) & (torch.arange(len(y)) < 105) & (y == 3)
    assert int(own.sum()) == 15
    expected = expected_erasure(before, x, torch.where(own, 3, 0), [3])
    for name, tensor in expected.items():
        assert_close(result.arrays.to_torch_state_dict()[name], tensor, atol=1e-5, rtol=1e-4)


def test_what_was_forgotten_before_is_left_out_of_the_statistics(tmp_path: Path) -> None:
    strategy, grid, result = deep(tmp_path)
    strategy.forget(grid, THREE, result.arrays)
    before = {n: t.clone() for n, t in result.arrays.to_torch_state_dict().items()}
    second = strategy.forget(grid, ForgetRequest((0,)), result.arrays)
    assert second.committed
    x, y = all_data()
    seen: list[tuple[torch.Tensor, torch.Tensor]] = [hidden_of(before, x[y != 3], y[y != 3])]
    rows, labels = hidden_of(result.arrays.to_torch_state_dict(), x[y != 3], y[y != 3])
    assert float(class_covariance(*seen[0], [0]).norm()) > 0.1
    assert float(class_covariance(rows, labels, [0]).norm()) < 1e-5


def test_the_same_request_again_finds_nothing_to_erase(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    strategy, grid, result = deep(tmp_path)
    first = strategy.forget(grid, THREE, result.arrays)
    with caplog.at_level(logging.WARNING, "fl_unlearn"):
        again = strategy.forget(grid, THREE, result.arrays)
    assert first.update.erasures
    assert again.update is None or not again.update.erasures
    assert "'hidden' is left as it is: nothing to erase" in caplog.text
    assert not again.committed or again.message.endswith("in hidden layers there was nothing to erase")


def test_snapshots_are_pooled(tmp_path: Path) -> None:
    settings = UnlearnSettings.preset("deep", erase_snapshots=3)
    strategy, grid, result = deep(tmp_path, settings=settings)
    states = [strategy.store.load(f"r{r:04d}-global").state for r in (4, 1, 3)]
    outcome = strategy.forget(grid, THREE, result.arrays)
    assert outcome.committed
    x, y = all_data()
    clouds = [hidden_of(s, x, y)[0] for s in states]
    pooled = torch.cat([rows - rows.mean(0) + clouds[0].mean(0) for rows in clouds])
    dense = dense_map(pooled, y.repeat(3), [3], cutoff=CUTOFF)
    made = outcome.update.erasures["hidden"].erasure
    assert_close(made.linear(torch.eye(24).double()), dense, atol=1e-4, rtol=1e-4)
    assert_close(made.mean, clouds[0].mean(0), atol=1e-6, rtol=1e-6)


def test_references_per_model_are_those_of_erased_models(tmp_path: Path) -> None:
    settings = UnlearnSettings.preset("deep", reference="per-model", threshold=3.0, forget_tolerance=0.1)
    strategy, grid, result = deep(tmp_path, settings=settings)
    before = {n: strategy.store.load(n).state for n in strategy.store.kept()}
    outcome = strategy.forget(grid, THREE, result.arrays)
    assert outcome.committed
    alone = DampeningUpdate({}, 1.0, 1.0, outcome.update.erasures)
    for name in outcome.applied:
        after = strategy.store.load(name).state
        assert torch.equal(after["hidden.weight"], apply_update(before[name], alone)["hidden.weight"])
    assert len({strategy.store.load(n).applied for n in outcome.applied}) == len(outcome.applied)


# --------------------------------------------------------------------------- other models
class Conv(nn.Module):
    """Convolution without a bias, normalisation, convolution with one, head."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv1d(1, 6, 3, bias=False)
        self.norm = nn.BatchNorm1d(6)
        self.second = nn.Conv1d(6, 8, 3)
        self.head = nn.Linear(8, fed.CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = torch.relu(self.norm(self.first(x[:, None])))
        return self.head(torch.relu(self.second(h)).amax(2))


def conv_model() -> Conv:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Conv()


def conv_run(folder: Path, monkeypatch: pytest.MonkeyPatch, spec: str) -> Any:
    monkeypatch.setattr(fed, "build_model", conv_model)
    settings = UnlearnSettings(erase=spec, forget_tolerance=1.0, max_retain_drop=1.0)

    def make() -> ClientApp:
        return attach(fed.plain_app(), model=conv_model, data=fed.data, device="cpu")

    strategy = UnlearningStrategy(fed.fedavg(), store=folder, settings=settings)
    grid = fed.grid(make=make)
    return strategy, grid, strategy.start(grid, ArrayRecord(conv_model().state_dict()), num_rounds=3)


@pytest.mark.parametrize(("spec", "layers"), [("auto", ["second"]), ("s*, first", ["first", "second"])])
def test_layers_one_after_the_other(
    spec: str, layers: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    strategy, grid, result = conv_run(tmp_path, monkeypatch, spec)
    before = {n: t.clone() for n, t in result.arrays.to_torch_state_dict().items()}
    outcome = strategy.forget(grid, THREE, result.arrays)
    assert outcome.committed
    assert list(outcome.update.erasures) == layers
    assert [kind for kind, node in grid.log if node == 100].count("query.unlearn_statistics") == len(layers)
    model = conv_model()
    model.load_state_dict(result.arrays.to_torch_state_dict())
    model.eval()
    for layer in layers:
        # After a layer without a bias, the normalised output is what the class is erased from.
        rows, labels = observations(model, "norm" if layer == "first" else layer, *all_data())
        assert float(class_covariance(rows, labels, [3]).abs().max()) < 1e-5
    after = result.arrays.to_torch_state_dict()
    changed = {n for n in after if not torch.equal(after[n], before[n])} - {"head.weight", "head.bias"}
    expected = {"second.weight", "second.bias"}
    assert changed == (expected | {"first.weight", "norm.running_mean"} if "first" in layers else expected)


@pytest.mark.parametrize(
    ("spec", "match"),
    [
        ("head", "'head' gives the logits"),
        ("nothing", "matches 'nothing'; there are 'hidden', 'head'"),
    ],
)
def test_layers_that_cannot_be_erased_in(spec: str, match: str, tmp_path: Path) -> None:
    strategy, grid, result = deep(tmp_path, settings=UnlearnSettings(erase=spec), rounds=2)
    with unchanged(strategy, result.arrays, EraseError, match):
        strategy.forget(grid, THREE, result.arrays)


def test_a_residual_sum_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Residual(fed.Net):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(torch.relu(self.hidden(x) + x.repeat(1, 2)))

    strategy, _, result = deep(tmp_path, rounds=2)
    monkeypatch.setattr(fed, "build_model", Residual)
    with unchanged(strategy, result.arrays, EraseError, r"'hidden' is joined \(add\).*residual"):
        strategy.forget(fed.grid(), THREE, result.arrays)


def test_arrays_named_by_their_order(tmp_path: Path) -> None:
    names = list(fed.build_model().state_dict())
    _, grid, result = fed.trained(tmp_path / "named")
    state = result.arrays.to_torch_state_dict()
    numbered = {str(i): state[n] for i, n in enumerate(names)}
    with RunStore(tmp_path / "numbered") as store:
        store.record("r0000-initial", numbered, kind=NodeKind.INITIAL, round_=0)
        for i in range(fed.CLIENTS):
            parents = {"r0000-initial": 1.0}
            store.record(f"u{i}", None, kind=NodeKind.CLIENT_UPDATE, round_=1, parents=parents, owner=str(i))
        parents = {f"u{i}": 0.2 for i in range(fed.CLIENTS)}
        store.record("g", numbered, kind=NodeKind.AGGREGATE, round_=1, parents=parents)
        outcome = forget(grid, THREE, store, settings=DEEP)
    assert outcome.committed
    expected = expected_erasure(state, *all_data(), [3])
    assert_close(outcome.state["0"], expected["hidden.weight"], atol=1e-5, rtol=1e-4)
    assert_close(outcome.state["1"], expected["hidden.bias"], atol=1e-5, rtol=1e-4)


def test_a_refusal_says_that_the_erasure_costs_too() -> None:
    dear = Candidate(1.0, 1.0, 0.0, 0.6, 0.3, 0.0, 0.3, 0.3, passed=False, everywhere=True)
    assert "erase_strength" in explain_refusal([dear], UnlearnSettings.preset("deep"))
    assert "erase_strength" not in explain_refusal([dear], UnlearnSettings())
