"""Small comparisons for tests."""

from __future__ import annotations

from dataclasses import replace

from simulations.compare.jobs import run_jobs
from simulations.compare.results import Comparison
from simulations.compare.setting import Setting

SMALL = Setting.named("digits-class", clients=3, rounds=4)


def compare(
    folder,
    name: str = "digits-class",
    strategies: tuple[str, ...] = ("mask", "fine-tune"),
    seeds: tuple[int, ...] = (0, 1),
    **changes,
):
    """Compare on a federation of 3 clients and 4 rounds."""
    setting = replace(Setting.named(name, clients=3, rounds=4), **changes)
    names = strategies if name == "digits-class" else ["retrain", *strategies]
    return run_jobs({name: setting}, names, ["accuracy"], seeds, folder)


def but_for_time(comparison: Comparison) -> Comparison:
    """A comparison without what differs from run to run: how long things took."""
    return replace(comparison, rows=tuple(r for r in comparison.rows if not r.key.endswith("seconds")))
