"""Trains graphs of models that inherit from one another, forgets in all of them at once, and measures.

Runs configs one after another: each trains its graph, retrains the affected models without what is to be
forgotten, forgets by every method, and measures all models on test samples. What was made is kept and not
made twice: a run that was interrupted goes on, and after a change of methods or thresholds only these are
done anew. Of every experiment DIR/NAME gets result.json, rows.csv and table.md, and DIR gets summary.md,
summary.csv and summary.json of all together. One config that fails does not stop the others.

    python -m simulations.inheritance diamond-digits-mlp-small                  # seconds, no data needed
    python -m simulations.inheritance diamond-cifar10-resnet18-small --data ~/cifar10
    python -m simulations.inheritance --small --data ~/cifar10 newsgroups=~/newsgroups
    python -m simulations.inheritance my.toml --set epochs=5 threshold=3 --methods ours
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from fl_unlearn.types import UnlearnError
from simulations import datasets, models, scenarios
from simulations.inheritance.config import ConfigError, read_changes, unknown
from simulations.inheritance.grid import FOLDER, path_of
from simulations.inheritance.jobs import Job, jobs_of, run_jobs, small_paths
from simulations.inheritance.methods import METHODS
from simulations.inheritance.tables import write_summary


def main(arguments: list[str] | None = None) -> int:
    """Run it; returns the exit status: 0 if every config ran, 1 if one failed, 130 if it was interrupted."""
    parser = _parser()
    options = parser.parse_args(arguments)
    if options.list:
        print(_known())
        return 0
    try:
        jobs = _jobs(options)
    except (UnlearnError, ValueError, OSError) as e:
        print(f"failed: {e}", file=sys.stderr)
        return 1
    try:
        results, failed = run_jobs(
            jobs,
            options.out,
            retrain=not options.no_retrain,
            again=_again(options),
            tell=_tell,
            flower=options.flower,
            for_good=options.commit,
        )
    except KeyboardInterrupt:
        _tell(f"interrupted; what was made is in {options.out}, and the same command goes on from there")
        return 130
    text = write_summary(results, failed, options.out)
    print((options.out / "summary.json").read_text() if options.json else text, end="")
    _tell(
        f"written to {options.out}: summary.md, summary.csv, summary.json, and a folder for each experiment"
    )
    for name, why in failed.items():
        print(f"failed: {name}: {why}", file=sys.stderr)
    return 1 if failed else 0


def _jobs(options: argparse.Namespace) -> list[Job]:
    changes = read_changes(options.set)
    if options.methods is not None:
        changes["methods"] = options.methods
    folders = _folders(options.data)
    paths = [path_of(given) for given in options.configs]
    if options.small:
        small, left_out = small_paths(folders)
        paths += small
        for option, names in left_out.items():
            _tell(f"left out without {option}: {', '.join(names)}")
    if not paths:
        raise ConfigError(
            "name a config file, or one of --list; --small runs all that are made for two cores"
        )
    return jobs_of(dict.fromkeys(paths), folders, changes)


def _folders(given: list[str]) -> dict[str, str]:
    """Data set to folder; "": of all others.

    Raises:
        ConfigError: If a data set is unknown, and what was given is no folder either.
    """
    out = {}
    for item in given:
        name, equals, folder = item.partition("=")
        known = bool(equals) and name in datasets.DATASETS
        if equals and not known and Path(name).name == name and not Path(item).exists():
            raise ConfigError(unknown("data set", name, datasets.DATASETS))
        out[name if known else ""] = str(Path(folder if known else item).expanduser())
    return out


def _again(options: argparse.Namespace) -> str:
    return "all" if options.again else "methods" if options.again_methods else ""


def _tell(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _known() -> str:
    out = [f"configs, in {FOLDER}:"]
    for path in sorted(FOLDER.glob("*.toml")):
        about = path.read_text(encoding="utf-8").partition("\n")[0].removeprefix("# ")
        out.append(f"  {path.stem:<42}{about}")
    for what, known in (
        ("scenarios", scenarios.SCENARIOS),
        ("data sets", datasets.DATASETS),
        ("models", models.MODELS),
        ("methods", METHODS),
    ):
        out.append(f"{what}: {', '.join(known)}")
    return "\n".join(out)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m simulations.inheritance",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("configs", nargs="*", metavar="CONFIG", help="TOML files, or names of shipped ones (see --list)")
    add("--small", action="store_true", help="all shipped configs for two cores whose data is there")
    add(
        "--data",
        nargs="+",
        action="extend",
        default=[],
        metavar="[NAME=]FOLDER",
        help="folder of the data set NAME; without a name, of all others that need one",
    )
    add("--out", type=Path, default=Path("outputs/inheritance"), help="where all goes (%(default)s)")
    add(
        "--set",
        nargs="+",
        action="extend",
        default=[],
        metavar="KEY=VALUE",
        help="change values of all configs, such as epochs=5",
    )
    add("--methods", help=f"ways to forget, with commas between them: {', '.join(METHODS)}")
    add("--no-retrain", action="store_true", help="do not retrain: half the time, and no ratio to it")
    add("--flower", action="store_true", help="run on Flower's simulation engine; the results are the same")
    add("--commit", action="store_true", help='have the stored models forget for good, by "ours"')
    add("--again", action="store_true", help="make everything anew")
    add("--again-methods", action="store_true", help="forget and measure anew, on the models that are there")
    add("--json", action="store_true", help="print summary.json instead of the table")
    add("--list", action="store_true", help="print the shipped configs and what configs can name")
    return parser


if __name__ == "__main__":
    sys.exit(main())
