"""What is known of one forget request, as typed rows that become ``report.json`` and are read back.

Accuracies are shares from 0 to 1 on held-out data unless a field says otherwise, None where nothing could be
measured.
"""

from __future__ import annotations

import json
import math
import numbers
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal, TypeVar

from fl_unlearn.figures import natural_key
from fl_unlearn.metrics.contract import Good, Measured, Unit
from fl_unlearn.types import ForgetRequest, UnlearnError

SCHEMA_VERSION = "1.2"
T = TypeVar("T")

_LIMITS = {"_drop": (-1.0, 1.0), "accuracy": (0.0, 1.0)}
_LIMITS |= dict.fromkeys(("_seconds", "bytes_", "threshold", "dampening"), (0.0, math.inf))


def _number(where: str, value: Any, low: float, high: float) -> int | float | None:
    """``value`` as a plain finite number from ``low`` to ``high``; None stays None."""
    if value is None:
        return None
    if isinstance(value, numbers.Real) and not isinstance(value, bool):
        number = int(value) if isinstance(value, numbers.Integral) else float(value)
        if math.isfinite(number) and low <= number <= high:
            return number
    wanted = f"a finite number from {low:g} to {high:g}, or None where not measured"
    raise UnlearnError(f"report: {where} must be {wanted}; got {value!r}")


def loss(before: float | None, after: float | None) -> float | None:
    """What was lost from ``before`` to ``after``; None unless both are known."""
    return None if before is None or after is None else before - after


class _Checked:
    """Base of the rows: checks every numeric field against ``_LIMITS`` and makes it a plain number."""

    def __post_init__(self) -> None:
        for name, value in list(vars(self).items()):
            for limits in (_LIMITS[part] for part in _LIMITS if part in name):
                object.__setattr__(self, name, _number(f"{type(self).__name__}.{name}", value, *limits))


@dataclass(frozen=True)
class ModelRow(_Checked):
    """One stored model: its place in the lineage, and its accuracies before and after the update."""

    node: str
    kind: str
    round: int
    affected: bool
    forget_accuracy_before: float | None = None
    forget_accuracy_after: float | None = None
    retain_accuracy_before: float | None = None
    retain_accuracy_after: float | None = None

    @property
    def retain_drop(self) -> float | None:
        """Accuracy lost on the retained classes (negative: gained); None unless both were measured."""
        return loss(self.retain_accuracy_before, self.retain_accuracy_after)


@dataclass(frozen=True)
class RetrainedScores(_Checked):
    """Accuracies of a model trained from scratch without the forgotten classes: the yardstick."""

    forget_accuracy: float | None = None
    retain_accuracy: float | None = None


@dataclass(frozen=True)
class CandidateRow(_Checked):
    """One candidate as the clients scored it in calibration, on their own data.

    ``forget_accuracy`` and ``retain_accuracy`` are of the current model, the ``worst_`` ones of any model
    that was looked at.
    """

    threshold: float
    forget_accuracy: float | None
    retain_accuracy: float | None
    worst_retain_drop: float | None
    passed: bool
    dampening: float = 1.0
    worst_forget_accuracy: float | None = None
    committed: bool = False


@dataclass(frozen=True)
class MeasureRow:
    """One number besides accuracy, which clients measured on their own data before and after the update.

    ``title``, ``unit`` (``%``: a share from 0 to 1), ``good`` and ``about`` are the column's
    (`metrics.contract.Column`).
    """

    key: str
    title: str
    unit: Unit
    good: Good
    about: str
    before: Measured
    after: Measured


@dataclass(frozen=True)
class Cost(_Checked):
    """Seconds (summed over clients, or elapsed) and the bytes that forgetting sent (up: to the server)."""

    train_client_seconds: float | None = None
    train_wall_seconds: float | None = None
    forget_client_seconds: float | None = None
    forget_wall_seconds: float | None = None
    bytes_up: int | None = None
    bytes_down: int | None = None
    retrain_client_seconds: float | None = None


@dataclass(frozen=True)
class ClientLists:
    """Names of the clients asked, that answered, hold forgotten data, failed, are outstanding."""

    asked: Sequence[str] = ()
    answered: Sequence[str] = ()
    holders: Sequence[str] = ()
    failed: Sequence[str] = ()
    outstanding: Sequence[str] = ()

    def __post_init__(self) -> None:
        for name, value in list(vars(self).items()):
            object.__setattr__(self, name, tuple(sorted((str(v) for v in value), key=natural_key)))


