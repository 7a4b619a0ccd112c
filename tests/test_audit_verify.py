"""Verification: sound stores are sound whatever was done to them; crashes are no tampering."""

from __future__ import annotations

from pathlib import Path

import cases_audit as cases
import pytest
import runs
from hypothesis import given, settings
from hypothesis import strategies as st

from fl_unlearn.apply import stage
from fl_unlearn.audit import PublicKey, SigningKey
from fl_unlearn.audit_verify import AuditResult, Problem, verify_store
from fl_unlearn.operations import OperationLedger
from fl_unlearn.run_store import RunStore
from fl_unlearn.store import KeepPolicy


@pytest.mark.parametrize("signed", [False, True])
def test_sound_after_each_kind_of_operation(signed: bool, tmp_path: Path) -> None:
    key, head = tmp_path / "key", tmp_path / "head"
    public = SigningKey.generate(key).public if signed else None
    folder = tmp_path / "store"
    for step in (lambda store: None, *cases.STEPS):
        kept = {"keep": runs.ALL, "signing_key": key if signed else None}
        with RunStore(folder, audit_head=head, **kept) as store:  # type: ignore[arg-type]
            step(store)
            result = verify_store(store, public_key=public, head=head)
            assert result.problems == ()
            with RunStore(folder, read_only=True) as reader:
                assert verify_store(reader, public_key=public, head=head) == result
        with RunStore(folder, read_only=True) as reader:
            assert verify_store(reader, public_key=public, head=head) == result
            assert result.entries == len(list(reader.audit.entries()))
            assert result.signed == (result.entries - 1 if signed else 0)
            assert result.checkpoints == len(reader.kept())
            assert result.ok
            assert result.pending == ()


STEPS = st.sampled_from(
    ["round", "round", "apply", "settle", "identify", "prune", "meta", "reopen", "failed"]
)


