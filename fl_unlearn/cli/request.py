"""``fl-unlearn request``: ask a store to forget, follow what becomes of it, and cancel it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fl_unlearn.cli import documents, exports, stores
from fl_unlearn.cli.documents import FILE_HELP, Asked
from fl_unlearn.cli.gc import HeadFile, KeyFile
from fl_unlearn.cli.output import (
    Json,
    JsonLines,
    count,
    print_json,
    print_json_line,
    say,
    short,
    some,
    stream,
    table,
)
from fl_unlearn.cli.stores import STORE_HELP, Store

if TYPE_CHECKING:
    from fl_unlearn.document_status import DocumentStatus
    from fl_unlearn.request_document import RequestDocument

PolicyFile = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="Who may ask for what (TOML). With it, it is decided at once if no run holds the store.",
        dir_okay=False,
    ),
]
Name = Annotated[str, typer.Argument(metavar="REQUEST", hidden=True)]
NAME_HELP = "REQUEST: the id or ticket of a document, or the first 6 or more characters of one."
_REFUSED = ("refused", "expired", "cancelled")

app = typer.Typer(no_args_is_help=True, help="Documents that ask to forget: hand in, follow, cancel, sign.")


@app.command(epilog=f"{STORE_HELP} {FILE_HELP}")
def add(
    folder: Store,
    document: documents.File = None,
    classes: documents.Classes = None,
    clients: documents.Clients = None,
    samples: documents.Samples = None,
    requester: documents.Requester = None,
    key: documents.Key = None,
    federation: documents.Federation = None,
    reason: documents.Reason = "",
    scope: documents.Scope = None,
    deadline: documents.Deadline = None,
    policy: PolicyFile = None,
    signing_key: KeyFile = None,
    audit_head: HeadFile = None,
    as_json: Json = False,
) -> None:
    """Ask a store to forget, also while a run holds it: then between rounds. Exit code 1: refused."""
    from fl_unlearn.desk import Desk
    from fl_unlearn.policy import Policy
    from fl_unlearn.request_document import RequestDocument

    rules = Policy.read(policy) if policy else None
    asked = Asked(classes, clients, samples, requester, federation, reason, scope, deadline)
    if document is None:
        made = asked.document()
        if rules and made.federation is None:
            made = replace(made, federation=rules.federation)
        data = _signed(made, key).to_bytes()
    else:
        asked.check_unused()
        data = documents.read(document)
        parsed = RequestDocument.from_bytes(data)
        data = _signed(parsed, key).to_bytes() if key else data
    status, waits = Desk(folder, rules, signing_key, audit_head).hand_in(data)
    if as_json:
        print_json(status.to_json() | {"waits_because": waits})
    else:
        _say(status, waits)
    if status.state in _REFUSED:
        raise typer.Exit(1)


@app.command("list", epilog=STORE_HELP)
def list_(
    folder: Store,
    state: Annotated[str | None, typer.Option(metavar="STATE", help="Only those in this state.")] = None,
    as_json: JsonLines = False,
) -> None:
    """Every document that was handed in, waiting ones included, and what has become of it."""
    from fl_unlearn.document_status import STATES, statuses

    if state is not None and state not in STATES:
        raise typer.BadParameter(f"--state must be one of {', '.join(STATES)}, got {state!r}")
    with stores.reading(folder) as store:
        found = [s for s in statuses(store) if state in (None, s.state)]
    if as_json:
        for status in found:
            print_json_line(status.to_json())
        return
    columns = ("id", "requester", "asks to forget", "received (UTC)", "deadline", "state", "why")
    stream(columns, (_row(s) for s in found), cut="why")
    say(count(len(found), "document"))


@app.command(epilog=f"{STORE_HELP} {NAME_HELP}")
def show(folder: Store, request: Name, as_json: Json = False) -> None:
    """One document: who asked for what, until when, and what has become of it."""
    from fl_unlearn.document_status import find

    with stores.reading(folder) as store:
        status = find(store, request)
    if as_json:
        print_json(status.to_json())
        return
    facts = {
        name: value for name, value in status.to_json().items() if name not in ("target", "deadline_met")
    }
    facts["asks to forget"] = _target(status.target)
    facts["deadline met"] = {True: "yes", False: "no", None: None}[status.deadline_met]
    table(("", ""), [(name, value) for name, value in facts.items() if value not in (None, "")], header=False)


@app.command(epilog=f"{STORE_HELP} {NAME_HELP}")
def cancel(
    folder: Store,
    request: Name,
    policy: PolicyFile = None,
    signing_key: KeyFile = None,
    audit_head: HeadFile = None,
    as_json: Json = False,
) -> None:
    """Cancel a document that is not being served yet; a run that holds the store does it between rounds."""
    from fl_unlearn.desk import Desk
    from fl_unlearn.policy import Policy

    rules = Policy.read(policy) if policy else None
    status, waits = Desk(folder, rules, signing_key, audit_head).withdraw(request)
    if as_json:
        print_json(status.to_json() | {"waits_because": waits})
    else:
        _say(status, waits)


@app.command(epilog=FILE_HELP)
def sign(
    key: Annotated[Path, typer.Option(metavar="FILE", help="The requester's private key.", dir_okay=False)],
    document: documents.File = None,
    classes: documents.Classes = None,
    clients: documents.Clients = None,
    samples: documents.Samples = None,
    requester: documents.Requester = None,
    federation: documents.Federation = None,
    reason: documents.Reason = "",
    scope: documents.Scope = None,
    deadline: documents.Deadline = None,
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write it there instead of to stdout.", dir_okay=False)
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="A document is JSON with or without this.")] = False,
) -> None:
    """Make a signed document, to be sent to whoever keeps the store. It needs no store."""
    from fl_unlearn.request_document import RequestDocument

    asked = Asked(classes, clients, samples, requester, federation, reason, scope, deadline)
    if document is None:
        made = asked.document()
    else:
        asked.check_unused()
        made = RequestDocument.from_bytes(documents.read(document))
    signed = _signed(made, key).to_json()
    if out is None:
        print_json(signed)
        return
    with exports.replacing(out) as path:
        path.write_text(json.dumps(signed, indent=2) + "\n", encoding="utf-8")
    say(f"wrote {out}: document {signed['id']}", stderr=as_json)


@app.command(epilog="KEY: where the private key goes; the public one goes to KEY.pub. Neither may be there.")
def keygen(file: Annotated[Path, typer.Argument(metavar="KEY", hidden=True)], as_json: Json = False) -> None:
    """Make a requester's pair of Ed25519 keys: one signs documents, the other is for the policy."""
    from fl_unlearn.audit_keys import SigningKey

    key = SigningKey.generate(file)
    if as_json:
        about = {"private_key": str(file), "public_key": f"{file}.pub"}
        print_json(about | {"fingerprint": key.public.fingerprint})
        return
    say(f"private key: {file} (keep it secret: who has it can ask in the requester's name)")
    say(f"public key:  {file}.pub, for the policy (fingerprint {key.public.fingerprint})")


