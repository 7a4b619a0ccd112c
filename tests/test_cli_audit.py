from __future__ import annotations

import json
import os
import re
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import runs
from cases_cli import forget, listing, run, run_json, run_lines

from fl_unlearn.audit_keys import SigningKey
from fl_unlearn.cli.audit import _listed
from fl_unlearn.dampen import DampeningUpdate
from fl_unlearn.run_store import RunStore


def fill(folder: Path, **options: Any) -> str:
    """A store in which a request was served; returns the operation's digest."""
    with RunStore(folder, keep=runs.ALL, **options) as store:
        store.record("g0", runs.state(100), kind="initial", round_=0)
        runs.write_round(store, 1)
        digest = forget(store, waiting=("0", "1"))
        store.operations.settle(digest, "1")
    return digest


@pytest.fixture
def signed(tmp_path: Path) -> Path:
    """A folder with a signed store ``run``, its ``head``, and the keys ``key`` and ``key.pub``."""
    SigningKey.generate(tmp_path / "key")
    fill(tmp_path / "run", signing_key=tmp_path / "key", audit_head=tmp_path / "head")
    return tmp_path


def operation(folder: Path) -> str:
    return str(run_json("status", folder / "run")["operations"][0]["digest"])


def tamper(folder: Path, sql: str) -> None:
    with closing(sqlite3.connect(folder / "lineage.sqlite")) as db, db:
        assert db.execute(sql).rowcount != 0


# --------------------------------------------------------------------------- keygen
def test_keygen(tmp_path):
    made = run_json("audit", "keygen", tmp_path / "a key")
    key = SigningKey.load(tmp_path / "a key")
    assert made == {
        "private_key": str(tmp_path / "a key"),
        "public_key": str(tmp_path / "a key.pub"),
        "fingerprint": key.public.fingerprint,
    }
    if os.name == "posix":
        assert (tmp_path / "a key").stat().st_mode & 0o077 == 0
    shown = run("audit", "keygen", tmp_path / "other").stdout
    assert SigningKey.load(tmp_path / "other").public.fingerprint in shown
    assert "PRIVATE KEY" not in shown


def test_keygen_overwrites_nothing(tmp_path):
    (tmp_path / "key").write_text("mine")
    failed = run("audit", "keygen", tmp_path / "key", code=2)
    assert "not overwritten" in failed.stderr
    assert listing(tmp_path) == {"key": b"mine"}
    run("audit", "keygen", tmp_path / "none" / "key", code=2)


# --------------------------------------------------------------------------- verify
def test_verify_a_sound_store(signed):
    found = run_json(
        "audit", "verify", signed / "run", "--public-key", signed / "key.pub", "--head", signed / "head"
    )
    entries = run_lines("audit", "log", signed / "run")
    assert (found["ok"], found["problems"], found["pending"], found["notes"]) == (True, [], [], [])
    assert (found["entries"], found["checkpoints"]) == (len(entries), 4)
    assert found["signed"] == sum(e["signature"] is not None for e in entries) > 0
    plain = run_json("audit", "verify", signed / "run")
    assert len(plain["notes"]) == 2, "what was not checked is said"
    text = run("audit", "verify", signed / "run").stdout
    assert "no problem" in text
    assert "--head" in text


@pytest.mark.parametrize(
    "sql",
    [
        "UPDATE audit SET body = replace(body, '[3]', '[4]') WHERE kind = 'decided'",
        "UPDATE audit SET time = '2020-01-01T00:00:00.000+00:00' WHERE seq = 3",
        "DELETE FROM audit WHERE seq = 4",
        "DELETE FROM audit WHERE seq = (SELECT max(seq) FROM audit)",
        "UPDATE checkpoint SET digest = 'x' WHERE node_id = 1",
        "UPDATE node SET owner = '9' WHERE owner = '1'",
    ],
)
def test_verify_finds_tampering(signed, sql):
    tamper(signed / "run", sql)
    options = ["--public-key", signed / "key.pub", "--head", signed / "head"]
    found = run_json("audit", "verify", signed / "run", *options, code=1)
    assert not found["ok"]
    text = run("audit", "verify", signed / "run", *options, code=1).stdout
    for problem in found["problems"]:
        assert f"{problem['where']}: {problem['what']}" in text


