"""The script that shows what a thinned reference loses: rows, summary, table and picture."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from simulations.figures import reference_share as script
from simulations.quickstart.fl_unlearn_quickstart.data import DataBundle, Pictures


def bundle() -> DataBundle:
    """Two classes of pictures that a glance tells apart."""
    random = torch.Generator().manual_seed(0)

    def part(n: int) -> Pictures:
        y = torch.arange(n) % 2
        return Pictures(torch.randn(n, 1, 8, 8, generator=random) + 2.0 * y[:, None, None, None], y)

    return DataBundle(part(64), part(32), num_classes=2)


def test_rows_summary_table_and_picture(tmp_path: Path) -> None:
    data = bundle()
    model = script.trained(data, epochs=3, lr=0.05)
    before = {n: t.clone() for n, t in model.state_dict().items()}
    rows = script.measure(model, data, 1, (1.0, 0.5, 0.1), 2, "head", 3.0)
    assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items())
    assert [(r["share"], r["seed"]) for r in rows] == [(1.0, 0), (0.5, 0), (0.5, 1), (0.1, 0), (0.1, 1)]
    assert [set(r) for r in rows] == [set(script.COLUMNS)] * 5
    whole, parts = rows[0], rows[1:]
    assert (whole["error"], whole["overlap"], whole["forgotten"]) == (0.0, 1.0, 0.0)
    assert whole["retained"] > 0.9
    assert all(0 < r["error"] < 1 and 0 < r["overlap"] < 1 for r in parts)
    summary = script.summarise(rows)
    assert [r["share"] for r in summary] == [1.0, 0.5, 0.1]
    assert summary[1]["error"] == pytest.approx((rows[1]["error"] + rows[2]["error"]) / 2)
    assert summary[1]["error_worst"] == max(rows[1]["error"], rows[2]["error"])
    assert summary[2]["overlap_worst"] == min(rows[3]["overlap"], rows[4]["overlap"])
    lines = script.table(summary).splitlines()
    assert len(lines) == 2 + 3
    assert lines[2].startswith("| 1 | ")
    figure = script.draw(rows)
    figure.savefig(tmp_path / "picture.png")
    assert [len(ax.lines) for ax in figure.axes] == [2, 2, 4]
    assert (tmp_path / "picture.png").stat().st_size > 10_000
