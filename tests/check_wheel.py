"""Build the wheel, install it in a clean environment outside the repository, import it there.

Run by ``make wheel``. The clean environment has the dependencies that the wheel declares and nothing else.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
PROBE = """
import sys
import fl_unlearn
assert not {"flwr", "matplotlib", "torch"} & set(sys.modules), "importing the library must stay light"
assert len(fl_unlearn.__all__) <= 15, fl_unlearn.__all__
assert "site-packages" in fl_unlearn.__file__, fl_unlearn.__file__
import fl_unlearn.flower, fl_unlearn.report
from fl_unlearn.request_document import json_schema
assert json_schema()["title"], "the schema of request documents is shipped"
import importlib.util
for name in ("strategies", "simulations", "tests"):
    assert importlib.util.find_spec(name) is None, name + " must not be shipped"
print("imported", fl_unlearn.__file__)
"""


def main() -> None:
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        run(sys.executable, "-m", "build", "--wheel", "--outdir", str(folder / "dist"), str(ROOT))
        wheel = next((folder / "dist").glob("*.whl"))
        tops = {name.split("/")[0] for name in zipfile.ZipFile(wheel).namelist()}
        assert {t for t in tops if not t.endswith(".dist-info")} == {"fl_unlearn"}, tops
        python = folder / "venv" / "bin" / "python"
        run(sys.executable, "-m", "venv", str(folder / "venv"))
        print("installing the wheel with what it declares ...", flush=True)
        run(str(python), "-m", "pip", "install", "--quiet", str(wheel))
        run(str(python), "-c", PROBE, cwd=folder)
        run(str(python.with_name("fl-unlearn")), "--version", cwd=folder)


def run(*command: str, cwd: Path | None = None) -> None:
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    subprocess.run(command, check=True, cwd=cwd, env=environment)


if __name__ == "__main__":
    main()
