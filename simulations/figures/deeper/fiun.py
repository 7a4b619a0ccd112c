"""FIUn as the product serves it: Fishers of every client, MFIM, and candidates scored before one is taken."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from fl_unlearn.batches import sample
from fl_unlearn.calibration import Candidate, Tally, choose, explain_refusal, judge
from fl_unlearn.dampen import DampeningUpdate, apply_update, build_update
from fl_unlearn.fisher import FisherSums, fisher_diagonal, resolve_scope
from fl_unlearn.merge import FisherPart, merge
from fl_unlearn.types import ForgetRequest, UnlearnSettings, signature_of
from simulations.quickstart.fl_unlearn_quickstart.data import Pictures

from .bench import Bench, in_batches
from .train import State

SCORED = 100
"""Samples of either kind on which each client scores the candidates: a third of the product's default."""

log = logging.getLogger("fl_unlearn.simulations")


@dataclass(frozen=True)
class Operation:
    """What one variant does, to the final model and to every checkpoint alike.

    Attributes:
        apply: From a model's tensors to those of its successor; the argument is left as it was.
        notes: Numbers that say how it was chosen, for the table.
    """

    apply: Callable[[State], State]
    notes: dict[str, float] = field(default_factory=dict)


def fiun(bench: Bench, label: int, scope: str, first: Operation | None = None) -> Operation:
    """Forget class ``label`` by one FIUn update, made from the final model and scored on training data.

    Args:
        bench: The federation.
        label: The class.
        scope: Which parameters, as for `fisher.fisher_diagonal`.
        first: What every model goes through before the update is made, scored and applied.
    """
    settings = UnlearnSettings(fisher_scope=scope, calibration_samples=SCORED)
    before = first or Operation(lambda state: dict(state))
    final = before.apply(bench.final)
    sums = client_fishers(bench, final if first else bench.final, scope)
    parts = [FisherPart(str(k), label, s.mean([label]), s.counts[label]) for k, s in enumerate(sums)]
    retained = sum(sums, start=FisherSums(sums[0].kind, sums[0].scope, bench.classes, {}, {})).without(
        [label]
    )
    base = build_update(
        merge(parts, settings.merge_rule),
        retained.mean(),
        threshold=settings.thresholds[0],
        dampening=settings.dampenings[0],
        signature=signature_of(final),
    )
    chosen = _calibrate(bench, label, base, before, settings)
    update = base.variant(chosen.threshold, chosen.dampening)
    notes = {"threshold": chosen.threshold, "dampening": chosen.dampening, "passed": float(chosen.passed)}
    return Operation(lambda state: apply_update(before.apply(state), update), {**before.notes, **notes})


def client_fishers(bench: Bench, state: State, scope: str) -> list[FisherSums]:
    """Every client's sums per class. Those of the final model are made for all layers at once, and kept."""
    if state is not bench.final:
        return [_fisher(bench, state, own, scope) for own in bench.clients]
    names = resolve_scope(bench.model(state), scope)
    return [_restricted(_kept_fisher(bench, k), names, scope) for k in range(len(bench.clients))]


def _kept_fisher(bench: Bench, client: int) -> FisherSums:
    path = bench.out / "fisher" / f"seed-{bench.seed}-client-{client}.safetensors"
    if not path.is_file():
        log.info("Fisher diagonal of all layers, client %d of %d", client + 1, len(bench.clients))
        sums = _fisher(bench, bench.final, bench.clients[client], "all").to(torch.float32)
        path.parent.mkdir(exist_ok=True)
        part = path.with_suffix(".part")
        part.write_bytes(sums.to_bytes())
        part.rename(path)
    return FisherSums.from_bytes(path.read_bytes()).to(torch.float64)


def _fisher(bench: Bench, state: State, own: Pictures, scope: str) -> FisherSums:
    return fisher_diagonal(bench.model(state), in_batches(own), scope=scope)


def _restricted(sums: FisherSums, names: list[str], scope: str) -> FisherSums:
    kept = {g: {n: s[n] for n in names} for g, s in sums.sums.items()}
    return FisherSums(sums.kind, scope, sums.num_classes, kept, sums.counts)


def _calibrate(
    bench: Bench, label: int, base: DampeningUpdate, before: Operation, settings: UnlearnSettings
) -> Candidate:
    """The candidate that the server would take, or the nearest to passing where it would refuse."""
    most = settings.calibration_samples
    batches = [b for c in bench.clients for b in sample([(c.images, c.labels)], [label], most)]
    pictures = Pictures(torch.cat([x for x, _ in batches]), torch.cat([y for _, y in batches]))
    request = ForgetRequest((label,))
    earlier = bench.rounds[:-1]
    count = min(settings.calibration_models - 1, len(earlier))
    spread = [earlier[round(i * (len(earlier) - 1) / max(1, count - 1))] for i in range(count)]
    updates = [base.variant(t, lam) for t, lam in settings.grid]
    rows = []
    for state in (bench.final, *spread):
        start = before.apply(state)
        row = []
        for candidate in (state, *(apply_update(start, u) for u in updates)):
            row.append(Tally())
            row[-1].add(bench.scores(candidate, pictures), request, "")
        # What comes first counts as part of the candidate: its cost is the drop from the untouched model.
        rows.append(row)
    candidates = judge(rows, settings)
    chosen = choose(candidates)
    if chosen is None:
        log.warning(
            "class %d, scope %s: %s", label, settings.fisher_scope, explain_refusal(candidates, settings)
        )
        chosen = min(candidates, key=lambda c: (c.forget_accuracy, c.retain_drop))
    return chosen
