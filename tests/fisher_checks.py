"""How Fisher sums are compared in tests, and how they are made of a problem."""

from __future__ import annotations

import torch
from cases import Problem
from torch import Tensor

from fl_unlearn.fisher import FisherSums, fisher_diagonal


def close(got: dict[str, Tensor], want: dict[str, Tensor], rtol: float = 1e-5) -> None:
    assert got.keys() == want.keys()
    for n in want:
        atol = 1e-6 * float(want[n].abs().max())
        torch.testing.assert_close(got[n], want[n], rtol=rtol, atol=atol, msg=lambda m, n=n: f"{n}: {m}")


def same_sums(got: FisherSums, sums: dict[int, dict[str, Tensor]], counts: dict[int, int]) -> None:
    assert got.counts == counts
    assert list(got.sums) == sorted(sums)
    for g in sums:
        close(got.sums[g], sums[g])


def run(p: Problem, **kw: object) -> FisherSums:
    return fisher_diagonal(p.model, kw.pop("loader", p.batches()), head=p.head, **kw)
