"""Clients keep their names when their nodes get other ids, as SuperNodes without registered keys do."""

from __future__ import annotations

import copy
from pathlib import Path

import federation as fed
from grid import LocalGrid

from fl_unlearn.flower import forget, names
from fl_unlearn.flower.exchange import Exchange
from fl_unlearn.run_store import RunStore
from fl_unlearn.types import ForgetRequest

THREE = ForgetRequest((3,))


def restart(grid: LocalGrid, old: int, new: int) -> None:
    """Start another node for the client of the node ``old``."""
    grid.apps[new] = fed.app()
    grid.contexts[new] = copy.copy(grid.contexts[old])
    grid.contexts[new].node_id = new


def test_a_client_that_is_back_as_another_node_gets_the_update_before_it_trains(tmp_path: Path) -> None:
    strategy, grid, result = fed.trained(tmp_path)
    grid.away = {100}
    assert strategy.forget(grid, THREE, result.arrays).outstanding == ("0",)
    restart(grid, 100, 110)
    grid.log.clear()
    strategy.start(grid, result.arrays, num_rounds=1)
    kinds = [kind for kind, node in grid.log if node == 110]
    assert kinds == ["query.unlearn_identity", "query.unlearn_apply", "train"]
    assert strategy.store.operations.outstanding() == {}
    newest = strategy.store.umig.last_round()
    assert "0" in {n.owner for n in strategy.store.umig.nodes(round=newest)}


def test_a_name_passes_on_only_when_its_node_has_gone(tmp_path: Path, caplog) -> None:
    with RunStore(tmp_path) as store:
        grid, known = fed.grid(), names.Names(store)
        exchange = Exchange(grid, 1.0)
        known.meet(exchange, [100, 101])
        assert known.known == {100: "0", 101: "1"}
        restart(grid, 100, 110)
        known.meet(exchange, [101, 110])
        assert known.known == {100: "0", 101: "1"}
        assert known.owner(110) != "0"
        assert "gave the name of another" in caplog.text
        grid.away = {100}
        grid.log.clear()
        known.meet(exchange, [101, 110])
        assert known.known == {101: "1", 110: "0"}
        assert grid.log == [], "what it said before is remembered"
        grid.away = set()
        known.meet(exchange, [100, 101, 110])
        assert known.known == {101: "1", 110: "0"}, "the node that was gone must not take the name back"


def test_a_client_that_dies_before_it_says_its_name_is_known_from_its_node(tmp_path: Path) -> None:
    strategy, grid, _ = fed.trained(tmp_path)
    strategy.store.close()
    grid.tamper = lambda request, reply: None if request.metadata.dst_node_id == 100 else reply
    with RunStore(tmp_path) as store:
        outcome = forget(grid, THREE, store)
        assert outcome.outstanding == ("0",), "and not its node as well, which may never come back"
        assert outcome.silent == ("0",)


def test_what_nodes_said_is_remembered_and_the_latest_counts(tmp_path: Path) -> None:
    with RunStore(tmp_path) as store:
        assert names.recall(store) == {}
        names.remember(store, {1: "a", 2: "b"})
        names.remember(store, {3: "a", 1: "c"})
        assert names.recall(store) == {2: "b", 3: "a", 1: "c"}
        names.remember(store, dict.fromkeys(range(10, 10_010), "x"))
        assert set(names.recall(store).values()) == {"x"}


def test_who_does_not_answer_in_time_is_asked_again_and_told_apart(tmp_path: Path, caplog) -> None:
    with RunStore(tmp_path) as store:
        grid, known = fed.grid(lambda request, reply: None), names.Names(store)
        known.meet(Exchange(grid, 7.0), [100, 101])
        assert "2 nodes did not say within 7 s which client they are; they are asked again" in caplog.text
        assert "attached" not in caplog.text
        grid.tamper = None
        known.meet(Exchange(grid, 7.0), [100, 101])
        assert known.known == {100: "0", 101: "1"}