def test_verify_finds_a_changed_checkpoint(signed):
    (signed / "run" / "checkpoints" / "g1.safetensors").write_bytes(b"other")
    found = run_json("audit", "verify", signed / "run", code=1)
    assert ["g1" in p["where"] for p in found["problems"]] == [True]


def test_verify_with_another_key_or_bad_files(signed):
    SigningKey.generate(signed / "other")
    run("audit", "verify", signed / "run", "--public-key", signed / "other.pub", code=1)
    for option, name in [("--public-key", "key"), ("--public-key", "none"), ("--public-key", "head")]:
        failed = run("audit", "verify", signed / "run", option, signed / name, code=2)
        assert failed.stdout == ""
        assert str(signed / name) in failed.stderr
    run("audit", "verify", signed / "run", "--head", signed / "key", code=1)
    run("audit", "verify", signed / "run", "--head", signed / "none", code=1)


def test_a_store_from_before_there_was_a_log(tmp_path):
    fill(tmp_path)
    tamper(tmp_path, "DROP TABLE audit")
    found = run_json("status", tmp_path)
    assert (found["audit_entries"], found["operations"][0]["decided"]) == (0, None)
    assert "has no audit log" in run("audit", "log", tmp_path, code=2).stderr
    assert "has no audit log" in run("audit", "verify", tmp_path, code=1).stdout
    run("gc", tmp_path)
    run("audit", "verify", tmp_path)
    assert [e["kind"] for e in run_lines("audit", "log", tmp_path)] == ["created", "adopted"]


# --------------------------------------------------------------------------- log
def test_log(signed):
    with RunStore(signed / "run", read_only=True) as store:
        expected = [e.to_json() for e in store.audit.entries()]
    assert run_lines("audit", "log", signed / "run") == expected
    assert run_lines("audit", "log", signed / "run", "--since", 4) == expected[3:]
    lines = run("audit", "log", signed / "run").stdout.splitlines()
    assert len(lines) == len(expected) + 1
    for line, entry in zip(lines[1:], expected, strict=True):
        signed_ = "yes" if entry["signature"] else "no"
        assert re.match(
            rf" *{entry['seq']} +\S+ \S+ +{entry['kind']} +{signed_} +{entry['hash'][:12]} ", line
        )
    assert run("audit", "log", signed / "run", "--since", 10_000).stdout == ""
    run("audit", "log", signed / "run", "--since", 0, code=2)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ([3], "3"),
        (["a", "b", "c", "d"], "a, b, c and 1 more"),
        ([], "(0)"),
        ([{}, {}], "(2)"),
        ({"a": 1}, "(1)"),
    ],
)
def test_lists_in_the_log_are_short(value, text):
    assert _listed(value) == text


def test_status_tells_when_an_operation_was_decided(signed):
    (entry,) = (e for e in run_lines("audit", "log", signed / "run") if e["kind"] == "decided")
    found = run_json("status", signed / "run")
    assert found["operations"][0]["decided"] == entry["time"]
    assert found["operations"][0]["outstanding"] == ["0"]
    assert entry["time"][:10] in run("status", signed / "run").stdout


# --------------------------------------------------------------------------- certificates
@pytest.fixture
def certificate(signed: Path) -> Path:
    run("audit", "export", signed / "run", operation(signed)[:8], "--out", signed / "proof.json")
    return signed / "proof.json"


def test_a_certificate_goes_to_a_file_or_to_stdout(signed, certificate):
    on_stdout = run_json("audit", "export", signed / "run", operation(signed)[:8])
    assert on_stdout == json.loads(certificate.read_text())
    out = signed / "again.json"
    result = run("audit", "export", signed / "run", operation(signed)[:8], "--out", out, "--json")
    assert (result.stdout, out.read_text()) == ("", certificate.read_text())


