"""What ``fiun`` has clients do, beside Fisher sums: score candidates, sum up hidden layers' outputs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from fl_unlearn.batches import sample, take_rows, to_device, unpack
from fl_unlearn.dampen import DampeningUpdate
from fl_unlearn.erase_layers import Hidden, Statistics, find_layers
from fl_unlearn.layer_stats import LayerSums, layer_sums
from fl_unlearn.statistics_gather import LayerAnswers, StatisticsGather
from fl_unlearn.types import ClassScores, StateDict, UnlearnSettings
from fl_unlearn.verify import score_candidates
from strategies.client import Client
from strategies.contract import Federation
from strategies.tasks import Answer, Settings, Tensors, task


def ask_scores(
    federation: Federation,
    states: Sequence[StateDict],
    base: DampeningUpdate,
    settings: UnlearnSettings,
    groups: Sequence[str],
    clients: Sequence[str] | None = None,
) -> dict[str, dict[str, list[list[ClassScores]]]]:
    """Clients' scores of models, each as it is and under every candidate.

    Args:
        federation: The clients.
        states: The models.
        base: The update of which all candidates are variants.
        settings: The candidates, and how many samples to score on.
        groups: Groups of samples: a part of a client's data, or several joined by "+", the first one first.
        clients: Whom to ask; None: all.

    Returns:
        Group to client to scores: one row per model; in it the model as it is, then each candidate.
    """
    grid = settings.grid
    answers = federation.ask(
        "fiun.scores",
        {**{f"model.{i}": s for i, s in enumerate(states)}, "update": base.to_tensors()},
        {
            "header": base.header(),
            "thresholds": [t for t, _ in grid],
            "dampenings": [lam for _, lam in grid],
            "samples": settings.calibration_samples,
            "head": settings.head or "",
            "groups": list(groups),
        },
        clients,
    )
    return {g: {name: _read_scores(a.tensors[g]) for name, a in answers.items()} for g in groups}


@task("fiun.scores")
def scores(client: Client, tensors: Tensors, settings: Settings) -> Answer:
    """Scores of models, as they are and under each candidate, on groups of local samples.

    Tensors: ``model.0``..., ``update``. Settings: ``header``, ``thresholds``, ``dampenings``, ``samples``,
    ``head``, ``groups``. Answers for each group with ``labels`` (L,) and ``values`` (models, 1 + candidates,
    3, L): correct, total, loss.
    """
    s: Any = settings
    assert client.request is not None
    base = DampeningUpdate.from_tensors(s["header"], tensors["update"])
    grid = zip(s["thresholds"], s["dampenings"], strict=True)
    candidates = [None, *(base.variant(t, lam) for t, lam in grid)]
    models = [
        client.model(tensors[f"model.{i}"]) for i in range(sum(n.startswith("model.") for n in tensors))
    ]
    found, count = {}, 0
    for group in s["groups"]:
        batches = chain.from_iterable(client.batches(part) for part in group.split("+"))
        data = sample(batches, client.request.classes, s["samples"])
        rows = [
            score_candidates(model, data, candidates, device=client.device, head=s["head"] or None)
            for model in models
        ]
        found[group] = _write_scores(rows)
        count += sum(len(y) for _, y in data)
    return Answer(count, found)


def _write_scores(rows: Sequence[Sequence[ClassScores]]) -> dict[str, Tensor]:
    labels = sorted({c for row in rows for one in row for c in one.total})
    values = [
        [[[float(of.get(c, 0)) for c in labels] for of in (one.correct, one.total, one.loss)] for one in row]
        for row in rows
    ]
    return {"labels": torch.tensor(labels), "values": torch.tensor(values, dtype=torch.float64)}


def _read_scores(found: StateDict) -> list[list[ClassScores]]:
    labels: list[int] = found["labels"].long().tolist()

    def one(values: Tensor) -> ClassScores:
        correct, total, loss = values.tolist()
        seen = [(i, c) for i, c in enumerate(labels) if total[i]]
        return ClassScores(
            {c: int(correct[i]) for i, c in seen},
            {c: int(total[i]) for i, c in seen},
            {c: loss[i] for i, c in seen},
        )

    return [[one(values) for values in row] for row in found["values"]]


def ask_layer(
    federation: Federation, states: Sequence[StateDict], position: int, settings: UnlearnSettings
) -> LayerAnswers:
    """The clients' statistics of one hidden layer in each of some models; see `fl_unlearn.erasing.Ask`."""
    answers = federation.ask(
        "fiun.statistics",
        {f"model.{i}": state for i, state in enumerate(states)},
        {"erase": settings.erase, "head": settings.head or "", "position": position},
    )
    gathered = StatisticsGather({})
    for name, answer in answers.items():
        gathered.add(name, _read_statistics(answer))
    return gathered.result()[0]


@task("fiun.statistics")
def statistics(client: Client, tensors: Tensors, settings: Settings) -> Answer:
    """Sums of one hidden layer's outputs in each model, over local training data.

    Tensors: ``model.0``... Settings: ``erase``, ``head``, ``position``. Answers with the sums of each model
    by number, ``count.<model>.<group>``, and the ``layers`` that can be erased in, as JSON.
    """
    s: Any = settings
    request, models = client.request, [tensors[f"model.{i}"] for i in range(len(tensors))]
    if not client.count("train") or request is None:
        return Answer(0)
    own = request.classes if not request.clients or client.name in request.clients else ()
    first = unpack(next(iter(client.batches("train"))))[0]
    rows = to_device(take_rows(first, slice(2)), client.device)
    layers = find_layers(client.model(models[0]), rows, s["erase"], head=s["head"] or None)
    at = layers[s["position"]].layer
    sums = [
        layer_sums(client.model(m), client.batches("train"), [at], own, device=client.device)[at]
        for m in models
    ]
    return Answer(
        client.count("train"),
        {str(i): one.to_tensors() for i, one in enumerate(sums)},
        {f"count.{i}.{g}": float(n) for i, one in enumerate(sums) for g, n in one.counts.items()},
        {"layers": json.dumps([asdict(h) for h in layers])},
    )


def _read_statistics(answer: Answer) -> Statistics:
    if not answer.samples:
        return Statistics()
    sums = []
    for i in range(len(answer.tensors)):
        own = {k.rpartition(".")[2]: n for k, n in answer.numbers.items() if k.startswith(f"count.{i}.")}
        counts = {int(g): int(n) for g, n in own.items()}
        sums.append(LayerSums.from_tensors(counts, answer.tensors[str(i)]))
    return Statistics(tuple(Hidden(**h) for h in json.loads(answer.notes["layers"])), tuple(sums))
