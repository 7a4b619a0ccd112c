"""Several experiments, one after another: all are checked first, and a failure does not stop the others."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fl_unlearn.types import UnlearnError
from simulations.compare.local import LocalFederation
from simulations.inheritance.checks import check
from simulations.inheritance.commit import OURS, commit, refuse_committed
from simulations.inheritance.config import Config, ConfigError
from simulations.inheritance.experiment import Experiment
from simulations.inheritance.folder import claim, clear, finished
from simulations.inheritance.grid import DATA, FOLDER, SHIPPED
from simulations.inheritance.progress import Tell
from simulations.inheritance.results import Result
from simulations.inheritance.tables import write_experiment, write_summary
from simulations.inheritance.world import World
from simulations.local_flower import RunFailedError

EVERYWHERE = ("digits",)
"""Data sets that need no folder."""

PICTURES_HERE = "parquet"
"""The data set of the small configs that a folder without a name is for."""

FAILURES = (UnlearnError, ValueError, OSError, ImportError, RunFailedError)
"""What may be wrong with one experiment; anything else is a fault of ours and stops everything."""


@dataclass(frozen=True)
class Job:
    """One experiment to run.

    Attributes:
        name: Its name, and its folder's.
        config: The config; None: it cannot be read.
        problem: Why not.
    """

    name: str
    config: Config | None
    problem: str = ""


def jobs_of(paths: Iterable[Path], folders: Mapping[str, str], changes: Mapping[str, Any]) -> list[Job]:
    """Read configs.

    Args:
        paths: Their files.
        folders: Data set to folder, where a config names none; "": of all others that need one.
        changes: Values by kebab-case key that go before the files'.

    Raises:
        ConfigError: If two files have the same name.
    """
    jobs: dict[str, Job] = {}
    for path in paths:
        if path.stem in jobs:
            raise ConfigError(
                f"two configs are named {path.stem!r}, and so would be their folders; rename one"
            )
        try:
            config = Config.from_file(path, changes)
        except ConfigError as e:
            jobs[path.stem] = Job(path.stem, None, str(e))
            continue
        if not config.data_root and config.dataset not in EVERYWHERE:
            config = replace(config, data_root=folders.get(config.dataset, folders.get("", "")))
        jobs[path.stem] = Job(path.stem, config)
    return list(jobs.values())


def small_paths(folders: Mapping[str, str]) -> tuple[list[Path], dict[str, list[str]]]:
    """The shipped configs for two cores whose data was named, and the others' names by what they lack.

    Args:
        folders: Data set to folder; "": the pictures'.
    """
    named = {*EVERYWHERE, *folders, *((PICTURES_HERE,) if "" in folders else ())}
    paths, left_out = list[Path](), dict[str, list[str]]()
    for shipped in SHIPPED:
        needed, title = DATA[shipped.data]
        if shipped.small and needed in named:
            paths.append(FOLDER / f"{shipped.name}.toml")
        elif shipped.small:
            option = "--data FOLDER" if needed == PICTURES_HERE else f"--data {needed}=FOLDER"
            left_out.setdefault(f"{option} with {title}", []).append(shipped.name)
    return paths, left_out


def run_jobs(
    jobs: Iterable[Job],
    out: Path,
    *,
    retrain: bool,
    again: str,
    tell: Tell,
    flower: bool = False,
    for_good: bool = False,
) -> tuple[dict[str, Result], dict[str, str]]:
    """Run experiments; those that are finished are not run again.

    Args:
        jobs: The experiments.
        out: Gets a folder for each, and the summary after each.
        retrain: Whether the affected models are retrained.
        again: "all" makes everything anew, "methods" what was made of the trained models; "": nothing.
        tell: Told what is done next.
        flower: Whether the owners are nodes of Flower's simulation engine; the results are the same.
        for_good: Whether the stored models then forget for good; see `commit.commit`.

    Returns:
        Name to result, and name to why it failed.
    """
    results, failed = dict[str, Result](), dict[str, str]()
    ready = []
    for job in jobs:
        problem = job.problem or _problem(job, out, retrain, again, for_good)
        if problem:
            failed[job.name] = problem
            tell(f"{job.name}: {problem}")
        else:
            ready.append(job)
    for number, job in enumerate(ready, start=1):
        assert job.config is not None
        tell(f"{job.name} ({number} of {len(ready)})")
        try:
            found = _run(job.name, job.config, out / job.name, retrain, again, tell, flower)
            write_experiment(job.name, found, out / job.name)
            if for_good:
                changed = commit(World(job.config), out / job.name)
                said = f"{changed} models have forgotten" if changed else "all models had already forgotten"
                tell(f"{job.name}: {said} for good")
        except FAILURES as e:
            failed[job.name] = _text(e)
            tell(f"{job.name}: {failed[job.name]}")
            continue
        results[job.name] = found
        write_summary(results, failed, out)
    return results, failed


def _problem(job: Job, out: Path, retrain: bool, again: str, for_good: bool) -> str:
    """Why an experiment cannot be run, found before any of them is trained; "": nothing is."""
    assert job.config is not None
    if for_good and OURS not in job.config.method_names():
        return f"only {OURS!r} can forget for good, and the methods are {job.config.methods!r}"
    try:
        if again or finished(out / job.name, job.config, retrain=retrain) is None:
            check(World(job.config))
            if again != "all":
                refuse_committed(out / job.name)
        if again != "all":
            claim(out / job.name, job.config)
    except FAILURES as e:
        return _text(e)
    return ""


def _run(
    name: str, config: Config, folder: Path, retrain: bool, again: str, tell: Tell, flower: bool
) -> Result:
    if again:
        clear(folder, trained=again == "all")
    if (found := finished(folder, config, retrain=retrain)) is not None:
        tell(f"{name}: finished before")
        return found
    world = World(config)
    if flower:
        from simulations.inheritance.flower import run_behind_flower  # loads Flower: seconds

        return run_behind_flower(world, folder, retrain=retrain)
    federation = LocalFederation(list(world.clients.values()), world.request)
    return Experiment(world, federation, folder, lambda text: tell(f"{name}: {text}")).run(retrain=retrain)


def _text(e: BaseException) -> str:
    return str(e) or type(e).__name__
