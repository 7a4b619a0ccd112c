"""What privacy costs: a digit forgotten while clients add noise to their answers, pool or mask them.

Ten clients with scikit-learn's digits (`simulations.attacks.federation`), a class held by six of them. Each
setting is a request on a copy of the same trained store; noisy ones are repeated with other noise. Accuracies
are on the server's test set, which no client has.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np

from fl_unlearn.flower.session import forget
from fl_unlearn.privacy import Privacy
from fl_unlearn.run_store import RunStore
from fl_unlearn.types import ForgetRequest, UnlearnError, UnlearnSettings
from simulations.attacks import federation

CLASS = 3

SETTINGS: Mapping[str, Privacy] = {
    "none": Privacy(),
    "pooled scores": Privacy(pooled=True),
    "masked sums": Privacy(masked=True),
    **{f"noise {z:g}": Privacy(noise=z, clip=0.3) for z in (0.5, 1.0, 2.0, 4.0, 8.0)},
    "noise 2, masked": Privacy(noise=2.0, clip=0.3, masked=True),
    "noise 2, score noise 2": Privacy(noise=2.0, clip=0.3, score_noise=2.0),
    "noise 2, score noise 20": Privacy(noise=2.0, clip=0.3, score_noise=20.0),
}
"""By the name in the table."""


def rows(store: Path, repeats: int) -> Iterator[dict[str, Any]]:
    """Each setting's outcomes, in JSON's types; accuracies 0 to 1.

    Args:
        store: A trained federation's; it stays as it is.
        repeats: How often each noisy setting is tried.
    """
    for name, privacy in SETTINGS.items():
        noisy = privacy.noise or privacy.score_noise
        for repeat in range(repeats if noisy else 1):
            yield {"setting": name, "repeat": repeat, **_serve(store, privacy, repeat)}


def _serve(store: Path, privacy: Privacy, repeat: int) -> dict[str, Any]:
    seeds = np.random.default_rng(repeat)
    # Noise that protects cannot be drawn again; here nobody's data is at stake, and results must repeat.
    drawn = patch("fl_unlearn.flower.own_privacy.secrets.randbits", lambda bits: int(seeds.integers(2**63)))
    settings = UnlearnSettings(privacy=privacy, calibration_models=1)
    with tempfile.TemporaryDirectory() as folder, drawn:
        shutil.copytree(store, Path(folder) / "store")
        with RunStore(Path(folder) / "store") as copy:
            before = federation.accuracies(copy.latest()[1].state)
            try:
                result = forget(federation.grid(), ForgetRequest((CLASS,)), copy, settings=settings)
            except UnlearnError as e:
                return {"outcome": f"{type(e).__name__}: {e}", **_accuracies(before, before)}
            after = federation.accuracies(result.state)
            spent = {key: result.privacy.get(key) for key in ("epsilon", "delta", "not_covered")}
            outcome = "committed" if result.committed else result.message
            up = {"bytes_up": result.bytes_up, "bytes_down": result.bytes_down}
            return {"outcome": outcome, **_accuracies(before, after), **spent, **up}


def _accuracies(before: list[float], after: list[float]) -> dict[str, float]:
    kept = [c for c in range(federation.CLASSES) if c != CLASS]
    return {
        "forgotten_before": before[CLASS],
        "forgotten_after": after[CLASS],
        "retained_drop": sum(before[c] - after[c] for c in kept) / len(kept),
        "worst_class_drop": max(before[c] - after[c] for c in kept),
    }


def table(found: list[dict[str, Any]]) -> str:
    """One line a setting; Markdown."""
    lines = [
        "| answers | epsilon (delta 1e-5) | committed | forgotten: worst | retained: mean drop | "
        "worst class: drop |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for name in SETTINGS:
        own = [r for r in found if r["setting"] == name]
        done = [r for r in own if r["outcome"] == "committed"]
        cells = [name, _epsilon(own[0]), f"{len(done)} of {len(own)}"]
        if done:
            cells += [
                f"{100 * max(r['forgotten_after'] for r in done):.1f}",
                f"{100 * sum(r['retained_drop'] for r in done) / len(done):.1f}",
                f"{100 * max(r['worst_class_drop'] for r in done):.1f}",
            ]
        else:
            cells += ["-", "-", "-"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _epsilon(row: Mapping[str, Any]) -> str:
    if row.get("epsilon") is None:
        return "-"
    scores = any("scores" in text for text in row["not_covered"])
    return f"{row['epsilon']:.1f}" + (" (Fisher)" if scores else "")


def main() -> None:
    """Run it, as ``python -m simulations.figures.private_answers``."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--out", type=Path, default=Path("outputs/private-answers"), help="folder for the results"
    )
    parser.add_argument(
        "--repeats", type=int, default=5, help="how often noisy settings are tried (default 5)"
    )
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    found = []
    with tempfile.TemporaryDirectory() as folder:
        store = Path(folder) / "store"
        print("training ...", flush=True)
        federation.train(store)
        for row in rows(store, options.repeats):
            found.append(row)
            print(f"{row['setting']} ({row['repeat'] + 1}): {row['outcome'][:100]}", flush=True)
    (options.out / "results.json").write_text(json.dumps(found, indent=1) + "\n")
    (options.out / "table.md").write_text(table(found) + "\n")
    print(table(found))


if __name__ == "__main__":
    main()
