"""Copies that clients keep, in a federation: told on commit, late, again, after a restart; the audit log."""

from __future__ import annotations

import json
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import cases_cli
import federation as fed
import pytest
import torch
from crashes import killed_at
from federation_checks import THREE
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.client import NumPyClient
from flwr.clientapp import ClientApp
from torch.testing import assert_close

from fl_unlearn.audit import SigningKey
from fl_unlearn.audit_certificate import check_certificate, export_certificate
from fl_unlearn.audit_verify import verify_store
from fl_unlearn.copy_file import CopyError
from fl_unlearn.dampen import apply_update
from fl_unlearn.flower import (
    OwnCopies,
    UnlearningStrategy,
    attach,
    forgotten_classes,
    records,
    unlearning_mod,
)
from fl_unlearn.flower.own_copies import note_received, shortened
from fl_unlearn.run_store import RunStore
from fl_unlearn.types import AnswerError, signature_of

State = dict[str, torch.Tensor]


class Site:
    """Five clients' disks; ``copies`` as the project's module would have it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.copies = OwnCopies(folder / "remembered")

    def path(self, client: int, name: str = "last.pt") -> Path:
        (self.folder / str(client)).mkdir(exist_ok=True)
        return self.folder / str(client) / name

    def read(self, client: int, name: str = "last.pt") -> State:
        return dict(torch.load(self.path(client, name), weights_only=True))

    def app(self) -> ClientApp:
        """Keeps its last local model, and a head of its own that it never takes from the server."""
        app = ClientApp()

        @app.train()
        def train(message: Message, context: Context) -> Message:
            partition, model = int(context.node_config["partition-id"]), fed.build_model()
            model.load_state_dict(message.content["arrays"].to_torch_state_dict())
            batches = fed.loader(partition, forgotten_classes(message, context))
            fed.local_training(model, batches)
            torch.save(model.state_dict(), self.path(partition))
            self.copies.keep(context, self.path(partition), message)
            own = self.path(partition, "head.pt")
            if own.exists():
                model.load_state_dict(torch.load(own, weights_only=True), strict=False)
                fed.local_training(model, batches, epochs=1)
            torch.save({n: t for n, t in model.state_dict().items() if n.startswith("head")}, own)
            self.copies.keep(context, own, message, personal=True)
            metrics = MetricRecord({"num-examples": len(batches.dataset)})  # type: ignore[arg-type]
            content = RecordDict({"arrays": ArrayRecord(model.state_dict()), "metrics": metrics})
            return Message(content, reply_to=message)

        return attach(app, model=fed.build_model, data=fed.data, copies=self.copies, device="cpu")


def trained(folder: Path, **kwargs: Any) -> tuple[Site, UnlearningStrategy, fed.LocalGrid, ArrayRecord]:
    (folder / "site").mkdir(parents=True)
    site = Site(folder / "site")
    strategy = UnlearningStrategy(fed.fedavg(), store=folder / "store", **kwargs)
    grid = fed.grid(make=site.app)
    return site, strategy, grid, train(strategy, grid, 2)


def train(strategy: UnlearningStrategy, grid: fed.LocalGrid, rounds: int) -> ArrayRecord:
    start = strategy.stored_arrays() if strategy.store.kept() else ArrayRecord(fed.build_model().state_dict())
    return strategy.start(grid, start, num_rounds=rounds).arrays


def receipts(texts: Any, client: int) -> dict[str, dict[str, str]]:
    found = [json.loads(t.partition(": ")[2]) for t in texts if t.startswith(f"{client}: ")]
    return {r["copy"]: r for r in found}


# --------------------------------------------------------------------------- committed
def test_copies_are_dampened_on_commit_and_the_audit_log_says_so(tmp_path: Path) -> None:
    key = SigningKey.generate(tmp_path / "key.pem")
    (tmp_path / "site").mkdir()
    site = Site(tmp_path / "site")
    store = RunStore(tmp_path / "store", signing_key=tmp_path / "key.pem", audit_head=tmp_path / "head.json")
    strategy = UnlearningStrategy(fed.fedavg(), store=store)
    grid = fed.grid(make=site.app)
    arrays = train(strategy, grid, 2)
    before = {(c, n): site.read(c, n) for c in range(fed.CLIENTS) for n in ("last.pt", "head.pt")}
    digests = {key: sha256(site.path(*key).read_bytes()).hexdigest() for key in before}
    assert fed.accuracy(before[1, "last.pt"], 3) > 0.9
    outcome = strategy.forget(grid, THREE, arrays)
    assert outcome.update is not None
    assert outcome.outstanding == ()
    for (client, name), state in before.items():
        model = before[client, "last.pt"] | state
        expected = apply_update(model, outcome.update)
        assert_close(site.read(client, name), {n: expected[n] for n in state}, rtol=0, atol=0)
        receipt = receipts(outcome.receipts, client)[name]
        assert receipt["before"] == digests[client, name]
        assert receipt["after"] == sha256(site.path(client, name).read_bytes()).hexdigest()
        assert receipt["status"] == "applied"
    assert fed.accuracy(site.read(1), 3) == 0.0
    assert str(tmp_path) not in json.dumps(outcome.receipts), "paths stay with the client"

    entries = [e.body for e in store.audit.entries() if e.kind == "receipt"]
    assert {receipts(e["texts"], int(e["client"]))["last.pt"]["before"] for e in entries} == {
        digests[c, "last.pt"] for c in range(fed.CLIENTS)
    }
    assert verify_store(store, public_key=key.public, head=tmp_path / "head.json").problems == ()
    certified = check_certificate(export_certificate(store, "1"), key.public)
    assert certified.problems == ()
    assert receipts(certified.receipts["2"], 2) == receipts(outcome.receipts, 2)
    strategy.store.umig.connection.execute(
        "UPDATE audit SET body = replace(body, ?, ?) WHERE kind = 'receipt'",
        (digests[2, "last.pt"], "0" * 64),
    )
    problems = verify_store(store).problems
    assert any("was changed" in str(p) or "hash" in str(p) for p in problems)


def lose(sent: Message, reply: Message) -> Message | None:
    """The confirmations of one client do not arrive."""
    lost = "apply" in sent.metadata.message_type and sent.metadata.dst_node_id == 102
    return None if lost else reply


def test_training_on_after_the_commit_changes_nothing_twice(tmp_path: Path) -> None:
    """The confirmation is lost; the client trains on from the forgotten model and is told again."""
    site, strategy, grid, arrays = trained(tmp_path)
    grid.tamper = lose
    outcome = strategy.forget(grid, THREE, arrays)
    assert outcome.update is not None
    assert outcome.outstanding == ("2",)
    once = site.read(2, "head.pt")
    train(strategy, grid, 1)
    assert strategy.store.operations.outstanding() == {"2": strategy.store.operations.all()}
    kept = site.read(2)
    assert fed.accuracy(kept, 3) == 0.0
    assert not torch.equal(site.read(2, "head.pt")["head.weight"], once["head.weight"]), "it was trained on"
    own = site.read(2, "head.pt")
    grid.tamper = None
    strategy.deliver(grid)
    assert strategy.store.operations.outstanding() == {}
    assert_close(site.read(2), kept, rtol=0, atol=0)
    assert_close(site.read(2, "head.pt"), own, rtol=0, atol=0)
    told = receipts(strategy.store.runs.requests.receipts(1), 2)
    assert told["head.pt"]["status"] == told["last.pt"]["status"] == "applied"


def test_a_client_that_was_away_and_started_anew(tmp_path: Path) -> None:
    site, strategy, grid, arrays = trained(tmp_path)
    before = site.read(3)
    grid.away = {103}
    outcome = strategy.forget(grid, THREE, arrays)
    assert outcome.update is not None
    assert outcome.outstanding == ("3",)
    assert_close(site.read(3), before, rtol=0, atol=0)
    grid.away = set()
    # A SuperNode that is started anew: its Context is empty, its program too; the disk is what it was.
    old = grid.contexts[103]
    grid.contexts[103] = Context(1, 103, old.node_config, RecordDict(), {})
    grid.apps[103] = Site(site.folder).app()
    strategy.deliver(grid)
    assert strategy.store.operations.outstanding() == {}
    assert_close(site.read(3), apply_update(before, outcome.update), rtol=0, atol=0)
    assert receipts(strategy.store.runs.requests.receipts(1), 3)["last.pt"]["status"] == "applied"


def test_a_client_that_dies_in_the_middle(tmp_path: Path) -> None:
    """Killed at some steps of applying; it is told again, and each copy has the update once."""
    site, strategy, grid, arrays = trained(tmp_path)
    before = {n: site.read(2, n) for n in ("last.pt", "head.pt")}
    grid.away = {102}
    update = strategy.forget(grid, THREE, arrays).update
    assert update is not None
    grid.away = set()
    deaths = 0
    model = signature_of(fed.build_model().state_dict())

    def tell(go: Callable[[], None]) -> None:
        go()
        site.copies.registry(grid.contexts[102]).apply(update, model)

    for at in (9, 14, 19, 8):
        deaths += killed_at(at, tell)
    assert deaths >= 2
    strategy.deliver(grid)
    assert strategy.store.operations.outstanding() == {}
    expected = apply_update(before["last.pt"], update)
    assert_close(site.read(2), expected, rtol=0, atol=0)
    expected = apply_update({**before["last.pt"], **before["head.pt"]}, update)
    assert_close(site.read(2, "head.pt"), {n: expected[n] for n in before["head.pt"]}, rtol=0, atol=0)
    told = receipts(strategy.store.runs.requests.receipts(1), 2)
    assert {r["status"] for r in told.values()} == {"applied"}
    assert told["last.pt"]["after"] == sha256(site.path(2).read_bytes()).hexdigest()


def test_two_federations_on_the_same_machines(tmp_path: Path) -> None:
    """Each has a folder of its own: a request to one leaves the other's copies alone."""
    site, strategy, grid, arrays = trained(tmp_path / "a")
    other, *_ = trained(tmp_path / "b")
    before = other.path(2).read_bytes()
    assert strategy.forget(grid, THREE, arrays).committed
    assert fed.accuracy(site.read(2), 3) == 0.0
    assert other.path(2).read_bytes() == before


