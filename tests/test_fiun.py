"""The strategies `fiun` and `fiun-deep` are what the plug-in does; and what they do where it says no."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from flwr.app import Context
from flwr.clientapp import ClientApp
from grid import LocalGrid
from strategy_cases import Case, trained

import strategies
from fl_unlearn.calibration_data import DATA, settings_for
from fl_unlearn.flower import attach, forget
from fl_unlearn.flower.result import ForgetResult
from fl_unlearn.run_store import RunStore
from fl_unlearn.types import ForgetRequest, SettingsError, UnlearnSettings
from simulations.compare.local import LocalFederation
from strategies.client import Client
from strategies.errors import UnsupportedError


def plugged_in(case: Case, folder: Path, settings: UnlearnSettings | None) -> ForgetResult:
    """The same request, served by the plug-in on a copy of the same store."""

    def app() -> ClientApp:
        def data(context: Context) -> Any:
            client = case.clients[int(context.node_config["partition-id"])]
            return client.batches("train"), client.batches("held-out")

        def model() -> torch.nn.Module:
            return case.clients[0].fresh(0)

        return attach(ClientApp(), model=model, data=data, device="cpu")

    request = case.clients[0].request
    assert isinstance(request, ForgetRequest)
    with RunStore(shutil.copytree(case.history.store.folder, folder / "copy")) as store:
        return forget(
            LocalGrid({100 + c.index: app() for c in case.clients}), request, store, settings=settings
        )


@pytest.mark.parametrize(
    ("name", "changes", "whom"),
    [
        ("fiun", {}, ""),
        ("fiun", {"fisher_scope": "all", "reference_share": 0.5}, ""),
        ("fiun", {"reference": "per-model"}, "1"),
        ("fiun-deep", {}, "1"),
        ("fiun-deep", {"erase_snapshots": 2, "calibration_samples": 20}, ""),
    ],
)
def test_the_update_is_that_of_the_plug_in(
    name: str, changes: dict[str, Any], whom: str, tmp_path: Path
) -> None:
    case = trained("digits-class", alpha=100.0, forget_clients=whom)
    preset = "deep" if name == "fiun-deep" else "fast"
    tolerance = {"forget_tolerance": 1.0, "max_retain_drop": 1.0} if whom else {}
    settings = UnlearnSettings.preset(preset, **changes, **tolerance)
    theirs = plugged_in(case, tmp_path, settings)
    ours = strategies.get(name, settings=settings, scored_on="held-out+train").unlearn(
        case.federation(), case.history
    )
    assert theirs.committed, theirs.message
    assert theirs.update is not None
    assert ours.facts["digest"] == theirs.update.digest
    assert ours.facts["threshold"] == theirs.update.threshold
    for key, tensor in ours.state.items():
        torch.testing.assert_close(tensor, theirs.state[key], rtol=0, atol=0)
    assert ours.change is not None
    with RunStore(tmp_path / "copy") as store:
        for node in ("r0003-global", "r0003-client-1"):
            before, after = case.history.store.load(node).state, store.load(node).state
            for key, tensor in ours.change(before).items():
                torch.testing.assert_close(tensor, after[key], rtol=0, atol=0)


@pytest.mark.parametrize("name", ["fiun", "fiun-deep"])
def test_the_class_is_forgotten_and_the_rest_kept(name: str) -> None:
    case = trained()
    federation = case.federation()
    outcome = strategies.get(name).unlearn(federation, case.history)
    assert not outcome.refused
    assert case.accuracy(case.history.current(), "forget") > 0.9
    assert case.accuracy(outcome.state, "forget") < 0.02
    kept = case.accuracy(case.history.current(), "retained")
    assert case.accuracy(outcome.state, "retained") > kept - 0.05
    assert federation.cost.rounds == (2 if name == "fiun" else 3)
    changed = {n for n, t in outcome.state.items() if not torch.equal(t, case.history.current()[n])}
    hidden = {"fc.weight", "fc.bias"} if name == "fiun-deep" else set()
    assert changed == {"head.weight", "head.bias"} | hidden


def test_a_refusal_changes_nothing() -> None:
    case = trained()
    settings = UnlearnSettings(candidates=(1e6,), dampenings=(1.0,))
    outcome = strategies.get("fiun", settings=settings).unlearn(case.federation(), case.history)
    assert outcome.refused.startswith("none of the thresholds 1e+06")
    assert outcome.change is None
    for name, tensor in case.history.current().items():
        torch.testing.assert_close(outcome.state[name], tensor, rtol=0, atol=0)


def test_an_update_that_changes_nothing_is_refused() -> None:
    case = trained()
    settings = UnlearnSettings(candidates=(1e6,), dampenings=(1.0,), forget_tolerance=1.0)
    outcome = strategies.get("fiun", settings=settings).unlearn(case.federation(), case.history)
    assert outcome.refused == "the chosen update (t = 1e+06) changes no value"


def test_a_preset_that_is_not_known_is_an_error_at_once() -> None:
    with pytest.raises(SettingsError, match="preset must be one of fast, deep"):
        strategies.get("fiun", preset="slow")


# --------------------------------------------------------------------------- clients and samples
@pytest.mark.parametrize(
    ("setting", "changes", "settings"),
    [
        ("digits-client", {}, None),
        ("digits-client", {"forget_clients": "0,1"}, UnlearnSettings(threshold=2.0, force=True)),
        (
            "digits-samples",
            {"forget_samples": "0:40,2:9"},
            UnlearnSettings(max_retain_drop=0.5, forget_tolerance=0.2, reference_share=0.5),
        ),
    ],
)
def test_the_update_for_a_client_or_samples_is_that_of_the_plug_in(
    setting: str, changes: dict[str, Any], settings: UnlearnSettings | None, tmp_path: Path
) -> None:
    case = trained(setting, **changes)
    request = case.clients[0].request
    assert isinstance(request, ForgetRequest)
    theirs = plugged_in(case, tmp_path, settings)
    own = settings_for(request, settings) if settings else None
    ours = strategies.get("fiun", settings=own).unlearn(case.federation(), case.history)
    assert theirs.committed, theirs.message
    assert theirs.update is not None
    assert ours.facts["digest"] == theirs.update.digest
    assert ours.facts["threshold"] == theirs.update.threshold
    assert ours.facts["like-labels-accuracy-of-clients"] == theirs.like_labels
    for key, tensor in ours.state.items():
        torch.testing.assert_close(tensor, theirs.state[key], rtol=0, atol=0)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_backdoor_is_removed_by_the_plug_in(seed: int, tmp_path: Path) -> None:
    """The comparison's own federation; the README has the numbers."""
    case = trained("digits-client", seed=seed, clients=5, rounds=20)
    theirs = plugged_in(case, tmp_path, None)
    assert theirs.committed, theirs.message
    assert theirs.update is not None
    ours = strategies.get("fiun").unlearn(case.federation(), case.history)
    assert ours.facts["digest"] == theirs.update.digest
    before, after = case.history.current(), theirs.state
    for part in ("forget", "held-out", "triggered"):
        print(f"seed {seed}, {part}: {case.accuracy(before, part):.1%} -> {case.accuracy(after, part):.1%}")
    assert case.accuracy(before, "triggered") > 0.6
    assert case.accuracy(after, "triggered") < 0.1
    assert case.accuracy(after, "held-out") > case.accuracy(before, "held-out") - 0.015


