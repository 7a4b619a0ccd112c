"""What a run writes: its folder, the scores of its models, the report and the closing table."""

from __future__ import annotations

import json
import logging
import shutil
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from flwr.app import ArrayRecord, Context
from flwr.serverapp import Grid

from fl_unlearn.files import write_atomically
from fl_unlearn.flower import ForgetResult, UnlearningStrategy
from fl_unlearn.flower.reporting import build_report, lineage_graph
from fl_unlearn.lineage import NodeKind
from fl_unlearn.report import UnlearnReport, write_report
from fl_unlearn.run_store import RunStore
from fl_unlearn.store import KeepPolicy
from fl_unlearn.types import ClassScores, ForgetRequest, UnlearnSettings
from fl_unlearn.verify import score_checkpoints, score_state

from . import task

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
WALL_SECONDS, DATA, COMPLETE = "train-wall-seconds", "data-settings", "complete-run"
YARDSTICK, UNKNOWN = "yardstick-of", "unknown"
BEFORE = "before.json"


@dataclass(frozen=True)
class Retrained:
    """The model trained without the forget set, and the clients' seconds that it took."""

    arrays: ArrayRecord
    client_seconds: float


class Run:
    """One run's settings and outputs.

    Attributes:
        config: The run config.
        folder: Where everything is written.
        resumed: Whether the folder holds a run to go on from.
        interrupted: Whether it holds a run of the same command, which did not come to its end.
        requests: What is to be forgotten: one request, or none.
        after_round: Round after which the request is served; None: after the last.
        retrained: The yardstick, once trained.
    """

    def __init__(self, context: Context, grid: Grid) -> None:
        show_progress()
        self.config: Mapping[str, Any] = context.run_config
        self.folder, self.resumed, self.interrupted = open_folder(self.config, context.run_id)
        classes = str(self.config["forget-classes"])
        clients = str(self.config["forget-clients"])
        self.requests = [ForgetRequest.parse(classes, clients)] if classes.strip() else []
        self.after_round = int(self.config["forget-after-round"]) or None
        self.retrained: Retrained | None = None
        self.before: dict[str, ClassScores] = {}
        self.measuring = 0.0
        self.settings = read_settings(self.config)
        print(f"Output folder: {self.folder}", flush=True)
        if self.interrupted:
            print("It holds a run that was interrupted, which goes on", flush=True)

    def options(self) -> dict[str, Any]:
        """How `UnlearningStrategy` is to keep models and serve requests."""
        keep = KeepPolicy(
            client_updates=bool(self.config["keep-client-updates"]), every=int(self.config["keep-every"])
        )
        return {
            "settings": self.settings,
            "keep": keep,
            "deterministic": True,
            "on_request": self.measure_before,
        }

    def check_data(self, store: RunStore) -> None:
        """Remember how the data was shared out, and refuse to go on from a run that shared it otherwise.

        Raises:
            ValueError: If it did: the clients would be asked about data that they have not trained on.
        """
        own = json.dumps(asdict(task.DataSettings.from_config(self.config)), sort_keys=True)
        known = store.umig.get_meta(DATA)
        if known is None:
            store.set_meta(DATA, own)
        elif known != own:
            raise ValueError(
                f"the run in {self.folder} was trained on data shared out by {known}, this one by {own}; "
                "give the same dataset, data-root, max-train-examples, alpha, seed, holders and held-classes"
            )

    def measure_before(self, store: RunStore) -> None:
        """Score the stored models as they are before anything is forgotten."""
        started = time.perf_counter()
        self.before = self.score(store)
        kept = {
            "request": self.requests[0].to_json(),
            "operations": [o.digest for o in store.operations.all()],
            "scores": {name: asdict(scores) for name, scores in self.before.items()},
        }
        write_atomically(self.folder / BEFORE, json.dumps(kept).encode())
        self.measuring += time.perf_counter() - started

    def recall_before(self, store: RunStore, result: ForgetResult) -> dict[str, ClassScores]:
        """What `measure_before` measured before an interruption; nothing if that is not there."""
        update = result.update.digest if result.update else None
        earlier = [o.digest for o in store.operations.all() if o.client_update != update]
        try:
            kept = json.loads((self.folder / BEFORE).read_bytes())
            if (kept["request"], kept["operations"]) != (result.request.to_json(), earlier):
                return {}
            scores = {name: ClassScores(**_by_label(plain)) for name, plain in kept["scores"].items()}
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as e:
            print(f"The report lacks the scores from before the request: {e}", flush=True)
            return {}
        return scores

    def score(self, store: RunStore) -> dict[str, ClassScores]:
        """Scores of every stored model on the central test set."""
        return score_checkpoints(
            store, task.new_model(self.config), task.load_test_data(self.config), device=DEVICE
        )

    def write(self, strategy: UnlearningStrategy, seconds: float) -> None:
        """Write the report of the request, if there was one, and print the closing table.

        Raises:
            RuntimeError: If the request could not be served.
        """
        store = strategy.store
        result = strategy.results[-1] if strategy.results else None
        self.note_wall_seconds(store, seconds - self.measuring - (result.wall_seconds if result else 0.0))
        if result is None:
            print(f"Trained, nothing was to be forgotten. The run is in {self.folder}", flush=True)
            self.complete(store)
            return
        if result.message.startswith("failed"):
            raise RuntimeError(f"the request was not served: {result.message}")
        self.before = self.before or self.recall_before(store, result)
        report = self.report(store, result)
        write_report(report, self.folder, graph=lineage_graph(store, result))
        self.complete(store)
        print_table(report, self.folder)

    def yardstick_store(self, rounds: int) -> RunStore:
        """The store of the model trained without the forget set; a new one, unless that was interrupted."""
        folder = self.folder / "retrained"
        about = json.dumps([rounds, *(self.config[k] for k in ("forget-classes", "forget-clients"))])
        if folder.exists():
            with RunStore(folder) as store:
                same = self.interrupted and store.umig.get_meta(YARDSTICK) == about
            if not same:
                shutil.rmtree(folder)
        store = RunStore(folder)
        store.set_meta(YARDSTICK, about)
        store.runs.reopen()
        return store

    def complete(self, store: RunStore) -> None:
        """Note that the command has come to its end: repeated, it is not one that was interrupted."""
        if (run := store.runs.last()) is not None:
            store.set_meta(COMPLETE, str(run.id))

    def note_wall_seconds(self, store: RunStore, seconds: float) -> None:
        """Add to the wall time of training; how long one that died had trained is not known."""
        known = store.umig.get_meta(WALL_SECONDS)
        if self.interrupted or known == UNKNOWN:
            store.set_meta(WALL_SECONDS, UNKNOWN)
        elif int(self.config["num-server-rounds"]) or known is None:
            store.set_meta(WALL_SECONDS, str(seconds + float(known or 0.0)))

    def report(self, store: RunStore, result: ForgetResult) -> UnlearnReport:
        """Everything known of the request."""
        retrained = None
        if self.retrained is not None:
            retrained = score_state(
                task.new_model(self.config),
                self.retrained.arrays.to_torch_state_dict(),
                task.load_test_data(self.config),
                device=DEVICE,
            )
        wall = store.umig.get_meta(WALL_SECONDS)
        return build_report(
            result,
            store,
            before=self.before,
            after=self.score(store),
            seed=int(self.config["seed"]),
            train_client_seconds=client_seconds(store),
            train_wall_seconds=None if wall == UNKNOWN else float(wall or 0.0),
            retrained=retrained,
            retrain_client_seconds=self.retrained.client_seconds if self.retrained else None,
        )


