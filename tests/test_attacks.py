"""The simulation of lying clients: that its lies arrive, and that its table says what happened."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from fl_unlearn.fisher_bounds import head_violation
from fl_unlearn.types import REST
from simulations.attacks import federation, measure, show
from simulations.attacks.liars import ATTACKS, VICTIM, _wreck_carefully


def test_every_training_picture_has_one_owner() -> None:
    sizes = [len(federation.client_data(c)[1]) for c in range(federation.CLIENTS)]
    assert sum(sizes) + len(federation.test_set()[1]) == len(federation.pictures()[1])
    for label, owners in federation.HOLDERS.items():
        held = [c for c in range(federation.CLIENTS) if bool((federation.client_data(c)[1] == label).any())]
        assert tuple(held) == owners


def test_the_careful_lie_keeps_within_the_bounds() -> None:
    generator = torch.Generator().manual_seed(0)
    share = torch.rand(10, generator=generator)
    kept = {"w": share[:, None] * torch.rand(6, generator=generator) * 50, "b": 50 * share / share.sum()}
    sums, counts = {3: {n: torch.zeros_like(t) for n, t in kept.items()}, REST: kept}, {3: 0, REST: 50}
    _wreck_carefully(sums, counts)
    assert head_violation(sums[3], counts[3], 3, [3]) is None
    assert float(sums[3]["w"][VICTIM].sum()) > 0
    mean = {g: float(sums[g]["w"].sum()) / counts[g] for g in (3, REST)}
    assert mean[3] < 10 * mean[REST]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder: Path = tmp_path_factory.mktemp("attacks") / "store"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(federation, "ROUNDS", 3)
        federation.train(folder)
    return folder


def test_one_request_honest_and_attacked(store: Path, tmp_path: Path) -> None:
    attacks = {a.name: a for a in ATTACKS}
    honest = measure.serve(store, 3, attacks["none"], (), "on")
    assert honest["outcome"] == "committed"
    assert honest["forgotten_after"] <= 0.05 < honest["forgotten_before"]
    made_up = measure.serve(store, 3, attacks["inflated Fisher"], (1,), "on")
    assert (made_up["outcome"], made_up["rejected"]) == ("committed", ["1"])
    off = measure.serve(store, 3, attacks["inflated Fisher"], (1,), "off")
    assert off["rejected"] == []
    assert show.cell(honest).endswith(" / 0%")
    assert show.cell({**honest, "outcome": "failed"}) == "refused"
    assert show.cell({**honest, "disputed": True}).endswith("*")


def test_table_and_picture_of_all_rows(tmp_path: Path) -> None:
    row = {"outcome": "committed", "retained_before": 0.9, "retained_after": 0.8, "forgotten_after": 0.0}
    rows = [
        {**row, "disputed": False, "class": c, "attack": a.name, "liars": n, "defence": d}
        for a in ATTACKS
        for n in ((0,) if a.name == "none" else (1, 2, 3))
        for c in federation.HOLDERS
        for d in measure.DEFENCES
    ]
    worn = {"no budget": [{"committed": True, "spent": 0.25, "last_two_classes": 0.5}]}
    text = show.table(rows, worn)
    assert "| veto | 2 |" + " 10.0 / 0% |" * 9 in text
    assert "1 of 1 committed, 25.0 points spent, 50.0 % left" in text
    show.picture(rows, tmp_path / "attacks.png")
    assert (tmp_path / "attacks.png").stat().st_size > 10_000
