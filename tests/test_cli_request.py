"""`fl-unlearn request`: documents handed in, followed and cancelled from the command line."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import runs
from cases_cli import run, run_json, run_lines
from cases_requests import Office, soon
from typer.testing import CliRunner

from fl_unlearn.audit_keys import SigningKey
from fl_unlearn.cli import app
from fl_unlearn.intake import take_in
from fl_unlearn.request_document import RequestDocument
from fl_unlearn.run_store import RunStore
from fl_unlearn.types import ForgetRequest


@pytest.fixture(scope="module")
def office(tmp_path_factory: pytest.TempPathFactory) -> Office:
    return Office(tmp_path_factory.mktemp("office"))


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("template") / "run"
    runs.filled(folder, rounds=1).close()
    return folder


@pytest.fixture
def folder(template: Path, tmp_path: Path) -> Path:
    shutil.copytree(template, tmp_path / "run")
    return tmp_path / "run"


def operator(office: Office) -> tuple[object, ...]:
    return ("--requester", "operator", "--key", office.key("operator"))


def test_from_options_to_a_signed_document(folder: Path, office: Office) -> None:
    options = ("--class", 3, "--class", 1, "--client", "4", "--reason", "left the trial", "--scope", "deep")
    made = run_json("request", "add", folder, *options, "--deadline", "2099-12-01", *operator(office))
    assert (made["state"], made["requester"], made["deadline"]) == (
        "waiting",
        "operator",
        "2099-12-01T00:00:00Z",
    )
    assert made["target"] == {"classes": [1, 3], "clients": ["4"], "samples": {}}
    assert (made["scope"], made["reason"]) == ("deep", "left the trial")
    assert made["waits_because"].startswith("it waits for the next run")
    with RunStore(folder) as store:
        (row,) = take_in(store, office.policy)
        assert (row.state, row.id) == ("accepted", made["id"])


def test_samples_by_key_and_times_with_a_zone(folder: Path, office: Office) -> None:
    options = (
        "--sample",
        "1=patient-12",
        "--sample",
        "1=patient-3=b",
        "--deadline",
        "2099-12-01T18:00:00+02:00",
    )
    who = ("--requester", "hospital", "--key", office.key("hospital"), "--policy", office.path)
    made = run_json("request", "add", folder, *options, *who)
    assert (made["state"], made["waits_because"]) == ("accepted", None)
    assert made["target"]["samples"] == {"1": ["patient-12", "patient-3=b"]}
    assert made["deadline"] == "2099-12-01T16:00:00Z"


def test_with_a_policy_it_is_decided_at_once(folder: Path, office: Office) -> None:
    accepted = run("request", "add", folder, "--class", 3, *operator(office), "--policy", office.path)
    assert ": accepted" in accepted.stdout
    refused = run("request", "add", folder, "--client", 1, *operator(office), "--policy", office.path, code=1)
    assert ": refused (not-allowed)" in refused.stdout
    unsigned = ("--class", 3, "--requester", "operator", "--policy", office.path)
    assert run_json("request", "add", folder, *unsigned, code=1)["code"] == "unsigned"
    listed = run_lines("request", "list", folder)
    assert [(d["state"], d["code"]) for d in listed] == [
        ("accepted", None),
        ("refused", "not-allowed"),
        ("refused", "unsigned"),
    ]
    assert [d["code"] for d in run_lines("request", "list", folder, "--state", "refused")] == [
        "not-allowed",
        "unsigned",
    ]
    assert "no problem" in run("audit", "verify", folder).stdout
    shown = run("request", "list", folder).stdout
    assert all(line == line.rstrip() for line in shown.splitlines()), "a file has no blanks at the ends"
    assert "1 accepted, 2 refused (fl-unlearn request list)" in run("status", folder).stdout
    assert run_json("status", folder)["documents"] == {"accepted": 1, "refused": 2}
    assert "classes 3" in shown
    assert "3 documents" in shown


def test_a_federation_with_a_name(folder: Path, office: Office, tmp_path: Path) -> None:
    policy = tmp_path / "policy.toml"
    policy.write_text('federation = "trial-7"\n' + office.path.read_text())
    for key in office.path.parent.glob("*.pub"):
        (tmp_path / key.name).write_bytes(key.read_bytes())
    made = ("--class", 3, *operator(office))
    with_it = run_json("request", "add", folder, *made, "--policy", policy)
    assert (with_it["state"], with_it["federation"]) == ("accepted", "trial-7")
    another = run_json("request", "add", folder, *made, "--federation", "b", "--policy", policy, code=1)
    assert (another["state"], another["code"]) == ("refused", "wrong-federation")
    file = tmp_path / "asked.json"
    run("request", "sign", *made, "--federation", "trial-7", "--out", file)
    assert run_json("request", "add", folder, file, "--policy", policy)["state"] == "accepted"


def test_a_document_made_elsewhere(folder: Path, office: Office, tmp_path: Path) -> None:
    file, again = tmp_path / "asked.json", tmp_path / "again.json"
    made = ("request", "sign", "--sample", "1=p", "--requester", "hospital", "--key", office.key("hospital"))
    run(*made, "--out", file)
    document = RequestDocument.from_bytes(file.read_bytes())
    document.verify(office.keys["hospital"].public)
    assert run_json("request", "add", folder, file, "--policy", office.path)["id"] == document.id
    replayed = run_json("request", "add", folder, file, "--policy", office.path, code=1)
    assert replayed["code"] == "replayed"
    run("request", "sign", file, "--key", office.key("operator"), "--out", again)
    assert RequestDocument.from_bytes(again.read_bytes()).signature != document.signature
    stdin = RequestDocument.new("operator", ForgetRequest((3,))).sign(office.keys["operator"]).to_bytes()
    arguments = ["request", "add", str(folder), "-", "--policy", str(office.path), "--json"]
    result = CliRunner().invoke(app, arguments, input=stdin)
    assert (result.exit_code, json.loads(result.stdout)["state"]) == (0, "accepted")
    shown = run("request", "show", folder, document.id[:8]).stdout
    assert document.id in shown
    assert "1 sample of client 1" in shown


def test_while_a_run_holds_the_store(folder: Path, office: Office) -> None:
    policy = ("--policy", office.path)
    with RunStore(folder) as store:
        made = run_json("request", "add", folder, "--class", 3, *operator(office), *policy)
        assert made["state"] == "waiting"
        assert "a run holds the store" in made["waits_because"]
        refused = run_json("request", "add", folder, "--client", 1, *operator(office), *policy, code=1)
        assert (refused["state"], refused["code"], refused["waits_because"]) == (
            "refused",
            "not-allowed",
            None,
        )
        assert store.documents.rows() == []
        cancelled = run_json("request", "cancel", folder, made["id"], *policy)
        assert (cancelled["state"], cancelled["message"]) == ("waiting", "cancellation was asked for")
        assert "a run holds the store" in cancelled["waits_because"]
        take_in(store, None)
    assert [(d["state"], d["code"]) for d in run_lines("request", "list", folder)] == [
        ("cancelled", None),
        ("refused", "not-allowed"),
    ]


def test_cancelling(folder: Path, office: Office) -> None:
    made = run_json("request", "add", folder, "--class", 3, *operator(office), "--policy", office.path)
    assert run_json("request", "cancel", folder, made["id"])["state"] == "cancelled"
    again = run("request", "cancel", folder, made["id"], code=2)
    assert "cannot be cancelled any more: it is cancelled" in again.stderr
    waiting = run_json("request", "add", folder, "--class", 3, *operator(office))
    asked = run("request", "cancel", folder, waiting["id"])
    assert "cancellation was asked for" in asked.stdout
    assert run("request", "cancel", folder, "f" * 32, code=2).stderr.startswith("error: no documents in")


def test_a_signed_log_needs_its_key(folder: Path, office: Office, tmp_path: Path) -> None:
    key = tmp_path / "audit.pem"
    SigningKey.generate(key)
    RunStore(folder, signing_key=key).close()
    options = ("--class", 3, *operator(office), "--policy", office.path)
    made = run_json("request", "add", folder, *options)
    assert made["state"] == "waiting"
    assert "is signed" in made["waits_because"]
    assert run_json("request", "add", folder, *options, "--signing-key", key)["state"] == "accepted"
    assert [d["state"] for d in run_lines("request", "list", folder)] == ["accepted", "accepted"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--class", "3"), "say who asks"),
        (("--requester", "operator"), "at least one class, client or sample"),
        (("--requester", "operator", "--sample", "patient"), "CLIENT=KEY"),
        (("--requester", "operator", "--class", "3", "--deadline", "tomorrow"), "2026-12-01"),
        (("--requester", "operator", "--class", "3", "--deadline", "2001-01-01"), "deadline must be later"),
        (("--requester", " x", "--class", "3"), "requester"),
        (("--requester", "operator", "--class", "3", "--key", "none.pem"), "cannot read the key"),
        (("--requester", "operator", "--class", "3", "--policy", "none.toml"), "policy none.toml"),
        (("FILE", "--class", "3"), "not both"),
        (("BAD",), "not JSON"),
    ],
)
def test_wrong_input_changes_nothing(
    options: tuple[str, ...], message: str, folder: Path, office: Office, tmp_path: Path
) -> None:
    (tmp_path / "FILE").write_bytes(office.document(ForgetRequest((3,))).to_bytes())
    (tmp_path / "BAD").write_text("{")
    files = [str(tmp_path / o) if o in ("FILE", "BAD") else o for o in options]
    failed = run("request", "add", folder, *files, code=2)
    assert message in " ".join(failed.stderr.replace("│", " ").split())
    assert not (folder / "inbox").exists()


def test_a_folder_without_a_store_is_refused(tmp_path: Path) -> None:
    failed = run("request", "add", tmp_path, "--class", 3, "--requester", "operator", code=2)
    assert "not the store of a run" in failed.stderr
    assert list(tmp_path.iterdir()) == []


def test_keygen_and_names_from_outside(folder: Path, tmp_path: Path) -> None:
    made = run_json("request", "keygen", tmp_path / "own.pem")
    assert SigningKey.load(tmp_path / "own.pem").public.fingerprint == made["fingerprint"]
    assert "keep it secret" in run("request", "keygen", tmp_path / "other.pem").stdout
    run("request", "keygen", tmp_path / "own.pem", code=2)
    assert run_lines("request", "list", folder) == []
    run("request", "list", folder, "--state", "asleep", code=2)
    assert soon() > soon(-1)
