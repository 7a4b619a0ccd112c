"""U-LiRA on a federation: does a strategy leave a trace of the samples it unlearned? Needs many trainings.

Shadow federations share clients and data; each has a random half of the candidates (the samples that the
setting's request names), an initial model and orders of samples of its own. They come in pairs: what the
first has of the candidates, the second has not. Each is trained, unlearns its candidates by the strategy, and
is retrained without them. Then every candidate's confidences are attacked (`metrics.ulira`), twice:

- against the retrained model of a federation that never had it (Hayes et al. 2024, arXiv 2403.01218). That
  also finds what a strategy does to every sample, forgotten or not, such as some more rounds of training;
- ``trace``: against the strategy's model of a federation that never had it and unlearned the other half
  (the privacy game of Naderloui et al. 2025, arXiv 2506.13009). That finds only what is left of the sample.

With 8 shadows and 40 candidates, guessing gives an AUC of 0.50 with a standard deviation of 0.04 (measured on
random numbers): smaller differences mean nothing.

Every federation and every answer is kept in a folder, so that an interrupted run goes on where it was, and
further strategies or shadows need no training anew.

    python -m simulations.compare.shadows --shadows 8 --strategies retrain fine-tune --out outputs/ulira
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import TensorDataset

import strategies
from fl_unlearn.files import write_atomically
from fl_unlearn.metrics import ulira
from fl_unlearn.run_store import RunStore
from fl_unlearn.store import KeepPolicy
from fl_unlearn.types import ForgetRequest, StateDict, UnlearnError
from simulations.compare.clients import build_model, head_of, initial_state, make_clients
from simulations.compare.local import LocalFederation
from simulations.compare.results import ORIGINAL, RETRAIN
from simulations.compare.setting import SETTINGS, Setting, SettingError
from simulations.compare.train import train_into
from strategies.client import Client
from strategies.errors import StrategyError
from strategies.history import History

LEAST_NON_MEMBERS = 100
"""Without as many, the true-positive rate at 1 % false positives means nothing."""

Progress = Callable[[str], None]


# --------------------------------------------------------------------------- shadows
class Shadows:
    """Shadow federations of one setting, trained where they are first needed.

    Args:
        setting: Its request must name samples: the candidates.
        shadows: How many federations: even, at least 8.
        seed: Of the data's partition, of the candidates, and of all shadows' own seeds.
        folder: Where they are kept.
        progress: Told of every step that takes time.

    Raises:
        SettingError: If the numbers do not allow the attack, or the folder holds shadows of another setting.
    """

    def __init__(
        self, setting: Setting, shadows: int, seed: int, folder: Path, progress: Progress | None = None
    ) -> None:
        _check(setting, shadows)
        self.setting, self.count, self.seed, self.folder = setting, shadows, seed, folder
        self._say = progress or (lambda _: None)
        self._clients = make_clients(setting, seed)
        request = self._clients[0].request
        assert request is not None
        self.candidates = [(c, row) for c, rows in request.samples.items() for row in rows]
        _claim(folder / "shadows.json", f"{setting.to_config() | {'data-root': ''}} seed {seed}")
        own = {c.name: c.dataset("train") for c in self._clients}
        pairs: list[Any] = [own[c][row] for c, row in self.candidates]
        self._x, self._y = torch.stack([x for x, _ in pairs]), torch.stack([y for _, y in pairs])

    def has(self, shadow: int) -> np.ndarray:
        """Which candidates a shadow federation trains on, bool of shape (candidates,)."""
        order = np.random.default_rng([self.seed, shadow // 2]).permutation(len(self.candidates))
        first = np.zeros(len(order), dtype=bool)
        first[order[: len(order) // 2]] = True
        return first if shadow % 2 == 0 else ~first

    def confidences(self, strategy: str, shadow: int) -> Tensor:
        """φ of every candidate in a shadow's model after ``strategy``, float64, shape (candidates,).

        Raises:
            StrategyError: If the strategy cannot do it, or changed nothing.
        """
        settings = "" if strategy == ORIGINAL else repr(strategies.get(strategy))
        path = self.folder / f"shadow-{shadow:03d}" / f"{strategy}.json"
        if path.is_file() and (kept := json.loads(path.read_text()))["strategy"] == settings:
            return torch.tensor(kept["confidences"], dtype=torch.float64)
        phi = self._phi(self._model(strategy, shadow))
        plain = {"strategy": settings, "confidences": phi.tolist()}
        write_atomically(path, json.dumps(plain).encode())
        return phi

    def _phi(self, state: StateDict) -> Tensor:
        model = build_model(self.setting)
        model.load_state_dict(dict(state))
        with torch.no_grad():
            return ulira.logit_scaled(model.eval()(self._x), self._y)

    def _model(self, strategy: str, shadow: int) -> StateDict:
        clients = self._clients_of(shadow)
        with self._trained(clients, shadow) as history:
            self._say(f"shadow {shadow + 1}/{self.count}: {strategy}")
            if strategy == ORIGINAL:
                return history.current()
            assert clients[0].request is not None
            federation, method = LocalFederation(clients, clients[0].request), strategies.get(strategy)
            method.check(federation, history)
            outcome = method.unlearn(federation, history)
        if outcome.refused:
            raise StrategyError(f"{strategy} changed nothing: {outcome.refused}")
        return outcome.state

    def _clients_of(self, shadow: int) -> list[Client]:
        """Clients who train on this federation's candidates only, and are to forget them."""
        has = dict(zip(self.candidates, self.has(shadow).tolist(), strict=True))
        rows = {  # of each client's data, less the candidates that this federation never sees
            c.name: [i for i in range(c.count("train")) if has.get((c.name, i), True)] for c in self._clients
        }
        forget = {
            name: tuple(new for new, old in enumerate(kept) if (name, old) in has)
            for name, kept in rows.items()
        }
        request = ForgetRequest(samples={name: own for name, own in forget.items() if own})
        out = []
        for c in self._clients:
            data: Any = c.dataset("train")
            own = TensorDataset(*data[torch.tensor(rows[c.name])])
            build = partial(build_model, self.setting)
            out.append(Client(c.name, c.index, build, own, c.dataset("held-out"), request))
        return out

    @contextmanager
    def _trained(self, clients: Sequence[Client], shadow: int) -> Iterator[History]:
        own = self.seed * 100_003 + shadow + 1
        training = replace(self.setting.training(self.seed), seed=own)
        keep = KeepPolicy(client_updates=True)
        with RunStore(self.folder / f"shadow-{shadow:03d}" / "store", keep=keep) as store:
            if store.umig.last_round() < training.rounds:
                self._say(f"shadow {shadow + 1}/{self.count}: training")
            train_into(store, clients, initial_state(self.setting, own), training)
            yield History(store, training, head_of(self.setting))


