"""Forget requests as documents: JSON with a schema and a version, signed by whoever asks (Ed25519).

A document comes from outside and is untrusted: `RequestDocument.from_bytes` accepts one form only and raises
nothing but `DocumentError`. That a document is well formed says nothing of who wrote it, nor of whether they
may ask for it: with a policy file, `policy.Policy.check` decides that. Without one, a run accepts unsigned
documents from whoever can write to the store's folder.
"""

from __future__ import annotations

import base64
import json
import re
import secrets
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from importlib.resources import files
from typing import Any

from fl_unlearn.audit_entry import canonical
from fl_unlearn.audit_keys import PublicKey, SigningKey
from fl_unlearn.document_checks import (
    check_fields,
    check_size,
    check_text,
    parse_json,
    parse_target,
    parse_time,
    shown,
    target_json,
    time_text,
)
from fl_unlearn.types import PRESETS, DocumentError, ForgetRequest, PolicyError, UnlearnSettings

SCHEMA, VERSION = "fl-unlearn/forget-request", 1

_FIELDS = ["schema", "version", "id", "requester", "federation", "target"]
_FIELDS += ["scope", "created", "deadline", "reason", "signature"]
_ID = re.compile("[0-9a-f]{32}")
_FINGERPRINT = re.compile("[0-9a-f]{64}")
# 64 bytes in the only base64 text that they have: the last digit carries two bits.
_VALUE = re.compile("[A-Za-z0-9+/]{85}[AQgw]==")
_SCOPED = sorted({"fisher_scope"}.union(*PRESETS.values()))
"""Settings that a preset's name as a scope decides: what of the model is changed."""


@dataclass(frozen=True)
class DocumentSignature:
    """A signature on a document.

    Attributes:
        key: Fingerprint (64 hexadecimal digits) of the key that it says it was made with.
        value: The Ed25519 signature of `RequestDocument.message`, in base64.
    """

    key: str
    value: str

    def __post_init__(self) -> None:
        for name, form, said in (
            ("key", _FINGERPRINT, "64 hexadecimal digits in lower case"),
            ("value", _VALUE, "64 bytes in base64, 88 characters"),
        ):
            value = getattr(self, name)
            if not isinstance(value, str) or not form.fullmatch(value):
                raise DocumentError(
                    f"signature.{name} must be {said}, got {shown(value)}; sign the document anew"
                )


