"""Train once, then serve every request under every attack on a copy; write results, a table and a picture.

python -m simulations.attacks                       # digits, 10 clients; some minutes
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

import torch

from simulations.attacks import federation
from simulations.attacks.measure import BUDGET, all_rows, wear
from simulations.attacks.show import picture, table


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--out", type=Path, default=Path("outputs/attacks"), help="folder for what is written"
    )
    out: Path = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        store = Path(name) / "store"
        federation.train(store)
        rows = all_rows(store)
        worn = {"no budget": wear(store, None), f"a budget of {100 * BUDGET:g} points": wear(store, BUDGET)}
    results = {"schema_version": "1.0", "requests": rows, "wear": worn}
    (out / "results.json").write_text(json.dumps(results, indent=1) + "\n")
    (out / "table.md").write_text(table(rows, worn))
    picture(rows, out / "attacks.png")
    print(table(rows, worn))
    print(f"wrote {out}/results.json, table.md, attacks.png")


if __name__ == "__main__":
    main()
