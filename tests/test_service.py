"""The HTTP service: nothing without the token, no more than a document is read, and no run is disturbed."""

from __future__ import annotations

import json
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
import runs
from cases_cli import run
from cases_requests import Office, soon, states
from fastapi.testclient import TestClient

from fl_unlearn import desk as desk_module
from fl_unlearn import inbox as inbox_module
from fl_unlearn.audit_keys import SigningKey
from fl_unlearn.desk import Desk
from fl_unlearn.document_checks import MAX_BYTES
from fl_unlearn.intake import take_in
from fl_unlearn.run_store import RunStore
from fl_unlearn.service import create_app, read_token
from fl_unlearn.types import ForgetRequest, SettingsError

TOKEN = "t" * 31 + "!"
THREE = ForgetRequest((3,))
BEARER = {"Authorization": f"Bearer {TOKEN}"}


@pytest.fixture(scope="module")
def office(tmp_path_factory: pytest.TempPathFactory) -> Office:
    return Office(tmp_path_factory.mktemp("office"))


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("template") / "run"
    runs.filled(folder, rounds=1).close()
    return folder


@pytest.fixture
def folder(template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(desk_module, "_WAIT", 0.0)
    shutil.copytree(template, tmp_path / "run")
    return tmp_path / "run"


@pytest.fixture
def client(folder: Path, office: Office) -> Iterator[TestClient]:
    app = create_app(Desk(folder, office.policy), TOKEN)
    with TestClient(app, headers=BEARER, raise_server_exceptions=False) as client:
        yield client


def problem(response: Any, status: int, code: str) -> str:
    assert response.status_code == status, response.text
    assert set(response.json()) == {"code", "message"}
    assert response.json()["code"] == code
    assert "Traceback" not in response.text
    return str(response.json()["message"])


# --------------------------------------------------------------------------- the token
PATHS = [
    ("GET", "/health"),
    ("GET", "/requests"),
    ("POST", "/requests"),
    ("GET", "/requests/abcdef"),
    ("DELETE", "/requests/abcdef"),
    ("GET", "/openapi.json"),
    ("GET", "/nothing"),
    ("OPTIONS", "/requests"),
]
WRONG = [
    None,
    "",
    "Bearer",
    "Bearer ",
    f"Bearer {TOKEN[:-1]}",
    f"Bearer {TOKEN}x",
    f"Basic {TOKEN}",
    TOKEN,
    "Bearer tökén",
]


@pytest.mark.parametrize(("method", "path"), PATHS)
def test_nothing_without_the_token(method: str, path: str, client: TestClient, folder: Path) -> None:
    for header in WRONG:
        client.headers = httpx.Headers({} if header is None else {"Authorization": header.encode()})
        response = client.request(method, path, content=b"{}")
        problem(response, 401, "unauthorized")
        assert response.headers["WWW-Authenticate"] == "Bearer"
    assert not (folder / "inbox").exists()


def test_the_token_comes_from_a_file_or_the_environment(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text(f"{TOKEN}\n")
    assert read_token(file, {}) == TOKEN
    assert read_token(None, {"FL_UNLEARN_TOKEN": TOKEN}) == TOKEN
    for weak in ("", "short", "x" * 31, "x" * 16 + " " + "x" * 16, "ö" * 40, "x" * 40 + "\0"):
        file.write_text(weak)
        with pytest.raises(SettingsError, match="the token in"):
            read_token(file, {"FL_UNLEARN_TOKEN": TOKEN})
    with pytest.raises(SettingsError, match="cannot read the token file"):
        read_token(tmp_path / "none", {})
    with pytest.raises(SettingsError, match="FL_UNLEARN_TOKEN has 0 characters"):
        read_token(None, {})


def test_a_service_without_a_policy_is_refused(folder: Path) -> None:
    with pytest.raises(SettingsError, match="needs a policy"):
        create_app(Desk(folder), TOKEN)


# --------------------------------------------------------------------------- asking
def test_a_document_is_accepted_followed_and_cancelled(
    client: TestClient, folder: Path, office: Office
) -> None:
    document = office.document(THREE, deadline=soon())
    made = client.post("/requests", content=document.to_bytes())
    assert made.status_code == 201, made.text
    assert (made.json()["state"], made.json()["id"]) == ("accepted", document.id)
    assert client.get(f"/requests/{document.id}").json() == made.json()
    assert client.get(f"/requests/{document.id[:7]}").json() == made.json()
    assert client.get("/requests").json() == {"requests": [made.json()]}
    assert client.get("/requests?state=waiting").json() == {"requests": []}
    assert client.get("/health").json() == {"status": "ok", "waiting": 0}
    cancelled = client.delete(f"/requests/{document.id}")
    assert (cancelled.status_code, cancelled.json()["state"]) == (200, "cancelled")
    problem(client.delete(f"/requests/{document.id}"), 409, "too-late")
    with RunStore(folder, read_only=True) as store:
        assert states(store) == [("cancelled", None)]


def test_refusals_have_a_code_and_are_recorded(client: TestClient, folder: Path, office: Office) -> None:
    good = office.document(THREE)
    assert client.post("/requests", content=good.to_bytes()).status_code == 201
    cases: list[tuple[bytes, int, str]] = [
        (good.to_bytes(), 409, "replayed"),
        (b"", 400, "malformed"),
        (b"{", 400, "malformed"),
        (b'{"a": ' * 50_000, 400, "malformed"),
        (office.document(THREE, key=None).to_bytes(), 403, "unsigned"),
        (office.document(THREE, "hospital").to_bytes(), 403, "not-allowed"),
        (replace(office.document(THREE), request=ForgetRequest((1,))).to_bytes(), 403, "forged"),
        (office.document(THREE, now=soon(-3), deadline=soon(-2)).to_bytes(), 422, "expired"),
    ]
    for data, status, code in cases:
        assert problem(client.post("/requests", content=data), status, code)
    with RunStore(folder, read_only=True) as store:
        assert [row.code for row in store.documents.rows()] == [None, *(code for *_, code in cases)]


def test_a_body_that_is_too_long_is_not_taken(client: TestClient, folder: Path) -> None:
    def pieces() -> Iterator[bytes]:
        for _ in range(64):  # without a length in the header
            yield b" " * (MAX_BYTES // 16)

    for content in (b" " * (MAX_BYTES + 1), pieces()):
        problem(client.post("/requests", content=content), 413, "too-large")
    assert not (folder / "inbox").exists()


def test_while_a_run_holds_the_store(client: TestClient, folder: Path, office: Office) -> None:
    document = office.document(THREE)
    with RunStore(folder) as store:
        made = client.post("/requests", content=document.to_bytes())
        assert (made.status_code, made.json()["state"]) == (202, "waiting")
        assert made.json()["message"].startswith("a run holds the store")
        refused = client.post("/requests", content=office.document(THREE, "hospital").to_bytes())
        problem(refused, 403, "not-allowed")
        assert client.get("/health").json() == {"status": "ok", "waiting": 2}
        assert store.documents.rows() == []
        take_in(store, office.policy)
        assert client.get(f"/requests/{document.id}").json()["state"] == "accepted"
        asked = client.delete(f"/requests/{document.id}")
        assert (asked.status_code, asked.json()["state"]) == (200, "accepted")
        assert states(store) == [("accepted", None), ("refused", "not-allowed")]
        take_in(store, office.policy)
        assert states(store) == [("cancelled", None), ("refused", "not-allowed")]


# --------------------------------------------------------------------------- errors
def test_errors_are_json(client: TestClient, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    problem(client.get("/nothing"), 404, "not-found")
    problem(client.put("/requests"), 405, "method-not-allowed")
    problem(client.get("/docs"), 404, "not-found")
    problem(client.get("/requests/abc"), 404, "not-found")
    problem(client.delete(f"/requests/{'f' * 32}"), 404, "not-found")
    monkeypatch.setattr(inbox_module, "MOST_WAITING", 0)
    problem(client.post("/requests", content=b"{}"), 503, "full")
    monkeypatch.undo()

    def fail(*_: Any) -> None:
        raise ZeroDivisionError("a secret")

    monkeypatch.setattr(Desk, "hand_in", fail)
    assert "secret" not in problem(client.post("/requests", content=b"{}"), 500, "internal")
    monkeypatch.undo()
    (folder / "lineage.sqlite").write_bytes(b"no database" * 1000)
    problem(client.get("/health"), 503, "store-unavailable")


def test_openapi_tells_of_everything(client: TestClient) -> None:
    told = client.get("/openapi.json").json()
    assert set(told["paths"]) == {"/requests", "/requests/{id}", "/health"}
    body = told["paths"]["/requests"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert "target" in body["properties"]
    assert told["paths"]["/requests"]["post"]["security"] == [{"HTTPBearer": []}]


# --------------------------------------------------------------------------- the command
def test_the_command_refuses_what_would_not_be_safe(folder: Path, office: Office, tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("short")
    assert (
        "at least 32" in run("serve", folder, "--policy", office.path, "--token-file", token, code=2).stderr
    )
    assert "FL_UNLEARN_TOKEN" in run("serve", folder, "--policy", office.path, code=2).stderr
    run("serve", folder, "--token-file", token, code=2)
    token.write_text(TOKEN)
    assert (
        "no requester"
        in run("serve", folder, "--policy", _empty(tmp_path), "--token-file", token, code=2).stderr
    )
    other = run("serve", tmp_path, "--policy", office.path, "--token-file", token, code=2)
    assert "not the store of a run" in other.stderr


def _empty(folder: Path) -> Path:
    (folder / "empty.toml").write_text("")
    return folder / "empty.toml"


def test_other_addresses_than_loopback_are_warned_of(
    folder: Path, office: Office, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import uvicorn

    token = tmp_path / "token"
    token.write_text(TOKEN)
    asked: list[tuple[str, int]] = []
    monkeypatch.setattr(uvicorn, "run", lambda app, host, port, **_: asked.append((host, port)))
    arguments = ("serve", folder, "--policy", office.path, "--token-file", token)
    for host in ("127.0.0.1", "::1", "localhost"):
        assert "WARNING" not in run(*arguments, "--host", host).stderr
    for host in ("0.0.0.0", "192.168.1.4", "::", "example.org"):
        assert "WARNING: " in run(*arguments, "--host", host, "--port", 80).stderr
    assert asked[0] == ("127.0.0.1", 8750)
    assert asked[-1] == ("example.org", 80)


def test_a_signed_log_without_its_key_is_warned_of(
    folder: Path, office: Office, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    token, key = tmp_path / "token", tmp_path / "audit.pem"
    token.write_text(TOKEN)
    SigningKey.generate(key)
    RunStore(folder, signing_key=key).close()
    monkeypatch.setattr("uvicorn.run", lambda app, **_: None)
    arguments = ("serve", folder, "--policy", office.path, "--token-file", token)
    assert re.search("WARNING: nothing is decided here.* is signed", run(*arguments).stderr)
    assert "WARNING" not in run(*arguments, "--signing-key", key).stderr


@pytest.mark.slow
def test_a_real_server(folder: Path, office: Office, tmp_path: Path) -> None:
    token, document = tmp_path / "token", office.document(THREE)
    token.write_text(TOKEN)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "fl_unlearn.cli", "serve", folder, "--policy", office.path]
    command += ["--token-file", token, "--port", str(port)]
    server = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", headers=BEARER, trust_env=False) as client:
            for _ in range(600):
                try:
                    assert client.get("/health").json() == {"status": "ok", "waiting": 0}
                    break
                except httpx.ConnectError:
                    assert server.poll() is None
                    time.sleep(0.1)
            made = client.post("/requests", content=document.to_bytes())
            assert (made.status_code, made.json()["state"]) == (201, "accepted")
            assert "server" not in made.headers
            assert client.get("/requests", headers={"Authorization": "Bearer x"}).status_code == 401
            big = client.post("/requests", content=b" " * (MAX_BYTES + 1))
            assert big.status_code == 413
            listed = run("request", "list", folder, "--json").stdout
            assert json.loads(listed)["id"] == document.id
    finally:
        server.terminate()
        told = server.communicate(timeout=60)[1]
    assert f"listening on http://127.0.0.1:{port}" in told
    assert TOKEN not in told
