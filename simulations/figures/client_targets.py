"""What a Fisher update can do for a client's data, or for single samples: a table beside retraining.

Trains federations of the comparison, and builds FIUn updates for what each is to forget: the Fisher of the
forget set, merged label by label or as one mean, against that of all that is kept, for kinds, scopes,
thresholds and dampenings. Every update is measured on all clients' data, as are the original model, the
retrained one, and what the strategy ``fiun`` makes of the request.

    python -m simulations.figures.client_targets                                              # minutes
    python -m simulations.figures.client_targets cifar10-client --data ~/cifar10 --seeds 0    # hours
"""

from __future__ import annotations

import argparse
import csv
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain, product
from pathlib import Path
from statistics import fmean
from typing import Any

import strategies
from fl_unlearn.dampen import apply_update, build_update
from fl_unlearn.evidence import parts
from fl_unlearn.membership import membership_inference
from fl_unlearn.merge import merge
from fl_unlearn.types import ForgetRequest, StateDict, signature_of
from fl_unlearn.verify import score
from simulations.compare.clients import make_clients
from simulations.compare.local import LocalFederation
from simulations.compare.setting import Setting
from simulations.compare.train import open_history
from strategies.client import Client, Part
from strategies.fisher import ask_fisher, over_rest

_CLEAN = {"dataset": "digits", "forget_classes": "", "forget_clients": "0"}
OWN_SETTINGS = {"digits-iid": {**_CLEAN, "alpha": 100.0}, "digits-skewed": {**_CLEAN, "alpha": 0.3}}
"""Beside those of the comparison: a client whose data is like everybody's, and one that has few classes;
nothing is planted in either."""

SETTINGS = ("digits-client", "digits-skewed", "digits-iid", "digits-samples")
KINDS, SCOPES, MERGED = ("normalized", "empirical"), ("head", "all"), ("max", "mean")
THRESHOLDS = (1.0, 1.5, 2.0, 3.0, 5.0, 7.0, 10.0, 15.0, 20.0, 30.0, 100.0, 300.0)
DAMPENINGS = (1.0, 0.1)
ACCEPTED = 0.01
"""Loss of held-out accuracy that the table accepts, as the strategy's default does."""

MEASURED = {
    "forget": "forget set",
    "retained": "retained",
    "held_out": "held-out",
    "triggered": "triggered",
    "auc": "membership AUC",
}
COLUMNS = (
    "setting",
    "seed",
    "model",
    "kind",
    "scope",
    "merged",
    "threshold",
    "dampening",
    "selected",
    "forget_loss",
    *MEASURED,
)

Row = dict[str, Any]


def main() -> None:
    """Measure, and write table.csv and table.md."""
    options = _options()
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as scratch:
        for name, seed in product(options.settings, options.seeds):
            folder = (options.stores or Path(scratch)) / f"{name}-{seed}"
            folder.mkdir(parents=True, exist_ok=True)
            rows += measure_all(name, setting_of(name, options.data), folder, seed)
            print(f"{name}, seed {seed}: {len(rows)} rows", flush=True)
    options.out.mkdir(parents=True, exist_ok=True)
    with open(options.out / "table.csv", "w", newline="") as f:
        writer = csv.DictWriter(f, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)
    text = table(summarise(rows))
    (options.out / "table.md").write_text(text + "\n")
    print(f"{text}\n\nWritten to {options.out}")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("settings", nargs="*", default=list(SETTINGS), help="what to measure on")
    parser.add_argument("--data", default="", help="folder with CIFAR-10 as parquet files, for its settings")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="of the federations")
    parser.add_argument("--stores", type=Path, help="where trained federations are kept for the next time")
    parser.add_argument("--out", type=Path, default=Path("outputs/client-targets"), help="where to write")
    return parser.parse_args()


def setting_of(name: str, data: str = "") -> Setting:
    """A setting by name, of `OWN_SETTINGS` or of the comparison."""
    own = OWN_SETTINGS.get(name)
    return Setting(**own) if own is not None else Setting.named(name, data_root=data)  # type: ignore[arg-type]


