"""The same inputs, drawn by coverage: ``python -m simulations.fuzz.guided documents --examples 50000``.

Needs atheris (libFuzzer for Python), which the project does not install: ``pip install atheris``. It chooses
the bytes that stand in for chance when an input is drawn, and prefers those that lead to new code. The first
fault ends it, with the exit status 77 and the bytes in a file ``crash-*``.
"""

from __future__ import annotations

import argparse
import sys
from hashlib import sha256
from random import Random
from typing import Any

from simulations.fuzz.counts import Counts


class BytesRandom(Random):
    """Chance that is read from bytes, and drawn from their digest when they are used up."""

    def __init__(self, data: bytes) -> None:
        super().__init__(int.from_bytes(sha256(data).digest(), "big"))
        self._data, self._at = data, 0

    def random(self) -> float:
        """A number from 0 up, below 1."""
        return self.getrandbits(53) / 2**53

    def getrandbits(self, k: int, /) -> int:
        """A number of ``k`` bits."""
        n = (k + 7) // 8
        if self._at + n > len(self._data):
            return super().getrandbits(k)
        self._at += n
        return int.from_bytes(self._data[self._at - n : self._at], "little") >> (8 * n - k)


def main() -> None:
    """Run it; atheris ends the process."""
    parser = argparse.ArgumentParser(prog="python -m simulations.fuzz.guided", description=__doc__)
    parser.add_argument("target", help="what to fuzz, as python -m simulations.fuzz names it")
    parser.add_argument("--examples", type=int, default=50_000, help="inputs to try (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="of atheris, from 1 up (default: %(default)s)")
    options = parser.parse_args()
    try:
        import atheris
    except ImportError:
        parser.error("atheris is not installed; run: pip install atheris")
    with atheris.instrument_imports(include=["fl_unlearn"]):
        from simulations.fuzz.__main__ import TARGETS
    if options.target not in TARGETS:
        parser.error(f"{options.target!r} is no target; there are {', '.join(TARGETS)}")
    target, counts = TARGETS[options.target](), Counts()

    def try_one(data: bytes) -> None:
        case = target.draw(BytesRandom(data))
        verdict = target.judge(case)
        counts.add(counts.total, case, verdict, 0.0)
        if verdict.fault is not None:
            raise AssertionError(f"{verdict.fault} of {case.data!r}: {verdict}")
        if counts.total == options.examples:
            print(f"{counts.table()}\n\n{counts.total} inputs, no fault", flush=True)

    arguments: list[Any] = [
        f"-runs={options.examples}",
        f"-seed={options.seed}",
        "-max_len=512",
        "-len_control=0",
    ]
    atheris.Setup([sys.argv[0], *arguments], try_one)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
