"""``fl-unlearn lineage``: the model inheritance graph, and whom a client's or a class's data reached."""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fl_unlearn.cli import exports, stores
from fl_unlearn.cli.output import count, print_json, print_json_line, say, short, some, stream, table
from fl_unlearn.cli.stores import Round, Store

if TYPE_CHECKING:
    from fl_unlearn.lineage import Node
    from fl_unlearn.run_store import RunStore

SHOWN = 50

Target = Annotated[
    str | None,
    typer.Option(
        metavar="class:N|client:NAME",
        help="List the models that inherited from this client's updates, oldest first; for a class, from the "
        "updates that served requests to forget it found to hold it.",
    ),
]
Export = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="Write the whole graph: .graphml, .graphml.gz, .json (node-link) or .dot (Graphviz; affected "
        "models coloured).",
    ),
]
Picture = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="Draw the graph, affected models coloured: .png, .svg or .pdf."),
]
Limit = Annotated[
    int | None,
    typer.Option(min=0, help=f"Rows to show; 0 is all. Default: {SHOWN}, and with --json all."),
]
Json = Annotated[
    bool,
    typer.Option(
        "--json", help="Print JSON: one object, or with --affected-by one object a line for each model."
    ),
]


def lineage(
    folder: Store,
    affected_by: Target = None,
    export: Export = None,
    picture: Picture = None,
    limit: Limit = None,
    as_json: Json = False,
) -> None:
    """Models by round, or those that inherited somebody's data; the graph as a file or a picture."""
    exports.check_names(export, picture)
    with stores.reading(folder) as store:
        roots = _roots(store, affected_by) if affected_by is not None else []
        if affected_by is None:
            _summary(store, SHOWN if limit is None else limit, as_json)
        else:
            _affected(store, roots, limit, as_json)
        if export:
            exports.export(store, export, roots)
            say(f"wrote {export}", stderr=as_json)
        if picture:
            part = exports.draw(store, picture, roots)
            say(f"wrote {picture} ({part})", stderr=as_json)


# --------------------------------------------------------------------------- summary
def _summary(store: RunStore, limit: int, as_json: bool) -> None:
    found = stores.rounds(store)
    total = sum(sum(r.kinds.values()) for r in found)
    if as_json:
        rounds = [{"round": r.number, "kinds": r.kinds, "checkpoints": r.checkpoints} for r in found]
        print_json({"store": str(store.folder), "models": total, "rounds": rounds})
        return
    kinds = list(dict.fromkeys(kind for r in found for kind in r.kinds))
    shown = found[:limit] if limit else found
    table(("round", *kinds, "checkpoints"), [_round_row(r, kinds) for r in shown])
    if len(found) > len(shown):
        say(f"... and {count(len(found) - len(shown), 'more round')} (--limit 0 shows all)")
    say(f"{count(total, 'model')} in {count(len(found), 'round')}")


def _round_row(found: Round, kinds: list[str]) -> tuple[int, ...]:
    return found.number, *(found.kinds.get(kind, 0) for kind in kinds), found.checkpoints


# --------------------------------------------------------------------------- affected models
def _roots(store: RunStore, target: str) -> list[str]:
    """The models from which everything inherits that a class's or a client's data reached."""
    what, _, value = target.partition(":")
    if what == "client" and value:
        return _roots_of_client(store, value)
    if what == "class" and value.isdecimal():
        return _roots_of_class(store, int(value))
    raise typer.BadParameter(f"{target!r} is neither class:N nor client:NAME, such as class:3 or client:4")


def _roots_of_client(store: RunStore, name: str) -> list[str]:
    from fl_unlearn.types import LineageError

    clients = store.clients()
    owners = [owner for owner, client in clients.items() if client == name]
    if not owners:
        known = sorted(set(clients.values()))
        hint = f"known: {some(known, 20)}" if known else "no client has trained yet"
        raise LineageError(f"no model was recorded for a client {name!r}; {hint}")
    return [node.name for node in store.umig.roots(owners)]


def _roots_of_class(store: RunStore, label: int) -> list[str]:
    """As the requests found them: which client holds a class is asked when a request is served."""
    from fl_unlearn.types import LineageError

    asked = [o.request for o in store.operations.all() if label in (o.request.get("classes") or ())]
    recorded = {name for request in asked for name in request.get("roots") or ()}
    holders = {client for request in asked for client in request.get("holders") or ()}
    if not recorded:
        owners = [owner for owner, client in store.clients().items() if client in holders]
        recorded = {node.name for node in store.umig.roots(owners)} if owners else set()
    if not recorded:
        known = sorted(set(store.clients().values()))
        hint = f"; name a client instead, such as --affected-by client:{known[0]}" if known else ""
        raise LineageError(
            f"no request to forget class {label} was served from this store, so it is not known which "
            f"clients hold it{hint}"
        )
    return sorted(recorded)


def _affected(store: RunStore, roots: list[str], limit: int | None, as_json: bool) -> None:
    digests = dict(stores.rows(store, "SELECT node_id, digest FROM checkpoint"))
    nodes = iter(store.umig.affected(roots))
    if as_json:
        for node in nodes if not limit else islice(nodes, limit):
            print_json_line(_plain(node, digests.get(node.id)))
        return
    most = SHOWN if limit is None else limit
    columns = ("round", "model", "kind", "owner", "examples", "checkpoint")
    first = islice(nodes, most) if most else nodes
    shown = stream(columns, (_row(node, digests.get(node.id)) for node in first))
    more = sum(1 for _ in nodes)
    if more:
        say(f"... and {count(more, 'more model')} (--limit 0 shows all)")
    say(
        f"{count(shown + more, 'model')} affected, starting from {some(roots)}"
        if roots
        else "no model is affected"
    )


def _row(node: Node, digest: str | None) -> tuple[object, ...]:
    return node.round, node.name, node.kind, node.owner, node.examples, short(digest)


def _plain(node: Node, digest: str | None) -> dict[str, Any]:
    return {
        "order": node.id,
        "name": node.name,
        "kind": node.kind,
        "round": node.round,
        "owner": node.owner,
        "examples": node.examples,
        "checkpoint": digest,
        "metadata": dict(node.metadata),
    }
