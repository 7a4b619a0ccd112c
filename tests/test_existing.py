"""Existing projects, before and after fl-unlearn was added: what changed, and what that does."""

from __future__ import annotations

import json
import re
from pathlib import Path

import existing
import pytest
import torch
from existing import FORGET, PROJECTS
from flwr.app import Message

from fl_unlearn.inbox import Inbox
from fl_unlearn.request_document import RequestDocument
from fl_unlearn.run_store import RunStore
from fl_unlearn.types import ForgetRequest

README = (existing.ROOT / "README.md").read_text()
DOCUMENT = RequestDocument.new("operator", ForgetRequest((FORGET,))).to_bytes()


# --------------------------------------------------------------------------- what the README says
@pytest.mark.parametrize("project", PROJECTS)
def test_the_readme_shows_all_that_changed(project: str) -> None:
    shown = re.search(rf"```diff\n# simulations/existing/{project}\n(.*?)```", README, re.S)
    assert shown is not None
    lines = []
    for name, changed in existing.changes(project).items():
        lines += [f"# {name}", *changed]
    assert shown[1].splitlines() == lines


@pytest.mark.parametrize("project", PROJECTS)
def test_the_readme_counts_the_lines(project: str) -> None:
    counts = {name: existing.count(lines) for name, lines in existing.changes(project).items()}
    row = re.search(rf"^\| `{project}` \|(.*)\|$", README, re.M)
    assert row is not None
    cells = [cell.strip() for cell in row[1].split("|")]
    by_file = {Path(name).name: f"+{plus} -{minus}" for name, (plus, minus) in counts.items()}
    plus, minus = (sum(c[i] for c in counts.values()) for i in (0, 1))
    names = ("server_app.py", "client_app.py", "task.py", "pyproject.toml")
    assert cells == [*(by_file[n] for n in names), f"+{plus} -{minus}"]


# --------------------------------------------------------------------------- what it does, in this process
@pytest.mark.parametrize("project", PROJECTS)
def test_before_and_after_train_the_same_bits(project: str, tmp_path: Path) -> None:
    models = {}
    for when in ("before", "after"):
        path = tmp_path / f"{when}.pt"
        store = {"store": str(tmp_path / "store")} if when == "after" else {}
        hits = existing.run(project, when, final_model=str(path), num_server_rounds=1, **store)
        assert sum(hits.values()) > 180, "of 361 test pictures"
        models[when] = torch.load(path, weights_only=True)
    assert {n: t.numpy().tobytes() for n, t in models["before"].items()} == {
        n: t.numpy().tobytes() for n, t in models["after"].items()
    }


@pytest.mark.parametrize("project", PROJECTS)
def test_after_forgets_between_rounds_and_does_not_learn_it_again(project: str, tmp_path: Path) -> None:
    store, asked = tmp_path / "store", []

    def ask(sent: Message, reply: Message) -> Message:
        """Somebody puts a request into the store while the second round is trained."""
        if sent.metadata.message_type == "train" and len(asked) < 3:
            asked.append(sent)
            if len(asked) == 3:
                Inbox(store).add(DOCUMENT)
        return reply

    options = {"final_model": str(tmp_path / "m.pt"), "num_server_rounds": 4, "store": str(store)}
    hits = existing.run(project, "after", ask, **options)
    assert hits[FORGET] == 0
    assert sum(hits.values()) > 250, "of 325 pictures of the other digits"
    last = check_forgotten(project, store)
    assert last == "r0004-global"


def check_forgotten(project: str, folder: Path) -> str:
    """The request reached every affected model in the store; returns the newest model, and it was not one."""
    with RunStore(folder, read_only=True) as store:
        (operation,) = store.operations.all()
        assert operation.request["classes"] == [FORGET]
        assert store.operations.outstanding() == {}
        affected = store.runs.requests.applied(operation.digest)
        assert "r0001-global" in affected
        for name in store.kept() - {"r0000-initial"}:
            assert existing.right(project, store.load(name).state)[FORGET] == 0, name
        newest = max(store.kept())
        assert newest not in affected, "it was served between rounds, and training went on"
        return newest


# --------------------------------------------------------------------------- a copy that clients keep
def test_a_local_model_that_clients_keep_forgets_too(tmp_path: Path) -> None:
    store, kept, asked = tmp_path / "store", tmp_path / "own", []

    def ask(sent: Message, reply: Message) -> Message:
        if sent.metadata.message_type == "train":
            asked.append(sent)
            if len(asked) == 2 * existing.NODES:  # in the last round: served when training has ended
                Inbox(store).add(DOCUMENT)
        return reply

    options = {"final_model": str(tmp_path / "m.pt"), "num_server_rounds": 2, "local_epochs": 2}
    existing.run("pytorch", "copies", ask, **options, store=str(store), client_folder=str(kept))
    with RunStore(store, read_only=True) as opened:
        (receipt, _) = (json.loads(r.partition(": ")[2]) for r in opened.runs.requests.receipts(1))
        update = opened.operations.all()[0]
        assert opened.operations.outstanding() == {}
    assert (receipt["copy"], receipt["status"]) == ("last_local_model.pt", "applied")
    for client in range(existing.NODES):
        path = kept / str(client) / "last_local_model.pt"
        hits = existing.right("pytorch", torch.load(path, weights_only=True))
        assert hits[FORGET] == 0
        assert sum(hits.values()) > 250
        book = json.loads((kept / str(client) / "copies.json").read_text())
        assert book["copies"][0]["has"] == [update.client_update]
        assert receipt["after"] != receipt["before"]