def measure_all(name: str, setting: Setting, folder: Path, seed: int) -> Iterator[Row]:
    """The original, the retrained model, what ``fiun`` does, and every update: rows of `COLUMNS`."""
    history, clients = open_history(setting, seed, folder), make_clients(setting, seed)
    request, about = clients[0].request, {"setting": name, "seed": seed}
    assert isinstance(request, ForgetRequest)
    federation, state = LocalFederation(clients, request), history.current()
    yield about | {"model": "original"} | measure(state, clients)
    for model in ("retrain", "fiun"):
        outcome = strategies.get(model).unlearn(federation, history)
        refused = {"kind": "refused"} if outcome.refused else {}
        yield about | {"model": model} | refused | measure(outcome.state, clients)
    for kind, scope in product(KINDS, SCOPES):
        fishers = ask_fisher(federation, state, kind=kind, scope=scope, head=history.head)
        own, rest = parts(fishers), over_rest(fishers)
        for merged in MERGED:
            forget = merge(own, merged)
            for lam, t in product(DAMPENINGS, THRESHOLDS):
                update = build_update(forget, rest, threshold=t, dampening=lam, signature=signature_of(state))
                row = {"model": "update", "kind": kind, "scope": scope, "merged": merged, "threshold": t}
                row |= {"dampening": lam, "selected": update.selected}
                yield about | row | measure(apply_update(state, update), clients)
    history.store.close()


def measure(state: StateDict, clients: Sequence[Client]) -> Row:
    """Accuracies of one model on the parts of all clients' data, and how well membership can be told."""
    model = clients[0].model(state)

    def batches(part: Part) -> Iterator[Any]:
        return chain.from_iterable(c.batches(part) for c in clients)

    forget, held = score(model, batches("forget")), score(model, batches("held-out"))
    attack = membership_inference(model, batches("forget"), batches("held-out"), fpr=0.1)["loss"]
    return {
        "forget": forget.accuracy(),
        "forget_loss": forget.mean_loss(),
        "retained": score(model, batches("retained")).accuracy(),
        "held_out": held.accuracy(),
        "triggered": score(model, batches("triggered")).accuracy(),
        "auc": attack.auc,
    }


def best(rows: Sequence[Row], original: Row) -> Row | None:
    """The update that takes most of the forget set while it costs held-out samples at most `ACCEPTED`."""
    fine = [r for r in rows if original["held_out"] - r["held_out"] <= ACCEPTED + 1e-9]
    return min(fine, key=lambda r: (r["forget"], -r["held_out"]), default=None)


def summarise(rows: Sequence[Row]) -> list[Row]:
    """Means over the seeds: original, retrained, ``fiun``, and for each form of Fisher its `best` update.

    ``gap``: mean forget accuracy less the retrained model's; ``of``: in how many seeds there was such an
    update, or ``fiun`` did not refuse.
    """
    out = []
    for setting in dict.fromkeys(r["setting"] for r in rows):
        own = [r for r in rows if r["setting"] == setting]
        seeds = sorted({r["seed"] for r in own})
        one = {(m, r["seed"]): r for m in ("original", "retrain", "fiun") for r in own if r["model"] == m}
        forms: dict[str, list[Row | None]] = {
            "original": [one["original", s] for s in seeds],
            "retrained": [one["retrain", s] for s in seeds],
            "`fiun`": [None if (r := one["fiun", s]).get("kind") else r for s in seeds],
        }
        for kind, scope, merged in product(KINDS, SCOPES, MERGED):
            form = {"model": "update", "kind": kind, "scope": scope, "merged": merged}
            updates = [r for r in own if form.items() <= r.items()]
            forms[f"{kind}, {scope}, {merged}"] = [
                best([r for r in updates if r["seed"] == s], one["original", s]) for s in seeds
            ]
        for form_name, found in forms.items():
            row: Row = {"setting": setting, "form": form_name, "of": f"{sum(map(bool, found))}/{len(seeds)}"}
            pairs = [(r, one["retrain", s]) for r, s in zip(found, seeds, strict=True) if r is not None]
            if pairs:
                row["gap"] = fmean(r["forget"] - again["forget"] for r, again in pairs)
                for key in MEASURED:
                    values = [r[key] for r, _ in pairs if r[key] is not None]
                    row[key] = fmean(values) if values else None
            out.append(row)
    return out


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """The summary as Markdown, in percent and points."""
    heads = ["to forget", "model", "seeds", "gap to retrained", *MEASURED.values()]
    lines = ["| " + " | ".join(heads) + " |", "|" + " --- |" * len(heads)]
    for row in rows:
        cells = [row["setting"], row["form"], row["of"]]
        for key in ("gap", *MEASURED):
            value = row.get(key)
            cells.append("-" if value is None else f"{100 * value:{'+' if key == 'gap' else ''}.1f}")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
