"""What the vote does where nobody lies: clients ask to be forgotten, and held-out samples are few and skewed.

Handwritten digits, ten clients with 36 held-out pictures each, dealt at random or with the label skew of
their training pictures; each of some clients in turn asks for its data to be forgotten, without and with the
vote on what is lost.

python -m simulations.attacks.honest                # trains a federation for each seed and skew; minutes
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from flwr.clientapp import ClientApp
from torch.utils.data import DataLoader, TensorDataset

from fl_unlearn.defence import Defence
from fl_unlearn.flower import forget
from fl_unlearn.run_store import RunStore
from fl_unlearn.types import ForgetRequest, UnlearnError, UnlearnSettings
from simulations.attacks.client import CLIENTS, FIRST_NODE, Row, app
from simulations.compare.clients import load_data, make_clients
from simulations.compare.setting import Setting
from simulations.compare.train import open_history
from simulations.local_grid import LocalGrid
from strategies.client import Client, batches_of

WHO = ("0", "2", "5", "7")
DEFENCES = {"sums": Defence(liars=0.0), "vote": Defence()}


def skewed(setting: Setting, seed: int, clients: Sequence[Client]) -> list[DataLoader[Any]]:
    """Held-out pictures, dealt in the shares in which the clients hold each label."""
    test, random = load_data(setting).test, np.random.default_rng(seed)
    rows: list[list[int]] = [[] for _ in clients]
    for label in range(10):
        shares = np.array([int((c.labels == label).sum()) for c in clients], dtype=float)
        members = random.permutation(np.flatnonzero(np.asarray(test.labels) == label))
        cuts = np.round(np.cumsum(shares / shares.sum()) * len(members)).astype(int)[:-1]
        for own, part in zip(rows, np.split(members, cuts), strict=True):
            own += part.tolist()
    parts = [torch.tensor(sorted(own), dtype=torch.long) for own in rows]
    return [batches_of(TensorDataset(test.images[part], test.labels[part])) for part in parts]


def serve(folder: Path, apps: Mapping[int, ClientApp], who: str, defence: Defence) -> Row:
    """Serve one client's request on a copy of a store."""
    with (
        tempfile.TemporaryDirectory() as copy,
        RunStore(shutil.copytree(folder, Path(copy) / "store")) as store,
    ):
        try:
            asked, settings = ForgetRequest(clients=(who,)), UnlearnSettings(defence=defence)
            result = forget(LocalGrid(dict(apps)), asked, store, settings=settings)
        except UnlearnError as e:
            return {"outcome": "failed", "disputed": False, "message": f"{type(e).__name__}: {e}"}
        drop = None
        if result.committed and result.update is not None:
            made = (result.update.threshold, result.update.dampening)
            drop = next(c.retain_drop for c in result.candidates if (c.threshold, c.dampening) == made)
        return {
            "outcome": "committed" if result.committed else "refused",
            "disputed": "(disputed" in result.message,
            "drop": drop,
            "message": result.message,
        }


def rows_of(seed: int, alpha: float) -> Iterator[Row]:
    """All requests on one federation, which is trained first."""
    setting = Setting.named("digits-client", clients=CLIENTS, alpha=alpha, rounds=12)
    with tempfile.TemporaryDirectory() as name:
        open_history(setting, seed, Path(name)).store.close()
        clients = make_clients(setting, seed)
        for dealt in ("at random", "skewed"):
            held = skewed(setting, seed, clients) if dealt == "skewed" else [None] * CLIENTS
            apps = {FIRST_NODE + c.index: app(c, h) for c, h in zip(clients, held, strict=True)}
            for who in WHO:
                for by, defence in DEFENCES.items():
                    about = {"seed": seed, "alpha": alpha, "held-out": dealt, "client": who, "by": by}
                    yield about | serve(Path(name), apps, who, defence)
            print(f"alpha {alpha:g}, seed {seed}, held-out pictures {dealt}: done", flush=True)


def summary(rows: Sequence[Row]) -> str:
    """Where the vote made a difference, in words."""
    sums, vote = ([r for r in rows if r["by"] == by] for by in DEFENCES)
    pairs = list(zip(sums, vote, strict=True))
    more = [v for s, v in pairs if v["outcome"] == "committed" != s["outcome"]]
    less = sum(s["outcome"] == "committed" != v["outcome"] for s, v in pairs)
    points = ", ".join(f"{100 * v['drop']:.1f}" for v in more) or "-"
    served = sum(s["outcome"] == "committed" for s in sums)
    disputed = sum(v["disputed"] for v in more)
    return (
        f"{len(pairs)} requests; committed by the sums: {served}; by the vote, {len(more)} more ({disputed} "
        f"disputed; points lost: {points}) and {less} fewer"
    )


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="seeds of the federations")
    parser.add_argument("--alphas", type=float, nargs="+", default=[0.1, 0.3], help="label skews (Dirichlet)")
    parser.add_argument(
        "--out", type=Path, default=Path("outputs/attacks"), help="folder for what is written"
    )
    asked = parser.parse_args()
    asked.out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    rows = [row for alpha in asked.alphas for seed in asked.seeds for row in rows_of(seed, alpha)]
    results = {"schema_version": "1.0", "requests": rows}
    (asked.out / "honest.json").write_text(json.dumps(results, indent=1) + "\n")
    print(summary(rows))
    print(f"wrote {asked.out}/honest.json")


if __name__ == "__main__":
    main()
