from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from cases_lineage import add_round, federation, names

from fl_unlearn import lineage_append, lineage_file
from fl_unlearn.lineage import UMIG
from fl_unlearn.types import LineageError, StoreError, StoreFullError


# --------------------------------------------------------------------------- files that are not ours
def test_files_that_are_no_lineage_are_refused_and_left_alone(tmp_path):
    text = tmp_path / "notes.txt"
    text.write_text("not a database, but long enough to look at" * 50)
    foreign = tmp_path / "foreign.sqlite"
    with sqlite3.connect(foreign) as other:
        other.execute("CREATE TABLE node (x)")
    other.close()
    before = foreign.read_bytes()
    for read_only in (False, True):
        with pytest.raises(StoreError, match=r"cannot be used.*not a database"):
            UMIG(text, read_only=read_only)
        with pytest.raises(StoreError, match="another program"):
            UMIG(foreign, read_only=read_only)
        with pytest.raises(StoreError):
            UMIG(tmp_path, read_only=read_only)
    assert foreign.read_bytes() == before
    assert text.read_text().startswith("not a database")


def test_a_newer_format_is_refused(tmp_path):
    with UMIG(tmp_path / "u") as umig, umig.transaction():
        umig.connection.execute("UPDATE meta SET value = '3' WHERE key = 'schema_version'")
    for read_only in (False, True):
        with pytest.raises(StoreError, match=r"format 3.*upgrade"):
            UMIG(tmp_path / "u", read_only=read_only)


def test_missing_and_empty_files(tmp_path):
    with pytest.raises(StoreError, match="no lineage file"):
        UMIG(tmp_path / "none", read_only=True)
    assert not (tmp_path / "none").exists()
    with pytest.raises(StoreError, match="folder"):
        UMIG(tmp_path / "no" / "folder")
    with pytest.raises(StoreError, match="in memory"):
        UMIG(read_only=True)
    (tmp_path / "empty").touch()
    with pytest.raises(StoreError, match="holds no lineage yet"):
        UMIG(tmp_path / "empty", read_only=True)
    with UMIG(tmp_path / "empty") as umig:  # what a crash before the first write leaves
        assert len(umig) == 0


def test_a_closed_graph_says_so():
    umig = UMIG()
    with umig.transaction(), pytest.raises(LineageError, match="leave the transaction"):
        umig.close()
    umig.close()
    umig.close()
    with pytest.raises(StoreError, match="is closed"):
        len(umig)


# --------------------------------------------------------------------------- transactions
def test_an_exception_undoes_the_whole_transaction(tmp_path):
    umig = federation(tmp_path / "u", rounds=1)
    before = list(umig)

    def interrupted() -> None:
        with umig.transaction():
            umig.connection.execute("CREATE TABLE other (x)")
            add_round(umig, 2)
            umig.set_meta("k", "v")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        interrupted()
    assert list(umig) == before
    assert "g2" not in umig
    assert umig.get_meta("k") is None
    with pytest.raises(sqlite3.OperationalError, match="no such table"):
        umig.connection.execute("SELECT * FROM other")
    with pytest.raises(LineageError, match=r"no node 'u2\.0'"):
        umig.add("x", kind="stage", round=9, parents={"u2.0": 1})
    add_round(umig, 2)
    assert umig.node("g2").id == 9


def test_an_inner_error_that_is_caught_undoes_the_outer_transaction_too():
    umig = federation(rounds=1)

    def failing() -> None:
        with umig.transaction():
            umig.add("y", kind="stage", round=1)
            raise ZeroDivisionError

    def swallowing() -> None:
        with umig.transaction():
            umig.add("x", kind="stage", round=1)
            with pytest.raises(ZeroDivisionError):
                failing()

    with pytest.raises(StoreError, match="error inside was caught"):
        swallowing()
    assert "x" not in umig
    assert "y" not in umig
    umig.add("x", kind="stage", round=1)
    assert len(umig) == 6


def test_a_write_that_breaks_between_node_and_edges_is_undone(monkeypatch):
    umig = federation(rounds=1)

    def edges(*_):
        raise KeyboardInterrupt

    def swallowing() -> None:
        with umig.transaction():
            with monkeypatch.context() as patch:
                patch.setattr(lineage_append, "append_edges", edges)
                with pytest.raises(KeyboardInterrupt):
                    umig.add("x", kind="stage", round=1)
            umig.add("z", kind="stage", round=1)

    with pytest.raises(StoreError, match="caught"):
        swallowing()
    assert names(umig)[-1] == "g1"


