"""Clients with a ledger: the same answers and the same update, and the data is left alone."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import federation as fed
import pytest
import torch
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from grid import LocalGrid

from fl_unlearn.fisher.ledger import FisherLedger
from fl_unlearn.flower import (
    UnlearningStrategy,
    attach,
    forget,
    forgotten_classes,
    records,
    unlearning_mod,
)
from fl_unlearn.types import REST, ForgetRequest, UnlearnSettings

THREE = ForgetRequest((3,))
FISHER = f"query.{records.FISHER}"
HARD = UnlearnSettings(forget_tolerance=0.0, max_retain_drop=0.0, candidates=(1e6,), dampenings=(1.0,))
"""No candidate passes, so that nothing is changed."""


class Ledgers:
    """The clients' ledgers below one folder, and how often their data was asked for."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.loads = folder, Counter[str]()

    def of(self, context: Context) -> FisherLedger:
        name = str(context.node_config["partition-id"])
        return FisherLedger(self.folder / name, f"client {name}")

    def data(self, context: Context) -> Any:
        self.loads[str(context.node_config["partition-id"])] += 1
        return fed.data(context)

    def app(self) -> ClientApp:
        app = ClientApp()

        @app.evaluate()
        def evaluate(message: Message, context: Context) -> Message:
            model = fed.build_model()
            model.load_state_dict(message.content["arrays"].to_torch_state_dict())
            right, batches = 0, fed.data(context)
            gone = forgotten_classes(message, context)
            with self.of(context).collect(model.eval(), scopes=("head", "all"), without=gone) as forward:
                for x, y in batches:
                    right += int((forward(x, y).argmax(1) == y).sum())
            metrics = MetricRecord({"num-examples": len(batches.dataset), "right": right})
            return Message(RecordDict({"metrics": metrics}), reply_to=message)

        plain = fed.plain_app()
        app.train()(lambda message, context: plain(message, context))
        return attach(app, model=fed.build_model, data=self.data, device="cpu", ledger=self.of)

    def files(self) -> list[Path]:
        return sorted(self.folder.rglob("*.fisher"))


class Asked:
    """Keeps the Fisher answers that come by, and how often data had been asked for by then."""

    def __init__(self, ledgers: Ledgers) -> None:
        self.ledgers = ledgers
        self.requests: list[RecordDict] = []
        self.answers: list[RecordDict] = []
        self.loads: list[int] = []
        self.files: list[int] = []

    def __call__(self, request: Message, reply: Message) -> Message:
        if request.metadata.message_type == FISHER:
            self.requests.append(request.content)
            self.answers.append(reply.content)
            self.loads.append(self.ledgers.loads.total())
            self.files.append(len(self.ledgers.files()))
        return reply

    def held(self) -> list[bool]:
        return [records.from_ledger(a) for a in self.answers[-fed.CLIENTS :]]


def federation(folder: Path, *, evaluate: bool) -> tuple[UnlearningStrategy, LocalGrid, Asked, Ledgers]:
    ledgers = Ledgers(folder / "clients")
    asked = Asked(ledgers)
    strategy = UnlearningStrategy(fed.fedavg(), store=folder / "server", deterministic=True)
    strategy.strategy.fraction_evaluate = float(evaluate)
    return strategy, fed.grid(asked, ledgers.app), asked, ledgers


def train(strategy: UnlearningStrategy, network: LocalGrid, rounds: int = 3) -> ArrayRecord:
    initial = ArrayRecord(fed.build_model().state_dict())
    return strategy.start(network, initial, num_rounds=rounds).arrays


@pytest.mark.parametrize("scope", ["head", "all"])
def test_what_evaluation_noted_serves_the_request(scope: str, tmp_path: Path) -> None:
    settings = UnlearnSettings(fisher_scope=scope)
    strategy, network, asked, ledgers = federation(tmp_path, evaluate=True)
    arrays = train(strategy, network)
    assert len(ledgers.files()) == 2 * fed.CLIENTS, "of each client's two scopes, the last round's"
    result = forget(network, THREE, strategy.store, settings=settings, current=arrays)
    assert asked.held() == [True] * fed.CLIENTS
    assert asked.loads == [0] * fed.CLIENTS

    plain, network, _ = fed.trained(tmp_path / "plain", rounds=3)
    want = forget(network, THREE, plain.store, settings=settings)
    assert want.committed
    assert (result.holders, result.roots, result.affected) == (want.holders, want.roots, want.affected)
    assert result.update is not None
    assert want.update is not None
    assert result.update.threshold == want.update.threshold
    assert result.update.selected == want.update.selected
    torch.testing.assert_close(result.state, want.state, rtol=1e-6, atol=0.0)

    assert ledgers.files() == [], "an update that is applied empties the ledgers"
    assert sum("removed: 2 Fisher sums" in r for r in result.receipts) == fed.CLIENTS


