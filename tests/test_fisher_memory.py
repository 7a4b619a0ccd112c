"""Memory stays within its budget, whatever the size of the data and of the batches."""

from __future__ import annotations

import gc

import pytest
import torch
from cases import Cnn
from cases_fisher import Text
from fisher_checks import close
from torch import Tensor, nn

from fl_unlearn.fisher import FisherSums, fisher_diagonal
from fl_unlearn.fisher_memory import PeakBytes

MB = 2**20


def cnn(n: int) -> tuple[nn.Module, Tensor]:
    return Cnn(nn.BatchNorm2d), torch.randn(n, 2, 16, 16)


def lstm(n: int) -> tuple[nn.Module, Tensor]:
    return Text(nn.LSTM(32, 32, batch_first=True)), torch.randint(0, 11, (n, 8))


def mlp(n: int) -> tuple[nn.Module, Tensor]:
    return nn.Sequential(nn.Linear(500, 20), nn.ReLU(), nn.Linear(20, 3)), torch.randn(n, 500)


def peak(model: nn.Module, x: Tensor, memory: int, size: int, **kw: object) -> tuple[FisherSums, int]:
    """The result, and the bytes taken at once beside the sums and the first sample's gradients."""
    gc.collect()
    gc.disable()  # what is kept by a cycle would be freed at times that nobody knows
    try:
        with PeakBytes() as bytes_:
            batches = [(p, torch.zeros(len(p), dtype=torch.int64)) for p in x.split(size)]
            got = fisher_diagonal(model.eval(), batches, scope="all", memory=memory, **kw)
    finally:
        gc.enable()
    return got, bytes_.peak - 16 * sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("make", [cnn, lstm, mlp])
def test_memory_does_not_grow_with_batches_or_data(make: object) -> None:
    torch.manual_seed(0)
    model, x = make(60)
    memory = MB // 4
    whole, least = peak(model, x[:20], memory, 20)
    assert least <= memory
    for size in (30, 60):
        assert peak(model, x, memory, size)[1] <= max(1.1 * least, memory)
    assert peak(model, x, 1000 * MB, 60)[1] > 1.2 * memory
    small, _ = peak(model, x[:20], 1, 20)
    close(small.sums[0], whole.sums[0])


def test_parameters_without_a_formula_keep_to_it_too() -> None:
    class Odd(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return torch.einsum("ni,oi->no", x, self.weight) + self.bias

    torch.manual_seed(0)
    model, x = Odd(500, 400), torch.randn(64, 500)
    _, least = peak(model, x[:8], 4 * MB, 8)
    assert peak(model, x, 4 * MB, 64)[1] <= max(least, 4 * MB)
    assert peak(model, x, 400 * MB, 64)[1] > 8 * MB


def test_peak_bytes_counts_what_is_alive_at_once() -> None:
    with PeakBytes() as bytes_:
        a = torch.zeros(1000)
        b = a.view(10, 100) + 1
        del a
        b += 1
        assert bytes_.now == 4000
        torch.ones(500).sum()
    assert bytes_.peak == 8000
    del b
    assert bytes_.now == 0
