"""``fl-unlearn audit``: check the log of what was done, read it, and certify one request."""

from __future__ import annotations

import json
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fl_unlearn.cli import exports, stores
from fl_unlearn.cli.output import (
    Json,
    JsonLines,
    count,
    print_json,
    print_json_line,
    progress,
    say,
    short,
    some,
    stream,
    table,
)
from fl_unlearn.cli.stores import STORE_HELP, Store

if TYPE_CHECKING:
    from fl_unlearn.audit_certificate import CertificateResult
    from fl_unlearn.audit_entry import Entry
    from fl_unlearn.audit_verify import AuditResult

_DETAILS = 70  # characters of an entry's body that people get to see

PublicKeyFile = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE", help="The key that must have signed: what keygen wrote to FILE.pub.", dir_okay=False
    ),
]
app = typer.Typer(
    no_args_is_help=True, help="The signed record of requests, and of what was done about them."
)


@app.command(epilog=STORE_HELP)
def verify(
    folder: Store,
    public_key: PublicKeyFile = None,
    head: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="File to which the run wrote the log's head (audit_head=...)."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Compare the store with its audit log, entry by entry and file by file. Exit code 1 if they differ."""
    from fl_unlearn.audit_keys import PublicKey
    from fl_unlearn.audit_verify import verify_store

    key = PublicKey.load(public_key) if public_key else None
    with stores.reading(folder) as store, progress("checking") as bar:
        task = bar.add_task("", total=None)
        result = verify_store(
            store,
            public_key=key,
            head=head,
            progress=lambda done, total: bar.update(task, completed=done, total=total),
        )
    notes = []
    if key is None:
        notes.append("a log that was rewritten as a whole would not be noticed: give --public-key")
    if head is None:
        notes.append("entries cut off at the end would not be noticed: give --head")
    if as_json:
        print_json({"ok": result.ok, **asdict(result), "notes": notes})
    else:
        _show_verified(result, notes)
    if not result.ok:
        raise typer.Exit(1)


def _show_verified(result: AuditResult, notes: list[str]) -> None:
    for problem in result.problems:
        say(problem, "red")
    for digest in result.pending:
        say(f"operation {short(digest)} is decided but not finished; opening the store to write finishes it")
    for note in notes:
        say(f"note: {note}", "yellow")
    found = count(len(result.problems), "problem") if result.problems else "no problem"
    what = f"{count(result.entries, 'entry', 'entries')} ({result.signed:,} signed)"
    text = f"{found}; {what} and {count(result.checkpoints, 'checkpoint')} are in order"
    if result.problems:
        text = f"{found}; {what} and {count(result.checkpoints, 'sound checkpoint')} were read"
    say(text, "bold red" if result.problems else "bold green")


@app.command("log", epilog=STORE_HELP)
def log_(
    folder: Store,
    since: Annotated[int, typer.Option(min=1, metavar="SEQ", help="Number of the first entry to show.")] = 1,
    as_json: JsonLines = False,
) -> None:
    """The entries, oldest first."""
    # Closed before the store is, also where a reader of the output goes away in the middle.
    with stores.reading(folder) as store, closing(store.audit.entries(since)) as entries:
        if as_json:
            for entry in entries:
                print_json_line(entry.to_json())
            return
        columns = ("seq", "time (UTC)", "kind", "signed", "sha-256", "what")
        stream(columns, (_row(entry) for entry in entries), cut="what")


def _row(entry: Entry) -> tuple[object, ...]:
    """An entry on one line: of its body the plain values, then what it lists, or how much."""
    plain = {n: v for n, v in entry.body.items() if not isinstance(v, dict | list)}
    parts = [f"{n} {short(v) if isinstance(v, str) and len(v) == 64 else v}" for n, v in plain.items()]
    parts += [f"{n} {_listed(v)}" for n, v in entry.body.items() if n not in plain]
    what = ", ".join(parts)
    what = what if len(what) <= _DETAILS else what[: _DETAILS - 3] + "..."
    signed = "yes" if entry.signature else "no"
    return entry.seq, entry.time[:19].replace("T", " "), entry.kind, signed, short(entry.hash), what


def _listed(value: dict[str, Any] | list[Any]) -> str:
    """A few plain values, or how many there are."""
    if isinstance(value, list) and value and all(isinstance(v, str | int | float) for v in value):
        return some([str(v) for v in value], 3)
    return f"({len(value)})"


@app.command(epilog=f"{STORE_HELP} REQUEST: its number, or the first 6 or more characters of its operation.")
def export(
    folder: Store,
    request: Annotated[str, typer.Argument(metavar="REQUEST", hidden=True)],
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write it there instead of to stdout.", dir_okay=False)
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="A certificate is JSON with or without this.")
    ] = False,
) -> None:
    """The certificate of one request: JSON that anybody can check with the public key alone."""
    from fl_unlearn.audit_certificate import export_certificate

    with stores.reading(folder) as store:
        certificate = export_certificate(store, request)
    if out is None:
        print_json(certificate)
        return
    with exports.replacing(out) as made:
        made.write_text(json.dumps(certificate, indent=2) + "\n", encoding="utf-8")
    say(f"wrote {out}", stderr=as_json)


@app.command(epilog="CERTIFICATE: a file that fl-unlearn audit export has written.")
def check(
    certificate: Annotated[
        Path, typer.Argument(metavar="CERTIFICATE", dir_okay=False, exists=True, hidden=True)
    ],
    public_key: Annotated[
        Path,
        typer.Option(
            metavar="FILE", help="The operator's public key, from a source you trust.", dir_okay=False
        ),
    ],
    store: Annotated[
        Path | None,
        typer.Option(
            metavar="STORE", help="Compare it with this store's log too.", exists=True, file_okay=False
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Check a certificate. Exit code 1 if it is not to be trusted."""
    from fl_unlearn.audit_certificate import check_certificate
    from fl_unlearn.audit_keys import PublicKey

    plain, key = _read(certificate), PublicKey.load(public_key)
    if store is None:
        result = check_certificate(plain, key)
    else:
        with stores.reading(store) as opened:
            result = check_certificate(plain, key, opened)
    if as_json:
        print_json({"ok": result.ok, **asdict(result)})
    else:
        _show_certificate(result)
    if not result.ok:
        raise typer.Exit(1)


def _read(path: Path) -> Any:
    from fl_unlearn.types import AuditError

    try:
        return json.loads(path.read_bytes())
    except (ValueError, RecursionError) as e:
        raise AuditError(f"{path} is no certificate: it is not JSON ({e})") from e


def _show_certificate(result: CertificateResult) -> None:
    for problem in result.problems:
        say(problem, "red")
    if result.problems:
        say("not to be trusted", "bold red")
        return
    asked = result.asked or {}
    samples = [f"{len(own)} of client {c}" for c, own in (asked.get("samples") or {}).items()]
    facts = [
        ("request", result.request),
        ("asked by", result.requester or "the run's program"),
        ("classes", some([str(c) for c in asked.get("classes") or ()], 20) or "-"),
        (
            "clients",
            some([str(c) for c in asked.get("clients") or ()], 20) or ("-" if samples else "all holders"),
        ),
        *((("samples", some(samples, 20)),) if samples else ()),
        ("decided", result.decided or "no"),
        (
            "checkpoints",
            f"{len(result.checkpoints):,} changed{'' if result.applied else ', not yet in place'}",
        ),
        ("confirmed by", some(sorted(result.receipts), 20) or "no client"),
        ("outstanding", some(result.outstanding, 20) or "no client"),
    ]
    facts += [(f"  {client}", reason) for client, reason in result.reasons.items()]
    facts += [("as of", result.until), *(("refused", reason) for reason in result.refused)]
    table(("", ""), facts, header=False)
    say("signed with this key, and unchanged since", "bold green")


@app.command(
    epilog="FILE: where the private key goes; the public one goes to FILE.pub. Neither may be there."
)
def keygen(
    file: Annotated[Path, typer.Argument(metavar="FILE", hidden=True)],
    as_json: Json = False,
) -> None:
    """Make a pair of Ed25519 keys: one to sign the log with (signing_key=...), one to give to others."""
    from fl_unlearn.audit_keys import SigningKey

    key = SigningKey.generate(file)
    public = f"{file}.pub"
    if as_json:
        print_json({"private_key": str(file), "public_key": public, "fingerprint": key.public.fingerprint})
        return
    say(f"private key: {file} (keep it secret, and off the machine that keeps the store's backups)")
    say(f"public key:  {public} (fingerprint {key.public.fingerprint})")
