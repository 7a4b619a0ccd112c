"""The benchmark of applying updates does what it says, on a small model; its timings are not looked at."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from simulations.benchmarks import application


def small() -> dict[str, torch.Tensor]:
    g = torch.Generator().manual_seed(0)
    return {
        "conv.weight": torch.randn(64, 300, generator=g),
        "bn.num_batches_tracked": torch.tensor(3),
        "fc.weight": torch.randn(10, 40, generator=g),
        "fc.bias": torch.randn(10, generator=g),
    }


def test_both_ways_give_the_same_models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(application, "model", small)
    said: list[str] = []
    result = application.measure(models=6, folder=tmp_path, say=said.append)
    assert said[-1] == "both ways gave the same models"
    assert result["models"] == 6
    assert set(result["steps"]) == {"copy", "loop_head", "ours_head", "loop_all", "ours_all"}
    assert 0 < result["selected"]["head"] < result["selected"]["all"]
    # Copies go from file to file inside the system; what the others write is seen.
    assert result["steps"]["loop_head"]["bytes"] >= 6 * 64 * 300 * 4
    assert result["steps"]["ours_head"]["bytes"] < result["steps"]["loop_head"]["bytes"]
    assert not list(tmp_path.iterdir())


def test_too_little_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(application, "model", small)
    with pytest.raises(SystemExit, match=r"GB, .* GB are free: use --folder"):
        application.measure(models=10**12, folder=tmp_path)
