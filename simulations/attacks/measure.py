"""One request on a copy of the trained federation's store: what it did, on the server's test set."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fl_unlearn.budget import spent
from fl_unlearn.defence import OFF, STRICT, Defence
from fl_unlearn.flower.session import forget
from fl_unlearn.run_store import RunStore
from fl_unlearn.types import ForgetRequest, UnlearnError, UnlearnSettings
from simulations.attacks import federation
from simulations.attacks.liars import ATTACKS, Attack

KINDS = {"off": OFF, "on": Defence(), "strict": STRICT}
DEFENCES = {name: UnlearnSettings(defence=d, calibration_models=2) for name, d in KINDS.items()}
"""By name: without the defence, as it is by default, and with a cap on the retained classes' rows."""

BUDGET = 0.02


def serve(store: Path, label: int, attack: Attack, liars: Sequence[int], defence: str) -> dict[str, Any]:
    """Forget one class while some clients lie; the store stays as it is.

    Args:
        store: A trained federation's.
        label: The class.
        attack: What the liars do.
        liars: Numbers of the clients that do.
        defence: A name in `DEFENCES`.

    Returns:
        The outcome, in JSON's types; accuracies 0 to 1, on the test set.
    """
    row: dict[str, Any] = {"class": label, "attack": attack.name, "liars": len(liars), "defence": defence}
    with tempfile.TemporaryDirectory() as name:
        shutil.copytree(store, Path(name) / "store")
        with RunStore(Path(name) / "store") as copy:
            before = federation.accuracies(copy.latest()[1].state)
            after, row["outcome"], row["disputed"], row["contradicted"] = before, "failed", False, False
            try:
                grid = federation.grid(attack.tamper(liars))
                result = forget(grid, ForgetRequest((label,)), copy, settings=DEFENCES[defence])
                after, row["message"] = federation.accuracies(result.state), result.message
                row["outcome"] = "committed" if result.committed else "refused"
                row["rejected"] = sorted(result.failed)
                row["contradicted"] = bool(result.contradictions)
                row["disputed"] = "disputed by" in result.message
            except UnlearnError as e:
                row["message"] = f"{type(e).__name__}: {e}"
    kept = [c for c in range(federation.CLASSES) if c != label]
    row["forgotten_before"], row["forgotten_after"] = before[label], after[label]
    row["retained_before"] = sum(before[c] for c in kept) / len(kept)
    row["retained_after"] = sum(after[c] for c in kept) / len(kept)
    row["worst_class_drop"] = max(before[c] - after[c] for c in kept)
    return row


def wear(store: Path, budget: float | None) -> list[dict[str, Any]]:
    """One requester asks for class after class, at a harsh threshold, and nobody lies.

    Args:
        store: A trained federation's; it stays as it is.
        budget: The requester's, or None.

    Returns:
        For each request whether it was committed, and what the requester has spent by then, 0 to 1.
    """
    settings = UnlearnSettings(threshold=0.2, dampenings=(0.1,), force=True, defence=OFF)
    out: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as name:
        shutil.copytree(store, Path(name) / "store")
        with RunStore(Path(name) / "store") as copy:
            for label in range(8):
                asked = ForgetRequest((label,))
                result = forget(
                    federation.grid(), asked, copy, settings=settings, requester="eager", budget=budget
                )
                row = {"class": label, "committed": result.committed, "spent": spent(copy, "eager")}
                accuracy = federation.accuracies(copy.latest()[1].state)
                row["last_two_classes"] = sum(accuracy[8:]) / 2
                out.append({**row, "message": result.message})
    return out


def all_rows(store: Path) -> list[dict[str, Any]]:
    """Every attack with one, two and three liars, on every request, with and without the defence."""
    rows = []
    for attack in ATTACKS:
        for liars in (0,) if attack.name == "none" else (1, 2, 3):
            for label in federation.HOLDERS:
                for defence in DEFENCES:
                    rows.append(serve(store, label, attack, federation.LIARS[label][:liars], defence))
        print(f"{attack.name}: done", flush=True)
    return rows