@dataclass(frozen=True, kw_only=True)
class RequestDocument:
    """A forget request with who asks, when, and until when; checked when it is made.

    Attributes:
        id: 32 hexadecimal digits, made at random: a document counts once.
        requester: Who asks: a name in the policy.
        federation: For which federation it is meant, as its policy names it: no other one serves it.
            None: for any whose policy has no name.
        request: What is to be forgotten, and the reason. Its samples may be named by the client's keys.
        scope: How deep: None as the run's settings say, a preset's name ("fast", "deep"), or a
            ``fisher_scope`` ("head", "all", names). For clients and samples "head" and "fast" are all layers,
            as they are by default there (`calibration_data`).
        created: When it was written; UTC, whole seconds.
        deadline: Until when it must be served, otherwise it is expired; UTC, whole seconds. None: no limit of
            its own.
        signature: None while it is not signed.

    Raises:
        DocumentError: If one of these is malformed or too long.
    """

    id: str
    requester: str
    request: ForgetRequest
    federation: str | None = None
    scope: str | None = None
    created: datetime
    deadline: datetime | None = None
    signature: DocumentSignature | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.id, str) or not _ID.fullmatch(self.id):
            raise DocumentError(
                f"id must be 32 hexadecimal digits in lower case, got {shown(self.id)}; "
                "RequestDocument.new draws one"
            )
        check_text("requester", self.requester)
        for name in ("federation", "scope"):
            if (text := getattr(self, name)) is not None:
                check_text(name, text)
        if not isinstance(self.request, ForgetRequest):
            raise DocumentError(f"request must be a ForgetRequest, got {shown(self.request)}")
        parse_target(target_json(self.request), self.request.reason)
        time_text("created", self.created)
        if self.deadline is not None:
            time_text("deadline", self.deadline)
        if not isinstance(self.signature, DocumentSignature | None):
            raise DocumentError(f"signature must be a DocumentSignature or None, got {shown(self.signature)}")
        if self.deadline is not None and self.deadline <= self.created:
            raise DocumentError(
                f"deadline must be later than created ({time_text('created', self.created)}), "
                f"got {time_text('deadline', self.deadline)}"
            )

    @classmethod
    def new(
        cls,
        requester: str,
        request: ForgetRequest,
        *,
        federation: str | None = None,
        scope: str | None = None,
        deadline: datetime | None = None,
        now: datetime | None = None,
    ) -> RequestDocument:
        """An unsigned document with an id drawn at random, created ``now`` (None: by this clock)."""
        created = (now or datetime.now(UTC)).replace(microsecond=0)
        return cls(
            id=secrets.token_hex(16),
            requester=requester,
            request=request,
            federation=federation,
            scope=scope,
            created=created,
            deadline=deadline,
        )

    # ------------------------------------------------------------------ reading and writing
    def to_json(self) -> dict[str, Any]:
        """Plain values for JSON, in the form that ``request_schema.json`` describes; every field is there."""
        return {
            "schema": SCHEMA,
            "version": VERSION,
            "id": self.id,
            "requester": self.requester,
            "federation": self.federation,
            "target": target_json(self.request),
            "scope": self.scope,
            "created": time_text("created", self.created),
            "deadline": None if self.deadline is None else time_text("deadline", self.deadline),
            "reason": self.request.reason,
            "signature": None if self.signature is None else asdict(self.signature),
        }

    def to_bytes(self) -> bytes:
        """The document's canonical JSON, ASCII: keys sorted by code point, no spaces, all else escaped.

        Raises:
            DocumentError: If it is longer than `MAX_BYTES`.
        """
        data = canonical(self.to_json()).encode("ascii")
        check_size(data)
        return data

    @classmethod
    def from_bytes(cls, data: bytes) -> RequestDocument:
        """Read a document from outside; spaces and the order of keys do not matter, all else does.

        Raises:
            DocumentError: Whatever is wrong with it; nothing else is raised.
        """
        if not isinstance(data, bytes | bytearray):
            raise DocumentError(f"a document is read from bytes, got {type(data).__name__}")
        check_size(data)
        return cls.from_json(parse_json(data))

    @classmethod
    def from_json(cls, plain: Any) -> RequestDocument:
        """Read a document from plain values, as `to_json` gives them.

        What comes from outside is better read with `from_bytes`: a key that is there twice is not seen here.

        Raises:
            DocumentError: Whatever is wrong with it.
        """
        check_fields("the document", plain, _FIELDS)
        for name, wanted in (("schema", SCHEMA), ("version", VERSION)):
            if type(plain[name]) is not type(wanted) or plain[name] != wanted:
                raise DocumentError(
                    f"{name} must be {wanted!r}, got {shown(plain[name])}; this is another document"
                )
        signature = plain["signature"]
        if signature is not None:
            check_fields("signature", signature, ("key", "value"))
            signature = DocumentSignature(**signature)
        document = cls(
            id=plain["id"],
            requester=plain["requester"],
            federation=plain["federation"],
            request=parse_target(plain["target"], plain["reason"]),
            scope=plain["scope"],
            created=parse_time("created", plain["created"]),
            deadline=None if plain["deadline"] is None else parse_time("deadline", plain["deadline"]),
            signature=signature,
        )
        document.to_bytes()  # what comes in as UTF-8 is longer when it is escaped
        return document

    # ------------------------------------------------------------------ authority
    def message(self) -> bytes:
        """What is signed: a line that says what it is, then the canonical JSON without "signature"."""
        unsigned = {name: value for name, value in self.to_json().items() if name != "signature"}
        return f"{SCHEMA.replace('/', ' ')} {VERSION}\n{canonical(unsigned)}".encode("ascii")

    def sign(self, key: SigningKey) -> RequestDocument:
        """The document with a signature by ``key`` in place of any that it had.

        Raises:
            DocumentError: If it is longer than `MAX_BYTES`.
        """
        value = base64.b64encode(key.sign_message(self.message())).decode("ascii")
        signed = replace(self, signature=DocumentSignature(key.public.fingerprint, value))
        signed.to_bytes()
        return signed

    def verify(self, key: PublicKey) -> None:
        """Check that the document is as it was when the private half of ``key`` signed it.

        Raises:
            PolicyError: "unsigned"; "wrong-key" if it names another key; "forged" if it does not fit.
        """
        if self.signature is None:
            raise PolicyError(
                "unsigned", f"document {self.id} is not signed; sign it with {self.requester!r}'s key"
            )
        if self.signature.key != key.fingerprint:
            raise PolicyError(
                "wrong-key",
                f"document {self.id} is signed with the key {self.signature.key[:16]}, but "
                f"{self.requester!r} has the key {key.fingerprint[:16]}; sign it with that one",
            )
        if not key.verify_message(self.message(), base64.b64decode(self.signature.value)):
            raise PolicyError(
                "forged",
                f"document {self.id} is not what the key {key.fingerprint[:16]} signed: it was altered, or "
                "the signature is not genuine; make and sign a new document",
            )

    def check_deadline(self, now: datetime) -> None:
        """Check that the deadline has not passed; to be asked again before the request is served.

        Raises:
            PolicyError: "expired".
        """
        if self.deadline is not None and self.deadline <= now:
            raise PolicyError(
                "expired",
                f"document {self.id} was to be served before {time_text('deadline', self.deadline)}, and it "
                f"is {now:%Y-%m-%d %H:%M:%S %Z}; make a new document with a later deadline",
            )

    def settings(self, base: UnlearnSettings) -> UnlearnSettings:
        """The settings to serve it with: the run's, with what the scope says of how deep to go.

        A preset's name decides what of the model is changed, as that preset does (``fisher_scope`` and
        ``erase``); any other scope is the ``fisher_scope``. Tolerances and waiting times stay the run's.
        """
        if self.scope is None:
            return base
        if self.scope not in PRESETS:
            return replace(base, fisher_scope=self.scope)
        preset = UnlearnSettings.preset(self.scope)
        return replace(base, **{name: getattr(preset, name) for name in _SCOPED})


def json_schema() -> dict[str, Any]:
    """The JSON Schema (2020-12) of documents, as shipped in ``fl_unlearn/request_schema.json``.

    It accepts every document that `RequestDocument.from_json` accepts, and more: it cannot say that a list
    ascends, that a deadline is later than the creation, or how large a document is in all.
    """
    text = files("fl_unlearn").joinpath("request_schema.json").read_text("utf-8")
    return dict(json.loads(text))
