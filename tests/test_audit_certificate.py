"""Certificates: what a third party with the public key alone can rely upon, and what it must refuse."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import cases_audit as cases
import pytest
import references_audit as slow
import runs
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from fl_unlearn.audit import SigningKey
from fl_unlearn.audit_certificate import STATEMENT, check_certificate, export_certificate
from fl_unlearn.audit_entry import canonical
from fl_unlearn.run_store import RunStore
from fl_unlearn.types import AuditError

Certificate = dict[str, Any]


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> cases.Template:
    template = cases.Template(tmp_path_factory.mktemp("template"))
    with RunStore(template.folder, signing_key=template.head.with_name("key.pem")) as store:
        store.audit.append("request", {"request": 3, "classes": [9]})
        store.audit.append("refused", {"request": 3, "message": "no candidate forgets enough"})
    return template


@pytest.fixture(scope="module")
def certificate(template: cases.Template) -> Certificate:
    with RunStore(template.folder, read_only=True) as store:
        return export_certificate(store, "1")


def test_a_served_request(template: cases.Template, certificate: Certificate) -> None:
    sent = json.loads(json.dumps(certificate))
    kinds = [e["kind"] for e in sent["entries"]]
    served = ["request", "kept", "decided", "applied", "receipt", "verified", "identified", "identified"]
    assert kinds == ["created", "key", *served]
    assert sent["statement"] == STATEMENT
    assert "no proof of erasure" in STATEMENT
    result = check_certificate(sent, template.key.public)
    assert result.problems == ()
    assert result.ok
    with RunStore(template.earlier[3], read_only=True) as before:
        befores = {n: before.load(n).info.digest for n in ("g1", "g2", "r1-0")}
    with RunStore(template.earlier[4], read_only=True) as after:
        assert result.checkpoints == {n: (b, after.load(n).info.digest) for n, b in befores.items()}
    with RunStore(template.folder, read_only=True) as store:
        decided = next(e for e in store.audit.entries() if e.kind == "decided")
        head = store.audit.head()
        assert head is not None
        assert (result.decided, result.until) == (decided.time, head.time)
        assert list(result.outstanding) == ["1", "clinic"]
        assert check_certificate(sent, template.key.public, store) == result
    assert (result.request, result.asked) == ("1", {"request": 1, "classes": [1]})
    assert result.applied
    assert result.receipts == {"0": ("2 copies dampened", "Zürich \ud800")}
    assert result.refused == ()


def test_by_the_operations_digest(template: cases.Template) -> None:
    with RunStore(template.folder, read_only=True) as store:
        for prefix in (cases.B.digest, cases.B.digest[:6]):
            given = export_certificate(store, prefix)
            assert given["entries"] == export_certificate(store, "2")["entries"]
            result = check_certificate(given, template.key.public, store)
            assert (result.problems, result.outstanding) == ((), ("node-7",))
        for unknown in ("4", "", "zzzzzz", cases.B.digest[:5], "12345678", cases.B.digest + "0"):
            with pytest.raises(AuditError, match="no decisions in the log fit"):
                export_certificate(store, unknown)


def test_a_refused_request(template: cases.Template) -> None:
    with RunStore(template.folder, read_only=True) as store:
        result = check_certificate(export_certificate(store, "3"), template.key.public, store)
    assert result.problems == ()
    assert result.refused == ("no candidate forgets enough",)
    assert (result.asked, result.decided, result.applied, result.checkpoints) == (None, None, False, {})


def test_unsigned_stores_have_none(tmp_path: Path) -> None:
    with runs.filled(tmp_path / "store") as store:
        cases.forget(store, 1, cases.A, ["g1"])
        with pytest.raises(AuditError, match=r"is not signed: .* signing_key"):
            export_certificate(store, "1")
    key = SigningKey.generate(tmp_path / "key").public
    with RunStore(tmp_path / "store", signing_key=tmp_path / "key") as store:
        with pytest.raises(AuditError, match="is not signed"):
            export_certificate(store, "1")
        cases.forget(store, 2, cases.B, ["g1"])
        result = check_certificate(export_certificate(store, "2"), key, store)
        assert (result.problems, sorted(result.checkpoints)) == ((), ["g1"])


def test_after_the_key_was_changed(tmp_path: Path) -> None:
    keys = [SigningKey.generate(tmp_path / str(i)).public for i in range(2)]
    with RunStore(tmp_path / "store", keep=runs.ALL, signing_key=tmp_path / "0") as store:
        for step in cases.STEPS[:3]:
            step(store)
        cases.forget(store, 1, cases.A, ["g1"])
    with RunStore(tmp_path / "store", signing_key=tmp_path / "1") as store:
        store.operations.settle(cases.A.digest, "1", ["late"])
        cases.forget(store, 2, cases.B, ["g1"])
        first, second = export_certificate(store, "1"), export_certificate(store, "2")
        result = check_certificate(first, keys[0], store)
        assert (result.problems, result.outstanding) == (
            (),
            ("1", "node-7"),
        )  # as far as the first key signed
        assert check_certificate(second, keys[1], store).ok
        for given, key in ((first, keys[1]), (second, keys[0])):
            (problem,) = check_certificate(given, key).problems
            assert "is signed with another key than the given one" in str(problem)


def test_a_certificate_of_another_store(
    template: cases.Template, certificate: Certificate, tmp_path: Path
) -> None:
    key = template.head.with_name("key.pem")
    with RunStore(tmp_path / "other", keep=runs.ALL, signing_key=key) as other:
        for step in cases.STEPS[:5]:
            step(other)
        (problem,) = check_certificate(certificate, template.key.public, other).problems
        assert "is of another store" in str(problem)
        own = export_certificate(other, "1")
        # The same key signed both: entries of the one do not pass for the other's.
        mixed = {**certificate, "entries": [*certificate["entries"][:4], *own["entries"][4:6]]}
        assert not check_certificate(mixed, template.key.public).ok
        renamed = {**certificate, "store": other.audit.store_id}
        assert not check_certificate(renamed, template.key.public).ok
        renamed["entries"] = [own["entries"][0], *certificate["entries"][1:]]
        assert not check_certificate(renamed, template.key.public).ok
    with RunStore(template.earlier[5], read_only=True) as older:
        found = check_certificate(certificate, template.key.public, older).problems
        assert any("ends with an entry" in str(p) for p in found)


def test_what_was_left_out_is_told_by_the_store_alone(
    template: cases.Template, certificate: Certificate
) -> None:
    receipt = next(i for i, e in enumerate(certificate["entries"]) if e["kind"] == "receipt")
    less = {**certificate, "entries": [e for i, e in enumerate(certificate["entries"]) if i != receipt]}
    assert check_certificate(less, template.key.public).receipts == {}
    with RunStore(template.folder, read_only=True) as store:
        (problem,) = check_certificate(less, template.key.public, store).problems
        assert f"leaves out entry {certificate['entries'][receipt]['seq']}" in str(problem)


def test_entries_of_another_request_do_not_slip_in(
    template: cases.Template, certificate: Certificate
) -> None:
    with RunStore(template.folder, read_only=True) as store:
        other = export_certificate(store, "2")
    both = {**certificate, "entries": [*certificate["entries"], *other["entries"][2:]]}
    entries = {e["seq"]: e for e in both["entries"]}
    both["entries"] = [entries[seq] for seq in sorted(entries)]
    (problem,) = check_certificate(both, template.key.public).problems
    assert "does not belong to request '1'" in str(problem)
    (problem,) = check_certificate({**certificate, "request": "2"}, template.key.public).problems
    assert "no decisions in the log fit '2'" in str(problem)


def paths(value: Any, above: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    found = [above] if above else []
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        found += paths(inner, (*above, key))
    return found


def changed(
    certificate: Certificate, path: tuple[Any, ...], change: Callable[[Any, Any], None]
) -> Certificate:
    out = copy.deepcopy(certificate)
    inner: Any = out
    for key in path[:-1]:
        inner = inner[key]
    change(inner, path[-1])
    return out


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)


@given(data=st.data())
@settings(max_examples=400, deadline=None)
def test_any_change_is_found(data: st.DataObject, template: cases.Template, certificate: Certificate) -> None:
    path = data.draw(st.sampled_from(paths(certificate)))
    how = data.draw(st.sampled_from(["set", "flip", "remove", "add", "reverse"]))
    value = data.draw(json_values)

    def change(inner: Any, key: Any) -> None:
        if how == "set":
            inner[key] = value
        elif how == "flip":
            assume(isinstance(inner[key], str) and inner[key])
            at = data.draw(st.integers(0, len(inner[key]) - 1))
            inner[key] = inner[key][:at] + chr(ord(inner[key][at]) ^ 1) + inner[key][at + 1 :]
        elif how == "remove":
            # A signed entry more or less is for the store to tell.
            assume(path[:-1] != ("entries",))
            del inner[key]
        elif how == "add":
            assume(isinstance(inner[key], dict | list))
            if isinstance(inner[key], dict):
                assume("more" not in inner[key])
                inner[key]["more"] = value
            else:
                inner[key].append(value)
        else:
            assume(isinstance(inner[key], list))
            inner[key].reverse()

    other = changed(certificate, path, change)
    with suppress(ValueError):  # not a number: not JSON either
        assume(canonical(other) != canonical(certificate))
    result = check_certificate(other, template.key.public)
    assert not result.ok
    assert (result.checkpoints, result.receipts, result.asked) == ({}, {}, None)


@given(value=json_values)
def test_garbage_is_refused(value: Any, template: cases.Template) -> None:
    result = check_certificate(value, template.key.public)
    assert str(result.problems[0]).startswith("the certificate: does not have the fields format, store, key")


def test_nesting_without_end(template: cases.Template, certificate: Certificate) -> None:
    deep: list[Any] = []
    for _ in range(100_000):
        deep = [deep]
    for field in ("entries", "head"):
        assert not check_certificate({**certificate, field: deep}, template.key.public).ok
    body = {**certificate["head"], "body": {"x": deep}}
    assert not check_certificate({**certificate, "head": body}, template.key.public).ok
    while deep:  # CPython's own clean-up of such a list is recursive
        deep = deep[0]


def test_hashes_made_to_fit_do_not_help(template: cases.Template, certificate: Certificate) -> None:
    """Each entry of the certificate rewritten, with the right hash, signed with another key or not at all."""
    pem = template.head.with_name("forged")
    forged = SigningKey.load(pem) if pem.exists() else SigningKey.generate(pem)
    for at in range(1, len(certificate["entries"])):
        entry = copy.deepcopy(certificate["entries"][at])
        entry["body"]["more"] = 1
        entry["hash"] = slow.entry_hash(entry)
        for signature in (entry["signature"], None, forged.sign(certificate["store"], entry["hash"])):
            entries = [*certificate["entries"]]
            entries[at] = {**entry, "signature": signature}
            assert not check_certificate({**certificate, "entries": entries}, template.key.public).ok