def _check(setting: Setting, shadows: int) -> None:
    candidates = sum(setting.samples_wanted().values())
    if not candidates:
        raise SettingError("the request must name samples, the candidates; set forget-samples to '0:40'")
    if shadows % 2 or shadows < 2 * ulira.LEAST:
        raise SettingError(f"shadows must be even and at least {2 * ulira.LEAST}, got {shadows}")
    if candidates * shadows // 2 < LEAST_NON_MEMBERS:
        raise SettingError(
            f"{candidates} candidates in {shadows} shadows give {candidates * shadows // 2} non-members; a "
            f"true-positive rate at 1 % false positives needs {LEAST_NON_MEMBERS}: name more of either"
        )


def _claim(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.is_file() and path.read_text() != text:
        raise SettingError(f"{path.parent} holds shadows of another setting: {path.read_text()}")
    write_atomically(path, text.encode())


# --------------------------------------------------------------------------- the attack
def u_lira(
    setting: Setting,
    strategy: str,
    shadows: int,
    seed: int,
    *,
    folder: Path,
    progress: Progress | None = None,
) -> dict[str, float]:
    """Attack what a strategy unlearned, with shadow federations.

    Args:
        setting: What is trained; its request must name samples, the candidates.
        strategy: Name of a strategy that can forget samples, or "original": nothing is unlearned, which
            shows how strong the attack is.
        shadows: How many federations: even, at least 8; half of them have a given candidate.
        seed: Decides everything that is drawn.
        folder: Where shadows are kept; may hold more of them, and other strategies' answers.
        progress: Told of every step that takes time.

    Returns:
        ``accuracy``, ``auc`` and ``tpr`` (at 1 % false positives) against retrained models, the same after
        ``trace-`` against the strategy's own models, and the numbers of ``shadows`` and ``samples``.

    Raises:
        SettingError: If the numbers do not allow the attack, or the folder is another setting's.
        StrategyError: If there is no such strategy, or it cannot forget samples.
    """
    if strategy != ORIGINAL and "samples" not in strategies.get(strategy).targets:
        raise StrategyError(f"{strategy} cannot forget single samples")
    made = Shadows(setting, shadows, seed, folder, progress)
    after = torch.stack([made.confidences(strategy, i) for i in range(shadows)])
    retrained = torch.stack([made.confidences(RETRAIN, i) for i in range(shadows)])
    first = torch.from_numpy(np.stack([made.has(i) for i in range(0, shadows, 2)]))
    # Of a pair, the one federation had the sample and the other had not.
    unlearned = torch.where(first, after[0::2], after[1::2])
    out: dict[str, float] = {"shadows": shadows, "samples": len(made.candidates)}
    for prefix, others in (("", retrained), ("trace-", after)):
        found = ulira.u_lira(unlearned, torch.where(first, others[1::2], others[0::2]))
        out |= {f"{prefix}accuracy": found.accuracy, f"{prefix}auc": found.auc, f"{prefix}tpr": found.tpr}
    return out


def table(found: Mapping[str, Mapping[str, float] | str]) -> str:
    """A Markdown table of `u_lira`'s answers; a dash, and the reason below, where there is none."""
    lines = [
        "| strategy | AUC against retrained | accuracy | TPR at 1 % FPR "
        "| trace: AUC | accuracy | TPR at 1 % FPR |",
        "|---|---|---|---|---|---|---|",
    ]
    reasons = []
    for name, values in found.items():
        if isinstance(values, str):
            reasons.append(f"{name}: {values}")
            cells = ["\N{EN DASH}"] * 6
        else:
            pairs = [
                (p, values[f"{p}auc"], values[f"{p}accuracy"], values[f"{p}tpr"]) for p in ("", "trace-")
            ]
            cells = [c for _, auc, right, tpr in pairs for c in (f"{auc:.3f}", f"{right:.1%}", f"{tpr:.1%}")]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join([*lines, *(f"\n{r}" for r in reasons)]) + "\n"


# --------------------------------------------------------------------------- command line
def main(arguments: Sequence[str] | None = None) -> int:
    """Run it; returns the exit status."""
    options = _options(arguments)
    logging.getLogger("fl_unlearn").setLevel(logging.WARNING)
    changes = {"rounds": options.rounds} if options.rounds else {}
    found: dict[str, Mapping[str, float] | str] = {}
    try:
        setting = Setting.named(options.setting, data_root=options.data, **changes)
        for name in options.strategies:
            if name != ORIGINAL:
                strategies.get(name)  # a name that is not known is no result
        _check(setting, options.shadows)
        for name in options.strategies:
            try:
                found[name] = u_lira(
                    setting, name, options.shadows, options.seed, folder=options.out, progress=_print
                )
            except UnlearnError as e:
                found[name] = str(e)
    except (SettingError, StrategyError) as e:
        print(f"failed: {e}", file=sys.stderr)
        return 1
    plain = {"setting": setting.to_config(), "seed": options.seed, "strategies": found}
    write_atomically(options.out / "ulira.json", json.dumps(plain, indent=1).encode())
    write_atomically(options.out / "ulira.md", table(found).encode())
    print(f"\n{table(found)}\nwritten: {options.out / 'ulira.json'}, {options.out / 'ulira.md'}")
    return 0


def _print(text: str) -> None:
    print(text, flush=True)


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m simulations.compare.shadows", description=(__doc__ or "").partition("\n")[0]
    )
    samples = [name for name, values in SETTINGS.items() if values.get("forget_samples")]
    parser.add_argument(
        "--setting", default=samples[0], help=f"one that forgets samples: {', '.join(samples)}"
    )
    parser.add_argument("--strategies", nargs="+", default=[ORIGINAL, RETRAIN, "fine-tune"], metavar="NAME")
    parser.add_argument("--shadows", type=int, default=8, help="federations to train: even, at least 8")
    parser.add_argument("--rounds", type=int, default=0, help="rounds of training; 0: the setting's")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--data", default="", help="the data set's folder, where it needs one")
    parser.add_argument("--out", type=Path, default=Path("outputs/ulira"), help="results, and the shadows")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    raise SystemExit(main())