def test_a_request_computes_what_the_next_is_served_from(tmp_path: Path) -> None:
    strategy, network, asked, ledgers = federation(tmp_path, evaluate=False)
    arrays = train(strategy, network)
    assert ledgers.files() == []
    refused = forget(network, THREE, strategy.store, settings=HARD, current=arrays)
    assert not refused.committed
    assert asked.held() == [False] * fed.CLIENTS
    loads = ledgers.loads.total()
    assert len(ledgers.files()) == fed.CLIENTS
    result = strategy.forget(network, ForgetRequest((0, 3)), arrays)
    assert result.committed
    assert asked.held() == [True] * fed.CLIENTS
    assert asked.loads[-1] == loads
    assert result.holders == {str(i): 30 if i in fed.HOLDERS_OF_3 else 15 for i in range(fed.CLIENTS)}
    again = strategy.forget(network, ForgetRequest((2,)), arrays)
    assert asked.held() == [False] * fed.CLIENTS, "the model is another now"
    assert again.committed


def test_what_was_forgotten_is_not_noted_again(tmp_path: Path) -> None:
    strategy, network, asked, ledgers = federation(tmp_path, evaluate=True)
    strategy.submit(THREE, after_round=2)
    arrays = train(strategy, network, 4)
    assert strategy.results[0].committed
    model = fed.build_model()
    model.load_state_dict(arrays.to_torch_state_dict())
    for context in network.contexts.values():
        ledger = ledgers.of(context)
        assert ledger.get(model) is None
        sums = ledger.get(model, without=[3])
        assert sums is not None
        assert set(sums.counts) == {0, 1, 2}
    assert strategy.forget(network, ForgetRequest((2,)), arrays).committed
    assert asked.held() == [True] * fed.CLIENTS


def test_models_that_pass_by_do_not_drive_out_the_current_one(tmp_path: Path) -> None:
    strategy, network, asked, _ = federation(tmp_path, evaluate=True)
    arrays = train(strategy, network)
    settings = UnlearnSettings(reference="per-model", threshold=5.0, force=True)
    result = forget(network, THREE, strategy.store, settings=settings, current=arrays)
    assert result.committed
    assert len(asked.answers) > 2 * fed.CLIENTS
    held = [records.from_ledger(a) for a in asked.answers]
    assert held[: fed.CLIENTS] == [True] * fed.CLIENTS
    assert set(asked.files) == {2 * fed.CLIENTS}
    current = [r["unlearn"]["passing"] is False for r in asked.requests]
    assert current == [True] * fed.CLIENTS + [False] * (len(held) - fed.CLIENTS)


def test_the_mod_takes_a_ledger_too(tmp_path: Path) -> None:
    ledgers = Ledgers(tmp_path)
    asked = Asked(ledgers)

    def make() -> ClientApp:
        app = fed.plain_app()
        mod = unlearning_mod(model=fed.build_model, data=ledgers.data, device="cpu", ledger=ledgers.of)
        outer = ClientApp()
        for action in records.ACTIONS:
            outer.query(action)(lambda message, context: mod(message, context, app))
        return outer

    network = fed.grid(asked, make)
    head = records.head(
        kind="normalized", scope="head", head="", classes=[3], ignored=[], clients=[], passing=False
    )
    state = fed.build_model().state_dict()
    for _ in range(2):
        content = RecordDict({records.HEAD: head, records.MODEL: records.to_arrays(state)})
        list(network.send_and_receive([Message(content, 101, FISHER)]))
    assert [records.from_ledger(a) for a in asked.answers] == [False, True]
    first, second = (a[records.FISHER_ARRAYS] for a in asked.answers)
    for name in first:
        torch.testing.assert_close(
            *(torch.from_numpy(r[name].numpy()) for r in (first, second)), rtol=1e-6, atol=0
        )


# --------------------------------------------------------------------------- a part of the reference
@pytest.mark.parametrize("share", [0.5, 20])
def test_the_reference_is_estimated_from_the_share_that_the_server_names(
    share: float | int, tmp_path: Path
) -> None:
    answers: list[list[RecordDict]] = []
    for s in (None, share):
        asked = Asked(Ledgers(tmp_path / "none"))
        strategy, network, _ = fed.trained(tmp_path / str(s), rounds=3)
        network.tamper = asked
        outcome = forget(network, THREE, strategy.store, settings=UnlearnSettings(reference_share=s))
        assert outcome.committed
        assert fed.accuracy(outcome.state, 3) == 0.0
        answers.append(asked.answers)
        assert asked.requests[0][records.HEAD].get("reference-share") == s
    for whole, part in zip(*answers, strict=True):
        assert part[records.HEAD]["counts"] == whole[records.HEAD]["counts"]
        a, b = (r[records.FISHER_ARRAYS] for r in (whole, part))
        for name in a:
            close = torch.allclose(*(torch.from_numpy(r[name].numpy()) for r in (a, b)))
            assert close == (not name.startswith(f"{REST}/"))


def test_a_share_from_the_server_that_makes_no_sense_is_answered_in_words() -> None:
    network = fed.grid()
    head = records.head(kind="normalized", scope="head", head="", classes=[3], ignored=[], clients=[])
    head["reference-share"] = "half"
    content = RecordDict(
        {records.HEAD: head, records.MODEL: records.to_arrays(fed.build_model().state_dict())}
    )
    (reply,) = network.send_and_receive([Message(content, 101, FISHER)])
    assert "reference_share must be" in reply.content[records.HEAD]["error"]
