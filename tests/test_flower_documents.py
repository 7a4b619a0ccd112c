"""Documents that wait in the store are taken in and served between rounds, and at the end of training."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import federation as fed
import pytest
from cases_requests import Office, later, soon, states
from flwr.app import ArrayRecord, Message
from restarts import after_decision, after_phase, before, check_sound, die, killed

from fl_unlearn.audit_verify import verify_store
from fl_unlearn.document_log import DocumentLog
from fl_unlearn.document_status import statuses
from fl_unlearn.flower import UnlearningStrategy
from fl_unlearn.inbox import Inbox
from fl_unlearn.intake import take_in
from fl_unlearn.run_store import RunStore
from fl_unlearn.types import ForgetRequest, PolicyFileError, StoreFullError, UnlearnSettings

THREE, ZERO = ForgetRequest((3,), reason="asked"), ForgetRequest((0,))


@pytest.fixture(scope="module")
def office(tmp_path_factory: pytest.TempPathFactory) -> Office:
    return Office(tmp_path_factory.mktemp("office"))


def start() -> ArrayRecord:
    return ArrayRecord(fed.build_model().state_dict())


def strategy_of(folder: Path, office: Office | None = None, **kwargs: Any) -> UnlearningStrategy:
    policy = office.path if office else None
    return UnlearningStrategy(fed.fedavg(), store=folder, deterministic=True, policy=policy, **kwargs)


def arriving(documents: dict[int, list[bytes]], folder: Path) -> fed.LocalGrid:
    """A federation during whose n-th message documents arrive, as from another process."""
    sent = [0]

    def tamper(_: Message, reply: Message) -> Message:
        sent[0] += 1
        for data in documents.get(sent[0], []):
            Inbox(folder).add(data)
        return reply

    return fed.grid(tamper)


def test_a_document_that_comes_during_a_round_is_served_at_its_end(tmp_path: Path, office: Office) -> None:
    document = office.document(THREE, deadline=soon())
    network = arriving({fed.CLIENTS + 2: [document.to_bytes()]}, tmp_path)
    strategy = strategy_of(tmp_path, office)
    strategy.start(network, start(), num_rounds=3)
    (result,) = strategy.results
    assert result.committed
    assert result.document is not None
    assert (result.document.id, result.document.requester) == (document.id, "operator")
    assert (result.document.state, result.document.deadline_met) == ("committed", True)
    store = strategy.store
    (row,) = store.documents.rows()
    request = store.runs.requests.row(1)
    assert (store.documents.request(row), request.position) == ((1, "done"), -1)
    assert "r0001-global" in result.applied
    assert max(store.umig.node(n).round for n in result.affected) == 1, "served after the first round"
    kinds = [kind for kind, _ in network.log]
    assert kinds.index("query.unlearn_fisher") < len(kinds) - kinds[::-1].index("train"), "training went on"
    assert store.inbox.waiting() == []
    check_sound(strategy)
    assert verify_store(store).problems == ()


def test_clients_are_told_what_a_document_had_forgotten(tmp_path: Path, office: Office) -> None:
    strategy = strategy_of(tmp_path, office)
    strategy.store.inbox.add(office.document(THREE).to_bytes())
    network = fed.grid()
    told: list[Any] = []
    network.tamper = lambda m, r: told.append("unlearn_forgotten" in str(m.content)) or r
    result = strategy.start(network, start(), num_rounds=2)
    assert not strategy.results[0].committed, "before any round nobody has trained on it"
    assert result.arrays is not None
