"""Who is who among the nodes: a client keeps its name when it comes back as another node."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping

from fl_unlearn.flower.broadcast import deliver_outstanding, identify
from fl_unlearn.flower.exchange import Exchange, unidentified
from fl_unlearn.run_store import RunStore

log = logging.getLogger(__name__)

_KEY, _MOST = "clients-by-node", 10_000


def recall(store: RunStore) -> dict[int, str]:
    """Node id to client name, of the nodes that said it in this run or an earlier one, the latest last."""
    return {int(node): name for node, name in json.loads(store.umig.get_meta(_KEY) or "[]")}


def remember(store: RunStore, names: Mapping[int, str]) -> None:
    """Note what nodes said, so that one that dies before it can say it again is known all the same."""
    before = recall(store)
    if any(before.get(node) != name for node, name in names.items()):
        after = {**{n: name for n, name in before.items() if n not in names}, **names}
        store.set_meta(_KEY, json.dumps(list(after.items())[-_MOST:]))


class Names:
    """The clients met in a run.

    A SuperNode without a registered key gets another node id when it is started again. Its client's name
    passes on to the new node as soon as the old one is no longer connected; while both are, the second is a
    stranger, since it may be an impostor.

    Args:
        store: Where what is known of a node is filed under its client's name.

    Attributes:
        known: Node id to client name.
    """

    def __init__(self, store: RunStore) -> None:
        self.store, self.known = store, dict[int, str]()
        self._said: dict[int, str | None] = {}
        self._warned = False

    def owner(self, node: int) -> str:
        """The client's name, or a stand-in."""
        return self.known.get(node) or unidentified(node)

    def meet(self, exchange: Exchange, nodes: list[int]) -> None:
        """Ask nodes met for the first time who they are, and give those that are back what they missed.

        Args:
            exchange: The way to the clients.
            nodes: Nodes that are about to be sent something.
        """
        new = [n for n in dict.fromkeys(nodes) if n not in self._said]
        if new:
            self._said.update(identify(exchange, new))
        nameless = [n for n in dict.fromkeys(nodes) if n not in self.known]
        if claims := {n: name for n in nameless if (name := self._said.get(n)) is not None}:
            connected = {*nodes, *exchange.grid.get_node_ids()}
            self.known = {
                n: name for n, name in self.known.items() if n in connected or name not in claims.values()
            }
            for node, name in claims.items():
                if name not in self.known.values():
                    self.known[node] = name
                    self.store.identify(unidentified(node), name)
            remember(self.store, self.known)
        if silent := [n for n in new if n not in self._said]:
            log.warning(
                "%d nodes did not say within %g s which client they are; they are asked again before their "
                "next message, and until then their updates count as affected by every request",
                len(silent),
                exchange.timeout,
            )
        if strangers := [n for n in new if n in self._said and n not in self.known]:
            # Once: some strategies meet one client a round.
            log.log(
                logging.INFO if self._warned else logging.WARNING,
                "%d nodes did not say which client they are, or gave the name of another; is fl-unlearn "
                "attached to the ClientApp? Their updates count as affected by every request",
                len(strangers),
            )
            self._warned = True
        deliver_outstanding(exchange, self.store, nodes, self.known)
