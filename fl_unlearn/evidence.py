"""What the clients' Fisher answers and the lineage say about a request: holders, roots, affected models."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace

import torch

from fl_unlearn.fisher import FisherSums
from fl_unlearn.lineage import Node, NodeKind
from fl_unlearn.merge import FisherPart
from fl_unlearn.run_store import RunStore
from fl_unlearn.types import REST, ForgetRequest, NotEnoughAnswersError, RequestError

UNIDENTIFIED = "node-"
"""Prefix of the stand-in name of a node that has not said which client it is."""

Counts = Mapping[str, Mapping[int, int]]
"""Client to group (a requested class, or the rest) to how much it holds of it."""


def holders(
    request: ForgetRequest, store: RunStore, counts: Counts, num_classes: int | None = None
) -> dict[str, int]:
    """Clients that hold what is to be forgotten, with how much they hold.

    Args:
        request: The request.
        store: The run's store.
        counts: What each client that answered says it holds.
        num_classes: How many classes the model has, where that is known.

    Raises:
        RequestError: If a class or client is unknown, nobody holds a class, or nothing would be retained.
        NotEnoughAnswersError: If a named client did not answer.
    """
    classes, clients = request.classes, request.clients
    check_named(request, store, counts)
    for label in classes:
        if num_classes is not None and label >= num_classes:
            raise RequestError(f"unknown class {label}: the model has the classes 0 to {num_classes - 1}")
    for label in classes:
        if not any(held.get(label) for held in counts.values()):
            whom = f"of the clients {', '.join(clients)}" if clients else "that answered"
            raise RequestError(f"no client {whom} holds class {label}; check the class and the clients")
    if not any(held.get(REST) for held in counts.values()):
        raise RequestError(
            "nothing would be retained: the request covers every class that the clients hold. "
            "To forget everything, start again from an untrained model"
        )
    asked = classes if request.kind == "classes" else {g for own in counts.values() for g in own if g != REST}
    held = {client: sum(own.get(c, 0) for c in asked) for client, own in counts.items()}
    if request.kind != "classes" and (without := [c for c in request.named if not held[c]]):
        raise RequestError(
            f"client {without[0]!r} holds nothing that the request names and that was not forgotten before"
        )
    return {client: amount for client, amount in held.items() if amount}


def check_named(request: ForgetRequest, store: RunStore, answered: Collection[str]) -> None:
    """Check that the clients whose data a request is about are there.

    Raises:
        RequestError: If one is unknown.
        NotEnoughAnswersError: If one did not answer.
    """
    known = {*answered, *store.clients().values()}
    unknown = [c for c in request.named if c not in known]
    if unknown:
        raise RequestError(f"unknown clients {unknown}; known: {', '.join(sorted(known))}")
    absent = [c for c in request.named if c not in answered]
    if absent:
        raise NotEnoughAnswersError(f"the named clients {absent} did not answer; nothing was changed")


def lineage(
    request: ForgetRequest,
    store: RunStore,
    answered: Collection[str],
    holders: Collection[str],
    *,
    all_affected: bool,
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Roots and affected models; a client that could not be asked or identified counts as a holder.

    Raises:
        RequestError: If there are none.
    """
    named = set(request.named)
    innocent = set() if all_affected else set(answered) - set(holders)

    def suspect(client: str) -> bool:
        return client.startswith(UNIDENTIFIED) or (client in named if named else client not in innocent)

    roots = store.umig.roots([o for o, c in store.clients().items() if suspect(c)])
    if not roots:
        raise RequestError(
            f"the holders {sorted(holders)} contributed no update recorded in {store.folder}: "
            "there is no model to unlearn. Is this the store of the run that trained the model?"
        )
    names = tuple(n.name for n in roots)
    return names, tuple(n.name for n in store.umig.affected(names))


def with_earlier(request: ForgetRequest, store: RunStore) -> ForgetRequest:
    """A request for classes of everybody, with the classes of earlier ones; any other as it is."""
    if request.named:
        return request
    earlier = {c for o in store.operations.all() if not o.request["clients"] for c in o.request["classes"]}
    return replace(request, classes=(*request.classes, *earlier))


def measurable(store: RunStore, affected: Sequence[str], counts: Counts) -> tuple[str, ...]:
    """Affected models that are kept, and inherited samples to forget and samples to keep that are still held.

    Raises:
        RequestError: If there are none.
    """
    left = store.kept()
    for rest in (False, True):
        having = [o for o, own in counts.items() if any(n for g, n in own.items() if (g == REST) == rest)]
        roots = [node.name for node in store.umig.roots(having)]
        left &= {node.name for node in store.umig.affected(roots)}
    if found := tuple(name for name in affected if name in left):
        return found
    raise RequestError(
        f"of {len(affected)} affected models none can be measured: it takes a kept checkpoint, and owners "
        "whose data it inherited with samples to forget and to keep; see the keep policy and the data"
    )


def parts(fishers: Mapping[str, FisherSums]) -> list[FisherPart]:
    """The mean Fisher of each holder's forgotten samples, label by label; the rest is what is kept."""
    return [
        FisherPart(client, label, sums.mean([label]), sums.counts[label])
        for client, sums in fishers.items()
        for label, count in sums.counts.items()
        if label != REST and count
    ]


def retained(sums: Collection[FisherSums]) -> FisherSums:
    """The clients' retained sums, added: of each answer only the group of what is kept."""
    parts = [
        FisherSums(s.kind, s.scope, s.num_classes, {REST: s.sums[REST]}, {REST: s.counts[REST]}) for s in sums
    ]
    total = parts[0]
    for part in parts[1:]:
        total = total + part
    return total


def earlier_models(
    store: RunStore, affected: Iterable[str], holders: Collection[str], most: int
) -> list[dict[str, torch.Tensor]]:
    """Affected global models before the current one, evenly spread, and two of the holders' updates."""
    nodes = _kept(store, affected)
    owners = {o for o, c in store.clients().items() if c in holders}
    updates = [n.name for n in nodes if n.kind == NodeKind.CLIENT_UPDATE and n.owner in owners]
    return earlier_globals(store, affected, most) + [store.load(n).state for n in spread(updates, 2)]


def earlier_globals(store: RunStore, affected: Iterable[str], most: int) -> list[dict[str, torch.Tensor]]:
    """At most ``most`` affected global models before the current one, evenly spread."""
    names = [n.name for n in _kept(store, affected) if n.kind == NodeKind.AGGREGATE][:-1]
    return [store.load(n).state for n in spread(names, most)]


def _kept(store: RunStore, names: Iterable[str]) -> list[Node]:
    kept = store.kept()
    return [store.umig.node(n) for n in names if n in kept]


def spread(names: Sequence[str], most: int) -> list[str]:
    """At most ``most`` of ``names``, evenly spread from the first to the last."""
    most = min(most, len(names))
    return [names[round(i * (len(names) - 1) / max(1, most - 1))] for i in range(most)]
