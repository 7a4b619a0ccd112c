"""Random edits of the ledger and of the files: every one is found."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path
from typing import Any

import cases_audit as cases
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from fl_unlearn.audit import SigningKey
from fl_unlearn.run_store import DATABASE, RunStore

few = settings(max_examples=100, deadline=None)
many = settings(max_examples=3000, deadline=None)


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> cases.Template:
    return cases.Template(tmp_path_factory.mktemp("template"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tampered") / "store"


def test_nothing_is_found_where_nothing_was_changed(template: cases.Template) -> None:
    assert cases.findings(template.folder, template.key.public, template.head) == []
    for earlier in template.earlier:
        assert cases.findings(earlier, template.key.public) == []


# --------------------------------------------------------------------------- rows
def other_values(value: Any) -> st.SearchStrategy[Any]:
    anything = st.none() | st.integers(-3, 2**40) | st.text(max_size=5) | st.binary(max_size=3) | st.floats()
    if isinstance(value, str):
        flipped = st.integers(0, max(len(value) - 1, 0)).map(
            lambda i: value[:i] + chr(ord(value[i]) ^ 1) + value[i + 1 :] if value else "x"
        )
        near = [value + " ", value[:-1], value.upper(), value.encode(errors="replace"), value + "\0"]
        return st.sampled_from(near) | flipped | anything
    if isinstance(value, int | float):
        return st.sampled_from([value + 1, value - 1, -value, value * 1.5]) | anything
    return anything


@st.composite
def edited(draw: st.DrawFn, rows: list[cases.Row], elsewhere: list[cases.Row]) -> list[cases.Row]:
    """Some other rows: one cell, one row, or the order of two."""
    new = list(rows)
    kinds = ["cell", "remove", "insert", "empty", "exchange", "exchange cells", "copy an earlier one"]
    kind = draw(st.sampled_from(kinds))
    at, with_ = draw(st.integers(0, len(new) - 1)), draw(st.integers(0, len(new) - 1))
    column = draw(st.integers(0, len(new[0]) - 1))
    if kind == "cell":
        new[at] = _with(new[at], column, draw(other_values(new[at][column])))
    elif kind == "remove":
        del new[at]
    elif kind == "insert":
        added = new[at]
        for i in draw(st.sets(st.integers(0, len(added) - 1), min_size=1)):
            added = _with(added, i, draw(other_values(added[i])))
        new.append(added)
    elif kind == "empty":
        new = []
    elif kind == "exchange":  # all but the first column: the one is in the other's place
        new[at], new[with_] = (new[at][0], *new[with_][1:]), (new[with_][0], *new[at][1:])
    elif kind == "exchange cells":
        a, b = new[at][column], new[with_][column]
        new[at], new[with_] = _with(new[at], column, b), _with(new[with_], column, a)
    elif elsewhere:
        new[at] = draw(st.sampled_from(elsewhere))
    return new


def _with(row: cases.Row, column: int, value: Any) -> cases.Row:
    return (*row[:column], value, *row[column + 1 :])


@pytest.mark.parametrize("table", cases.TABLES)
@given(data=st.data())
@few
def test_any_edit_of_a_table_is_found(
    table: str, data: st.DataObject, template: cases.Template, folder: Path
) -> None:
    cases.copy_once(template, folder)
    before = cases.dump(folder)
    rows = cases.rows(template.folder, table)
    earlier = data.draw(st.sampled_from(template.earlier[1:]))
    new = data.draw(edited(rows, cases.rows(earlier, table)))
    try:
        cases.replace(folder, table, new)
    except (sqlite3.Error, OverflowError, UnicodeEncodeError):
        assume(False)
    try:
        assume(cases.dump(folder) != before)
        assert cases.findings(folder)
    finally:
        cases.replace(folder, table, rows)
    assert cases.dump(folder) == before


@pytest.mark.parametrize(
    "statement",
    [
        *(f"DROP TABLE {table}" for table in cases.TABLES),
        "DROP INDEX edge_parent",
        "CREATE TABLE more (x)",
        "CREATE INDEX more ON node (digest)",
        "CREATE VIEW more AS SELECT * FROM node",
        "CREATE TRIGGER more AFTER INSERT ON checkpoint BEGIN DELETE FROM alias; END",
        "ALTER TABLE alias ADD COLUMN more TEXT",
        "ALTER TABLE alias RENAME TO more",
    ],
)
def test_a_changed_schema_is_found(statement: str, template: cases.Template, tmp_path: Path) -> None:
    folder = template.copy(tmp_path / "store")
    with cases.database(folder) as connection:
        connection.execute(statement)
    assert cases.findings(folder)


@given(data=st.data())
@few
def test_a_log_that_was_rewritten_is_found_with_the_key_or_the_head(
    data: st.DataObject, template: cases.Template, folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Every hash made to fit, which needs no key; signatures kept, dropped, or made with another key."""
    cases.copy_once(template, folder)
    entries = cases.rows(folder, "audit")
    at = data.draw(st.integers(0, len(entries) - 1))
    how = data.draw(st.sampled_from(["time", "text", "remove", "insert", "exchange"]))
    if how == "exchange":
        other = data.draw(st.integers(0, len(entries) - 1))
        assume(other != at)
        entries[at], entries[other] = entries[other], entries[at]
    elif how == "remove":
        del entries[at]
    elif how == "insert":
        entries.insert(at, entries[at])
    elif how == "time":
        entries[at] = _with(entries[at], 1, "2020-01-01T00:00:00.000+00:00")
    else:
        body = {**json.loads(entries[at][3]), "message": "something else"}
        entries[at] = _with(entries[at], 3, json.dumps(body, sort_keys=True, separators=(",", ":")))
    signing = data.draw(st.sampled_from(["kept", "none", "another"]))
    signatures = {e[5]: e[6] for e in entries}
    if signing == "another":
        key = SigningKey.generate(tmp_path_factory.mktemp("key") / "k")
        own = {"public_key": key.public.pem(), "fingerprint": key.public.fingerprint}
        text = json.dumps(own, sort_keys=True, separators=(",", ":"))
        entries = [_with(e, 3, text) if e[2] == "key" else e for e in entries]
        store_id = json.loads(entries[0][3]).get("store", "")
        new = cases.rechained(entries, lambda hash_: key.sign(store_id, hash_))
        new[0] = _with(new[0], 6, None)
    else:
        new = cases.rechained(entries, lambda hash_: signatures.get(hash_) if signing == "kept" else None)
    cases.replace(folder, "audit", new)
    try:
        assert cases.findings(folder, template.key.public)
        assert cases.findings(folder, None, template.head)
    finally:
        cases.replace(folder, "audit", cases.rows(template.folder, "audit"))


