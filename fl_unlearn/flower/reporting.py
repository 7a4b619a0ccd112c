"""From a served request and scores on held-out data to the report that `report.write_report` writes."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from dataclasses import fields
from importlib.metadata import PackageNotFoundError, version

import networkx as nx

from fl_unlearn.calibration import Candidate
from fl_unlearn.document_status import REFUSALS, DocumentStatus, statuses
from fl_unlearn.flower.result import ForgetResult
from fl_unlearn.lineage import Node, NodeKind
from fl_unlearn.lineage_io import to_networkx
from fl_unlearn.metrics import METRICS
from fl_unlearn.report import (
    CandidateRow,
    ClientLists,
    Cost,
    DocumentLine,
    MeasureRow,
    ModelRow,
    RetrainedScores,
    UnlearnReport,
    default_caveats,
)
from fl_unlearn.report_record import data_caveats
from fl_unlearn.run_store import RunStore
from fl_unlearn.types import ClassScores, UnlearnError

PACKAGES = ("fl-unlearn", "flwr", "torch", "numpy", "safetensors", "networkx")

Scores = Mapping[str, ClassScores]
"""Model name to its scores on held-out data, as `verify.score_checkpoints` gives them."""


def build_report(
    result: ForgetResult,
    store: RunStore,
    *,
    before: Scores,
    after: Scores,
    seed: int | None = None,
    train_client_seconds: float | None = None,
    train_wall_seconds: float | None = None,
    retrained: ClassScores | None = None,
    retrain_client_seconds: float | None = None,
) -> UnlearnReport:
    """Put together what is known of a request.

    Args:
        result: What became of it.
        store: The run's store.
        before: Scores of the stored models before the request was served.
        after: Scores of the stored models now; one per model to be listed.
        seed: The run's seed.
        train_client_seconds: Seconds of computing that the training took, summed over clients.
        train_wall_seconds: Wall time of the training.
        retrained: Scores of a model trained without the forget set, on the same held-out data.
        retrain_client_seconds: Seconds of computing that training it took, summed over clients.

    Raises:
        UnlearnError: If ``after`` has no global model.
    """
    kept = [store.umig.node(name) for name in after]
    rows = {node.name: _row(node, result, before, after) for node in kept}
    globals_ = [n for n in kept if n.kind in (NodeKind.AGGREGATE, NodeKind.INITIAL)]
    if not globals_:
        raise UnlearnError("no global model was scored; keep aggregates to get a report")
    final = globals_[-1].name
    erased = tuple(result.update.erasures) if result.update else ()
    measures = _measures(result)
    known = [m.key for m in measures if m.after.value is not None]
    return UnlearnReport(
        request=result.request,
        outcome="committed" if result.committed else "refused",
        message=result.message,
        threshold=result.update.threshold if result.update else None,
        fisher_kind=result.settings.fisher_kind,
        fisher_scope=result.settings.fisher_scope,
        seed=seed,
        versions=_versions(),
        final=rows[final],
        models=tuple(rows.values()),
        retrained=_retrained(retrained, result),
        cost=Cost(
            train_client_seconds=train_client_seconds,
            train_wall_seconds=train_wall_seconds,
            forget_client_seconds=result.client_seconds,
            forget_wall_seconds=result.wall_seconds,
            bytes_up=result.bytes_up,
            bytes_down=result.bytes_down,
            retrain_client_seconds=retrain_client_seconds,
        ),
        clients=_clients(result),
        candidates=tuple(_candidate(c, result) for c in result.candidates),
        class_accuracy={
            "before": _per_class(before.get(final)),
            "after": _per_class(after[final]),
        },
        measured=(
            "accuracy per class of every stored model on held-out data that no client trained on",
            "accuracy of every candidate update on the clients' own data, before one was chosen",
            *(f"{m.title}, by the clients on their own data" for m in measures if m.key in known),
        ),
        not_measured=tuple(
            default_caveats(result.settings.fisher_scope, erased, known)
            if result.request.kind == "classes"
            else data_caveats(result.like_labels, known)
        ),
        measures=measures,
        document=_line(result.document) if result.document else None,
        refusals=tuple(_line(s) for s in statuses(store) if s.state in REFUSALS),
    )


def _line(status: DocumentStatus) -> DocumentLine:
    return DocumentLine(**{f.name: getattr(status, f.name) for f in fields(DocumentLine)})


def _measures(result: ForgetResult) -> tuple[MeasureRow, ...]:
    # Not those of the settings: a request that is recalled may have been served under others.
    columns = [c for metric in METRICS.values() for c in metric.columns]
    return tuple(
        MeasureRow(c.key, c.title, c.unit, c.good, c.about, **result.measured[c.key])
        for c in columns
        if c.key in result.measured
    )


def _clients(result: ForgetResult) -> ClientLists:
    return ClientLists(
        asked=result.asked,
        answered=tuple(c for c in result.asked if c not in result.failed and c not in result.silent),
        holders=tuple(sorted(result.holders)),
        failed=tuple(f"{client} ({why})" for client, why in result.failed.items()),
        outstanding=result.outstanding,
    )


def _candidate(c: Candidate, result: ForgetResult) -> CandidateRow:
    chosen = result.update and (result.update.threshold, result.update.dampening)
    return CandidateRow(
        threshold=c.threshold,
        dampening=c.dampening,
        forget_accuracy=c.forget_accuracy,
        worst_forget_accuracy=c.worst_forget_accuracy,
        retain_accuracy=c.retain_accuracy,
        worst_retain_drop=c.worst_retain_drop,
        passed=c.passed,
        committed=chosen == (c.threshold, c.dampening),
    )


def _retrained(scores: ClassScores | None, result: ForgetResult) -> RetrainedScores | None:
    if scores is None:
        return None
    return RetrainedScores(
        forget_accuracy=scores.accuracy(result.request.classes),
        retain_accuracy=scores.accuracy(without=_not_retained(result)),
    )


def _not_retained(result: ForgetResult) -> tuple[int, ...]:
    return result.request.classes + result.forgotten_before


def lineage_graph(store: RunStore, result: ForgetResult) -> nx.DiGraph:
    """The UMIG for `report.write_report`: each node says whether the request affects it."""
    graph, affected = to_networkx(store.umig), set(result.affected)
    for name, about in graph.nodes(data=True):
        about["affected"] = name in affected
    return graph


def _row(node: Node, result: ForgetResult, before: Scores, after: Scores) -> ModelRow:
    classes, empty, gone = result.request.classes, ClassScores(), _not_retained(result)
    old, new = before.get(node.name, empty), after.get(node.name, empty)
    return ModelRow(
        node=node.name,
        kind=node.kind,
        round=node.round,
        affected=node.name in result.affected,
        forget_accuracy_before=old.accuracy(classes),
        forget_accuracy_after=new.accuracy(classes),
        retain_accuracy_before=old.accuracy(without=gone),
        retain_accuracy_after=new.accuracy(without=gone),
    )


def _per_class(scores: ClassScores | None) -> dict[int, float | None]:
    return {label: scores.accuracy([label]) for label in sorted(scores.total)} if scores else {}


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name.replace("-", "_")] = version(name)
        except PackageNotFoundError:
            found[name.replace("-", "_")] = "not installed as a package"
    return found
