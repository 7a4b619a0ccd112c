"""Who may ask to forget what: a policy file, and whether a request document is one of theirs.

A policy is a TOML file::

    federation = "trial-7"          # its name: only documents that say so are served
    max_age = 30                    # days after which a document is too old; 30 by default

    [[requester]]
    name = "hospital-3"             # as in the documents' "requester"
    key = "hospital-3.pub"          # an Ed25519 public key: a file beside the policy, or PEM text
    clients = ["3"]                 # may name these clients: all of their data, samples, or classes of it
    budget = 0.05                   # most retained accuracy, 0 to 1, that its requests may cost in all

    [[requester]]
    name = "operator"
    key = "operator.pub"
    classes = "any"                 # or a list such as [3, 4]: may have these forgotten by everybody

With a policy, every document must be signed by one of its requesters. A run without one accepts what anybody
who can write to the store's folder asks for, signed or not. Give the federation a name if one of the keys
stands in another federation's policy too: without names, what is asked of one can be brought to the other.
"""

from __future__ import annotations

import difflib
import logging
import os
import tomllib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Literal

from fl_unlearn.audit_keys import PublicKey
from fl_unlearn.document_checks import MAX_CLASS, check_text, shown
from fl_unlearn.request_document import RequestDocument
from fl_unlearn.types import (
    AuditError,
    DocumentError,
    ForgetRequest,
    PolicyError,
    PolicyFileError,
    SettingsError,
)

log = logging.getLogger(__name__)

MAX_AGE = timedelta(days=30)
"""Age from which a document is expired, unless the policy says otherwise."""
TOLERANCE = timedelta(minutes=5)
"""How far the clock of whoever made a document may be ahead of this one."""


@dataclass(frozen=True)
class Requester:
    """Somebody who may ask for something.

    Attributes:
        name: As documents name it.
        key: What its documents are checked with.
        classes: The classes that it may have forgotten by everybody, or "any".
        clients: The clients of which it may have everything, samples or classes forgotten, or "any".
        budget: Most retained accuracy (0 to 1) that its requests may cost in all; None: no limit. It is not
            checked here: what a request costs is known only when it is served.
    """

    name: str
    key: PublicKey
    classes: frozenset[int] | Literal["any"] = frozenset()
    clients: frozenset[str] | Literal["any"] = frozenset()
    budget: float | None = None

    def problem(self, request: ForgetRequest) -> str | None:
        """Why it may not ask for that, or None when it may.

        For classes of some clients, it is enough to be allowed all of the classes or all of the clients.
        """
        clients = _beyond(self.clients, request.samples or request.clients)
        if request.kind != "classes":
            return f"the clients {clients}" if clients else None
        classes = _beyond(self.classes, request.classes)
        if not request.clients:
            return f"the classes {classes} of everybody" if classes else None
        return f"the classes {classes} of the clients {clients}" if classes and clients else None


