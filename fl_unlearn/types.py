"""Requests, settings, results, protocols and errors that every other module speaks.

Nothing here computes; of the package, this module imports only what it passes on.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, get_args

from .defence import Defence as Defence
from .errors import REFUSAL_CODES as REFUSAL_CODES
from .errors import AlreadyAppliedError as AlreadyAppliedError
from .errors import AnswerError as AnswerError
from .errors import AuditError as AuditError
from .errors import CorruptCheckpointError as CorruptCheckpointError
from .errors import DocumentError as DocumentError
from .errors import EraseError as EraseError
from .errors import FisherError as FisherError
from .errors import LineageError as LineageError
from .errors import MeasureError as MeasureError
from .errors import ModelMismatchError as ModelMismatchError
from .errors import NotEnoughAnswersError as NotEnoughAnswersError
from .errors import PolicyError as PolicyError
from .errors import PolicyFileError as PolicyFileError
from .errors import RefusalCode as RefusalCode
from .errors import RequestError as RequestError
from .errors import SettingsError as SettingsError
from .errors import StoreError as StoreError
from .errors import StoreFullError as StoreFullError
from .errors import UnlearnError as UnlearnError
from .errors import UpdateError as UpdateError
from .forget_request import TARGET_KINDS as TARGET_KINDS
from .forget_request import ForgetRequest as ForgetRequest
from .forget_request import Samples as Samples
from .forget_request import TargetKind as TargetKind
from .privacy import Privacy as Privacy
from .scores import ClassScores as ClassScores
from .signatures import SIGNATURE_DTYPES as SIGNATURE_DTYPES
from .signatures import Signature as Signature
from .signatures import StateDict as StateDict
from .signatures import TensorSpec as TensorSpec
from .signatures import dtype_name as dtype_name
from .signatures import signature_difference as signature_difference
from .signatures import signature_of as signature_of

FisherKind = Literal["empirical", "normalized", "true", "batch"]
FISHER_KINDS: tuple[str, ...] = get_args(FisherKind)

ReferenceMode = Literal["shared", "per-model"]
REFERENCE_MODES: tuple[str, ...] = get_args(ReferenceMode)

Executor = Literal["threads", "ray"]
EXECUTORS: tuple[str, ...] = get_args(Executor)

REST = -1
"""The group under which a client pools every sample that a request does not name."""


@dataclass(frozen=True)
class UnlearnSettings:
    """How a request is served. The defaults are the measured ones (see the README's tables).

    Attributes:
        fisher_kind: Which Fisher diagonal the clients compute (`fisher.fisher_diagonal`).
        fisher_scope: ``"head"``, ``"all"``, or comma-separated parameter names or glob patterns.
        head: Name of the head module when it cannot be found automatically.
        erase: Hidden layers in whose outputs the classes are erased before the head's dampening: ``"none"``,
            ``"auto"`` (the last one before the head), or comma-separated names or glob patterns
            (`erase_layers.find_layers`).
        erase_strength: How much of each class's covariance with those outputs is erased, above 0, at most 1.
        erase_snapshots: How many models the statistics are taken on: the current one, and affected earlier
            global models, evenly spread.
        merge_rule: MFIM rule (`merge.RULES`).
        reference_share: Part of each client's retained samples that its reference Fisher is estimated from:
            a share above 0 and up to 1.0, or a number of samples from 2 up; None: all of them.
        threshold: The t of FIUn, or None to choose among ``candidates`` by calibration ("auto").
        candidates: Thresholds scored when ``threshold`` is None; each > 0.
        dampenings: Values of lambda, each > 0, largest first. A fixed threshold goes with the first; "auto"
            scores all of them with all thresholds.
        reference: One Fisher reference for every model ("shared"), or each model's own ("per-model").
        forget_tolerance: Largest accuracy on the forgotten data that counts as forgotten, 0 to 1.
        max_retain_drop: Largest loss of accuracy on the retained data that is accepted, 0 to 1.
        calibration_models: How many affected global models calibration looks at, the newest included;
            of kept client updates it looks at two more.
        calibration_samples: How many samples of the forgotten and of the retained data each client scores the
            candidates on, at most of either; 0: all it has. Held-out samples come first. ``measures`` are
            taken on as many training samples, and on as many held-out ones.
        measures: What the clients measure besides accuracy when an update was committed, in the model before
            and after it: names of `metrics.METRICS`. None by default: it costs a question more.
        all_affected: Count every client that ever trained as a holder when the affected models are looked up.
            For federations whose clients may have deleted the data before the request is made: by default a
            client that holds none of it *now* is taken to never have held it.
        timeout: Seconds to wait for the answers of one phase.
        min_clients: Wait (at most ``timeout``) until this many clients are connected before asking any.
        min_answers: Share of the asked clients that must answer each phase, 0 to 1.
        force: Commit a fixed ``threshold`` even when it fails calibration; the report says so.
        privacy: What clients do to their answers before they send them: noise, masks (`privacy.Privacy`). By
            default nothing.
        executor: What applies the update to the checkpoints (`apply.stage`): ``"threads"`` of the server's
            process, or ``"ray"``, a cluster that sees the checkpoints' address.
        defence: Bounds on what clients that lie can do.
    """

    fisher_kind: FisherKind = "normalized"
    fisher_scope: str = "head"
    head: str | None = None
    erase: str = "none"
    erase_strength: float = 1.0
    erase_snapshots: int = 1
    merge_rule: str = "max"
    reference_share: float | int | None = None
    threshold: float | None = None
    candidates: tuple[float, ...] = (1.0, 2.0, 3.0, 5.0, 7.0, 10.0, 15.0, 20.0)
    dampenings: tuple[float, ...] = (1.0, 0.1, 0.01)
    reference: ReferenceMode = "shared"
    forget_tolerance: float = 0.01
    max_retain_drop: float = 0.05
    calibration_models: int = 4
    calibration_samples: int = 300
    measures: tuple[str, ...] = ()
    all_affected: bool = False
    timeout: float = 600.0
    min_clients: int = 1
    min_answers: float = 0.5
    force: bool = False
    executor: Executor = "threads"
    privacy: Privacy = field(default_factory=Privacy)
    defence: Defence = field(default_factory=Defence)

    def __post_init__(self) -> None:
        _one_of("fisher_kind", self.fisher_kind, FISHER_KINDS)
        _one_of("reference", self.reference, REFERENCE_MODES)
        _one_of("executor", self.executor, EXECUTORS)
        if (problem := share_problem(self.reference_share) or self.defence.problem()) is not None:
            raise SettingsError(problem)
        if self.reference_share is not None and self.fisher_kind == "batch":
            raise SettingsError(
                "reference_share draws samples, and fisher_kind 'batch' sums mini-batches: omit it"
            )
        if not self.fisher_scope.strip():
            raise SettingsError("fisher_scope is empty; use 'head', 'all' or names such as 'fc1.*,fc2.*'")
        if not self.erase.strip():
            raise SettingsError("erase is empty; use 'none', 'auto' or names such as 'fc' or 'features.*'")
        if not 0 < self.erase_strength <= 1:
            raise SettingsError(f"erase_strength must be above 0, at most 1, got {self.erase_strength!r}")
        if self.erase_snapshots < 1:
            raise SettingsError(f"erase_snapshots must be at least 1, got {self.erase_snapshots}")
        if not self.candidates:
            raise SettingsError("candidates is empty; give at least one threshold")
        for t in (*self.candidates, *(() if self.threshold is None else (self.threshold,))):
            if not (math.isfinite(t) and t > 0):
                raise SettingsError(f"a threshold must be a finite number above 0, got {t!r}")
        lams = self.dampenings
        if not lams or any(not (math.isfinite(v) and v > 0) for v in lams) or sorted(lams)[::-1] != [*lams]:
            raise SettingsError(f"dampenings must be finite numbers above 0, largest first, got {lams!r}")
        if self.threshold is None and len(lams) > 1 and self.thresholds[0] < lams[0]:
            raise SettingsError(
                f"candidates below the largest dampening ({lams[0]:g}) cannot share one update, got "
                f"{self.thresholds[0]:g}; use one dampening, or thresholds from {lams[0]:g} up"
            )
        for name in ("forget_tolerance", "max_retain_drop", "min_answers"):
            if not 0 <= getattr(self, name) <= 1:
                raise SettingsError(f"{name} must lie between 0 and 1, got {getattr(self, name)!r}")
        if self.calibration_samples < 0:
            raise SettingsError(f"calibration_samples must be at least 0, got {self.calibration_samples}")
        if isinstance(self.measures, str):
            raise SettingsError(f"measures must be a tuple of names, got the text {self.measures!r}")
        if self.calibration_models < 1:
            raise SettingsError(f"calibration_models must be at least 1, got {self.calibration_models}")
        if not self.timeout > 0:
            raise SettingsError(f"timeout must be above 0 seconds, got {self.timeout!r}")
        if problem := self._privacy_problem():
            raise SettingsError(problem)
        if self.force and self.threshold is None:
            raise SettingsError("force needs a fixed threshold; with candidates there is none to insist on")

    def _privacy_problem(self) -> str | None:
        p = self.privacy
        if not (p.sums_only or p.score_noise):
            return None
        if self.erases:
            return "statistics of hidden layers have neither noise nor masks: use erase='none' with them"
        if self.measures:
            return "measures have neither noise nor masks: leave them out with them"
        if p.noise and (self.reference != "shared" or self.reference_share is not None):
            return "noise goes with reference='shared' and without reference_share: each further answer costs"
        if p.noise and self.fisher_kind not in ("empirical", "normalized"):
            return f"noise needs fisher_kind 'empirical' or 'normalized', got {self.fisher_kind!r}"
        return None

    @classmethod
    def preset(cls, name: str, **changes: Any) -> UnlearnSettings:
        """Settings by the name of what they are for (`PRESETS`), with some of them changed.

        Args:
            name: ``"fast"``: only the head is changed, in one question to the clients before calibration; the
                features stay as they were. ``"deep"``: the classes are erased in the last hidden layer too,
                for one more question; a linear probe on the features then finds them less.
            **changes: Settings that are to differ from the preset's.

        Raises:
            SettingsError: If there is no preset of that name.
        """
        _one_of("preset", name, tuple(PRESETS))
        return cls(**{**PRESETS[name], **changes})

    @property
    def erases(self) -> bool:
        """Whether hidden layers are erased in."""
        return self.erase.strip() != "none"

    @property
    def thresholds(self) -> tuple[float, ...]:
        """The thresholds to score, ascending: the fixed one, or the candidates."""
        return (self.threshold,) if self.threshold is not None else tuple(sorted(set(self.candidates)))

    @property
    def grid(self) -> tuple[tuple[float, float], ...]:
        """The (threshold, dampening) pairs to score, mildest dampening first."""
        lams = self.dampenings[:1] if self.threshold is not None else self.dampenings
        return tuple((t, lam) for lam in lams for t in self.thresholds)

    def to_json(self) -> dict[str, Any]:
        """Plain values for JSON, which knows no infinity: a timeout that never ends is None."""
        lists = {name: list(getattr(self, name)) for name in ("candidates", "dampenings", "measures")}
        return {**asdict(self), **lists, "timeout": self.timeout if math.isfinite(self.timeout) else None}


PRESETS: dict[str, dict[str, Any]] = {"fast": {}, "deep": {"erase": "auto"}}
"""What `UnlearnSettings.preset` changes in the defaults, by name."""


def share_problem(share: float | int | None) -> str | None:
    """Why ``share`` is no ``reference_share`` (see `UnlearnSettings`), or None."""
    if isinstance(share, float):
        sound = 0 < share <= 1
    else:
        sound = share is None or (isinstance(share, int) and share > 1)
    wanted = "a share above 0 and up to 1.0, or a number of samples from 2 up"
    return None if sound else f"reference_share must be {wanted}; got {share!r}"


def _one_of(name: str, value: str, known: Sequence[str]) -> None:
    if value not in known:
        raise SettingsError(f"{name} must be one of {', '.join(known)}; got {value!r}")