def show_progress() -> None:
    """Print what fl-unlearn logs. Its own logger: a handler at the root would print Flower's lines twice."""
    logger = logging.getLogger("fl_unlearn")
    if not logger.handlers:
        logger.addHandler(logging.StreamHandler(sys.stdout))
        logger.setLevel(logging.INFO)


def read_settings(config: Mapping[str, Any]) -> UnlearnSettings:
    """How requests are served, from the run config."""
    threshold = str(config["threshold"]).strip()
    try:
        fixed = None if threshold == "auto" else float(threshold)
    except ValueError as e:
        raise ValueError(f"threshold must be 'auto' or a number, got {threshold!r}") from e
    return UnlearnSettings.preset(
        str(config["preset"]),
        fisher_kind=config["fisher-kind"],
        fisher_scope=str(config["fisher-scope"]),
        merge_rule=str(config["merge-rule"]),
        threshold=fixed,
        measures=tuple(name.strip() for name in str(config["measures"]).split(",") if name.strip()),
        reference=config["reference"],
        timeout=float(config["timeout"]),
    )


def open_folder(config: Mapping[str, Any], run_id: int) -> tuple[Path, bool, bool]:
    """The run's folder, whether it holds a run to go on from, and whether that was interrupted.

    A run to go on from is changed in place, unless ``out-dir`` names another folder: then it is copied there.
    An ``out-dir`` that holds an interrupted run of as many rounds is taken as it is.

    Raises:
        ValueError: If ``out-dir`` holds something else, or ``resume-from`` holds no run.
    """
    source = Path(str(config["resume-from"])).expanduser().absolute() if config["resume-from"] else None
    folder = Path(str(config["out-dir"] or source or f"outputs/quickstart-{run_id}")).expanduser().absolute()
    if source and not (source / "lineage.sqlite").is_file():
        raise ValueError(
            f"resume-from = {source} holds no run (no lineage.sqlite); name a finished run's out-dir"
        )
    if folder == source:
        return folder, True, was_interrupted(folder)
    if folder.exists() and any(folder.iterdir()):
        if was_interrupted(folder, rounds=int(config["num-server-rounds"])):
            return folder, source is not None, True
        raise ValueError(
            f"out-dir = {folder} is not empty; choose another, or go on from it with resume-from"
        )
    if source:
        ignored = shutil.ignore_patterns("report*", "retrained", BEFORE)
        shutil.copytree(source, folder, dirs_exist_ok=True, ignore=ignored)
    return folder, source is not None, False


