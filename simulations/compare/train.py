"""Trains the federation of a comparison once, in one process, and records it as a run of Flower would be."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

from fl_unlearn.lineage import NodeKind
from fl_unlearn.run_store import RunStore
from fl_unlearn.store import KeepPolicy
from simulations.compare.clients import head_of, initial_state, make_clients
from simulations.compare.local import LocalFederation
from simulations.compare.setting import Setting, SettingError
from strategies.client import Client
from strategies.contract import State
from strategies.history import History, Training
from strategies.tasks import Answer
from strategies.training import fedavg

log = logging.getLogger("fl_unlearn.simulations")


def open_history(setting: Setting, seed: int, folder: Path) -> History:
    """The trained federation in ``folder``; trained there first where it is not, and on where it was cut off.

    Raises:
        SettingError: If the folder holds a federation that was trained otherwise.
    """
    store = open_store(setting, seed, folder)
    training = setting.training(seed)
    try:
        train_into(store, make_clients(setting, seed), initial_state(setting, seed), training)
    except BaseException:
        store.close()
        raise
    return History(store, training, head_of(setting))


def open_store(setting: Setting, seed: int, folder: Path) -> RunStore:
    """The store in ``folder``, with the initial model, and what was trained from it so far.

    Raises:
        SettingError: If the folder holds a federation that was trained otherwise.
    """
    store = RunStore(folder, keep=KeepPolicy(client_updates=True))
    try:
        like = f"{setting.trained_like()} seed {seed}"
        path = folder / "setting.json"
        if not path.is_file():
            path.write_text(like)
        elif path.read_text() != like:
            raise SettingError(f"{folder} was trained otherwise: {path.read_text()}; name another --out")
        if store.umig.last(NodeKind.INITIAL) is None:
            state = initial_state(setting, seed)
            store.record("r0000-initial", state, kind=NodeKind.INITIAL, round_=0)
    except BaseException:
        store.close()
        raise
    return store


def train_into(store: RunStore, clients: Sequence[Client], initial: State, training: Training) -> None:
    """Train a federation from ``initial`` and record it, or go on where it was cut off.

    Args:
        store: Where it is recorded; empty, or what a training of the same clients left.
        clients: The clients, who know the request.
        initial: The model to begin with.
        training: How they train.
    """
    umig = store.umig
    if umig.last(NodeKind.INITIAL) is None:
        store.record("r0000-initial", initial, kind=NodeKind.INITIAL, round_=0)
    done = umig.last_round()
    if done >= training.rounds:
        return
    current = [umig.last(NodeKind.AGGREGATE) or umig.last(NodeKind.INITIAL)]

    def record(number: int, answers: Mapping[str, Answer], state: State) -> None:
        total = sum(a.samples for a in answers.values())
        assert current[0] is not None
        with store.round():
            parents = {}
            for client, answer in answers.items():
                if not answer.samples:
                    continue
                name = f"r{number:04d}-client-{client}"
                store.record(
                    name,
                    answer.tensors["model"],
                    kind=NodeKind.CLIENT_UPDATE,
                    round_=number,
                    parents={current[0].name: 1.0},
                    owner=client,
                    examples=answer.samples,
                )
                parents[name] = answer.samples / total
            current[0] = store.record(
                f"r{number:04d}-global", state, kind=NodeKind.AGGREGATE, round_=number, parents=parents
            )
        log.info("training, seed %d: round %d/%d", training.seed, number, training.rounds)

    assert current[0] is not None
    assert clients[0].request is not None
    fedavg(
        LocalFederation(clients, clients[0].request),
        dict(store.load(current[0].name).state),
        training,
        rounds=training.rounds - done,
        part="train",
        first=done + 1,
        on_round=record,
    )
