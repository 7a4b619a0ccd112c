"""Request documents under a policy: sound ones and changed ones, read and checked as a server would."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from random import Random

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fl_unlearn.audit_keys import SigningKey
from fl_unlearn.policy import Policy, Requester
from fl_unlearn.request_document import RequestDocument
from fl_unlearn.types import DocumentError, ForgetRequest, PolicyError
from simulations.fuzz.contract import Case, Verdict
from simulations.fuzz.document_changes import BYTE_CHANGES, JSON_CHANGES, TEXT_CHANGES, edited
from simulations.fuzz.document_rules import Rights, Rules, content
from simulations.fuzz.document_signatures import signatures

NOW = datetime(2026, 11, 22, 2, 0, tzinfo=UTC)
MAX_AGE = timedelta(days=30)
STRANGER = "mallory"

_RIGHTS = {
    "operator": (None, ()),
    "trials": ((1, 2, 3), ()),
    "hospital-3": ((), ("3",)),
    "clinics": ((0,), ("5", "Ärzte")),
    "auditor": (None, None),
}
_NAMES = ("3", "5", "Ärzte", "7", "03")
_KEYS = ("patient-1", "patient-12", "患者", "a/b c", '"quoted"', "\\")
_FEDERATION = "trial-7"
_FEDERATIONS = (*[_FEDERATION] * 8, None, "trial-8", "Trial-7")
_SCOPES = (None, None, "fast", "deep", "head", "all", "fc1.*,fc2.*")
_REASONS = ("", "asked on paper", "Löschung, § 17", 'a "quote" \\ and a slash /')


_Changed = tuple[str, bytes, bool]


def key_of(name: str) -> SigningKey:
    """The key of a requester, the same every time; for nothing but fuzzing."""
    return SigningKey(Ed25519PrivateKey.from_private_bytes(name.encode("ascii").ljust(32, b".")))


class Documents:
    """Five requesters with different rights, and a stranger who has a key of his own."""

    def __init__(self) -> None:
        self.keys = {name: key_of(name) for name in (*_RIGHTS, STRANGER)}
        requesters = [
            Requester(
                name,
                self.keys[name].public,
                "any" if classes is None else frozenset(classes),
                "any" if clients is None else frozenset(clients),
            )
            for name, (classes, clients) in _RIGHTS.items()
        ]
        self.policy = Policy(requesters, max_age=MAX_AGE, federation=_FEDERATION)

    # ------------------------------------------------------------------ drawing
    def draw(self, random: Random) -> Case:
        """A document: as it was signed in one case of five, otherwise changed in one of the ways below."""
        changes: list[Callable[[Random, RequestDocument, Rules], _Changed]]
        rules = self._rules()
        document = self.document(random, rules)
        changes = [self._sound, self._on_bytes, self._on_text, self._on_json, self._on_signature]
        mutation, data, seen = random.choice(changes)(random, document, rules)
        return Case(mutation, data, {"rules": rules, "seen": {document.id} if seen else set()})

    def document(self, random: Random, rules: Rules) -> RequestDocument:
        """A document that is well formed and signed by whom it says; seldom by a stranger."""
        name = random.choice([*_RIGHTS] * 5 + [STRANGER])
        created = NOW - timedelta(
            seconds=random.choice((0, 60, 86_400, 2_592_000)) + random.randint(-400, 400)
        )
        deadline = created + timedelta(seconds=random.choice((1, 3_600, 7_776_000)))
        document = RequestDocument(
            id=f"{random.getrandbits(128):032x}",
            requester=name,
            request=_request(random, name),
            federation=random.choice(_FEDERATIONS),
            scope=random.choice(_SCOPES),
            created=created,
            deadline=random.choice((None, None, deadline)),
        )
        return self.sign(document, rules)

    def sign(self, document: RequestDocument, rules: Rules) -> RequestDocument:
        """The document signed by its requester, and noted as such."""
        signed = document.sign(self.keys[document.requester])
        made = signed.to_json()
        rules.signed.add((made["signature"]["key"], content(made), made["signature"]["value"]))
        return signed

    def _rules(self) -> Rules:
        rights = {
            name: Rights(self.keys[name].public.fingerprint, classes, clients)
            for name, (classes, clients) in _RIGHTS.items()
        }
        return Rules(rights, MAX_AGE, _FEDERATION)

    # Each way gives its name, the bytes, and whether the document's id has been seen.
    def _sound(self, random: Random, document: RequestDocument, rules: Rules) -> _Changed:
        if random.random() < 0.2:
            return "replayed", document.to_bytes(), True
        return "as signed", document.to_bytes(), False

    def _on_bytes(self, random: Random, document: RequestDocument, rules: Rules) -> _Changed:
        name, change = random.choice([*BYTE_CHANGES.items()])
        other = self.document(random, rules).to_bytes()
        return name, change(random, document.to_bytes(), other), False

    def _on_text(self, random: Random, document: RequestDocument, rules: Rules) -> _Changed:
        name, change = random.choice([*TEXT_CHANGES.items()])
        return name, change(random, document.to_bytes().decode("ascii")), False

    def _on_json(self, random: Random, document: RequestDocument, rules: Rules) -> _Changed:
        name, change = random.choice([*JSON_CHANGES.items()])
        return name, edited(random, document, change), False

    def _on_signature(self, random: Random, document: RequestDocument, rules: Rules) -> _Changed:
        stranger = self.keys[random.choice([n for n in self.keys if n != document.requester])]
        another = self.sign(replace(document, id=f"{random.getrandbits(128):032x}"), rules)
        name, signature = random.choice(
            [*signatures(random, document, self.keys[document.requester], stranger, another).items()]
        )
        return name, replace(document, signature=signature).to_bytes(), False

    # ------------------------------------------------------------------ judging
    def judge(self, case: Case) -> Verdict:
        """Read the document and check it, as a server would; what is accepted must survive being written."""
        seen = case.facts["seen"]
        expected = case.facts["rules"].expected(case.data, NOW, seen)
        try:
            document = RequestDocument.from_bytes(case.data)
        except DocumentError:
            return Verdict("malformed", expected)
        again = RequestDocument.from_bytes(document.to_bytes())
        if again != document:
            raise AssertionError("the document is another when it is written and read again")
        try:
            self.policy.check(document, now=NOW, seen=seen.__contains__)
        except PolicyError as e:
            return Verdict(e.code, expected)
        return Verdict("accepted", expected)


def _request(random: Random, name: str) -> ForgetRequest:
    """A request of any kind; more often than not one that its requester is allowed."""
    classes, clients = _RIGHTS.get(name, ((), ()))
    allowed = random.random() < 0.7
    labels = list(classes if allowed and classes else range(10))
    names = list(clients if allowed and clients else _NAMES)
    some_labels = tuple(random.sample(labels, random.randint(1, min(3, len(labels)))))
    some = tuple(random.sample(names, random.randint(1, min(2, len(names)))))
    reason = random.choice(_REASONS)
    kinds = ["classes"] * bool(classes is None or classes) + ["client", "samples"] * bool(
        clients is None or clients
    )
    match (
        random.choice([*kinds, "classes of clients"])
        if allowed
        else random.choice(("classes", "client", "samples"))
    ):
        case "classes":
            return ForgetRequest(some_labels, reason=reason)
        case "client":
            return ForgetRequest(clients=some, reason=reason)
        case "classes of clients":
            return ForgetRequest(some_labels, some, reason)
    samples = {
        c: tuple(random.sample(_KEYS, 2)) if random.random() < 0.7 else tuple(random.sample(range(99), 3))
        for c in some
    }
    return ForgetRequest(samples=samples, reason=reason)
