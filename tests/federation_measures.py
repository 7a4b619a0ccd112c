"""The tiny federation with held-out data at the clients, and requests that measure."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import federation as fed
import torch
from flwr.app import Context
from flwr.clientapp import ClientApp
from torch.utils.data import DataLoader, TensorDataset

from fl_unlearn.flower import attach, records
from fl_unlearn.flower.reporting import build_report
from fl_unlearn.flower.result import ForgetResult
from fl_unlearn.report import write_report
from fl_unlearn.report_record import UnlearnReport
from fl_unlearn.run_store import RunStore
from fl_unlearn.types import UnlearnSettings
from fl_unlearn.verify import score_checkpoints

MANY = ("accuracy", "membership-auc", "zrf", "activation-distance")
MEASURE = f"query.{records.MEASURE}"
Rows = tuple[torch.Tensor, torch.Tensor]


def held_out(partition: int) -> Rows:
    """Samples of every class that nobody trained on."""
    generator = torch.Generator().manual_seed(900 + partition)
    y = torch.arange(fed.CLASSES).repeat_interleave(10)
    return fed.blob_centres()[y] + 0.6 * torch.randn(len(y), fed.FEATURES, generator=generator), y


def both(context: Context) -> Any:
    """As people have them: shuffled, and to be gone through once."""
    partition = int(context.node_config["partition-id"])
    train, held = (TensorDataset(*rows) for rows in (fed.client_data(partition), held_out(partition)))
    order = torch.Generator().manual_seed(partition)
    shuffled = DataLoader(train, batch_size=7, shuffle=True, generator=order)
    return iter(shuffled), iter(DataLoader(held, batch_size=16))


def app(data: Any = both) -> ClientApp:
    return attach(fed.plain_app(), model=fed.build_model, data=data, device="cpu")


def trained(folder: Path, measures: tuple[str, ...] = MANY, make: Any = app, **changes: Any) -> Any:
    """As `federation.trained`, with clients that have held-out data."""
    settings = UnlearnSettings(measures=measures, **changes)
    strategy, _, result = fed.trained(folder, rounds=3, settings=settings)
    return strategy, fed.grid(make=make), result


def model_of(state: dict[str, torch.Tensor]) -> fed.Net:
    model = fed.build_model()
    model.load_state_dict(state)
    return model.eval()


def pooled(parts: Any) -> Rows:
    x, y = zip(*parts, strict=True)
    return torch.cat(x), torch.cat(y)


def softmax(state: dict[str, torch.Tensor], x: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return model_of(state)(x).double().softmax(1)


def page(outcome: ForgetResult, store: RunStore, folder: Path) -> str:
    scores = score_checkpoints(store, fed.build_model(), [fed.client_data(1)])
    report = build_report(outcome, store, before=scores, after=scores)
    paths = write_report(report, folder / "report")
    plain = json.loads(paths["report.json"].read_text())
    assert UnlearnReport.from_json(plain) == report
    assert plain["schema_version"] == "1.2"
    return paths["report.md"].read_text()
