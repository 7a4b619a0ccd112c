"""The files of one forget request: ``report.json``, ``report.md`` and the pictures.

The Markdown shows accuracies in percent with one decimal, and losses of accuracy in points.
"""

from __future__ import annotations

import json
import logging
import os
import re
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import networkx as nx

from fl_unlearn.calibration_data import named
from fl_unlearn.figures import classes_figure, lineage_figure, models_figure
from fl_unlearn.metrics.contract import Good, Measured, Unit
from fl_unlearn.report_record import (
    SCHEMA_VERSION,
    CandidateRow,
    ClientLists,
    Cost,
    DocumentLine,
    MeasureRow,
    ModelRow,
    RetrainedScores,
    UnlearnReport,
    default_caveats,
    loss,
)
from fl_unlearn.types import UnlearnError

__all__ = [
    "SCHEMA_VERSION",
    "CandidateRow",
    "ClientLists",
    "Cost",
    "DocumentLine",
    "MeasureRow",
    "ModelRow",
    "RetrainedScores",
    "UnlearnReport",
    "default_caveats",
    "write_report",
]

logger = logging.getLogger(__name__)

PICTURES = ("lineage.png", "models.png", "classes.png")
_GOOD: dict[Good, str] = {"retrained": "as a model retrained without the data", "low": "low", "high": "high"}
PROOF = "Accuracy alone does not prove that the information is gone from the model's features."


# --------------------------------------------------------------------------- Markdown
def _share(value: float | None) -> str:
    return "not measured" if value is None else f"{100 * value:.1f} %"


def _points(value: float | None) -> str:
    return "not measured" if value is None else f"{round(100 * value, 1) + 0.0:.1f}"


def _plain(value: float | None) -> str:
    return "unknown" if value is None else f"{value:,.1f}" if isinstance(value, float) else f"{value:,}"


def _text(value: object) -> str:
    """Text from outside on one line, with nothing left that Markdown or HTML would interpret."""
    return re.sub(r"([\\`*_\[\]<>|#!&])", r"\\\1", " ".join(str(value).split()))


def _listed(values: Sequence[object], otherwise: str) -> str:
    return ", ".join(_text(v) for v in values) or otherwise


def _table(header: str, rows: list[list[str]]) -> str:
    return "\n".join([header, re.sub(r"[^|]+", " --- ", header), *(f"| {' | '.join(r)} |" for r in rows)])


def _outcome(report: UnlearnReport) -> str:
    if report.threshold is None:
        return f"**Refused: no update was committed.** {_text(report.message)}"
    f, said = report.final, []
    scores = [
        ("the forgotten classes", f.forget_accuracy_before, f.forget_accuracy_after),
        ("the retained classes", f.retain_accuracy_before, f.retain_accuracy_after),
    ]
    if report.request.kind != "classes":  # held-out data has nothing of it: only the clients can measure it
        scores = [("held-out data", f.retain_accuracy_before, f.retain_accuracy_after)]
    for what, before, after in scores:
        moved = "fell" if (loss(before, after) or 0.0) > 0 else "rose"
        moved = f"{moved} from {_share(before)} to" if _share(before) != _share(after) else "stayed at"
        said.append(f"accuracy on {what} {moved} {_share(after)}")
    if any(None in pair for _, *pair in scores):
        said = ["the final model was not measured in full, see below"]
    return (
        f"**Committed, threshold {report.threshold:g}: {'; '.join(said)}.** {PROOF} {_text(report.message)}"
    )