class Policy:
    """Requesters and what they may ask for.

    Args:
        requesters: All of them; names and keys must differ.
        max_age: Age from which a document is expired.
        federation: The federation's name; None: it has none, and documents must not name one.

    Attributes:
        requesters: The requesters by name.

    Raises:
        PolicyFileError: If there are none, or two share a name or a key.
    """

    def __init__(
        self,
        requesters: Iterable[Requester],
        *,
        max_age: timedelta = MAX_AGE,
        federation: str | None = None,
    ) -> None:
        self.requesters: dict[str, Requester] = {}
        self.max_age, self.federation = max_age, federation
        keys: dict[str, str] = {}
        for requester in requesters:
            if requester.name in self.requesters:
                raise PolicyFileError(f"there are two requesters {requester.name!r}; a name stands for one")
            if (other := keys.get(requester.key.fingerprint)) is not None:
                raise PolicyFileError(
                    f"the requesters {other!r} and {requester.name!r} have the same key; each needs its own, "
                    "otherwise it cannot be said who asked"
                )
            self.requesters[requester.name] = requester
            keys[requester.key.fingerprint] = requester.name
        if not self.requesters:
            raise PolicyFileError(
                "the policy has no requester, so nobody could ask for anything; add a [[requester]], or run "
                "without a policy"
            )

    @classmethod
    def read(cls, path: str | Path) -> Policy:
        """Read a policy file.

        Raises:
            PolicyFileError: If it cannot be read, is not TOML (with the line), or a requester or key in it
                makes no sense (with the name).
        """
        path = Path(path)
        try:
            return _read(path)
        except PolicyFileError as e:
            raise PolicyFileError(f"policy {path}: {e}") from e

    def check(self, document: RequestDocument, *, now: datetime, seen: Callable[[str], bool]) -> Requester:
        """Who asks, if they are who they say and may ask for that.

        Args:
            document: The document.
            now: The time, with a time zone.
            seen: Whether a document with that id was accepted before. Only ids of accepted documents may be
                remembered: otherwise a forged document would shut out the genuine one.

        Raises:
            PolicyError: If it is refused; ``code`` says why.
            SettingsError: If ``now`` has no time zone.
        """
        if now.tzinfo is None:
            raise SettingsError(f"now needs a time zone, got {now!r}; try datetime.now(UTC)")
        if document.signature is None:
            raise PolicyError("unsigned", f"document {document.id} is not signed, and this policy wants it")
        requester = self.requesters.get(document.requester)
        if requester is None:
            raise PolicyError("unknown-requester", self._unknown(document.requester))
        document.verify(requester.key)
        self._check_federation(document)
        if seen(document.id):
            raise PolicyError(
                "replayed", f"document {document.id} was accepted before, and counts once; make a new one"
            )
        self._check_age(document, now.astimezone(UTC))
        if (problem := requester.problem(document.request)) is not None:
            raise PolicyError(
                "not-allowed",
                f"{requester.name!r} may not ask to forget {problem}; the policy allows it classes: "
                f"{_listed(requester.classes)}, clients: {_listed(requester.clients)}",
            )
        return requester

    def _check_federation(self, document: RequestDocument) -> None:
        if document.federation == self.federation:
            return
        theirs, ours = (
            "no federation" if name is None else f"the federation {name!r}"
            for name in (document.federation, self.federation)
        )
        hint = "name this one in a new document" if self.federation else "`federation` in the policy names it"
        raise PolicyError(
            "wrong-federation",
            f"document {document.id} is meant for {theirs}, and this policy is that of {ours}; {hint}",
        )

    def _check_age(self, document: RequestDocument, now: datetime) -> None:
        age = now - document.created
        if age < -TOLERANCE:
            raise PolicyError(
                "from-the-future",
                f"document {document.id} was created at {document.created:%Y-%m-%d %H:%M:%S}, and it is "
                f"{now:%Y-%m-%d %H:%M:%S} (UTC): one of the clocks is wrong; set it, and make a new document",
            )
        if age > self.max_age:
            raise PolicyError(
                "expired",
                f"document {document.id} was created {age.days} days ago, and the policy takes none older "
                f"than {self.max_age / timedelta(days=1):g} days; make a new one",
            )
        document.check_deadline(now)

    def _unknown(self, name: str) -> str:
        near = difflib.get_close_matches(name, self.requesters, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        return f"{name!r} is no requester of the policy, only {_listed(self.requesters)}{hint}"


def _beyond(allowed: frozenset[Any] | Literal["any"], named: Iterable[Any]) -> str:
    """What of ``named`` is not allowed, as text; empty when all is."""
    beyond = [] if isinstance(allowed, str) else [v for v in named if v not in allowed]
    return _listed(beyond) if beyond else ""


def _listed(values: Iterable[Any] | Literal["any"], most: int = 8) -> str:
    if isinstance(values, str):
        return values
    texts = [shown(v) for v in sorted(values)]
    more = f" and {len(texts) - most} more" if len(texts) > most else ""
    return (", ".join(texts[:most]) + more) or "none"


# --------------------------------------------------------------------------- the file
def _read(path: Path) -> Policy:
    try:
        data = path.read_bytes()
        open_to_all = os.name == "posix" and path.stat().st_mode & 0o022
    except (OSError, ValueError) as e:
        raise PolicyFileError(f"it cannot be read: {getattr(e, 'strerror', None) or e}") from e
    if open_to_all:
        log.warning("the policy %s can be changed by other users; run chmod go-w on it", path)
    try:
        plain = tomllib.loads(data.decode("utf-8"))
    except (ValueError, RecursionError) as e:
        raise PolicyFileError(f"it is not TOML: {e}") from e
    _check_names("the file", plain, ("federation", "max_age", "requester"))
    tables = plain.get("requester", [])
    if not isinstance(tables, list) or not all(isinstance(t, dict) for t in tables):
        raise PolicyFileError("each requester stands under [[requester]], in two brackets")
    days = _number("max_age", plain.get("max_age", MAX_AGE.days), "days, 1 to 36500", 1, 36_500)
    federation = plain.get("federation")
    if federation is not None and not _is_name(federation):
        raise PolicyFileError(f"federation must be a text as documents can hold it, got {shown(federation)}")
    requesters = [_requester(i, table, path.parent) for i, table in enumerate(tables, 1)]
    return Policy(requesters, max_age=timedelta(days=days), federation=federation)


def _requester(number: int, table: Mapping[str, Any], folder: Path) -> Requester:
    who = f"requester {number}" + (f" ({shown(table['name'])})" if "name" in table else "")
    _check_names(who, table, ("name", "key", "classes", "clients", "budget"))
    for name in ("name", "key"):
        if name not in table:
            raise PolicyFileError(f"{who} has no {name}; every requester needs a name and a key")
    if not _is_name(table["name"]):
        raise PolicyFileError(
            f"{who}: name must be a text as documents can hold it, got {shown(table['name'])}"
        )
    classes = _allowed(f"{who}: classes", table.get("classes", []), "whole numbers such as [3]", _is_class)
    clients = _allowed(f"{who}: clients", table.get("clients", []), 'texts such as ["3"]', _is_name)
    if not classes and not clients:
        raise PolicyFileError(f'{who} may ask for nothing; give classes or clients, a list or "any"')
    budget = table.get("budget")
    if budget is not None:
        budget = _number(f"{who}: budget", budget, "a share of accuracy, 0 to 1", 0, 1)
    return Requester(table["name"], _key(who, table["key"], folder), classes, clients, budget)


def _key(who: str, value: Any, folder: Path) -> PublicKey:
    """The key that stands in the policy, or in a file beside it."""
    if not isinstance(value, str) or not value.strip():
        raise PolicyFileError(f"{who}: key must be the path of a public key or PEM text, got {shown(value)}")
    if "PRIVATE KEY-" in value:  # it is not repeated in the message
        raise PolicyFileError(
            f"{who}: key is a private one, which nobody but the requester may have; give the public one of a "
            "new pair"
        )
    try:
        return PublicKey.from_pem(value) if "-----BEGIN" in value else PublicKey.load(folder / value)
    except AuditError as e:
        raise PolicyFileError(f"{who}: {e}") from e
    except ValueError as e:
        raise PolicyFileError(f"{who}: key is no public key: {e}") from e


def _allowed(
    what: str, value: Any, said: str, sound: Callable[[Any], bool]
) -> frozenset[Any] | Literal["any"]:
    if value == "any":
        return "any"
    if not isinstance(value, list) or not all(map(sound, value)):
        raise PolicyFileError(f'{what} must be "any" or a list of {said}, got {shown(value)}')
    return frozenset(value)


def _is_class(value: Any) -> bool:
    return type(value) is int and 0 <= value <= MAX_CLASS


def _is_name(value: Any) -> bool:
    try:
        check_text("a name", value)
    except DocumentError:
        return False
    return True


def _number(what: str, value: Any, said: str, least: float, most: float) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value <= most:
        raise PolicyFileError(f"{what} must be {said}, got {shown(value)}")
    return float(value)


def _check_names(what: str, table: Mapping[str, Any], known: Sequence[str]) -> None:
    for name in table:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise PolicyFileError(f"{what} has no key {name!r}, only {', '.join(known)}{hint}")
