"""A certificate for one request: the signed entries that tell of it, checked with the public key alone."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from fl_unlearn.audit_entry import START, Entry
from fl_unlearn.audit_keys import PublicKey
from fl_unlearn.audit_replay import Replay
from fl_unlearn.audit_verify import Problem
from fl_unlearn.run_store import RunStore
from fl_unlearn.types import AuditError

FORMAT = "fl-unlearn certificate 1"
SHORTEST_PREFIX = 6
STATEMENT = (
    "This certificate shows what the operator of this store recorded and signed about one request: what "
    "was asked, which update was decided, the SHA-256 digests of every checkpoint before and after it, "
    "whether the checkpoints were put in place, which clients confirmed it, and which had not by the time "
    "of the newest entry. It does not show that a model holds no trace of the data: a passing metric is "
    "no proof of erasure. It does not reach copies outside the store, what clients do beside what they "
    "confirm, or anything that was not recorded; and whoever passes it on can leave entries out. The "
    "times are those of the operator's clock."
)
# Long, and never part of a certificate.
_BULK = ("adopted", "recorded", "pruned", "noted")
_FIELDS = ("format", "store", "key", "request", "entries", "head", "statement")


@dataclass(frozen=True)
class CertificateResult:
    """What `check_certificate` found. With problems, nothing else of it is to be relied upon.

    Attributes:
        problems: Why it is not to be trusted; empty for a good one.
        request: The request's number, or the start of an operation's digest, as it was exported.
        asked: What was asked, as recorded with the decision; None when nothing was decided.
        decided: When it was decided (UTC, ISO 8601); None when it was not.
        applied: Whether the checkpoints that it changes are in place.
        checkpoints: Name to digest before and after.
        receipts: Client to what it confirmed, in its own words.
        outstanding: Clients that had not confirmed by ``until``.
        reasons: Of those, what the ones that answered could not change, in their own words.
        refused: Why the request was refused, when it was.
        requester: Who asked for it by a document; None when the run's program did.
        until: Time of the newest entry of the log when the certificate was made.
    """

    problems: tuple[Problem, ...]
    request: str = ""
    asked: dict[str, Any] | None = None
    decided: str | None = None
    applied: bool = False
    checkpoints: dict[str, tuple[str, str]] = field(default_factory=dict)
    receipts: dict[str, tuple[str, ...]] = field(default_factory=dict)
    outstanding: tuple[str, ...] = ()
    reasons: dict[str, str] = field(default_factory=dict)
    refused: tuple[str, ...] = ()
    requester: str | None = None
    until: str = ""

    @property
    def ok(self) -> bool:
        """Whether it can be trusted."""
        return not self.problems


def export_certificate(store: RunStore, request: str) -> dict[str, Any]:
    """The certificate of one request, as plain values for JSON.

    Entries belong to a request when their body says ``"request": number`` (that of "decided": in the request
    that it was given), or ``"operation"`` or ``"update"`` with the digest of one of its operations; so do
    those of the document that asked for it. Exported are those signed with the key of the decision; the head
    is the newest entry signed with it.

    Args:
        store: The store; may be read-only.
        request: The request's number, or at least `SHORTEST_PREFIX` characters of an operation's digest.

    Raises:
        AuditError: If there is no such request, its decision is not signed, or the log was changed.
    """
    entries: list[Entry] = []
    newest: dict[int, Entry] = {}  # number of a "key" entry to the last one signed with that key
    by = 0
    for entry in store.audit.entries():
        by = entry.seq if entry.kind == "key" else by
        if by:
            newest[by] = entry
        if entry.kind not in _BULK:
            entries.append(entry)
    chosen = _belonging(entries, request)
    anchor = next((e for e in chosen if e.kind == "decided"), chosen[0])
    by = max((seq for seq in newest if seq < anchor.seq), default=0)
    if not by:
        raise AuditError(
            f"entry {anchor.seq}, which tells of {request!r}, is not signed: there can be no certificate. "
            "Make a key (fl-unlearn audit keygen) and give it as RunStore(..., signing_key=...): what is "
            "written then is signed"
        )
    announced = next(e for e in entries if e.seq == by)
    own = [e for e in chosen if by < e.seq <= newest[by].seq]
    return {
        "format": FORMAT,
        "store": store.audit.store_id,
        "key": announced.body["fingerprint"],
        "request": request,
        "entries": [e.to_json() for e in (entries[0], announced, *own)],
        "head": newest[by].to_json(),
        "statement": STATEMENT,
    }


def check_certificate(
    certificate: Mapping[str, Any], public_key: PublicKey, store: RunStore | None = None
) -> CertificateResult:
    """Check a certificate from whatever source; it needs the public key and nothing else.

    Args:
        certificate: What `export_certificate` made, after any journey.
        public_key: The operator's key, from a source other than the certificate.
        store: The store that it should be of; then it must also agree with that store's log, and be complete.
    """
    problems: list[Problem] = []
    try:
        entries = list(_read(certificate, public_key))
        head = entries.pop()
        if store is not None:
            problems += _compare(store, certificate["store"], certificate["request"], [*entries, head])
        if not problems:
            return _summary(certificate["request"], entries, head)
    except (_UnfitError, AuditError) as e:
        problems.append(Problem("the certificate", str(e)))
    except (LookupError, TypeError, ValueError, AttributeError) as e:
        problems.append(Problem("the certificate", f"has entries that do not fit together ({e})"))
    return CertificateResult(tuple(problems))


class _UnfitError(Exception):
    """What is wrong with a certificate."""


def _read(certificate: Mapping[str, Any], public_key: PublicKey) -> Iterator[Entry]:
    """The entries that belong to the request, each checked, then the head."""
    if not isinstance(certificate, Mapping) or set(certificate) != set(_FIELDS):
        raise _UnfitError(f"does not have the fields {', '.join(_FIELDS)}")
    if certificate["format"] != FORMAT:
        raise _UnfitError(f"has the format {certificate['format']!r}; this version reads {FORMAT!r}")
    store_id, request = certificate["store"], certificate["request"]
    if not isinstance(store_id, str) or not isinstance(request, str):
        raise _UnfitError("names its store or its request by something else than a text")
    if certificate["key"] != public_key.fingerprint:
        raise _UnfitError(f"is signed with another key than the given one ({public_key.fingerprint[:16]})")
    if certificate["statement"] != STATEMENT:
        raise _UnfitError("has another statement of what it shows than certificates have")
    if not isinstance(certificate["entries"], list) or len(certificate["entries"]) < 3:
        raise _UnfitError("has too few entries to tell of a request")
    entries = [_entry(e) for e in certificate["entries"]]
    head = _entry(certificate["head"])
    created, announced, *own = entries
    if (created.seq, created.kind, created.previous) != (1, "created", START):
        raise _UnfitError("does not begin with the first entry of a log")
    if created.body.get("store") != store_id:
        raise _UnfitError("names another store than its first entry")
    if announced.kind != "key" or announced.body.get("fingerprint") != public_key.fingerprint:
        raise _UnfitError("does not hold the entry that announces the key")
    _check_chain(entries if head == entries[-1] else [*entries, head])
    for entry in (announced, *own, head):
        if entry.signature is None or not public_key.verify(store_id, entry.hash, entry.signature):
            raise _UnfitError(
                f"holds entry {entry.seq}, which was not signed with the given key for this store"
            )
    belonging = _belonging(own, request)
    if belonging != own:
        strange = next(e for e in own if e not in belonging)
        raise _UnfitError(f"holds entry {strange.seq}, which does not belong to request {request!r}")
    yield from own
    yield head


def _entry(value: Any) -> Entry:
    if not isinstance(value, Mapping):
        raise _UnfitError("has something else than an entry among its entries")
    try:
        return Entry.parse(value)
    except ValueError as e:
        raise _UnfitError(f"holds an entry (number {value.get('seq')!r}) that was changed: {e}") from e


def _check_chain(entries: list[Entry]) -> None:
    for before, after in pairwise(entries):
        if after.seq <= before.seq:
            raise _UnfitError(f"has entry {after.seq} after entry {before.seq}")
        if after.seq == before.seq + 1 and after.previous != before.hash:
            raise _UnfitError(f"has an entry {after.seq} that does not follow its entry {before.seq}")


def _belonging(entries: Iterable[Entry], request: str) -> list[Entry]:
    """The entries that tell of a request, in order.

    Raises:
        AuditError: If there are none, or they may be of several operations.
    """
    entries = list(entries)
    numbers: set[str | None] = {request}
    operations = {e.body.get("operation") for e in entries if _number(e) == request} - {None}
    if not any(_number(e) == request for e in entries):
        operations = set()
        if len(request) >= SHORTEST_PREFIX:
            decided = [e.body["operation"] for e in entries if e.kind == "decided"]
            operations = {digest for digest in decided if digest.startswith(request)}
        if len(operations) != 1:
            raise AuditError(
                f"{len(operations) or 'no'} decisions in the log fit {request!r}; give a request's number, "
                f"or the first {SHORTEST_PREFIX} or more characters of one operation's digest. "
                "What was decided before the log began has no certificate"
            )
        numbers = {_number(e) for e in entries if e.body.get("operation") in operations} - {None}
    decisions = [e.body for e in entries if e.kind == "decided" and e.body["operation"] in operations]
    updates = {body["update"] for body in decisions}
    clients = {client for body in decisions for client in body["clients"]}
    documents = {e.body.get("document") for e in entries if _number(e) in numbers} - {None}
    return [
        e
        for e in entries
        if _number(e) in numbers
        or e.body.get("operation") in operations
        or (e.kind == "kept" and e.body["update"] in updates)
        or (e.kind == "document" and e.body["document"] in documents)
        or (e.kind == "identified" and e.body["owner"] in clients)
    ]


def _number(entry: Entry) -> str | None:
    """The number of the request that an entry tells of."""
    value = entry.body.get("request")
    if isinstance(value, dict):
        value = value.get("request")
    return str(value) if isinstance(value, int | str) else None


def _compare(store: RunStore, store_id: str, request: str, entries: list[Entry]) -> Iterator[Problem]:
    try:
        if store.audit.store_id != store_id:
            yield Problem("the certificate", f"is of another store ({store_id[:16]}) than {store.folder}")
            return
        own = export_certificate(store, request)
    except AuditError as e:
        yield Problem("the store", str(e))
        return
    head = entries[-1]
    at = next(store.audit.entries(head.seq), None)
    if at != head:
        yield Problem("the certificate", f"ends with an entry {head.seq} that the store's log does not have")
    there = {e["seq"]: e["hash"] for e in own["entries"][2:] if e["seq"] <= head.seq}
    given = {e.seq: e.hash for e in entries[:-1]}
    for seq in sorted(there.keys() | given.keys()):
        if seq not in given:
            yield Problem("the certificate", f"leaves out entry {seq} of the store's log")
        elif there.get(seq) != given[seq]:
            yield Problem("the certificate", f"holds an entry {seq} that the store's log does not have")


def _summary(request: str, entries: list[Entry], head: Entry) -> CertificateResult:
    replay = Replay()
    checkpoints: dict[str, tuple[str, str]] = {}
    receipts: dict[str, tuple[str, ...]] = {}
    reasons: dict[str, str] = {}
    for entry in entries:
        replay.apply(entry.kind, entry.body)
        if entry.kind == "decided":
            for name, (before, after, _) in entry.body["checkpoints"].items():
                checkpoints[name] = checkpoints.get(name, (before,))[0], after
        elif entry.kind == "receipt":
            client = entry.body["client"]
            receipts[client] = (*receipts.get(client, ()), *entry.body["texts"])
        elif entry.kind == "attempt":
            reasons[entry.body["client"]] = str(entry.body["reason"])
    decided = next((e for e in entries if e.kind == "decided"), None)
    operations = replay.operations.values()
    outstanding = tuple(sorted({client for o in operations for client in o.waiting}))
    return CertificateResult(
        problems=(),
        request=request,
        asked=decided.body["request"] if decided else None,
        decided=decided.time if decided else None,
        applied=bool(operations) and all(o.done for o in operations),
        checkpoints=checkpoints,
        receipts=receipts,
        outstanding=outstanding,
        reasons={client: why for client, why in reasons.items() if client in outstanding},
        refused=tuple(str(e.body.get("message")) for e in entries if e.kind == "refused"),
        requester=next((e.body["requester"] for e in entries if "requester" in e.body), None),
        until=head.time,
    )
