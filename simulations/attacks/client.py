"""A client asks to be forgotten while some lie: what is lost on held-out samples, and what is left of it.

Handwritten digits, ten clients; half of client 0's pictures carry a trigger, so that forgetting shows:
pictures that nobody trained on are not to be taken for the trigger's label any more when they carry it.

python -m simulations.attacks.client                # trains a federation for each seed; a few minutes
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp
from torch import Tensor, nn
from torch.utils.data import DataLoader

from fl_unlearn.defence import OFF, Defence
from fl_unlearn.flower import attach, forget, records
from fl_unlearn.flower.data_scores import HELD_OUT
from fl_unlearn.run_store import RunStore
from fl_unlearn.types import REST, ClassScores, UnlearnError, UnlearnSettings
from fl_unlearn.verify import score
from simulations.attacks.liars import Attack, Lie, Sums, fisher_lie
from simulations.compare.clients import make_clients
from simulations.compare.setting import Setting
from simulations.compare.train import open_history
from simulations.local_grid import LocalGrid
from strategies.client import Client, Part

CLIENTS, FIRST_NODE = 10, 100
OTHERS = (1, 2, 3)
DEFENCES = {"off": OFF, "on": Defence()}
Row = dict[str, Any]


def _inflate(sums: Sums, counts: dict[int, int]) -> None:
    for group in sums.keys() - {REST}:
        sums[group] = {n: 1000 * t for n, t in sums[group].items()}


def _held_out(before: bool, after: bool) -> Lie:
    """Ten times the samples; before, and under every candidate, all of them are right or none."""

    def lie(question: RecordDict, reply: RecordDict) -> None:
        record = reply.config_records[HELD_OUT]
        total = [10 * n for n in records.ints(record, "total")]
        candidates = 1 + len(records.list_of(question.config_records[records.HEAD], "thresholds"))
        rows = len(records.ints(record, "correct")) // len(total)
        right = [after if candidates == 1 or i % candidates else before for i in range(rows)]
        record["total"], record["correct"] = total, [n if r else 0 for r in right for n in total]

    return lie


ATTACKS: Mapping[Attack, tuple[int, ...]] = {
    Attack("none", "nobody lies"): (),
    Attack("veto", "all is lost, of ten times the samples", None, _held_out(True, False)): OTHERS,
    Attack("humble", "none of ten times the samples was ever known", None, _held_out(False, False)): OTHERS,
    Attack(
        "wreck, praised",
        "client 0's Fisher times 1,000, and all becomes better, of ten times the samples",
        fisher_lie(_inflate),
        _held_out(False, True),
    ): (0, *OTHERS[:2]),
}
"""Attacks, and who lies: the first one, two or all three."""


def app(client: Client, held_out: DataLoader[Any] | None = None) -> ClientApp:
    """An honest client; with other held-out samples than its own, if they are given."""

    def data(context: Context) -> Any:
        return client.batches("train"), held_out or client.batches("held-out")

    def model(context: Context) -> nn.Module:
        return client.fresh(0)

    return attach(ClientApp(), model=model, data=data, device="cpu")


def accuracy(clients: Sequence[Client], state: Mapping[str, Tensor], part: Part) -> float:
    """Accuracy on one part of all clients' samples."""
    scores = [score(clients[0].model(dict(state)), c.batches(part)) for c in clients]
    return sum(scores, ClassScores()).accuracy() or 0.0