def _scores(report: UnlearnReport) -> list[str]:
    f, again, hit = (
        report.final,
        report.retrained or RetrainedScores(),
        [m for m in report.models if m.affected],
    )
    pairs = [
        ("forgotten", f.forget_accuracy_before, f.forget_accuracy_after, again.forget_accuracy),
        ("retained", f.retain_accuracy_before, f.retain_accuracy_after, again.retain_accuracy),
    ]
    classes = report.request.kind == "classes"
    rows = [
        [what if classes else "all", _share(b), _share(a), _points(loss(b, a)), _share(r)]
        for what, b, a, r in pairs
        if classes or what == "retained"
    ]
    before = max(
        (m.forget_accuracy_before for m in hit if m.forget_accuracy_before is not None), default=None
    )
    after = max((m.forget_accuracy_after for m in hit if m.forget_accuracy_after is not None), default=None)
    drops = [(m.retain_drop, m.node) for m in hit if m.retain_drop is not None]
    worst = max(drops, key=lambda d: d[0], default=(None, "no model"))
    mean = sum(d for d, _ in drops) / len(drops) if drops else None
    return [
        "## Final model, on held-out data",
        _table("| classes | before | after | drop (points) | retrained without them |", rows),
        "![Accuracy of the final model, class by class](classes.png)",
        "## Affected checkpoints",
        f"- {len(hit)} of {len(report.models)} stored models are affected; {len(drops)} of them were "
        "measured before and after.\n"
        + f"- Highest accuracy on the forgotten classes: {_share(before)} before, {_share(after)} after.\n"
        * classes
        + f"- Drop on {'the retained classes' if classes else 'held-out data'}, in points: mean "
        f"{_points(mean)}, worst {_points(worst[0])} ({_text(worst[1])}).",
        "![Accuracy of the stored models](models.png)",
    ]


def _measures(report: UnlearnReport) -> list[str]:
    if not report.measures:
        return []
    rows = [
        [
            _text(m.title),
            *(_value(v, m.unit) for v in (m.before, m.after)),
            _GOOD[m.good],
            _plain(max(m.before.samples, m.after.samples)),
        ]
        for m in report.measures
    ]
    return [
        "## What else was measured",
        "By the clients, of the current model, on their own samples; means over samples. No retrained "
        "model was measured to compare with, and none of these numbers proves that the information is gone.",
        _table("| measure | before | after | good | samples |", rows),
        "\n".join(f"- {_text(m.title)}: {_text(m.about + _absent(m))}" for m in report.measures),
    ]


def _absent(row: MeasureRow) -> str:
    reasons: dict[str, list[str]] = {}
    for when, found in (("before", row.before), ("after", row.after)):
        if found.value is None:
            reasons.setdefault(found.why, []).append(when)
    return "".join(f" Not measured {' and '.join(when)}: {why}." for why, when in reasons.items())


def _value(measured: Measured, unit: Unit) -> str:
    if measured.value is None:
        return "-"
    return _share(measured.value) if unit == "%" else f"{measured.value:.3f} {unit}".rstrip()


def _process(report: UnlearnReport) -> list[str]:
    # Dampenings stronger than the committed one were scored in the same pass, but not needed.
    needed = min((c.dampening for c in report.candidates if c.committed), default=0.0)
    scored = [
        [
            f"{c.threshold:g}",
            f"{c.dampening:g}",
            _share(c.forget_accuracy),
            _share(c.worst_forget_accuracy),
            _share(c.retain_accuracy),
            _points(c.worst_retain_drop),
            ("yes" if c.passed else "no") + (", committed" if c.committed else ""),
        ]
        for c in report.candidates
        if c.dampening >= needed
    ]
    c = report.cost
    spent = [
        [
            "client seconds",
            *map(_plain, (c.train_client_seconds, c.forget_client_seconds, c.retrain_client_seconds)),
        ],
        ["wall seconds", _plain(c.train_wall_seconds), _plain(c.forget_wall_seconds), ""],
    ]
    ratios = [
        f"- Forgetting : {what} = 1 : {other / own:,.1f} in {unit} seconds ({_share(own / other)})."
        for what, unit, own, other in (
            ("retraining", "client", c.forget_client_seconds, c.retrain_client_seconds),
            ("training", "client", c.forget_client_seconds, c.train_client_seconds),
            ("training", "wall", c.forget_wall_seconds, c.train_wall_seconds),
        )
        if own and other
    ]
    people = [f"- {n.capitalize()} ({len(v)}): {_listed(v, 'none')}" for n, v in vars(report.clients).items()]
    if report.clients.outstanding and report.threshold is not None:
        people.append("- The outstanding clients get the update at their next contact.")
    return [
        "## Calibration, by the clients on their own data",
        _table(
            "| threshold | dampening | forgotten | forgotten, worst model | retained "
            "| worst drop (points) | passed |",
            scored,
        )
        if scored
        else "None.",
        "## Cost",
        _table("| | training | forgetting | retraining |", spent),
        "\n".join([f"- Bytes: {_plain(c.bytes_up)} up to the server, {_plain(c.bytes_down)} down.", *ratios]),
        "## Clients",
        "\n".join(people),
    ]


