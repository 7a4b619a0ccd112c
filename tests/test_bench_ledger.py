"""The benchmark of the ledger compares what it says, on a small model; its timings are not looked at."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from simulations.benchmarks import ledger
from simulations.quickstart.fl_unlearn_quickstart.data import Pictures


def test_each_client_is_measured_and_the_answers_agree(tmp_path: Path) -> None:
    random = torch.Generator().manual_seed(0)
    pictures = Pictures(
        torch.randn(60, 3, 4, 4, generator=random), torch.randint(10, (60,), generator=random)
    )
    model = nn.Sequential(nn.Flatten(), nn.Linear(48, 8), nn.ReLU(), nn.Linear(8, 10)).eval()
    said: list[str] = []
    result = ledger.measure(model, pictures, 3, ["head", "all"], 7, tmp_path, said.append)
    assert len(said) == 2 * 3
    assert result["examples"] == 60
    for scope, numbers in (("head", 90), ("all", 90 + 49 * 8)):
        noted = result["scopes"][scope]
        assert {step: len(seconds) for step, seconds in noted["seconds"].items()} == dict.fromkeys(
            ledger.STEPS, 3
        )
        assert noted["difference"] < 1e-12
        assert 8 * 5 * numbers < noted["bytes"] <= 8 * 10 * numbers + 10_000
    assert list(tmp_path.iterdir()) == []
    text = ledger.table(result)
    assert text.count("request from the ledger") == 2
    assert "60 pictures" in text
