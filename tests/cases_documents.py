"""Request documents to test with: keys, a policy file, and hypothesis strategies for sound documents."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import strategies as st

from fl_unlearn.audit_keys import SigningKey
from fl_unlearn.request_document import RequestDocument
from fl_unlearn.types import ForgetRequest

NOW = datetime(2026, 11, 22, 2, 0, tzinfo=UTC)
ID = "00112233445566778899aabbccddeeff"
KEYS = {
    name: SigningKey(Ed25519PrivateKey.from_private_bytes(bytes([i]) * 32)) for i, name in enumerate("abc")
}
"""Three keys, the same in every run."""

SOUND = {
    "classes": ForgetRequest((3, 7), reason="asked"),
    "classes of clients": ForgetRequest((3,), ("b", "a")),
    "clients": ForgetRequest(clients=("3",), reason="Löschung, § 17"),
    "keys": ForgetRequest(samples={"3": ("patient-12", "患者 7"), "5": ("x",)}),
    "positions": ForgetRequest(samples={"3": (4, 0), "5": ("x",)}),
}


def document(request: ForgetRequest = SOUND["classes"], **changes: Any) -> RequestDocument:
    """A sound document, with some things changed."""
    plain: dict[str, Any] = {"id": ID, "requester": "a", "request": request, "created": NOW}
    return RequestDocument(**{**plain, **changes})


def write_policy(folder: Path, text: str, *, keys: str = "abc") -> Path:
    """A policy file, with the public keys a.pub, b.pub and c.pub beside it."""
    for name in keys:
        (folder / f"{name}.pub").write_text(KEYS[name].public.pem())
    path = folder / "policy.toml"
    path.write_text(text)
    path.chmod(0o600)
    return path


# --------------------------------------------------------------------------- strategies
_ALPHABET = 'ab30-_,*"\\/\u00e9\u0661\u60a3\U0001f600'


def texts(most: int = 12) -> st.SearchStrategy[str]:
    """What documents hold as names and keys: characters of one to four bytes, and those that JSON escapes."""
    return st.text(_ALPHABET, min_size=1, max_size=most)


def requests() -> st.SearchStrategy[ForgetRequest]:
    """Requests of every kind."""
    labels = st.lists(st.integers(0, 2**31 - 1), min_size=1, max_size=4).map(tuple)
    clients = st.lists(texts(), min_size=1, max_size=3).map(tuple)
    keys = st.lists(texts(), min_size=1, max_size=4).map(tuple)
    positions = st.lists(st.integers(0, 2**53 - 1), min_size=1, max_size=4).map(tuple)
    reason = st.just("") | texts(60)
    return st.one_of(
        st.builds(ForgetRequest, labels, st.just(()) | clients, reason),
        st.builds(ForgetRequest, st.just(()), clients, reason),
        st.builds(
            lambda samples, reason: ForgetRequest(samples=samples, reason=reason),
            st.dictionaries(texts(), keys | positions, min_size=1, max_size=3),
            reason,
        ),
    )


def documents() -> st.SearchStrategy[RequestDocument]:
    """Sound documents, two of three signed."""
    times = st.datetimes(datetime(1, 1, 1), datetime(9000, 1, 1)).map(
        lambda t: t.replace(microsecond=0, tzinfo=UTC)
    )
    return st.builds(
        lambda id_, requester, federation, request, scope, created, wait, key: (
            lambda made: made if key is None else made.sign(KEYS[key])
        )(
            RequestDocument(
                id=f"{id_:032x}",
                requester=requester,
                federation=federation,
                request=request,
                scope=scope,
                created=created,
                deadline=None if wait is None else created + timedelta(seconds=wait),
            )
        ),
        st.integers(0, 2**128 - 1),
        texts(),
        st.none() | texts(),
        requests(),
        st.none() | st.sampled_from(("fast", "deep", "head", "all")) | texts(),
        times,
        st.none() | st.integers(1, 10**9),
        st.sampled_from((None, "a", "b")),
    )
