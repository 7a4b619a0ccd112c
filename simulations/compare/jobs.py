"""Comparisons in one process each: trains, runs, measures, and puts the results together."""

from __future__ import annotations

import logging
import multiprocessing
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path

import torch

from fl_unlearn.metrics import METRICS, gaps
from fl_unlearn.metrics.contract import Column, Measured
from simulations.compare.clients import load_data, make_clients
from simulations.compare.experiment import Bench, graph_of, rows_of, run_all, said_of, strategies_of
from simulations.compare.local import LocalFederation
from simulations.compare.results import CHECKPOINT, COST, ORIGINAL, RETRAIN, Comparison, Row
from simulations.compare.setting import Setting, SettingError
from simulations.compare.train import open_history
from strategies.contract import unsupported
from strategies.errors import UnsupportedError

log = logging.getLogger("fl_unlearn.simulations")


def run_jobs(
    settings: Mapping[str, Setting],
    strategies: Sequence[str],
    metrics: Sequence[str],
    seeds: Sequence[int],
    out: Path,
    jobs: int = 1,
) -> list[Comparison]:
    """Make comparisons; what is there from before is not made again.

    Args:
        settings: Name to setting.
        strategies: Names of strategies; retraining is always made, as the yardstick.
        metrics: Names of metrics.
        seeds: One federation for each.
        out: Where everything is kept.
        jobs: How many federations at a time, each in a process and on a core of its own.

    Raises:
        StrategyError: If a strategy is not known, or fails.
        UnsupportedError: If none of the strategies can serve a setting's request; before any training.
        ValueError: If a setting makes no sense.
    """
    names = list(dict.fromkeys([RETRAIN, *strategies]))
    for name, setting in settings.items():
        check(name, setting, names, strategies, seeds)
    work = [(name, setting, seed) for name, setting in settings.items() for seed in seeds]
    if jobs == 1 or len(work) == 1:
        for name, setting, seed in work:
            _run_one(name, setting, seed, names, metrics, out)
    else:
        _in_processes(work, names, metrics, out, jobs)
    return [collect(name, setting, names, metrics, seeds, out) for name, setting in settings.items()]


def check(
    name: str, setting: Setting, names: Sequence[str], asked: Sequence[str], seeds: Sequence[int]
) -> None:
    """Check, before anything is trained, that there is something to do; log what will not be run.

    Args:
        name: The setting's name.
        setting: The setting.
        names: Names of strategies.
        asked: Those of them that were asked for.
        seeds: Seeds of the federations.

    Raises:
        StrategyError: If a strategy is not known.
        UnsupportedError: If none of those asked for can serve the setting's request.
        ValueError: If the setting makes no sense.
    """
    classes = load_data(setting).num_classes
    request = make_clients(setting, seeds[0])[0].request
    assert request is not None
    if unknown := [c for c in (*request.classes, setting.backdoor_label) if not 0 <= c < classes]:
        raise SettingError(f"{name}: there is no class {unknown[0]}: they are 0 to {classes - 1}")
    reasons = {n: unsupported(s, request) for n, s in strategies_of(names).items()}
    for strategy, why in reasons.items():
        if why is not None:
            log.info("%s: %s will not be run: %s", name, strategy, why)
    if all(reasons[n] is not None for n in asked):
        why = "; ".join(f"{n}: {reasons[n]}" for n in asked)
        raise UnsupportedError(f"{name}: none of the strategies can serve this request: {why}")


def _in_processes(
    work: Sequence[tuple[str, Setting, int]],
    names: Sequence[str],
    metrics: Sequence[str],
    out: Path,
    jobs: int,
) -> None:
    level = logging.getLogger().getEffectiveLevel()
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, mp_context=context, initializer=_begin, initargs=(level,)) as pool:
        futures = [pool.submit(_run_one, *w, names, metrics, out) for w in work]
        try:
            for future in as_completed(futures):
                future.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _begin(level: int) -> None:
    logging.basicConfig(level=level, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")


def _run_one(
    name: str, setting: Setting, seed: int, names: Sequence[str], metrics: Sequence[str], out: Path
) -> None:
    """Train one federation where that has not been done, run and measure all strategies on it."""
    torch.set_num_threads(1)  # the same result however many jobs there are
    bench = _open(name, setting, seed, metrics, out)
    try:
        run_all(bench, strategies_of(names), lambda text: log.info("%s, seed %d: %s", name, seed, text))
    finally:
        bench.history.store.close()


def _open(name: str, setting: Setting, seed: int, metrics: Sequence[str], out: Path) -> Bench:
    folder = folder_of(name, seed, out)
    clients = make_clients(setting, seed)
    assert clients[0].request is not None
    history = open_history(setting, seed, folder / "store")
    return Bench(LocalFederation(clients, clients[0].request), history, folder, tuple(metrics))


def folder_of(name: str, seed: int, out: Path) -> Path:
    """Where a federation, its models and its measurements are kept."""
    return out / name / f"seed-{seed}"


def collect(
    name: str,
    setting: Setting,
    names: Sequence[str],
    metrics: Sequence[str],
    seeds: Sequence[int],
    out: Path,
) -> Comparison:
    """Put together what was run and measured, by whichever engine."""
    rows: list[Row] = []
    facts: dict[str, dict[int, dict[str, str | int | float]]] = {n: {} for n in names}
    whys: dict[str, list[str]] = {n: [] for n in names}
    graph, request = None, None
    for seed in seeds:
        bench = _open(name, setting, seed, metrics, out)
        try:
            rows += rows_of(bench, names, seed)
            for n in names:
                facts[n][seed], why = said_of(bench, n)
                whys[n].append(why)
            graph, request = graph or graph_of(bench), request or bench.federation.request
        finally:
            bench.history.store.close()
    columns: list[Column] = [c for m in metrics for c in METRICS[m].columns]
    assert graph is not None
    assert request is not None
    papers = {n: s.paper for n, s in strategies_of(names).items()}
    return Comparison(
        name,
        {k: v for k, v in setting.to_config().items() if k != "data-root"},
        request.to_json(),
        (*columns, *gaps.COLUMNS, *CHECKPOINT, *COST),
        {ORIGINAL: "before forgetting", **papers},
        (*rows, *_gap_rows(rows, [ORIGINAL, *names], seeds)),
        facts,
        {n: given[0] for n, given in whys.items() if all(given)},
        graph,
    )


def _gap_rows(rows: Sequence[Row], names: Sequence[str], seeds: Sequence[int]) -> list[Row]:
    """Each model's gaps to the retrained one of the same seed."""
    measured: dict[tuple[str, int], dict[str, Measured]] = {}
    for r in rows:
        measured.setdefault((r.strategy, r.seed), {})[r.key] = Measured(r.value, r.samples, r.why)
    out = []
    for seed in seeds:
        retrained = measured.get((RETRAIN, seed), {})
        for name in names:
            if own := measured.get((name, seed)):
                found = gaps.gaps(own, retrained)
                out += [Row(name, seed, k, m.value, m.samples, m.why) for k, m in found.items()]
    return out
