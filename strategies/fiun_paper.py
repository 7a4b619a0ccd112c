"""``fiun-paper``: FIUn with the settings of its authors' code, to show what ``fiun`` does otherwise.

Liu et al. 2024, Parallel Unlearning in Inherited Model Networks (arXiv 2408.08493). F is the squared gradient
of the mini-batch mean, of the head alone. The roots are the first models that learned what is to be
forgotten: the holders' first updates. Each holder computes F_forget over its forgotten samples on its root;
these are merged by their element-wise maximum, divided by 5 once per further root (MFIM as coded). Every
descendant has a reference of its own: F_reference on that model, over all data, what is to be forgotten
included. Wherever F_forget > t F_reference, theta <- theta min(1, F_reference / F_forget). Nothing is
measured before it is done.

Where a federation leaves it open: a descendant's reference is taken over the data of its client there, but an
aggregate has no client, so here it is over all clients' data, for every checkpoint. Mini-batches have 32
samples (there, forget Fishers are of the first 32 rows of each batch).

Hyper-parameters: ``threshold`` = 100 (the authors set it by hand: "about 100 for ResNet and ViT, 300 for VGG
and DenseNet"), ``dampening`` = 1, ``merge_rule`` = "max-divided" (by 5; their constant is 50 for AlexNet, and
for ResNet 1, which is "max"), ``batch_size`` = 32. No threshold of 1, 3, 10, 30, 100 and 300 is good
everywhere. One class that five clients hold, held-out accuracy on it and on the others, seed 0: digits
(94.6 and 98.8 % before) 0.0 and 90.4 % at 100, less kept below, nothing forgotten at 300; CIFAR-10 (45.1 and
59.3 % before) nothing is forgotten at any, for the division by 5^4 is too much there. With "max" CIFAR-10 is
left with 0.2 and 54.6 % at 10, digits with 0.0 and 28.5 %. Targets: classes. Needs the history, and the
forget data.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from fl_unlearn import evidence
from fl_unlearn.dampen import apply_update, build_update
from fl_unlearn.merge import FisherPart, merge
from fl_unlearn.types import REST, StateDict, signature_of
from strategies.contract import Federation, Need, Outcome, State, Strategy, Target, holders
from strategies.errors import StrategyError
from strategies.fisher import ask_fisher, over_rest
from strategies.history import History


@dataclass(frozen=True)
class FiunPaper(Strategy):
    """The forget Fishers of the roots against each checkpoint's own reference."""

    name: ClassVar[str] = "fiun-paper"
    paper: ClassVar[str] = "Liu et al. 2024, arXiv 2408.08493 (settings of its code)"
    targets: ClassVar[frozenset[Target]] = frozenset(("classes",))
    needs: ClassVar[frozenset[Need]] = frozenset(("history", "forget-data"))

    threshold: float = 100.0
    dampening: float = 1.0
    merge_rule: str = "max-divided"
    batch_size: int = 32

    def unlearn(self, federation: Federation, history: History) -> Outcome:
        """Dampen the current model, and each checkpoint when it is asked for."""
        fishers = self.of_roots(federation, history)
        merged = merge(fishers, self.merge_rule)

        def change(state: StateDict) -> State:
            sums = ask_fisher(
                federation,
                state,
                kind="batch",
                scope="head",
                part="train",
                head=history.head,
                batch_size=self.batch_size,
            )
            update = build_update(
                merged,
                over_rest(sums),
                threshold=self.threshold,
                dampening=self.dampening,
                signature=signature_of(state),
            )
            facts["selected"] = facts.get("selected", update.selected)
            return apply_update(state, update)

        facts: dict[str, str | int | float] = {"threshold": self.threshold, "roots": len(fishers)}
        return Outcome(change(history.current()), change, facts)

    def of_roots(self, federation: Federation, history: History) -> list[FisherPart]:
        """The mean forget Fisher of each root, at the client that trained it.

        Raises:
            StrategyError: If the store lacks a root.
        """
        store, parts = history.store, []
        held = holders(federation)
        roots, _ = evidence.lineage(
            federation.request, store, list(federation.clients), held, all_affected=False
        )
        for root in roots:
            node = store.umig.node(root)
            if root not in store.kept() or node.owner is None:
                raise StrategyError(f"{self.name}: the store {store.folder} keeps no checkpoint {root!r}")
            client = store.clients()[node.owner]
            sums = ask_fisher(
                federation,
                store.load(root).state,
                kind="batch",
                scope="head",
                part="forget",
                clients=[client],
                head=history.head,
                batch_size=self.batch_size,
            )[client]
            parts.append(FisherPart(root, REST, sums.mean(), sums.counts[REST]))
        return parts
