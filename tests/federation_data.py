"""The tiny federation with held-out samples, keys, and clients that leave out what was forgotten."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import federation as fed
import torch
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from grid import LocalGrid, Tamper
from torch.utils.data import DataLoader, TensorDataset

from fl_unlearn.flower import attach, forgotten_samples
from fl_unlearn.types import UnlearnSettings

FORCED = UnlearnSettings(threshold=1.5, force=True)
"""The clients are too alike for anything to be singled out: what the protocol does is looked at."""


def name_of(context: Context) -> str:
    return str(context.node_config["partition-id"])


def keys_of(context: Context) -> list[str]:
    """Patients with two samples each."""
    count = len(fed.client_data(int(name_of(context)))[1])
    return [f"patient-{name_of(context)}-{i // 2}" for i in range(count)]


def training_set(context: Context) -> TensorDataset:
    return TensorDataset(*fed.client_data(int(name_of(context))))


def held_out(context: Context) -> DataLoader[Any]:
    x, y = fed.client_data(int(name_of(context)))
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(int(name_of(context))))
    return DataLoader(TensorDataset(x + 0.6 * noise, y), batch_size=16)


def data(context: Context) -> Any:
    return DataLoader(training_set(context), batch_size=16), held_out(context)


class Apps:
    """Makes apps; ``trained`` has the number of samples of each training, by client."""

    def __init__(self, data: Callable[[Context], Any] = data, **attached: Any) -> None:
        self.data, self.attached = data, attached
        self.trained: dict[str, list[int]] = {}

    def __call__(self) -> ClientApp:
        app = ClientApp()

        @app.train()
        def train(message: Message, context: Context) -> Message:
            model = fed.build_model()
            model.load_state_dict(message.content["arrays"].to_torch_state_dict())
            samples, gone = training_set(context), forgotten_samples(message)
            rows = gone.kept(len(samples), keys_of(context))
            self.trained.setdefault(name_of(context), []).append(len(rows))
            if rows:
                fed.local_training(model, DataLoader(TensorDataset(*samples[rows]), batch_size=16))
            metrics = MetricRecord({"num-examples": len(rows)})
            content = RecordDict({"arrays": ArrayRecord(model.state_dict()), "metrics": metrics})
            return Message(content, reply_to=message)

        return attach(app, model=fed.build_model, data=self.data, device="cpu", **self.attached)


def grid(make: Callable[[], ClientApp] | None = None, tamper: Tamper | None = None) -> LocalGrid:
    return fed.grid(tamper, make or Apps(sample_keys=keys_of))
