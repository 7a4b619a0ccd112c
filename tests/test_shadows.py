"""Shadow federations: who has what, the attack end to end, going on where it was cut off, refusals."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from simulations.compare import shadows
from simulations.compare.clients import make_clients
from simulations.compare.results import RETRAIN
from simulations.compare.setting import Setting, SettingError
from simulations.compare.shadows import Shadows, main, table, u_lira
from strategies.errors import StrategyError

SMALL = Setting.named("digits-samples", clients=2, rounds=1, epochs=1, batch_size=128, forget_samples="0:30")


def test_of_a_pair_one_federation_has_a_sample_and_the_other_has_not(tmp_path: Path) -> None:
    made = Shadows(SMALL, 8, 0, tmp_path)
    assert len(made.candidates) == 30
    whole = make_clients(SMALL, 0)
    for shadow in range(8):
        has = made.has(shadow)
        assert has.sum() == 15
        assert (has ^ made.has(shadow ^ 1)).all()
        clients = made._clients_of(shadow)
        # Client 0 trains on all but the 15 candidates that it has not; it is to forget the other 15.
        assert clients[0].count("train") == whole[0].count("train") - 15
        assert clients[1].count("train") == whole[1].count("train")
        x, y = whole[0].dataset("train").tensors
        wanted = [row for (_, row), own in zip(made.candidates, has, strict=True) if own]
        kept = [r for r in range(len(y)) if ("0", r) not in made.candidates]
        for part, rows in (("forget", wanted), ("retained", kept)):
            torch.testing.assert_close(clients[0].dataset(part).tensors, (x[rows], y[rows]), rtol=0, atol=0)
        assert clients[1].count("forget") == 0
    assert len({made.has(s).tobytes() for s in range(8)}) == 8, "every pair is drawn anew"


def test_the_attack_end_to_end_and_again_from_the_folder(tmp_path: Path, monkeypatch) -> None:
    said: list[str] = []
    first = u_lira(SMALL, "retrain", 8, 0, folder=tmp_path, progress=said.append)
    assert first["shadows"] == 8
    assert first["samples"] == 30
    # Retraining has no trace of what it never saw, and it is what it is compared with.
    assert {k: first[f"trace-{k}"] for k in ("auc", "accuracy", "tpr")} == {
        k: first[k] for k in ("auc", "accuracy", "tpr")
    }
    assert sum("training" in s for s in said) == sum("retrain" in s for s in said) == 8
    monkeypatch.setattr(shadows, "train_into", None)  # nothing is trained again
    assert u_lira(SMALL, "retrain", 8, 0, folder=tmp_path) == first
    with pytest.raises(SettingError, match="holds shadows of another setting"):
        u_lira(SMALL, "retrain", 8, 1, folder=tmp_path)


def test_confidences_are_those_of_the_right_models(tmp_path: Path, monkeypatch) -> None:
    """Made-up confidences: a strategy that leaves 9 on what was unlearned, retraining 0; noise is small."""

    def confidences(self: Shadows, strategy: str, shadow: int) -> torch.Tensor:
        has, noise = torch.from_numpy(self.has(shadow)), np.random.default_rng(shadow).normal(size=30)
        trace = 9.0 * has if strategy == "fine-tune" else torch.zeros(30)
        return trace + torch.from_numpy(noise) + (50.0 if strategy == "fine-tune" else 0.0)

    monkeypatch.setattr(Shadows, "confidences", confidences)
    found = u_lira(SMALL, "fine-tune", 8, 0, folder=tmp_path)
    assert found["auc"] == found["trace-auc"] == 1.0

    def shifted(self: Shadows, strategy: str, shadow: int) -> torch.Tensor:
        return confidences(self, RETRAIN, shadow) + (0.0 if strategy == RETRAIN else 50.0)

    monkeypatch.setattr(Shadows, "confidences", shifted)
    found = u_lira(SMALL, "fine-tune", 8, 0, folder=tmp_path)
    assert found["auc"] == 1.0, "every sample shows that the model was not retrained"
    noise = u_lira(SMALL, RETRAIN, 8, 0, folder=tmp_path)["auc"]
    assert found["trace-auc"] == pytest.approx(noise), "but not which samples were unlearned"


@pytest.mark.parametrize(
    ("changes", "count", "says"),
    [
        ({"forget_samples": "", "forget_classes": "3"}, 8, "request must name samples"),
        ({}, 7, "must be even and at least 8, got 7"),
        ({}, 6, "got 6"),
        ({"forget_samples": "0:24"}, 8, "24 candidates in 8 shadows give 96 non-members"),
    ],
)
def test_numbers_that_allow_no_attack_are_refused_at_once(tmp_path, changes, count, says) -> None:
    setting = Setting.named("digits-samples", **{"clients": 2, "rounds": 1, **changes})
    with pytest.raises(SettingError, match=says):
        u_lira(setting, "retrain", count, 0, folder=tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_a_strategy_that_cannot_forget_samples(tmp_path: Path) -> None:
    with pytest.raises(StrategyError, match="mask cannot forget single samples"):
        u_lira(SMALL, "mask", 8, 0, folder=tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_the_table_has_a_dash_and_the_reason_where_there_is_no_number() -> None:
    numbers = {
        f"{p}{k}": v for p in ("", "trace-") for k, v in (("auc", 0.5), ("accuracy", 0.51), ("tpr", 0.02))
    }
    lines = table({"retrain": numbers, "mask": "it cannot"}).splitlines()
    assert lines[2] == "| retrain | 0.500 | 51.0% | 2.0% | 0.500 | 51.0% | 2.0% |"
    assert lines[3].startswith("| mask | \N{EN DASH} |")
    assert lines[-1] == "mask: it cannot"


def test_the_command_writes_both_files_and_refuses_what_it_does_not_know(
    tmp_path, monkeypatch, capsys
) -> None:
    monkeypatch.setattr(
        Shadows, "confidences", lambda self, s, i: torch.from_numpy(np.random.default_rng(i).normal(size=40))
    )
    out = ["--out", str(tmp_path)]
    assert main(["--strategies", "retrain", "mask", *out]) == 0
    written = json.loads((tmp_path / "ulira.json").read_text())
    assert written["strategies"]["mask"] == "mask cannot forget single samples"
    assert written["strategies"]["retrain"]["samples"] == 40
    assert "| mask |" in (tmp_path / "ulira.md").read_text()
    assert main(["--strategies", "retrian", *out]) == 1
    assert "did you mean 'retrain'" in capsys.readouterr().err
    assert main(["--shadows", "5", *out]) == 1
    assert "must be even" in capsys.readouterr().err