def test_a_third_party_checks_a_certificate(signed, certificate):
    shutil.move(signed / "run", signed / "moved")
    found = run_json("audit", "check", certificate, "--public-key", signed / "key.pub")
    assert (found["ok"], found["problems"], found["applied"]) == (True, [], True)
    assert (found["asked"]["classes"], found["outstanding"]) == ([3], ["0"])
    assert set(found["checkpoints"]) == {"r1-1", "g1"}
    text = run("audit", "check", certificate, "--public-key", signed / "key.pub").stdout
    assert re.search(r"classes +3", text)
    assert re.search(r"outstanding +0", text)
    assert "unchanged" in text
    run("audit", "check", certificate, "--public-key", signed / "key.pub", "--store", signed / "moved")


def test_a_certificate_of_another_store(signed, certificate, tmp_path):
    fill(tmp_path / "second", signing_key=signed / "key")
    options = ["--public-key", signed / "key.pub", "--store", tmp_path / "second"]
    found = run_json("audit", "check", certificate, *options, code=1)
    assert "another store" in found["problems"][0]["what"]


def test_certificates_that_are_not_to_be_trusted(signed, certificate):
    SigningKey.generate(signed / "other")
    text = run("audit", "check", certificate, "--public-key", signed / "other.pub", code=1).stdout
    assert "not to be trusted" in text
    changed = json.loads(certificate.read_text())
    (decided,) = (e for e in changed["entries"] if e["kind"] == "decided")
    decided["body"]["request"]["classes"] = [4]
    certificate.write_text(json.dumps(changed))
    run("audit", "check", certificate, "--public-key", signed / "key.pub", code=1)
    for text in ("[]", "{}", "3", '"x"', "null"):
        certificate.write_text(text)
        run("audit", "check", certificate, "--public-key", signed / "key.pub", code=1)


@pytest.mark.parametrize("data", [b"", b"{", b"\xff\xfe", b"[" * 100_000, b"not json"])
def test_a_file_that_is_not_json(signed, data):
    (signed / "bad.json").write_bytes(data)
    failed = run("audit", "check", signed / "bad.json", "--public-key", signed / "key.pub", code=2)
    assert "is not JSON" in failed.stderr
    assert failed.stdout == ""


def test_export_of_what_was_not_asked_or_not_signed(signed, tmp_path):
    failed = run("audit", "export", signed / "run", "ffffff", "--out", signed / "p.json", code=2)
    assert "ffffff" in failed.stderr
    assert not (signed / "p.json").exists()
    digest = fill(tmp_path / "unsigned")
    assert "is not signed" in run("audit", "export", tmp_path / "unsigned", digest[:8], code=2).stderr
    run("audit", "check", signed / "key", code=2)
    run("audit", "check", signed / "none.json", "--public-key", signed / "key.pub", code=2)


# --------------------------------------------------------------------------- gc
def test_gc_writes_to_a_signed_log_with_its_key_alone(signed):
    update = runs.update(seed=5)
    with RunStore(signed / "run", signing_key=signed / "key") as store:
        path = store.save_update(update)
    before = listing(signed)
    assert "is signed" in run("gc", signed / "run", code=2).stderr
    assert listing(signed) == before
    keys = ["--signing-key", signed / "key", "--audit-head", signed / "head"]
    done = run_json("gc", signed / "run", "--byte-budget", 1, *keys)
    assert ([r["file"] for r in done["removed"]], len(done["pruned"])) == ([str(path)], 2)
    assert run_lines("audit", "log", signed / "run")[-1]["body"] == {"updates": [update.digest]}
    options = ["--public-key", signed / "key.pub", "--head", signed / "head"]
    assert run_json("audit", "verify", signed / "run", *options)["ok"]


def test_gc_drops_an_update_from_before_the_log(tmp_path):
    fill(tmp_path)
    (tmp_path / "updates" / f"{'0' * 64}.safetensors").write_bytes(DampeningUpdate.to_bytes(runs.update()))
    assert len(run_json("gc", tmp_path)["removed"]) == 1
    assert run_json("audit", "verify", tmp_path)["ok"]