@dataclass(frozen=True)
class DocumentLine:
    """One request document as a report tells of it; times are UTC, ISO 8601.

    ``deadline_met`` is None without a deadline, and where it does not apply (see `DocumentStatus`).
    """

    id: str | None
    requester: str | None
    state: str
    received: str
    code: str | None = None
    message: str = ""
    created: str | None = None
    changed: str | None = None
    deadline: str | None = None
    deadline_met: bool | None = None


@dataclass(frozen=True)
class UnlearnReport:
    """Everything known of one served or refused request.

    ``models`` are all stored models and are kept in order of round, aggregates last; ``threshold`` is None
    exactly when refused; ``class_accuracy`` is ``{"before": {label: accuracy}, "after": {...}}`` of the final
    model; ``measures`` are of the current model; ``document`` is the one that asked for it, None when the
    program did, and ``refusals`` are all that the store has refused; ``measured`` and ``not_measured`` are
    sentences on what the numbers do and do not show.

    Raises:
        UnlearnError: If a value makes no sense, or outcome and threshold contradict each other.
    """

    request: ForgetRequest
    outcome: Literal["committed", "refused"]
    message: str
    threshold: float | None
    fisher_kind: str
    fisher_scope: str
    seed: int | None
    versions: Mapping[str, str]
    final: ModelRow
    models: Sequence[ModelRow]
    retrained: RetrainedScores | None = None
    cost: Cost = Cost()
    clients: ClientLists = ClientLists()
    candidates: Sequence[CandidateRow] = ()
    class_accuracy: Mapping[str, Mapping[int, float | None]] = field(default_factory=dict)
    measured: Sequence[str] = ()
    not_measured: Sequence[str] = ()
    measures: Sequence[MeasureRow] = ()
    document: DocumentLine | None = None
    refusals: Sequence[DocumentLine] = ()

    def __post_init__(self) -> None:
        if (self.outcome, self.threshold is None) not in (("committed", False), ("refused", True)):
            raise UnlearnError(
                "report: outcome must be 'committed' with a threshold or 'refused' with threshold None; "
                f"got {self.outcome!r} with {self.threshold!r}"
            )
        rank = {"initial": 0, "aggregate": 2}
        scores = {when: self.class_accuracy.get(when, {}) for when in ("before", "after")}
        plain: dict[str, Any] = {
            "threshold": _number("threshold", self.threshold, *_LIMITS["threshold"]),
            "models": sorted(self.models, key=lambda m: (m.round, rank.get(m.kind, 1), natural_key(m.node))),
            "candidates": sorted(self.candidates, key=lambda c: (-c.dampening, c.threshold)),
            "measured": list(self.measured),
            "not_measured": list(self.not_measured),
            "measures": list(self.measures),
            "refusals": list(self.refusals),
            "versions": dict(sorted(self.versions.items())),
            "class_accuracy": {
                when: {c: _number(f"accuracy {when} of {c}", of[c], 0, 1) for c in sorted(of)}
                for when, of in scores.items()
            },
        }
        for name, value in plain.items():
            object.__setattr__(self, name, tuple(value) if isinstance(value, list) else value)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values, the short ones first, labels as text in numeric order.

        Raises:
            UnlearnError: If a value is no JSON, such as NaN or an array.
        """
        parts = {"schema_version": SCHEMA_VERSION} | asdict(self) | {"request": self.request.to_json()}
        try:
            plain: dict[str, Any] = json.loads(json.dumps(parts, allow_nan=False))
        except (TypeError, ValueError) as e:
            raise UnlearnError(
                f"report: a value cannot be written as JSON ({e}); use plain finite values"
            ) from e
        return plain

    @classmethod
    def from_json(cls, value: Any) -> UnlearnReport:
        """The report of these JSON values; names it does not know (of a later 1.x) are left out.

        Raises:
            UnlearnError: If the schema's major version is missing or not 1, or the content is malformed.
        """
        version = value.get("schema_version") if isinstance(value, Mapping) else None
        if not isinstance(version, str) or not re.fullmatch(r"1\.\d+", version):
            advice = f"read it with the fl-unlearn that wrote it (this one writes {SCHEMA_VERSION})"
            raise UnlearnError(f"report: schema_version must be 1.x, got {version!r}; {advice}")
        try:
            asked, again, document = value["request"], value["retrained"], value.get("document")
            parts = {
                "request": ForgetRequest.from_json(asked),
                "final": _build(ModelRow, value["final"]),
                "models": [_build(ModelRow, row) for row in value["models"]],
                "retrained": None if again is None else _build(RetrainedScores, again),
                "cost": _build(Cost, value["cost"]),
                "clients": _build(ClientLists, value.get("clients", {})),
                "candidates": [_build(CandidateRow, row) for row in value.get("candidates", ())],
                "class_accuracy": {
                    when: {int(c): v for c, v in of.items()}
                    for when, of in value.get("class_accuracy", {}).items()
                },
                "measured": tuple(value.get("measured", ())),
                "not_measured": tuple(value.get("not_measured", ())),
                "measures": [_measure_row(row) for row in value.get("measures", ())],
                "document": None if document is None else _build(DocumentLine, document),
                "refusals": [_build(DocumentLine, row) for row in value.get("refusals", ())],
            }
            return _build(cls, {**value, **parts})
        except UnlearnError:
            raise
        except (KeyError, TypeError, ValueError, AttributeError) as e:
            raise UnlearnError(f"report: malformed or incomplete JSON ({type(e).__name__}: {e})") from e


def _build(kind: type[T], value: Mapping[str, Any]) -> T:
    known = fields(kind)  # type: ignore[arg-type]
    return kind(**{f.name: value[f.name] for f in known if f.name in value})


def _measure_row(value: Mapping[str, Any]) -> MeasureRow:
    both = {when: _build(Measured, value[when]) for when in ("before", "after")}
    return _build(MeasureRow, {**value, **both})


_LEFT_OPEN = {
    "mia-": (
        "Membership inference was not measured: it may still show that single samples were trained on.",
        "Membership attacks with shadow models were not measured: they find more than those that were.",
    ),
    "probe-forget": (
        "Feature probes were not measured: accuracy looks at the answers, not at the hidden layers.",
        "Probes of other layers, and probes that are not linear, were not measured.",
    ),
    "relearn": (
        "Relearning was not measured: a few training steps on a forgotten class may bring it back.",
        "Relearning was measured as the table says: other data or longer training may bring more back.",
    ),
}
"""How keys of measures begin, to what is left open without them, and with them."""


def data_caveats(like: float | None, measured: Collection[str] = ()) -> list[str]:
    """As `default_caveats`, of a request for clients or samples.

    Args:
        like: Accuracy on held-out samples of like labels, as `calibration_data.like_labels` gives it; None:
            not measured.
        measured: Keys of what was measured besides of the model afterwards.
    """
    compared = "" if like is None else f" It was compared with {like:.1%} on held-out samples of like labels."
    known = {start: any(key.startswith(start) for key in measured) for start in ("mia-", "relearn")}
    return [
        "How well a model does on this data that never saw it was not measured: only retraining tells. Such "
        "data is not to become unknown, so that accuracy on it need not fall to 0." + compared,
        "Earlier models and the clients' copies got the same update, and were not scored on this data.",
        *(_LEFT_OPEN[start][with_] for start, with_ in known.items()),
    ]


def default_caveats(scope: str, erased: Sequence[str] = (), measured: Collection[str] = ()) -> list[str]:
    """What accuracies, and what else was measured, leave open, as sentences for ``not_measured``.

    Args:
        scope: The Fisher's scope.
        erased: Layers in whose outputs the classes were erased.
        measured: Keys of what was measured besides of the model afterwards.
    """
    changed, features = f"parameters in the scope '{scope}' were", "may still be able to"
    if scope == "head":
        changed, features = "only the last layer was", "can still"
    probe = f"In the model {changed} changed: a linear probe on the features {features} tell the class."
    if erased:
        probe = (
            f"The classes were erased in the outputs of {', '.join(erased)}, by statistics of few models: "
            "probes after the activation or in other layers, and of earlier models, may still tell them."
        )
    known = {start: any(key.startswith(start) for key in measured) for start in _LEFT_OPEN}
    return [*(with_ if known[start] else without for start, (without, with_) in _LEFT_OPEN.items()), probe]
