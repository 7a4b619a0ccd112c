"""Give a part of the library inputs that were made to break it, and count what it gets wrong."""

from __future__ import annotations

import argparse
import json
import logging
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from random import Random

from simulations.fuzz.answers import Answers
from simulations.fuzz.contract import Target, Verdict
from simulations.fuzz.counts import Counts
from simulations.fuzz.documents import Documents
from simulations.fuzz.files import Checkpoints, Updates
from simulations.fuzz.questions import Questions

TARGETS: dict[str, Callable[[], Target]] = {
    "answers": Answers,
    "questions": Questions,
    "updates": Updates,
    "checkpoints": Checkpoints,
    "documents": Documents,
}


def fuzz(
    target: Target, examples: int, seed: int, tell: Callable[[Counts], None] = lambda counts: None
) -> Counts:
    """Try that many inputs. Each has its number's own source of chance, so that it can be drawn again alone.

    Args:
        target: What is fuzzed.
        examples: How many inputs.
        seed: Of everything random.
        tell: Told of the counts after each input.
    """
    counts = Counts()
    for number in range(examples):
        case = target.draw(Random(f"{seed}/{number}"))
        begun = time.perf_counter()
        try:
            result: Verdict | Exception = target.judge(case)
        except Exception as e:  # that there is none is what is being looked for
            result = e
        counts.add(number, case, result, time.perf_counter() - begun)
        tell(counts)
    return counts


def main(arguments: Sequence[str] | None = None) -> int:
    """Run it; returns the exit status: 1 when anything was wrong."""
    parser = argparse.ArgumentParser(prog="python -m simulations.fuzz", description=__doc__)
    parser.add_argument("target", choices=TARGETS, help="what to fuzz")
    parser.add_argument("--examples", type=int, default=100_000, help="inputs to try (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of everything random (default: %(default)s)")
    parser.add_argument("--json", type=Path, help="where to write (default: outputs/bench/fuzz-TARGET.json)")
    options = parser.parse_args(arguments)
    if options.examples < 1:
        parser.error(f"--examples must be at least 1, got {options.examples}")
    begun = time.monotonic()
    with _quiet():
        counts = fuzz(TARGETS[options.target](), options.examples, options.seed, _Progress(options.examples))
    found = {"target": options.target, "seed": options.seed, **counts.plain()}
    path = options.json or Path(f"outputs/bench/fuzz-{options.target}.json")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(found, indent=2) + "\n")
    print(json.dumps({name: found[name] for name in ("target", "seed", "tried", "faults", "outcomes")}))
    for kept in counts.kept:
        print(
            f"input {kept['number']} ({kept['mutation']}): {kept['fault']}, {kept['outcome']}; {kept['said']}"
        )
    print(f"\n{counts.table()}\n")
    print(
        f"{counts.total} inputs in {time.monotonic() - begun:.0f} s, the slowest in {counts.slowest:.2f} s "
        f"(with the independent rules), seed {options.seed}; written to {path}"
    )
    return 0 if counts.good else 1


@contextmanager
def _quiet() -> Iterator[None]:
    """No warnings while inputs are tried: each faulty one is worth some, NumPy's about old headers too."""
    loggers = [logging.getLogger(name) for name in ("fl_unlearn", "flwr")]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.setLevel(logging.CRITICAL)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)


class _Progress:
    def __init__(self, examples: int) -> None:
        self._examples, self._told = examples, time.monotonic()

    def __call__(self, counts: Counts) -> None:
        if time.monotonic() - self._told >= 5:
            self._told = time.monotonic()
            wrong = counts.faults.total()
            print(f"{counts.total} of {self._examples} inputs, {wrong} faults", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
