"""The server: waits for all clients, trains a little, serves one request, and writes what that took."""

from __future__ import annotations

import json
import time
from pathlib import Path

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from .serve import serve

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Serve, and write the numbers to the file that the run config names."""
    while len(list(grid.get_node_ids())) < int(context.run_config["clients"]):
        time.sleep(0.2)
    out = Path(str(context.run_config["out"]))
    out.write_text(json.dumps(serve(grid, context.run_config, out.with_suffix(".store"))))
