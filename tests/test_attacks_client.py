"""The simulation of clients that lie while a client's data is forgotten: without a defence one is enough."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from strategy_cases import Case, trained

from fl_unlearn.defence import Defence
from simulations.attacks import client, honest
from simulations.attacks.client import ATTACKS, Row, serve

NAMED = {attack.name: (attack, who) for attack, who in ATTACKS.items()}


@pytest.fixture(scope="module")
def case() -> Case:
    return trained("digits-client", clients=5, rounds=8)


def served(case: Case, name: str, defence: str) -> Row:
    attack, who = NAMED[name]
    return serve(case.history.store.folder, case.clients, attack, who[:1], defence)


def test_nobody_lies(case: Case) -> None:
    on, off = (served(case, "none", defence) for defence in ("on", "off"))
    assert on["outcome"] == "committed"
    assert {**on, "defence": "off", "message": off["message"]} == off
    assert on["triggered_after"] < 0.5 * on["triggered_before"]
    assert on["held_out_after"] > on["held_out_before"] - 0.02


def test_one_liar_cannot_wreck_the_model(case: Case) -> None:
    off, on = (served(case, "wreck, praised", defence) for defence in ("off", "on"))
    assert off["outcome"] == "committed"
    assert off["held_out_after"] < off["held_out_before"] - 0.3
    assert on["held_out_after"] > on["held_out_before"] - 0.05


@pytest.mark.parametrize("name", ["veto", "humble"])
def test_one_liar_cannot_block(case: Case, name: str) -> None:
    assert served(case, name, "off")["outcome"] == "refused"
    on = served(case, name, "on")
    assert on["outcome"] == "committed"
    assert on["disputed"] == (name == "veto")
    assert on["held_out_after"] > on["held_out_before"] - 0.02


def made_up(folder, clients, attack, liars, name) -> Row:
    row = {"attack": attack.name, "liars": len(liars), "defence": name, "disputed": name == "on"}
    row |= {"held_out_before": 0.9, "held_out_after": 0.8, "triggered_before": 0.7, "triggered_after": 0.1}
    return {**row, "outcome": "committed" if name == "on" else "failed"}


def test_the_table(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: Any) -> None:
    monkeypatch.setattr(client, "serve", made_up)
    nothing = SimpleNamespace(store=SimpleNamespace(close=lambda: None))
    monkeypatch.setattr(client, "open_history", lambda setting, seed, folder: nothing)
    monkeypatch.setattr("sys.argv", ["client", "--seeds", "4", "5", "--out", str(tmp_path)])
    client.main()
    text = (tmp_path / "client.md").read_text()
    assert "| attack | liars | seed 4: off | seed 4: on | seed 5: off | seed 5: on |" in text
    assert "| veto | 3 | refused | 10.0 / 10%* | refused | 10.0 / 10%* |" in text
    assert "(before: 70 %, 70 %)" in text
    assert len(json.loads((tmp_path / "client.json").read_text())["requests"]) == 2 * 2 * (1 + 3 + 3 + 3)
    assert text in capsys.readouterr().out


def test_what_the_vote_does_to_the_honest_is_counted() -> None:
    row = {"outcome": "refused", "disputed": False, "drop": None, "by": "sums"}
    done = {"outcome": "committed", "drop": 0.013}
    rows = [row, {**row, **done, "by": "vote", "disputed": True}, {**row, **done}, {**row, "by": "vote"}]
    assert honest.summary(rows) == (
        "2 requests; committed by the sums: 1; by the vote, 1 more (1 disputed; points lost: 1.3) and 1 fewer"
    )


def test_an_honest_request_with_skewed_samples(case: Case) -> None:
    held = honest.skewed(case.setting, 0, case.clients)
    assert sum(len(loader.dataset) for loader in held) == 360  # type: ignore[arg-type]
    apps = {100 + c.index: client.app(c, h) for c, h in zip(case.clients, held, strict=True)}
    row = honest.serve(case.history.store.folder, apps, "0", Defence())
    assert row["outcome"] == "committed"
    assert not row["disputed"]
    assert row["drop"] <= 0.01
