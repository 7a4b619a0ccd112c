"""One measurement of the Fisher benchmark, in a process of its own: times of all methods, or memory of one.

python -m simulations.benchmarks.fisher_part times tiny      # prints JSON
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.utils.flop_counter import FlopCounterMode

from simulations.benchmarks.fisher_cases import CASES
from simulations.benchmarks.fisher_methods import METHODS, Run, Sums


def times(case: str, methods: Sequence[str], batch: int, repeats: int, device: str) -> dict[str, Any]:
    """Time methods in turn, ``repeats`` times around.

    Returns:
        By method: ``seconds`` of every round and their ``median``, and for exact ones ``difference``, the
        largest over parameters of the largest deviation from ours by the parameter's largest value; or
        ``reason``, why it does not run.
    """
    result: dict[str, Any] = {}
    ready: dict[str, Run] = {}
    ours: Sums | None = None
    for name in methods:
        try:
            run = METHODS[name].prepare(*CASES[case].make(batch, device))
            sums = run()
        except Exception as e:  # whatever a library raises on a network that it cannot take
            result[name] = {"reason": " ".join(f"{type(e).__name__}: {e}".split())[:200]}
            continue
        ready[name] = run
        result[name] = {"seconds": []}
        if name == "ours_all":
            ours = sums
        if METHODS[name].exact and sums is not None and ours is not None:
            result[name]["difference"] = _difference(sums, ours)
    for _ in range(repeats):
        for name, run in ready.items():
            start = time.perf_counter()
            run()
            if device == "cuda":
                torch.cuda.synchronize()
            result[name]["seconds"].append(time.perf_counter() - start)
    for name in ready:
        result[name]["median"] = median(result[name]["seconds"])
    return result


def _difference(sums: dict[str, Tensor], ours: dict[str, Tensor]) -> float:
    worst = 0.0
    for n, expected in ours.items():
        top = float(expected.abs().max())
        worst = max(worst, float((sums[n].cpu().double() - expected).abs().max()) / (top or 1.0))
    return worst


def count(case: str, batch: int) -> dict[str, Any]:
    """What bounds a pass: parameters, elements of per-sample gradients, operations of forward + backward."""
    model, x, y = CASES[case].make(batch, "cpu")
    parameters = list(model.parameters())
    with torch.backends.mkldnn.flags(enabled=False), FlopCounterMode(display=False) as counter:
        # Without oneDNN the LSTM is made of matrix products, which are counted.
        torch.autograd.grad(cross_entropy(model(x), y), parameters)
    numel = sum(math.prod(p.shape) for p in parameters)
    return {
        "parameters": numel,
        "gradient_elements": numel * batch,
        "forward_backward_flops": counter.get_total_flops(),
    }


def memory(case: str, method: str, batch: int, device: str) -> dict[str, Any]:
    """Bytes that one run needs beyond network, inputs and loaded libraries.

    On a CPU the peak of the process's resident set (VmHWM, reset before) less the resident set before, after
    a forward pass of one sample has loaded the kernels; Linux only. On CUDA that of PyTorch's allocator.
    """
    model, x, y = CASES[case].make(batch, device)
    run = METHODS[method].prepare(model, x, y)
    with torch.no_grad():
        model(x[:1])
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        start = torch.cuda.memory_allocated()
        run()
        return {"peak_bytes": torch.cuda.max_memory_allocated() - start}
    with contextlib.suppress(OSError):  # not allowed: a peak from before may then hide a lower one
        Path("/proc/self/clear_refs").write_text("5")
    start = _resident("VmRSS")
    run()
    return {"peak_bytes": _resident("VmHWM") - start}


def _resident(what: str) -> int:
    return int(Path("/proc/self/status").read_text().split(f"{what}:")[1].split()[0]) * 1024


def main() -> None:
    """Print one measurement as JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=["times", "memory", "count"])
    parser.add_argument("case", choices=list(CASES))
    parser.add_argument("--methods", default=",".join(METHODS), help="comma-separated; for memory only one")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    a = parser.parse_args()
    torch.set_num_threads(a.threads)
    with contextlib.redirect_stdout(sys.stderr):
        if a.what == "times":
            result = times(a.case, a.methods.split(","), a.batch, a.repeats, a.device)
        elif a.what == "memory":
            result = memory(a.case, a.methods, a.batch, a.device)
        else:
            result = count(a.case, a.batch)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
