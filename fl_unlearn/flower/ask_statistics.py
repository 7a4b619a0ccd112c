"""Asking the clients for statistics of their hidden layers' outputs."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from flwr.app import RecordDict

from fl_unlearn.flower import records, statistics
from fl_unlearn.flower.panel import PLAUSIBLE, Panel
from fl_unlearn.statistics_gather import LayerAnswers, StatisticsGather
from fl_unlearn.types import REST, signature_of


def ask_statistics(panel: Panel, states: Sequence[dict[str, torch.Tensor]], position: int) -> LayerAnswers:
    """The clients' statistics of one hidden layer, in each of some models, added up.

    Args:
        panel: The clients.
        states: The models.
        position: Which of the layers to be erased in, in the order of a forward pass.

    Raises:
        RequestError: If the clients do not know a class.
        EraseError: If their model cannot be erased in as the settings say.
        NotEnoughAnswersError: If too few answers are usable.
    """
    request = panel.request
    asked = records.head(
        erase=panel.settings.erase,
        position=[position],
        models=[len(states)],
        head=panel.settings.head or "",
        classes=list(request.classes),
        ignored=list(panel.ignored),
        clients=list(request.clients),
    )
    content = RecordDict({records.HEAD: asked})
    for i, state in enumerate(states):
        content[f"{records.MODEL}.{i}"] = records.to_arrays(state)
    model, gathered = signature_of(states[0]), StatisticsGather(panel.examples)

    def take(client: str, reply: RecordDict) -> None:
        named = not request.clients or client in request.clients
        groups = (*request.classes, REST) if named else (REST,)
        got = statistics.read(reply, groups=groups, models=len(states), position=position, model=model)
        gathered.add(client, got)

    failed, silent = panel.collect(records.STATISTICS, content, take)
    answers, implausible = gathered.result(PLAUSIBLE)
    nodes = {name: node for node, name in panel.names.items()}
    panel.note(failed | {nodes[client]: why for client, why in implausible.items()}, silent)
    panel.enough("statistics", len(answers.counts))
    return answers