# --------------------------------------------------------------------------- not all can be dampened
def test_a_copy_that_cannot_be_dampened_keeps_its_client_waiting(tmp_path: Path) -> None:
    key = SigningKey.generate(tmp_path / "key.pem")
    site, first, grid, _ = trained(tmp_path)
    first.store.close()
    store = RunStore(tmp_path / "store", signing_key=tmp_path / "key.pem")
    strategy = UnlearningStrategy(fed.fedavg(), store=store)
    site.path(2).unlink()
    outcome = strategy.forget(grid, THREE)
    assert outcome.committed
    assert outcome.outstanding == ("2",)
    told = receipts(outcome.receipts, 2)
    assert told["last.pt"]["status"] == "failed: there is no such file"
    assert told["head.pt"]["status"] == "applied", "nothing else is hindered"
    reason = "1 of its copies could not be dampened (last.pt: there is no such file)"
    for _ in range(3):  # at every contact it says the same again, which is noted once
        strategy.deliver(grid)
    attempts = [e.body for e in store.audit.entries() if e.kind == "attempt"]
    assert [(a["client"], a["reason"]) for a in attempts] == [("2", reason)]
    assert verify_store(store, public_key=key.public).problems == ()
    certificate = export_certificate(store, "1")
    certified = check_certificate(certificate, key.public)
    assert (certified.outstanding, certified.reasons) == (("2",), {"2": reason})
    (tmp_path / "certificate.json").write_text(json.dumps(certificate))
    public = ("--public-key", tmp_path / "key.pem.pub")
    shown = cases_cli.run("audit", "check", tmp_path / "certificate.json", *public).stdout
    assert "last.pt: there is no such file" in shown

    train(strategy, grid, 1)  # a new file comes in its place, from the forgotten model
    assert store.operations.outstanding() == {"2": store.operations.all()}
    kept = site.read(2)
    strategy.deliver(grid)
    assert store.operations.outstanding() == {}
    assert_close(site.read(2), kept, rtol=0, atol=0)
    assert check_certificate(export_certificate(store, "1"), key.public).reasons == {}