def test_a_clients_backdoor_is_removed_and_the_rest_kept() -> None:
    """In the model, and in an earlier one by the same update."""
    case = trained("digits-client")
    federation = case.federation()
    outcome = strategies.get("fiun").unlearn(federation, case.history)
    assert not outcome.refused
    assert federation.cost.rounds == 2
    assert outcome.change is not None
    early = case.history.global_model(3)
    for before, after in ((case.history.current(), outcome.state), (early, outcome.change(early))):
        assert case.accuracy(before, "triggered") > 0.6
        assert case.accuracy(after, "triggered") < 0.1
        assert case.accuracy(after, "held-out") > case.accuracy(before, "held-out") - 0.03
    again = strategies.get("fiun").unlearn(case.federation(), case.history)
    assert again.facts["digest"] == outcome.facts["digest"]


def test_where_the_fisher_singles_out_nothing_it_is_refused() -> None:
    """A client like the others, and thresholds far above 1."""
    case = trained("digits-client", alpha=100.0, backdoor_client="")
    settings = UnlearnSettings(**{**DATA, "candidates": (1000.0,)})
    outcome = strategies.get("fiun", settings=settings).unlearn(case.federation(), case.history)
    assert "too like what is kept for its Fisher to tell them apart" in outcome.refused
    assert outcome.change is None
    for name, tensor in case.history.current().items():
        torch.testing.assert_close(outcome.state[name], tensor, rtol=0, atol=0)


def test_a_clients_data_cannot_be_erased_nor_judged_without_held_out_samples() -> None:
    case = trained("digits-client")
    with pytest.raises(UnsupportedError, match="fiun-deep: it cannot forget a client, only classes"):
        strategies.get("fiun-deep").check(case.federation(), case.history)
    deep = strategies.get("fiun", settings=UnlearnSettings.preset("deep"))
    with pytest.raises(UnsupportedError, match="fiun: only classes can be erased"):
        deep.check(case.federation(), case.history)
    bare = [
        Client(c.name, c.index, lambda: c.fresh(0), c.dataset("train"), [], c.request)  # noqa: B023
        for c in case.clients
    ]
    with pytest.raises(UnsupportedError, match="fiun: it needs held-out samples"):
        strategies.get("fiun").check(LocalFederation(bare, bare[0].request), case.history)
