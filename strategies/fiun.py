"""``fiun`` and ``fiun-deep``: what the plug-in for Flower does, with the same arithmetic.

Clients sum diagonal Fishers of the current global model, of what is to be forgotten and of what is kept. The
server merges the forget Fishers (MFIM), and builds one FIUn update with many thresholds t and dampenings
lambda: wherever F_forget > t F_reference, theta <- theta min(1, lambda F_reference / F_forget). Clients score
them all; the one that forgets at the least cost of retained accuracy is applied to every affected
checkpoint, or nothing is changed. ``fiun-deep`` first erases the classes in the last hidden layer.

Hyper-parameters: ``preset`` = "fast" (``fiun``) or "deep" (``fiun-deep``), or ``settings``, any
`UnlearnSettings` (those of the network and of Flower play no part). They are ours and measured (README); the
paper's are those of ``fiun-paper``. Targets: classes. Needs the forget data and the retained data.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import chain
from typing import Any, ClassVar

import torch
from torch import Tensor

from fl_unlearn import evidence
from fl_unlearn.batches import sample, take_rows, to_device, unpack
from fl_unlearn.calibration import Candidate, Tally, choose, explain_refusal, judge, sum_scores
from fl_unlearn.dampen import DampeningUpdate, apply_update, build_update
from fl_unlearn.erase_layers import Hidden, Statistics, find_layers
from fl_unlearn.erasing import erased, find_erasures
from fl_unlearn.fisher import FisherSums
from fl_unlearn.layer_stats import LayerSums, layer_sums
from fl_unlearn.merge import merge
from fl_unlearn.types import ClassScores, StateDict, UnlearnSettings, signature_of
from fl_unlearn.verify import score_candidates
from strategies.client import Client
from strategies.contract import Federation, Need, Outcome, State, Strategy, Target
from strategies.fisher import ask_fisher, over_rest
from strategies.history import History
from strategies.tasks import Answer, Settings, Tensors, task


@dataclass(frozen=True)
class Fiun(Strategy):
    """One update, calibrated by the clients, for every affected checkpoint."""

    name: ClassVar[str] = "fiun"
    paper: ClassVar[str] = "ours, after Liu et al. 2024, arXiv 2408.08493"
    targets: ClassVar[frozenset[Target]] = frozenset(("classes",))
    needs: ClassVar[frozenset[Need]] = frozenset(("forget-data", "retained-data"))

    preset: str = "fast"
    settings: UnlearnSettings | None = None

    def __post_init__(self) -> None:
        self._settings()

    def _settings(self) -> UnlearnSettings:
        return self.settings or UnlearnSettings.preset(self.preset)

    def unlearn(self, federation: Federation, history: History) -> Outcome:
        """Find the update, and apply it; where no candidate passes, change nothing."""
        work = _Request(federation, history, self._settings())
        base = work.base()
        chosen = work.calibrate(base)
        if isinstance(chosen, str):
            return Outcome(work.state, facts=work.facts, refused=chosen)
        update = base.variant(chosen.threshold, chosen.dampening)
        work.note(chosen, update)

        def change(state: StateDict) -> State:
            if work.settings.reference == "shared":
                return apply_update(state, update)
            own = work.build(work.fisher(erased(state, update.erasures)), update.erasures)
            return apply_update(state, own.variant(chosen.threshold, chosen.dampening))

        return Outcome(apply_update(work.state, update), change, work.facts)


@dataclass(frozen=True)
class FiunDeep(Fiun):
    """The classes are erased in the last hidden layer before."""

    name: ClassVar[str] = "fiun-deep"

    preset: str = "deep"


class _Request:
    """One request as it is served: the phases of `fl_unlearn.flower.session`, up to the commit."""

    def __init__(self, federation: Federation, history: History, settings: UnlearnSettings) -> None:
        self.federation, self.request, self.store = federation, federation.request, history.store
        self.state, self.facts = history.current(), dict[str, str | int | float]()
        self.settings = replace(settings, head=settings.head or history.head)
        self.merged: State = {}
        self.holders: Mapping[str, int] = {}
        self.affected: tuple[str, ...] = ()

    def base(self) -> DampeningUpdate:
        """The update of which all candidates are variants."""
        erasures = {}
        if self.settings.erases:
            erasures = find_erasures(self._ask_layer, self.request, self.settings, self.store, self.state)
        fishers = self.fisher(erased(self.state, erasures))
        counts = {client: sums.counts for client, sums in fishers.items()}
        known = next(iter(fishers.values())).num_classes
        self.holders = evidence.holders(self.request, self.store, counts, known)
        _, self.affected = evidence.lineage(
            self.request, self.store, fishers, self.holders, all_affected=self.settings.all_affected
        )
        self.merged = merge(evidence.parts(fishers), self.settings.merge_rule)
        return self.build(fishers, erasures)

    def fisher(self, state: StateDict) -> dict[str, FisherSums]:
        """The clients' Fisher sums of a model."""
        s = self.settings
        share = {} if s.reference_share is None else {"reference-share": s.reference_share}
        return ask_fisher(
            self.federation, state, kind=s.fisher_kind, scope=s.fisher_scope, head=s.head, others=share
        )

    def build(self, fishers: dict[str, FisherSums], erasures: Mapping[str, Any]) -> DampeningUpdate:
        """The merged forget Fisher against the reference in ``fishers``."""
        return build_update(
            self.merged,
            over_rest(fishers),
            threshold=self.settings.thresholds[0],
            dampening=self.settings.dampenings[0],
            signature=signature_of(self.state),
            erasures=erasures,
        )

    def calibrate(self, base: DampeningUpdate) -> Candidate | str:
        """The candidate that the clients' scores favour, or why none may be taken."""
        s, states = self.settings, [self.state]
        if s.reference == "shared":
            most = s.calibration_models - 1
            states += evidence.earlier_models(self.store, self.affected, list(self.holders), most)
        candidates = judge(self._ask_scores(states, base), s)
        chosen = candidates[0] if s.force else choose(candidates)
        if chosen is None:
            return explain_refusal(candidates, s)
        if base.variant(chosen.threshold, chosen.dampening).empty:
            return f"the chosen update (t = {chosen.threshold:g}) changes no value"
        return chosen

    def note(self, chosen: Candidate, update: DampeningUpdate) -> None:
        """What a reader of the result should know."""
        self.facts |= {
            "threshold": chosen.threshold,
            "dampening": chosen.dampening,
            "selected": update.selected,
            "digest": update.digest,
            "forget-accuracy-of-clients": chosen.forget_accuracy,
            "retain-drop-of-clients": chosen.retain_drop,
        }
        if update.erasures:
            self.facts["erased"] = ", ".join(update.erasures)

    def _ask_scores(self, states: Sequence[StateDict], base: DampeningUpdate) -> list[list[Tally]]:
        grid = self.settings.grid
        answers = self.federation.ask(
            "fiun.scores",
            {**{f"model.{i}": s for i, s in enumerate(states)}, "update": base.to_tensors()},
            {
                "header": base.header(),
                "thresholds": [t for t, _ in grid],
                "dampenings": [lam for _, lam in grid],
                "samples": self.settings.calibration_samples,
                "head": self.settings.head or "",
            },
        )
        scores = {name: _read_scores(answer.tensors["scores"]) for name, answer in answers.items()}
        return sum_scores(scores, self.request)

    def _ask_layer(self, states: Sequence[StateDict], position: int) -> dict[str, Statistics]:
        s = self.settings
        answers = self.federation.ask(
            "fiun.statistics",
            {f"model.{i}": state for i, state in enumerate(states)},
            {"erase": s.erase, "head": s.head or "", "position": position},
        )
        return {name: _read_statistics(answer) for name, answer in answers.items()}


