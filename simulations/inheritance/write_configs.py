"""Writes the shipped configs: ``python -m simulations.inheritance.write_configs``; the table is in `grid`."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from simulations.inheritance.config import Config
from simulations.inheritance.grid import FOLDER, SHIPPED, Shipped


def main(arguments: list[str] | None = None) -> int:
    """Write them; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m simulations.inheritance.write_configs")
    parser.add_argument("--out", type=Path, default=FOLDER, help="folder (%(default)s)")
    folder = parser.parse_args(arguments).out
    texts = {f"{shipped.name}.toml": text_of(shipped) for shipped in SHIPPED}
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("*.toml"):
        if old.name not in texts:
            old.unlink()
    for name, text in texts.items():
        (folder / name).write_text(text, encoding="utf-8")
    print(f"{len(texts)} configs written to {folder}")
    return 0


def text_of(shipped: Shipped) -> str:
    """A config file.

    Raises:
        ConfigError: If it makes no sense.
    """
    own, known = shipped.values, Config.from_mapping(shipped.values).to_mapping()
    lines = [f"{key} = {json.dumps(known[key])}" for key in known if key in own]
    about = [f"# {shipped.title}.", "# Written by python -m simulations.inheritance.write_configs."]
    return "\n".join([*about, "", *lines]) + "\n"


if __name__ == "__main__":
    sys.exit(main())
