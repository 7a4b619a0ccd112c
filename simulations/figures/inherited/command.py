"""What the command does: check everything that was asked for, then train, measure, tabulate and draw."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fl_unlearn.files import write_atomically
from simulations.figures.inherited.drawing import save
from simulations.figures.inherited.lab import Lab
from simulations.figures.inherited.picture import Grid, Picture
from simulations.figures.inherited.registry import FIGURES
from simulations.figures.inherited.tables import to_csv, to_markdown
from simulations.inheritance.checks import check, check_names
from simulations.inheritance.config import Config, ConfigError, read_changes, unknown
from simulations.inheritance.grid import path_of
from simulations.scenarios import ScenarioError


@dataclass(frozen=True)
class Order:
    """What was asked for.

    Attributes:
        names: Figures, names of `registry.FIGURES`.
        configs: Experiments by name.
        grid: What is tried where a figure tries several values.
        out: Where tables and pictures go.
        experiments: Folder of the experiments, each with its name.

    Raises:
        ConfigError: If a figure is unknown, or a value of the grid makes no sense.
    """

    names: Sequence[str]
    configs: Mapping[str, Config]
    grid: Grid
    out: Path
    experiments: Path

    def __post_init__(self) -> None:
        for name in self.names:
            if name not in FIGURES:
                raise ConfigError(unknown("figure", name, FIGURES))
        for t in self.grid.thresholds:
            if not 0 < t < float("inf"):
                raise ConfigError(f"a threshold must be a finite number above 0, got {t:g}")
        for share in self.grid.overlaps:
            if not 0 <= share <= 1:
                raise ConfigError(f"an overlap must be between 0 and 1, got {share:g}")


@dataclass(frozen=True)
class Made:
    """One figure.

    Attributes:
        name: Its name.
        files: What was written.
        table: Its Markdown table.
        said: The paper's claim beside ours.
        left_out: Experiment to why it is not in the figure.
    """

    name: str
    files: tuple[Path, ...]
    table: str
    said: tuple[str, ...]
    left_out: Mapping[str, str]

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        files = [str(path) for path in self.files]
        return {"figure": self.name, "files": files, "said": list(self.said), "left-out": dict(self.left_out)}

    def text(self) -> str:
        """For people."""
        lines = [f"## {self.name}", "", *([self.table, ""] if self.table else []), *self.said]
        lines += [f"left out: {name}: {why}" for name, why in self.left_out.items()]
        return "\n".join([*lines, *(f"written: {path}" for path in self.files)])


def read_configs(files: Sequence[Path], values: Sequence[str], data: str) -> dict[str, Config]:
    """Read the experiments, by their files' names.

    Args:
        files: TOML files, or names of shipped ones.
        values: ``key=value`` texts that replace what the files say.
        data: The data set's folder; "": as the files say.

    Raises:
        ConfigError: If a file cannot be read, two have the same name, or a key or value makes no sense.
    """
    found: dict[str, Config] = {}
    changes = {**read_changes(values), **({"data-root": data} if data else {})}
    for path in (path_of(given) for given in files):
        if path.stem in found:
            raise ConfigError(f"two configs are called {path.stem!r}, which names the experiment; rename one")
        found[path.stem] = Config.from_file(path, changes)
        check_names(found[path.stem])
    return found


def fulfil(order: Order, tell: Callable[[str], None]) -> list[Made]:
    """Make the figures; what is there is not trained or measured again.

    Raises:
        ConfigError: If no figure fits any config, or an experiment cannot be built; before any training.
    """
    labs = [Lab(name, config, order.experiments / name, tell) for name, config in order.configs.items()]
    fitting = {name: _fitting(FIGURES[name], labs, order.grid) for name in order.names}
    if not any(own for own, _ in fitting.values()):
        why = [f"{name}: {lab}: {text}" for name, (_, out) in fitting.items() for lab, text in out.items()]
        raise ConfigError("no figure fits any of the configs: " + "; ".join(why))
    order.out.mkdir(parents=True, exist_ok=True)
    return [_make(name, *fitting[name], order, tell) for name in order.names]


def _fitting(picture: Picture, labs: Sequence[Lab], grid: Grid) -> tuple[list[Lab], dict[str, str]]:
    """The experiments that a figure is made of, and why others are not in it; all are built, none trained."""
    fit, left_out = [], {}
    for lab in labs:
        why = picture.unfit(lab.scenario)
        if why:
            left_out[lab.name] = why
            continue
        try:
            for one in picture.labs(lab, grid):
                check(one.world)
        except ScenarioError as e:  # of a variant: the config's own scenario was built above
            left_out[lab.name] = str(e)
            continue
        fit.append(lab)
    return fit, left_out


def _make(
    name: str, labs: Sequence[Lab], left_out: Mapping[str, str], order: Order, tell: Callable[[str], None]
) -> Made:
    picture, records = FIGURES[name], []
    files: list[Path] = []
    for lab in labs:
        tell(f"{name}: {lab.name}")
        own = picture.measure(lab, order.grid)
        files += save(picture.draw(own), order.out / f"{name}-{lab.name}")
        records += own
    if not records:
        return Made(name, (), "", (), left_out)
    if picture.overview is not None and len(labs) > 1:
        files += save(picture.overview(records), order.out / name)
    table, said = to_markdown(picture.table(records)), tuple(picture.said(records))
    csv_file, md_file = order.out / f"{name}.csv", order.out / f"{name}.md"
    write_atomically(csv_file, to_csv(records).encode())
    write_atomically(md_file, "\n".join([table, "", *said, ""]).encode())
    return Made(name, (*files, csv_file, md_file), table, said, left_out)