def _documents(report: UnlearnReport) -> list[str]:
    """Who asked, and who asked in vain."""
    parts, d = [], report.document
    if d is not None:
        met = {True: "met", False: "missed", None: "not applicable"}[d.deadline_met]
        until = "none" if d.deadline is None else f"{_text(d.deadline)} ({met})"
        lines = [
            f"Asked by {_text(d.requester)} in document {_text(d.id)}, written {_text(d.created)}, received "
            f"{_text(d.received)}",
            f"Deadline: {until}",
            f"Outcome: {_text(d.state)}, {_text(d.changed)}",
        ]
        parts += ["## Who asked", "\n".join(f"- {line}" for line in lines)]
    if report.refusals:
        said = [
            (r.received, r.requester or "unknown", r.id or "-", r.code, r.message) for r in report.refusals
        ]
        rows = [[_text(cell) for cell in row] for row in said]
        parts += [
            "## Documents that this store has refused",
            _table("| received | says it is from | document | code | why |", rows),
        ]
    return parts


def _page(report: UnlearnReport, lineage: bool) -> str:
    several, asked = "es" if len(report.request.classes) > 1 else "", report.request
    what = f"class{several} {_listed(asked.classes, '')}" if asked.classes else _text(named(asked))
    whose = f", of {_listed(asked.clients, 'every client that holds it')}" if asked.classes else ""
    versions = _listed([f"{name} {version}" for name, version in report.versions.items()], "unknown")
    parts = [
        f"# Request to forget {what}",
        _outcome(report),
        f"- Asked: forget {what}{whose}.\n- Reason given: {_text(asked.reason) or 'none'}",
        *_documents(report),
        *_scores(report),
        *_measures(report),
        *(["![Lineage of the models](lineage.png)"] if lineage else []),
        *_process(report),
        "## What was measured",
        "\n".join(f"- {_text(m)}" for m in report.measured) or "Nothing was stated.",
        "## What was not measured",
        "\n".join(f"- {_text(m)}" for m in (PROOF, *report.not_measured)),
        "## Made with",
        f"Fisher: {_text(report.fisher_kind)}, {_text(report.fisher_scope)}; seed {report.seed}; {versions}",
    ]
    return "\n\n".join(parts) + "\n"


def write_report(
    report: UnlearnReport, folder: str | os.PathLike[str], *, graph: nx.DiGraph | None = None
) -> dict[str, Path]:
    """Write ``report.json``, ``report.md`` and the pictures into ``folder``.

    All are made before the first is put in place; ``report.json`` comes last. Without ``graph`` (as
    `figures.lineage_figure` wants it, nodes named as in ``models``) no ``lineage.png`` is written, and
    one that an earlier report left is removed. A node's attribute ``affected``, where it has one, colours
    it; that is how models without a checkpoint are shown.

    Returns:
        File name to path of what was written.

    Raises:
        UnlearnError: If a value is no JSON, the graph lacks an affected model, or the disk refuses.
    """
    target, affected = Path(folder), {str(m.node) for m in report.models if m.affected}
    record = json.dumps(report.to_json(), indent=2, ensure_ascii=False, allow_nan=False)
    scores = report.class_accuracy
    pictures = {"models.png": models_figure([asdict(m) for m in report.models])[0]}
    pictures["classes.png"] = classes_figure(scores["before"], scores["after"], report.request.classes)[0]
    if graph is not None:
        unknown = affected - {str(n) for n in graph}
        hit = {n for n, about in graph.nodes(data=True) if about.get("affected", str(n) in affected)}
        pictures["lineage.png"] = lineage_figure(graph, hit | unknown)[0]
    order = (*pictures, "report.md", "report.json")
    try:
        target.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".report-", dir=target) as made:
            for name, picture in pictures.items():
                picture.savefig(Path(made, name), dpi=120)
            Path(made, "report.md").write_text(_page(report, graph is not None), encoding="utf-8")
            Path(made, "report.json").write_text(record + "\n", encoding="utf-8")
            for name in order:
                os.replace(Path(made, name), target / name)
        for name in set(PICTURES) - set(pictures):
            (target / name).unlink(missing_ok=True)
    except OSError as e:
        raise UnlearnError(
            f"report: cannot write to {target} ({e}); free space or choose another folder"
        ) from e
    logger.info("report written to %s", target)
    return {name: target / name for name in order}
