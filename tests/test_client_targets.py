"""The script that shows what a Fisher update can do for a client's data: rows, choice, table."""

from __future__ import annotations

from pathlib import Path

import pytest

from simulations.figures import client_targets as script


def test_rows_summary_and_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(script, "THRESHOLDS", (3.0, 1e6))
    monkeypatch.setattr(script, "KINDS", ("normalized",))
    monkeypatch.setattr(script, "DAMPENINGS", (1.0,))
    small = {"dataset": "digits", "clients": 3, "rounds": 3, "alpha": 0.3, "forget_classes": ""}
    planted = {"forget_clients": "0", "backdoor_client": "0", **small}
    rows = list(script.measure_all("small", script.Setting(**planted), tmp_path, 0))
    assert [r["model"] for r in rows] == ["original", "retrain", "fiun", *["update"] * 8]
    assert all(set(r) <= set(script.COLUMNS) for r in rows)
    original, updates = rows[0], rows[3:]
    assert original["triggered"] > rows[1]["triggered"]
    assert original["forget"] > rows[1]["forget"]
    for row in updates:
        if row["threshold"] == 1e6 and row["selected"] == 0:
            assert row["forget"] == original["forget"]
    assert any(r["forget"] < original["forget"] - 0.1 for r in updates)
    summary = script.summarise(rows)
    assert [r["form"] for r in summary[:3]] == ["original", "retrained", "`fiun`"]
    assert summary[1]["gap"] == 0.0
    assert summary[0]["gap"] == pytest.approx(original["forget"] - rows[1]["forget"])
    text = script.table(summary).splitlines()
    assert len(text) == 2 + 3 + 4
    assert text[2].startswith("| small | original | 1/1 | +")


def test_the_best_update_takes_most_for_what_is_accepted() -> None:
    def row(forget: float, held: float) -> script.Row:
        return {"forget": forget, "held_out": held}

    rows = [row(0.1, 0.5), row(0.4, 0.89), row(0.4, 0.9), row(0.6, 0.9)]
    assert script.best(rows, row(1.0, 0.9)) == row(0.4, 0.9)
    assert script.best(rows[:1], row(1.0, 0.9)) is None


def test_what_was_refused_is_a_dash_in_the_table() -> None:
    whole = {"setting": "a", "seed": 0, "forget": 1.0, "retained": 1.0, "held_out": 0.9, "auc": 0.5}
    models = {"original": {}, "retrain": {}, "fiun": {"kind": "refused"}}
    rows = [{**whole, "triggered": None, "model": m, **more} for m, more in models.items()]
    lines = script.table(script.summarise(rows)).splitlines()
    assert lines[4] == "| a | `fiun` | 0/1 | - | - | - | - | - | - |"
    assert lines[3] == "| a | retrained | 1/1 | +0.0 | 100.0 | 100.0 | 90.0 | - | 50.0 |"


def test_the_settings_are_there() -> None:
    assert all(script.setting_of(name).dataset == "digits" for name in script.SETTINGS)