# --------------------------------------------------------------------------- client_fn, names, context.state
def test_an_app_with_client_fn(tmp_path: Path) -> None:
    """Its training code does not see messages; arrays have no names but an order."""
    copies = OwnCopies(lambda context: tmp_path / f"own-{context.node_id}")
    path = tmp_path / "last.pt"
    names = [*fed.build_model().state_dict()]

    class Client(NumPyClient):
        def __init__(self, context: Context) -> None:
            self.context = context

        def fit(self, parameters: Any, config: Any) -> Any:
            state = {n: torch.from_numpy(p) for n, p in zip(names, parameters, strict=True)}
            torch.save(state, path)
            copies.keep(self.context, path)
            return parameters, 1, {}

    mod = unlearning_mod(model=fed.build_model, data=fed.data, copies=copies, device="cpu")
    app = ClientApp(client_fn=lambda context: Client(context).to_client(), mods=[mod])
    state = fed.build_model().state_dict()
    context = Context(1, 7, {"partition-id": 0}, RecordDict(), {})
    # As the legacy engine asks; its arrays come in order.
    parameters = ArrayRecord({str(i): records.Array(t.numpy()) for i, t in enumerate(state.values())})
    asked = {"fitins.parameters": parameters, "fitins.config": ConfigRecord()}
    message = Message(RecordDict(asked), 7, "train")
    with pytest.raises(CopyError, match="which model the copy goes on from is not known"):
        copies.keep(context, path)
    app(message, context)
    _, strategy, grid, result = trained(tmp_path / "f")
    update = strategy.forget(grid, THREE, result).update
    assert update is not None
    numbered = update.renamed({n: str(i) for i, n in enumerate(names)})
    question = RecordDict({records.HEAD: records.head(operation="x"), **records.write_update(numbered)})
    answer = app(Message(question, 7, "query.unlearn_apply"), context)
    assert "applied" in answer.content[records.HEAD]["receipts"][0]
    assert_close(dict(torch.load(path, weights_only=True)), apply_update(state, update), rtol=0, atol=0)
    message.content[records.FORGOTTEN] = ConfigRecord({records.UPDATES: [numbered.digest]})
    app(message, context)
    assert_close(dict(torch.load(path, weights_only=True)), dict(state), rtol=0, atol=0)


