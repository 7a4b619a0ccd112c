"""Asking the clients for statistics of their hidden layers' outputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import median_high, median_low

import torch
from flwr.app import RecordDict

from fl_unlearn.erase_layers import Statistics
from fl_unlearn.flower import records, statistics
from fl_unlearn.flower.panel import PLAUSIBLE, Panel
from fl_unlearn.layer_stats import LayerSums
from fl_unlearn.types import REST, AnswerError, signature_of


def ask_statistics(
    panel: Panel, states: Sequence[dict[str, torch.Tensor]], position: int
) -> dict[str, Statistics]:
    """The clients' statistics of one hidden layer, in each of some models.

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
    model, good = signature_of(states[0]), dict[str, Statistics]()

    def take(client: str, reply: RecordDict) -> None:
        named = not request.clients or client in request.clients
        groups = (*request.classes, REST) if named else (REST,)
        got = statistics.read(reply, groups=groups, models=len(states), position=position, model=model)
        first = next((a.layers for a in good.values() if a.layers), got.layers)
        if got.layers and got.layers != first:
            raise AnswerError("other layers to erase in than another client's")
        good[client] = got

    failed, silent = panel.collect(records.STATISTICS, content, take)
    nodes = {name: node for node, name in panel.names.items()}
    for client, why in _implausible(good, panel.examples).items():
        failed[nodes[client]] = why
        del good[client]
    panel.note(failed, silent)
    panel.enough("statistics", len(good))
    return {client: good[client] for client in sorted(good)}


def _implausible(good: dict[str, Statistics], examples: Mapping[str, int]) -> dict[str, str]:
    """Observations a sample, and their size, are alike everywhere: none may have many times the others'.

    Far larger outputs would hide all others': the erasure leaves directions of little variance alone.
    """
    sizes = {c: max(_mean_square(s) for s in a.sums) for c, a in good.items() if a.sums}
    largest = PLAUSIBLE**2 * median_high(sizes.values()) if sizes else 0.0
    found = {
        client: f"outputs of mean square {size:.3g}, where at most {largest:.3g} is plausible"
        for client, size in sizes.items()
        if size > largest
    }
    rates = {
        c: max(s.count for s in a.sums) / max(1, examples[c])
        for c, a in good.items()
        if a.sums and c in examples and c not in found
    }
    usual = median_low(rates.values()) if rates else 0.0
    return found | {
        client: f"{rate:.0f} observations for each sample it trained on, where {usual:.0f} are usual"
        for client, rate in rates.items()
        if rate > PLAUSIBLE * max(usual, 1.0)
    }


def _mean_square(sums: LayerSums) -> float:
    return float(sums.second.diagonal().sum()) / max(1, sums.count)
