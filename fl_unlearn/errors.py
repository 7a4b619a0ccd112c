"""The errors that fl-unlearn raises on purpose; `types` passes them on, and is where to import them from."""

from __future__ import annotations

from typing import Literal, get_args


class UnlearnError(Exception):
    """Base of every error that fl-unlearn raises on purpose."""


class RequestError(UnlearnError, ValueError):
    """A forget request that cannot be served as it stands (unknown class, no holder, every class...)."""


class SettingsError(UnlearnError, ValueError):
    """A setting with a value that makes no sense."""


class DocumentError(RequestError):
    """A request document that is malformed, too large, or of another version."""


RefusalCode = Literal[
    "unsigned",
    "unknown-requester",
    "wrong-key",
    "forged",
    "wrong-federation",
    "replayed",
    "from-the-future",
    "expired",
    "not-allowed",
]
REFUSAL_CODES: tuple[str, ...] = get_args(RefusalCode)


class PolicyError(RequestError):
    """A request document that is refused: not by whom it says, not in time, or not allowed.

    Attributes:
        code: Why, in a word that programs can rely on: one of `REFUSAL_CODES`.
    """

    def __init__(self, code: RefusalCode, message: str) -> None:
        super().__init__(message)
        self.code = code

    def __reduce__(self) -> tuple[type[PolicyError], tuple[RefusalCode, str]]:
        return type(self), (self.code, str(self))


class PolicyFileError(SettingsError):
    """A policy file that cannot be read, or says what makes no sense."""


class FisherError(UnlearnError, ValueError):
    """A model or data for which the Fisher diagonal would be meaningless."""


class EraseError(UnlearnError, ValueError):
    """A layer or statistics for which a closed-form erasure would be meaningless."""


class UpdateError(UnlearnError, ValueError):
    """An update that does not fit the model, or is not a well-formed update."""


class AlreadyAppliedError(UnlearnError):
    """The same update was about to be applied twice to one model."""


class LineageError(UnlearnError, ValueError):
    """A node or an edge that the model inheritance graph cannot hold, or one it does not know."""


class StoreError(UnlearnError):
    """The store on disk cannot be read or written."""


class ModelMismatchError(StoreError):
    """The store, an update or an answer belongs to a model with other names, shapes or dtypes."""


class CorruptCheckpointError(StoreError):
    """A checkpoint is missing, truncated, or differs from the digest that was recorded for it."""


class AuditError(StoreError):
    """The audit log, a key, or a certificate cannot be used."""


class StoreFullError(StoreError):
    """No room was left on the disk; nothing was changed."""


class AnswerError(UnlearnError, ValueError):
    """A client's answer was malformed or implausible and was not used."""


class MeasureError(UnlearnError, ValueError):
    """Data or a layer on which a measure of what a model knows would be meaningless."""


class NotEnoughAnswersError(UnlearnError):
    """Too few clients answered a phase; nothing was changed."""