def _signed(document: RequestDocument, key: Path | None) -> RequestDocument:
    from fl_unlearn.audit_keys import SigningKey

    return document if key is None else document.sign(SigningKey.load(key))


def _say(status: DocumentStatus, waits: str | None) -> None:
    style = "bold red" if status.state in _REFUSED else "bold green"
    why = f" ({status.code})" if status.code else ""
    say(f"document {status.id or status.ticket}: {status.state}{why}", style)
    for text in (status.message, waits):
        if text:
            say(text)


def _row(s: DocumentStatus) -> tuple[object, ...]:
    state = f"{s.state} ({s.phase or s.code})" if s.phase or s.code else s.state
    came = s.received[:16].replace("T", " ")
    met = {True: " met", False: " missed", None: ""}[s.deadline_met]
    until = s.deadline and s.deadline[:16].replace("T", " ") + met
    return short(s.id or s.ticket), s.requester, _target(s.target), came, until, state, s.message


def _target(target: dict[str, Any] | None) -> str | None:
    if target is None:
        return None
    parts = [
        f"{what} {some([str(v) for v in target[what]])}" for what in ("classes", "clients") if target[what]
    ]
    parts += [
        f"{count(len(keys), 'sample')} of client {client}" for client, keys in target["samples"].items()
    ]
    return ", ".join(parts)