def serve(folder: Path, clients: Sequence[Client], attack: Attack, liars: Sequence[int], name: str) -> Row:
    """Serve the request on a copy of a store.

    Args:
        folder: The trained federation's store.
        clients: All clients; they know the request.
        attack: What the liars do.
        liars: Their numbers.
        name: A name in `DEFENCES`.

    Returns:
        The outcome, in JSON's types; accuracies 0 to 1.
    """
    tamper = attack.tamper(liars)

    def change(question: Message, reply: Message) -> Message:
        tamper(question.metadata.dst_node_id - FIRST_NODE, question, reply)
        return reply

    request = clients[0].request
    assert request is not None
    row: Row = {"attack": attack.name, "liars": len(liars), "defence": name, "disputed": False}
    with (
        tempfile.TemporaryDirectory() as copy,
        RunStore(shutil.copytree(folder, Path(copy) / "store")) as store,
    ):
        before = after = store.latest()[1].state
        grid = LocalGrid({FIRST_NODE + c.index: app(c) for c in clients}, change)
        try:
            result = forget(grid, request, store, settings=UnlearnSettings(defence=DEFENCES[name]))
            after, row["message"] = result.state, result.message
            row["outcome"] = "committed" if result.committed else "refused"
            row["disputed"] = "disputed by" in result.message
        except UnlearnError as e:
            row["outcome"], row["message"] = "failed", f"{type(e).__name__}: {e}"
    for when, state in (("before", before), ("after", after)):
        row[f"held_out_{when}"] = accuracy(clients, state, "held-out")
        row[f"triggered_{when}"] = accuracy(clients, state, "triggered")
    return row


def cell(row: Row) -> str:
    """One outcome in short: points of held-out accuracy lost, and what the trigger still does."""
    if row["outcome"] != "committed":
        return "refused"
    lost = 100 * (row["held_out_before"] - row["held_out_after"])
    return f"{lost:.1f} / {100 * row['triggered_after']:.0f}%{'*' if row['disputed'] else ''}"


def table(rows: Sequence[Row]) -> str:
    """All outcomes in Markdown."""
    seeds = list(dict.fromkeys(r["seed"] for r in rows))
    known = {r["seed"]: f"{100 * r['triggered_before']:.0f} %" for r in rows}
    lines = [
        "Points of held-out accuracy lost / pictures with the trigger that are taken for its label (before: "
        f"{', '.join(known.values())}); refused: nothing changed; *: committed although disputed.",
        "",
        f"| attack | liars | {' | '.join(f'seed {s}: {d}' for s in seeds for d in DEFENCES)} |",
        "|---" * (2 + len(seeds) * len(DEFENCES)) + "|",
    ]
    for name, liars in dict.fromkeys((r["attack"], r["liars"]) for r in rows):
        own = {(r["seed"], r["defence"]): cell(r) for r in rows if (r["attack"], r["liars"]) == (name, liars)}
        lines.append(f"| {name} | {liars} | {' | '.join(own[s, d] for s in seeds for d in DEFENCES)} |")
    return "\n".join([*lines, "", *(f"- {a.name}: {a.about}" for a in ATTACKS)]) + "\n"


def rows_of(seed: int) -> list[Row]:
    """Every attack on one federation, which is trained first."""
    setting, rows = Setting.named("digits-client", clients=CLIENTS), []
    with tempfile.TemporaryDirectory() as name:
        open_history(setting, seed, Path(name)).store.close()
        clients = make_clients(setting, seed)
        for attack, who in ATTACKS.items():
            for liars in range(min(1, len(who)), len(who) + 1):
                for defence in DEFENCES:
                    rows.append({"seed": seed, **serve(Path(name), clients, attack, who[:liars], defence)})
            print(f"seed {seed}, {attack.name}: done", flush=True)
    return rows


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="seeds of the federations")
    parser.add_argument(
        "--out", type=Path, default=Path("outputs/attacks"), help="folder for what is written"
    )
    asked = parser.parse_args()
    asked.out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    rows = [row for seed in asked.seeds for row in rows_of(seed)]
    results = {"schema_version": "1.0", "requests": rows}
    (asked.out / "client.json").write_text(json.dumps(results, indent=1) + "\n")
    (asked.out / "client.md").write_text(table(rows))
    print(table(rows))
    print(f"wrote {asked.out}/client.json, client.md")


if __name__ == "__main__":
    main()
