"""What a requester's requests have cost the others, and may: nobody asks a model to pieces."""

from __future__ import annotations

from fl_unlearn.calibration import Candidate
from fl_unlearn.run_store import RunStore

REQUESTER, COST = "requester", "retain_cost"
"""What an operation's record holds of this: who asked, and the loss of retained accuracy, 0 to 1."""


def cost_of(candidate: Candidate) -> float:
    """The retained accuracy that a candidate costs, 0 to 1; a gain costs nothing.

    As the clients measured it before the commit: by the sums, or where these are disputed by the vote.
    """
    drop = candidate.trimmed_drop if candidate.disputed else candidate.retain_drop
    return max(drop or 0.0, 0.0)


def spent(store: RunStore, requester: str) -> float:
    """Retained accuracy that a requester's committed requests have cost, added up.

    Operations that were decided without a requester's name, or before there were budgets, count for nobody.
    """
    own = (o.request for o in store.operations.all() if o.request.get(REQUESTER) == requester)
    return float(sum(request.get(COST, 0.0) for request in own))


def over_budget(store: RunStore, requester: str, budget: float, candidate: Candidate) -> str | None:
    """Why the requester may not have this committed, or None.

    Args:
        store: The run's store.
        requester: Who asks.
        budget: The most that its requests may cost in all, 0 to 1.
        candidate: What would be committed.
    """
    before, cost = spent(store, requester), cost_of(candidate)
    if before + cost <= budget:
        return None
    return (
        f"refused: it would cost {100 * cost:.2f} points of retained accuracy, and the requests of "
        f"{requester!r} have cost {100 * before:.2f} of the {100 * budget:.2f} that the policy allows it; "
        "nothing was changed. An operator may raise the budget"
    )
