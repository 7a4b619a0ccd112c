"""``fl-unlearn status``: what a store holds, at a glance."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

from fl_unlearn.cli import leftovers, stores
from fl_unlearn.cli.output import Json, Size, count, print_json, say, short, some, table
from fl_unlearn.cli.stores import Store

if TYPE_CHECKING:
    from fl_unlearn.run_store import RunStore


_WRITING = {True: "yes, by another process", False: "no", None: "unknown"}


def status(folder: Store, as_json: Json = False) -> None:
    """Rounds, models, checkpoints, what was forgotten, and what is still to be done."""
    with stores.reading(folder) as store:
        found = _status(store)
    if as_json:
        print_json(found)
    else:
        _show(found)


def _status(store: RunStore) -> dict[str, Any]:
    from fl_unlearn.document_status import statuses

    kinds = stores.kinds(store)
    number, size = stores.kept_bytes(store)
    left = leftovers.find(store)
    return {
        "store": str(store.folder),
        "rounds": max(store.umig.last_round(), 0),
        "models": {"total": sum(kinds.values()), "kinds": kinds},
        "clients": len(set(store.clients().values())),
        "checkpoints": {"count": number, "bytes": size},
        "operations": _operations(store),
        "audit_entries": stores.audit_entries(store),
        "interrupted_requests": stores.interrupted_requests(store),
        "documents": dict(Counter(s.state for s in statuses(store))),
        "pending": left.pending,
        "leftovers": [file.where for file in left.files],
        "being_written": stores.is_being_written(store.folder),
    }


def _operations(store: RunStore) -> list[dict[str, Any]]:
    sql = (
        "SELECT o.digest, o.done, count(a.node_id) FROM operation o LEFT JOIN application a "
        "ON a.operation_id = o.id GROUP BY o.id"
    )
    progress = {digest: (bool(done), changed) for digest, done, changed in stores.rows(store, sql)}
    times = stores.decision_times(store)
    waiting: dict[str, list[str]] = {}
    for client, operations in store.operations.outstanding().items():
        for operation in operations:
            waiting.setdefault(operation.digest, []).append(client)
    found = []
    for operation in store.operations.all():
        done, changed = progress[operation.digest]
        request = operation.request
        entry: dict[str, Any] = {"digest": operation.digest, "client_update": operation.client_update}
        entry |= {key: request.get(key) for key in ("classes", "clients", "reason", "threshold", "dampening")}
        entry["samples"] = {client: len(own) for client, own in request.get("samples", {}).items()}
        entry |= {
            "decided": times.get(operation.digest),
            "checkpoints": changed,
            "done": done,
            "outstanding": waiting.get(operation.digest, []),
        }
        found.append(entry)
    return found


def _show(found: dict[str, Any]) -> None:
    say(found["store"], "bold")
    kinds = found["models"]["kinds"]
    detail = ", ".join(f"{number:,} {kind}" for kind, number in kinds.items())
    kept = found["checkpoints"]
    facts = [
        ("rounds", f"{found['rounds']:,}"),
        ("models", f"{found['models']['total']:,}" + (f" ({detail})" if detail else "")),
        ("clients", f"{found['clients']:,}"),
        ("checkpoints", f"{kept['count']:,} ({Size(kept['bytes'])})"),
        ("being written", _WRITING[found["being_written"]]),
        ("audit log", count(found["audit_entries"], "entry", "entries")),
        ("pending", _pending(found)),
    ]
    if found["documents"]:
        texts = [f"{number:,} {state}" for state, number in found["documents"].items()]
        facts.append(("documents", f"{', '.join(texts)} (fl-unlearn request list)"))
    if found["interrupted_requests"]:
        texts = [f"{r['request']} (after phase {r['phase']!r})" for r in found["interrupted_requests"]]
        facts.append(("requests", f"{', '.join(texts)} under way, or interrupted: make them again"))
    table(("", ""), facts, header=False)
    say("")
    if not found["operations"]:
        say("nothing was forgotten yet")
        return
    columns = ("operation", "decided", "classes", "clients", "t", "lambda", "changed", "outstanding")
    table(columns, [_row(o) for o in found["operations"]])


def _pending(found: dict[str, Any]) -> str:
    parts = []
    if found["pending"]:
        parts.append(f"{count(len(found['pending']), 'checkpoint')} to put in place")
    if found["leftovers"]:
        parts.append(f"{count(len(found['leftovers']), 'leftover file')} to remove")
    if not parts:
        return "nothing"
    how = "by the run" if found["being_written"] else "by the next run, or fl-unlearn gc"
    return f"{', '.join(parts)} ({how})"


def _row(operation: dict[str, Any]) -> tuple[object, ...]:
    classes, waiting = operation["classes"], operation["outstanding"]
    clients = [str(c) for c in operation["clients"]]
    return (
        short(operation["digest"]),
        operation["decided"] and operation["decided"][:10],
        ", ".join(map(str, classes)) if classes else None,
        some(clients or [f"{n} samples of {c}" for c, n in operation["samples"].items()]) or "all",
        _number(operation["threshold"]),
        _number(operation["dampening"]),
        operation["checkpoints"],
        some(waiting) if waiting else "none",
    )


def _number(value: object) -> str | None:
    return f"{value:g}" if isinstance(value, int | float) else None