# --------------------------------------------------------------------------- at the clients
@task("fiun.scores")
def scores(client: Client, tensors: Tensors, settings: Settings) -> Answer:
    """Scores of models, as they are and under each candidate, on local data; held-out samples come first.

    Tensors: ``model.0``..., ``update``. Settings: ``header``, ``thresholds``, ``dampenings``, ``samples``,
    ``head``. Answers with ``labels`` (L,) and ``values`` (models, 1 + candidates, 3, L): correct, total,
    loss.
    """
    s: Any = settings
    assert client.request is not None
    base = DampeningUpdate.from_tensors(s["header"], tensors["update"])
    grid = zip(s["thresholds"], s["dampenings"], strict=True)
    candidates = [None, *(base.variant(t, lam) for t, lam in grid)]
    data = sample(
        chain(client.batches("held-out"), client.batches("train")), client.request.classes, s["samples"]
    )
    rows = []
    for i in range(sum(name.startswith("model.") for name in tensors)):
        model = client.model(tensors[f"model.{i}"])
        rows.append(score_candidates(model, data, candidates, device=client.device, head=s["head"] or None))
    labels = sorted({c for row in rows for one in row for c in one.total})
    values = [
        [[[float(of.get(c, 0)) for c in labels] for of in (one.correct, one.total, one.loss)] for one in row]
        for row in rows
    ]
    found = {"labels": torch.tensor(labels), "values": torch.tensor(values, dtype=torch.float64)}
    return Answer(sum(len(y) for _, y in data), {"scores": found})


def _read_scores(found: StateDict) -> list[list[ClassScores]]:
    labels: list[int] = found["labels"].tolist()

    def one(values: Tensor) -> ClassScores:
        correct, total, loss = values.tolist()
        seen = [(i, c) for i, c in enumerate(labels) if total[i]]
        return ClassScores(
            {c: int(correct[i]) for i, c in seen},
            {c: int(total[i]) for i, c in seen},
            {c: loss[i] for i, c in seen},
        )

    return [[one(values) for values in row] for row in found["values"]]


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