@pytest.mark.parametrize("updates", [["a"], ["A" * 64], [7], ["0" * 64] * 10_001, "[", "{}7", 3, '["a"]'])
def test_what_a_message_tells_is_checked(updates: Any, tmp_path: Path) -> None:
    record = RecordDict({"config": ConfigRecord({records.UPDATES: updates})})
    context = Context(1, 7, {"partition-id": 0}, RecordDict(), {})
    with pytest.raises(AnswerError, match="list of updates is malformed"):
        note_received(Message(record, 7, "train"), context)


def test_receipts_of_very_many_copies() -> None:
    many = [
        {"copy": f"{i}", "status": "failed: x" if i == 200 else "applied; not in it: 'a'"} for i in range(250)
    ]
    short = shortened(many)
    assert len(short) == 100
    assert short[0] == many[200]
    assert short[-1] == {"copy": "151 more", "status": "applied: 151"}
    assert shortened(many[:7]) == many[:7]


def test_a_folder_is_one_federations(tmp_path: Path) -> None:
    """Trained anew with the same code: the first federation's updates do not come to the second's copies."""
    site, strategy, grid, arrays = trained(tmp_path)
    assert strategy.forget(grid, THREE, arrays).committed
    again = UnlearningStrategy(fed.fedavg(), store=tmp_path / "other")
    later = fed.grid(make=site.app)
    for context in later.contexts.values():
        context.run_id = 2
    train(again, later, 1)
    assert all(node.kind == "initial" for node in again.store.umig), "the clients refused to train"
    again.start(fed.grid(), ArrayRecord(fed.build_model().state_dict()), num_rounds=1)
    arrays = again.stored_arrays()
    before = {c: site.read(c) for c in range(fed.CLIENTS)}
    outcome = again.forget(later, THREE, arrays)
    assert outcome.committed
    assert len(outcome.outstanding) == fed.CLIENTS
    for client, state in before.items():
        assert_close(site.read(client), state, rtol=0, atol=0)