def was_interrupted(folder: Path, rounds: int | None = None) -> bool:
    """Whether a folder holds a run whose command did not come to its end.

    Raises:
        ValueError: If it is a run of another number of ``rounds``.
    """
    if not (folder / "lineage.sqlite").is_file():
        return False
    with RunStore(folder) as store:
        run = store.runs.last()
        if run is None:
            return len(store.umig) == 0
        if store.umig.get_meta(COMPLETE) == str(run.id):
            return False
    if rounds not in (None, run.rounds):
        raise ValueError(
            f"{folder} holds an interrupted run of {run.rounds} rounds, num-server-rounds is {rounds}; "
            "repeat the same command to go on with it, or choose another out-dir"
        )
    return True


def client_seconds(store: RunStore) -> float:
    """Seconds of training that clients reported, over all rounds."""
    updates = store.umig.nodes(kind=NodeKind.CLIENT_UPDATE)
    return sum(float(n.metadata.get("metrics", {}).get("train-seconds", 0.0)) for n in updates)


def print_table(report: UnlearnReport, folder: Path) -> None:
    """The closing table, for people."""
    final, cost = report.final, report.cost
    affected = [m for m in report.models if m.affected]
    rows = [
        ("", "before", "after", "retrained"),
        (
            f"accuracy on class {', '.join(map(str, report.request.classes))}",
            _percent(final.forget_accuracy_before),
            _percent(final.forget_accuracy_after),
            _percent(report.retrained.forget_accuracy if report.retrained else None),
        ),
        (
            "accuracy on the others",
            _percent(final.retain_accuracy_before),
            _percent(final.retain_accuracy_after),
            _percent(report.retrained.retain_accuracy if report.retrained else None),
        ),
    ]
    print(f"\n{report.message}\n\nFinal global model, on test pictures that no client has:")
    for name, *values in rows:
        print(f"  {name:<28}" + "".join(f"{v:>12}" for v in values))
    worst = max((m.forget_accuracy_after or 0.0 for m in affected), default=0.0)
    print(
        f"\n{len(affected)} stored models had inherited the data; the most any still gets right: {worst:.1%}"
    )
    print(
        f"Client compute: {cost.forget_client_seconds:.2f} s to forget, "
        f"{cost.train_client_seconds or 0:.1f} s to train"
        + ("" if cost.retrain_client_seconds is None else f", {cost.retrain_client_seconds:.1f} s to retrain")
    )
    print(f"\nReport: {folder / 'report.md'}\n", flush=True)


def _by_label(plain: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """JSON has no whole numbers as keys."""
    return {name: {int(label): v for label, v in values.items()} for name, values in plain.items()}


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.1f} %"