@given(steps=st.lists(st.tuples(STEPS, st.integers(0, 5)), max_size=12))
@settings(max_examples=40, deadline=None)
def test_sound_after_any_operations(
    steps: list[tuple[str, int]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("store")
    store, rounds = runs.filled(folder, rounds=1), 1
    updates = [runs.update(i) for i in range(3)]
    names = ["0", "1", "hospital", "clinic", "node-7"]
    for step, n in steps:
        if step == "round":
            rounds += 1
            runs.write_round(store, rounds)
        elif step == "apply":
            update = updates[n % 3]
            chosen = sorted(store.kept())[n:]
            if chosen:
                stage(store, dict.fromkeys(chosen, update), update, workers=1).commit(
                    {"n": n}, names[: n + 1]
                )
        elif step == "settle":
            store.operations.settle(updates[n % 3].digest, names[n % 5], ["done"])
        elif step == "identify":
            store.identify(names[n % 5], names[(n + 2) % 5])
        elif step == "prune":
            store.keep = KeepPolicy(client_updates=True, byte_budget=1000 * (n + 1))
            store.prune()
        elif step == "meta":
            store.set_meta(f"key {n % 2}", f"value {n}")
        elif step == "failed":
            with pytest.raises(ZeroDivisionError), store.round():  # noqa: PT012
                runs.write_round(store, rounds + 1)
                raise ZeroDivisionError
        else:
            store.close()
            store = RunStore(folder, keep=runs.ALL)
        assert verify_store(store).problems == ()
    runs.assert_sound(store)
    store.close()


def test_updates_of_each_model(tmp_path: Path) -> None:
    with runs.filled(tmp_path) as store:
        updates = {"g1": runs.update(1), "g2": runs.update(2), "r1-0": runs.update(1)}
        staged = stage(store, updates, runs.update(0))
        staged.commit({}, ["0"])
        assert verify_store(store).problems == ()
        (tmp_path / "updates" / f"{runs.update(2).digest}.safetensors").unlink()
        (problem,) = verify_store(store).problems
        assert problem.where == f"update {runs.update(2).digest}"
        assert "is missing" in problem.what


@pytest.mark.parametrize("promoted", [0, 1, 2])
def test_decided_and_not_applied_is_pending(
    promoted: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with runs.filled(tmp_path) as store, monkeypatch.context() as m:
        m.setattr(OperationLedger, "finish", lambda self: None)
        stage(store, dict.fromkeys(["g1", "g2"], cases.A), cases.A).commit({}, ["0"])
        for name in ["g1", "g2"][:promoted]:
            store.checkpoints.promote(name)
    with RunStore(tmp_path, read_only=True) as store:
        assert verify_store(store) == AuditResult((), 7, 0, 7, (cases.A.digest,))
        path = store.checkpoints.path("g1")
        whole = path.read_bytes()
        path.write_bytes(store.checkpoints.path("g0").read_bytes())
        (problem,) = verify_store(store).problems
        assert problem.where == "checkpoint 'g1'"
        path.write_bytes(whole)
    with RunStore(tmp_path) as store:
        result = verify_store(store)
        assert (result.problems, result.pending) == ((), ())


def test_what_a_crash_left_is_told_until_the_store_is_opened(tmp_path: Path) -> None:
    with runs.filled(tmp_path) as store:
        store.checkpoints.write("never recorded", runs.state(1))
        runs.stage(store.checkpoints, "g1", runs.state(1))
    with RunStore(tmp_path, read_only=True) as store:
        where, what = "the checkpoints", "'never recorded' has a file that the log does not tell of"
        assert verify_store(store).problems == (Problem(where, what),)
        assert str(Problem(where, what)) == f"{where}: {what}"
    with RunStore(tmp_path) as store:
        assert verify_store(store).ok


def test_progress_and_many_findings(tmp_path: Path) -> None:
    runs.filled(tmp_path, rounds=9).close()
    with cases.database(tmp_path) as connection:
        connection.execute("UPDATE checkpoint SET size = size + 1")
    seen: list[tuple[int, int]] = []
    with RunStore(tmp_path, read_only=True) as store:
        result = verify_store(store, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(i, 28) for i in range(1, 29)]
    assert len(result.problems) == 2 * 21  # 20 that lack, 20 too many, and twice how many more
    assert result.problems[20].what == "and 8 more of this sort"


def test_keys_and_heads_that_are_not_the_stores(tmp_path: Path) -> None:
    runs.filled(tmp_path / "a", rounds=1).close()
    key = SigningKey.generate(tmp_path / "key").public
    assert cases.findings(tmp_path / "a", key) == [
        "the audit log: is not signed with the given key up to its end"
    ]
    with RunStore(tmp_path / "b", signing_key=tmp_path / "key", audit_head=tmp_path / "head"):
        pass
    assert cases.findings(tmp_path / "b", PublicKey.load(tmp_path / "key.pub"), tmp_path / "head") == []
    other = SigningKey.generate(tmp_path / "other").public
    assert cases.findings(tmp_path / "b", other) == [
        "the audit log: is not signed with the given key up to its end"
    ]
    (found,) = cases.findings(tmp_path / "a", None, tmp_path / "head")
    assert found == "the head file: belongs to another store, or the log was begun anew"
    (found,) = cases.findings(tmp_path / "a", None, tmp_path / "nowhere")
    assert found.startswith("the head file: cannot be read as it should be: cannot read the head file")
    (tmp_path / "head").write_text("garbage")
    (found,) = cases.findings(tmp_path / "a", None, tmp_path / "head")
    assert "is not a file that an audit log's head was written to" in found


def test_nodes_that_no_round_recorded_are_found(tmp_path: Path) -> None:
    with runs.filled(tmp_path, rounds=1) as store:
        store.umig.add("slipped in", kind="aggregate", round=1, parents={"g0": 1.0})
        store.umig.set_meta("slipped", "in")
        found = "\n".join(str(p) for p in verify_store(store).problems)
        assert "table node: has 1 rows that the audit log does not tell of" in found
        assert "table edge_block: has 1 rows that the audit log does not tell of" in found
        assert "table meta: has (slipped, " in found
        runs.write_round(store, 2)  # does not vouch for what was slipped in before it
        found = "\n".join(str(p) for p in verify_store(store).problems)
        assert "nodes 6 to 8: are recorded where node 5 should follow" in found


@pytest.mark.parametrize("place", [(4.5, 4.5), (9, 8), (-3, -3), (0, 0)])
def test_edges_of_no_node_are_found(place: tuple[float, float], tmp_path: Path) -> None:
    runs.filled(tmp_path).close()
    with cases.database(tmp_path) as connection:
        connection.execute("INSERT INTO edge_block VALUES (?, ?, 1, x'')", (int(place[0]), place[1]))
    assert cases.findings(tmp_path)