def test_only_the_head_tells_of_an_older_copy(template: cases.Template) -> None:
    """A store as it once was, log and tables and files cut off together: nothing inside it can tell."""
    for earlier in template.earlier[:-1]:
        assert cases.findings(earlier, template.key.public) == []
        (found,) = cases.findings(earlier, template.key.public, template.head)
        assert "which the log lacks: it was truncated" in found


def test_without_key_and_head_a_careful_forger_is_not_found(template: cases.Template, tmp_path: Path) -> None:
    """What the log cannot do; if this fails, the documentation may promise more."""
    folder = template.copy(tmp_path / "store")
    entries = [e for e in cases.rows(folder, "audit") if e[2] != "key"]
    entries[-1] = _with(entries[-1], 1, "2020-01-01T00:00:00.000+00:00")
    cases.replace(folder, "audit", cases.rechained(entries, lambda _: None))
    assert cases.findings(folder) == []


# --------------------------------------------------------------------------- files
@given(data=st.data())
@many
def test_any_edit_of_a_file_is_found(data: st.DataObject, template: cases.Template, folder: Path) -> None:
    cases.copy_once(template, folder)
    files = sorted([*folder.glob("checkpoints/*"), *folder.glob("updates/*")])
    file = data.draw(st.sampled_from(files))
    other = data.draw(st.sampled_from(files))
    whole, others = file.read_bytes(), other.read_bytes()
    at = data.draw(st.integers(0, len(whole) - 1))
    how = data.draw(st.sampled_from(["flip", "cut", "extend", "exchange", "replace", "remove", "add"]))
    added = folder / "checkpoints" / "one more.safetensors"
    if how == "flip":
        flip = data.draw(st.integers(1, 255))
        file.write_bytes(whole[:at] + bytes([whole[at] ^ flip]) + whole[at + 1 :])
    elif how == "cut":
        file.write_bytes(whole[:at])
    elif how == "extend":
        file.write_bytes(whole + data.draw(st.binary(min_size=1, max_size=9)))
    elif how == "remove":
        file.unlink()
    elif how == "add":
        added.write_bytes(whole)
    else:
        assume(whole != others)
        file.write_bytes(others)
        if how == "exchange":
            other.write_bytes(whole)
    try:
        assert cases.findings(folder)
    finally:
        file.write_bytes(whole)
        other.write_bytes(others)
        added.unlink(missing_ok=True)


