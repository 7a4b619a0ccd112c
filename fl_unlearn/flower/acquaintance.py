"""Which client is behind which node: asked once of each, when it first trains."""

from __future__ import annotations

import logging

from fl_unlearn.flower.broadcast import deliver_outstanding, identify
from fl_unlearn.flower.exchange import Exchange, unidentified
from fl_unlearn.run_store import RunStore

log = logging.getLogger(__name__)


class Acquaintance:
    """The clients that a server has met.

    Args:
        store: The run's store.
    """

    def __init__(self, store: RunStore) -> None:
        self.store = store
        self._names: dict[int, str | None] = {}
        self._warned = False

    def owner(self, node: int) -> str:
        """The client's name, or the stand-in for a node that has given none."""
        return self._names.get(node) or unidentified(node)

    def meet(self, exchange: Exchange, nodes: list[int]) -> None:
        """Ask nodes met for the first time who they are, and give those that are back what they missed."""
        new = [n for n in dict.fromkeys(nodes) if n not in self._names]
        if new:
            taken = set(self._names.values())
            for node, name in identify(exchange, new).items():
                self._names[node] = None if name in taken else name
                if self._names[node] is not None:
                    self.store.identify(unidentified(node), str(name))
            if strangers := [n for n in new if not self._names.get(n)]:
                # Once: some strategies meet one client a round.
                log.log(
                    logging.INFO if self._warned else logging.WARNING,
                    "%d nodes did not say which client they are, or gave the name of another; is fl-unlearn "
                    "attached to the ClientApp? Their updates count as affected by every request",
                    len(strangers),
                )
                self._warned = True
        deliver_outstanding(exchange, self.store, nodes, self._names)
