"""Fisher sums asked of clients, for strategies that need them: the forget set apart from the rest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fl_unlearn.evidence import retained
from fl_unlearn.fisher import FisherSums, fisher_diagonal
from fl_unlearn.fisher.named import fisher_of_named
from fl_unlearn.types import REST, StateDict
from strategies.client import LARGE, Client, Part
from strategies.contract import Federation, State
from strategies.tasks import Answer, Setting, Settings, Tensors, task


@task("fisher")
def fisher(client: Client, tensors: Tensors, settings: Settings) -> Answer:
    """Fisher sums of one model over this client's training data.

    Tensors: ``model``. Settings: those of `fl_unlearn.fisher.fisher_diagonal`, by kebab-case name,
    ``batch-size``, and ``part``: the samples of that part are pooled under `types.REST`; "": all training
    samples, the forgotten ones' labels being groups of their own, and all that is kept `types.REST`; with
    ``pooled``, what a request for a client or samples names is one group, `forget_set.NAMED`. Answers with
    sums by group, float32, and ``count.<group>``, ``num-classes``.
    """
    s: dict[str, Any] = {name.replace("-", "_"): value for name, value in settings.items()}
    model, size, part = client.model(tensors["model"]), s.pop("batch_size"), s.pop("part")
    pooled = s.pop("pooled", False)
    s |= {"head": s["head"] or None, "device": client.device}
    request = client.request
    if part:
        sums = fisher_diagonal(model, client.batches(part, size=size), keep_classes=[], **s)
    elif request is not None and request.kind == "classes":
        named = not request.clients or client.name in request.clients
        own = request.classes if named else ()
        sums = fisher_diagonal(model, client.batches("train", size=size), keep_classes=own, **s)
    else:
        share, forget = s.pop("reference_share", None), client.batches("forget", size=size)
        rest = client.batches("retained", size=size)
        if pooled:
            sums = fisher_of_named(model, forget, rest, reference_share=share, **s)
        else:
            sums = fisher_diagonal(model, forget, **s)
            sums = sums + fisher_diagonal(model, rest, keep_classes=[], reference_share=share, **s)
    numbers = {f"count.{g}": float(n) for g, n in sums.counts.items()}
    return Answer(
        sum(sums.counts.values()),
        {str(g): {n: t.float() for n, t in own.items()} for g, own in sums.sums.items()},
        {**numbers, "num-classes": float(sums.num_classes)},
    )


def ask_fisher(
    federation: Federation,
    state: StateDict,
    *,
    kind: str,
    scope: str,
    part: Part | None = None,
    clients: Sequence[str] | None = None,
    head: str | None = None,
    batch_size: int = LARGE,
    others: Settings | None = None,
) -> dict[str, FisherSums]:
    """The clients' Fisher sums of one model.

    Args:
        federation: The clients.
        state: The model.
        kind: One of `types.FISHER_KINDS`.
        scope: Which parameters; see `fl_unlearn.fisher.resolve_scope`.
        part: Over which samples, all in the group `types.REST`; None: over all training samples, in one
            group for each label of what a client has to forget, and `types.REST` for the others.
        clients: Whom to ask; None: all.
        head: Name of the head, where it is not the last ``nn.Linear``.
        batch_size: Samples a batch; decides the result of the kind "batch" only.
        others: More of `fl_unlearn.fisher.fisher_diagonal`, by kebab-case name.

    Returns:
        Client name to sums.
    """
    asked: dict[str, Setting] = {"kind": kind, "scope": scope, "head": head or "", "batch-size": batch_size}
    asked |= {"part": part or "", **(others or {})}
    answers = federation.ask("fisher", {"model": state}, asked, clients)
    return {name: _sums(answer, kind, scope) for name, answer in answers.items()}


def _sums(answer: Answer, kind: str, scope: str) -> FisherSums:
    return FisherSums(
        kind,
        scope,
        int(answer.numbers["num-classes"]),
        {int(g): {n: t.double() for n, t in own.items()} for g, own in answer.tensors.items()},
        {int(g): int(answer.numbers[f"count.{g}"]) for g in answer.tensors},
    )


def over_rest(sums: Mapping[str, FisherSums]) -> State:
    """The clients' mean Fisher over `types.REST`."""
    return retained(sums.values()).mean([REST])
