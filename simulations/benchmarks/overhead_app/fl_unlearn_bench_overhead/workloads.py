"""The two workloads: the quickstart's small network, and a model whose checkpoints are large."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from torch.nn.functional import cross_entropy
from torchvision.models import resnet18

from simulations.quickstart.fl_unlearn_quickstart import task

CLASSES = 10
SIDE = 32  # pixels


def new_model(config: Mapping[str, Any]) -> torch.nn.Module:
    """The workload's model; its weights depend on the run config alone.

    Raises:
        ValueError: If the workload is unknown.
    """
    if config["workload"] == "digits":
        return task.new_model(config)
    if config["workload"] != "resnet18":
        raise ValueError(f"workload must be 'digits' or 'resnet18', got {config['workload']!r}")
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(int(config["seed"]))
        model: torch.nn.Module = resnet18(num_classes=CLASSES)
        return model


def noise(config: Mapping[str, Any], client: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """A client's batches for ResNet-18: noise with random labels, since only the time matters.

    Images are float32 (B, 3, 32, 32), labels int64 (B,).
    """
    generator = torch.Generator().manual_seed(int(config["seed"]) * 1000 + client)
    size = int(config["batch-size"])
    return [
        (
            torch.randn(size, 3, SIDE, SIDE, generator=generator),
            torch.randint(CLASSES, (size,), generator=generator),
        )
        for _ in range(int(config["local-batches"]))
    ]


def train_resnet(message: Message, context: Context) -> Message:
    """One pass of SGD over the client's batches, as a Flower train handler."""
    config = context.run_config
    model = new_model(config)
    model.load_state_dict(message.content.array_records["arrays"].to_torch_state_dict())
    model.train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=float(config["momentum"]))
    batches = noise(config, int(context.node_config["partition-id"]))
    for images, labels in batches:
        optimizer.zero_grad()
        torch.autograd.backward(cross_entropy(model(images), labels))
        optimizer.step()
    metrics = MetricRecord({"num-examples": sum(len(labels) for _, labels in batches)})
    return Message(
        RecordDict({"arrays": ArrayRecord(model.state_dict()), "metrics": metrics}), reply_to=message
    )