def test_a_full_disk_changes_nothing(tmp_path):
    umig = federation(tmp_path / "u", rounds=1)
    pages = umig.connection.execute("PRAGMA page_count").fetchone()[0]
    umig.connection.execute(f"PRAGMA max_page_count = {pages}")
    with pytest.raises(StoreFullError, match="nothing was changed"):
        add_round(umig, 2, clients=2000)
    assert len(umig) == 5
    umig.connection.execute("PRAGMA max_page_count = 100000")
    add_round(umig, 2)
    assert len(umig) == 9


def test_a_second_writer_waits_and_then_says_who_is_in_the_way(tmp_path, monkeypatch):
    monkeypatch.setattr(lineage_file, "_BUSY_SECONDS", 0.05)
    with federation(tmp_path / "u") as one, UMIG(tmp_path / "u") as two:
        with one.transaction(), pytest.raises(StoreError, match="no other program is holding it"):
            two.add("x", kind="stage", round=9)
        two.add("x", kind="stage", round=9)
        assert "x" in one


def test_a_reader_sees_whole_rounds_while_a_writer_appends(tmp_path):
    writer = federation(tmp_path / "u", rounds=1)
    with UMIG(tmp_path / "u", read_only=True) as reader:
        with writer.transaction():
            add_round(writer, 2)
            assert len(writer) == 9
            assert len(reader) == 5
            assert "g2" not in reader
        assert len(reader) == 9
        stream = reader.nodes()
        next(stream)
        add_round(writer, 3)  # a stream that was begun blocks nobody
        assert len(list(stream)) == 8
        for append in (lambda: reader.add("x", kind="stage", round=9), lambda: reader.set_meta("a", "b")):
            with pytest.raises(LineageError, match="opened read-only"):
                append()
        with pytest.raises(LineageError, match="read-only"), reader.transaction():
            pass
    writer.close()


def test_threads_share_one_graph(tmp_path):
    umig = federation(tmp_path / "u", rounds=0)
    odd: list[object] = []

    def work(t: int) -> None:
        for i in range(20):
            with umig.transaction():
                umig.add(f"{t}.{i}a", kind="stage", round=0, parents={"g0": 1})
                umig.add(f"{t}.{i}b", kind="stage", round=0, parents={f"{t}.{i}a": 1})
            seen = names(umig.descendants(["g0"]))
            if len(seen) % 2 or any(seen[k][:-1] != seen[k + 1][:-1] for k in range(0, len(seen), 2)):
                odd.append(seen)

    threads = [threading.Thread(target=work, args=(t,)) for t in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert odd == []
    assert len(umig) == 161


CRASH = """
import sys
sys.path[:0] = [{root!r}, {tests!r}]
from cases_lineage import UMIG, add_round
umig = UMIG({file!r})
umig.add("g0", kind="initial", round=0)
for r in range(1, 10**9):
    with umig.transaction():
        add_round(umig, r, 50)
        if r == {stop}:
            print("inside", flush=True)
            sys.stdin.read()
    print(r, flush=True)
"""


@pytest.mark.parametrize("stop", [4, 0], ids=["inside a transaction", "anywhere"])
def test_a_killed_writer_leaves_whole_rounds(tmp_path, stop):
    file, tests = tmp_path / "u", Path(__file__).parent
    code = CRASH.format(root=str(tests.parent), tests=str(tests), file=str(file), stop=stop)
    child = subprocess.Popen([sys.executable, "-c", code], stdin=-1, stdout=-1, text=True)
    assert child.stdout is not None
    done = 0
    for line in child.stdout:
        if line == "inside\n" or int(line) >= 40:
            break
        done = int(line)
    os.kill(child.pid, signal.SIGKILL)
    child.communicate()
    with UMIG(file) as umig:
        last = umig.last_round()
        assert last == 3 if stop else last >= done > 0
        assert len(umig) == 1 + 51 * last
        assert all(len(umig.parents(f"g{r}")) == 50 for r in range(1, last + 1))
        assert umig.connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        add_round(umig, last + 1)