def test_an_update_written_otherwise_is_found(template: cases.Template, tmp_path: Path) -> None:
    """More spaces in its header: the same update, and yet not the file that was written."""
    folder = template.copy(tmp_path / "store")
    file = folder / "updates" / f"{cases.A.digest}.safetensors"
    data = file.read_bytes()
    size = int.from_bytes(data[:8], "little")
    file.write_bytes((size + 8).to_bytes(8, "little") + data[8 : 8 + size] + b" " * 8 + data[8 + size :])
    with RunStore(folder, read_only=True) as store:
        assert store.update(cases.A.digest).digest == cases.A.digest
    found = f"update {cases.A.digest}: has a file that was changed since it was written"
    assert cases.findings(folder) == [found]


@given(data=st.data())
@many
def test_a_byte_of_the_database(data: st.DataObject, template: cases.Template, folder: Path) -> None:
    """It is found, or the database says the same as before (a byte of a free page, say)."""
    cases.copy_once(template, folder)
    file, before = folder / DATABASE, cases.dump(template.folder)
    whole = file.read_bytes()
    at, flip = data.draw(st.integers(0, len(whole) - 1)), data.draw(st.integers(1, 255))
    file.write_bytes(whole[:at] + bytes([whole[at] ^ flip]) + whole[at + 1 :])
    try:
        if not cases.findings(folder):
            assert cases.dump(folder) == before
    finally:
        file.write_bytes(whole)
        for leftover in folder.glob(DATABASE + "-*"):
            leftover.unlink()


@given(data=st.data())
@few
def test_a_database_cut_or_exchanged(data: st.DataObject, template: cases.Template, folder: Path) -> None:
    cases.copy_once(template, folder)
    file = folder / DATABASE
    whole = file.read_bytes()
    cut = whole[: data.draw(st.integers(0, len(whole) - 1))]
    earlier = (data.draw(st.sampled_from(template.earlier[:-1])) / DATABASE).read_bytes()
    file.write_bytes(data.draw(st.sampled_from([cut, earlier])))
    try:
        assert cases.findings(folder, template.key.public, template.head)
    finally:
        file.write_bytes(whole)


def test_each_finding_says_where(template: cases.Template, tmp_path: Path) -> None:
    folder = template.copy(tmp_path / "store")
    (folder / "checkpoints" / "g2.safetensors").unlink()
    with cases.database(folder) as connection:
        connection.execute("UPDATE edge SET weight = 0.25 WHERE child = 4")
        connection.execute("UPDATE alias SET client = 'x'")
        connection.execute("UPDATE audit SET time = '2020' WHERE seq = 3")
    found = "\n".join(cases.findings(folder, template.key.public, template.head))
    for match in (
        "entry 3: was changed: its content does not have the hash that it states",
        "nodes 2 to 4: of the lineage, or the edges to them, were changed",
        "table alias: has (0, x), of which the log does not tell",
        "table alias: lacks (0, hospital), of which the log tells",
        "checkpoint 'g2': cannot be read as it should be: the checkpoint",
        "g2.safetensors is missing",
    ):
        assert match in found
