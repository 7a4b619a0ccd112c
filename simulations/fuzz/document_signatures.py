"""Signatures that must not count: missing, of other keys, of other documents, or of another kind."""

from __future__ import annotations

import base64
from dataclasses import replace
from random import Random

from fl_unlearn.audit_keys import SigningKey
from fl_unlearn.request_document import DocumentSignature, RequestDocument

_ORDER = 2**252 + 27742317777372353535851937790883648493
"""Of the base point: where s is not compared with it, a signature has another form (RFC 8032, 5.1.7)."""


def signatures(
    random: Random, document: RequestDocument, own: SigningKey, stranger: SigningKey, another: RequestDocument
) -> dict[str, DocumentSignature | None]:
    """Signatures in place of a document's, by name.

    Args:
        random: Source of chance.
        document: Signed with ``own``.
        own: The requester's key.
        stranger: Another key.
        another: Another document, also signed with ``own``.
    """
    genuine, strange = document.signature, document.sign(stranger).signature
    assert genuine is not None
    assert strange is not None
    value = base64.b64decode(genuine.value)
    flipped = bytearray(value)
    flipped[random.randrange(64)] ^= 1 << random.randrange(8)
    beyond = value[:32] + (int.from_bytes(value[32:], "little") + _ORDER).to_bytes(32, "little")
    as_entry = bytes.fromhex(own.sign("0" * 32, document.message().decode("ascii")))
    values = {
        "another key's signature under this key": base64.b64decode(strange.value),
        "signature as an audit entry": as_entry,
        "signature without its first line": own.sign_message(document.message().partition(b"\n")[2]),
        "signature with a flipped bit": bytes(flipped),
        "signature at random": random.randbytes(64),
        "signature with s beyond the order": beyond,
        "signature of zeros": bytes(64),
    }
    return {
        "unsigned": None,
        "signed with another key": strange,
        "this signature under another key": replace(genuine, key=strange.key),
        "signature of another document": another.signature,
    } | {name: replace(genuine, value=_text(v)) for name, v in values.items()}


def _text(value: bytes) -> str:
    return base64.b64encode(value).decode("ascii")
