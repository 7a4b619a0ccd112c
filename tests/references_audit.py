"""The audit log's hashes and signatures, computed from scratch and by the book."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from cryptography.hazmat.primitives.serialization import load_pem_private_key

FIELDS = ("body", "kind", "previous", "seq", "time")


def entry_hash(entry: dict[str, Any]) -> str:
    parts = []
    for name in FIELDS:
        parts.append(f'"{name}":' + json.dumps(entry[name], sort_keys=True, separators=(",", ":")))
    return hashlib.sha256(("{" + ",".join(parts) + "}").encode("ascii")).hexdigest()


def sign(pem: bytes, store: str, hash_: str) -> str:
    key = load_pem_private_key(pem, None)
    return key.sign(f"fl-unlearn audit entry 1\n{store}\n{hash_}\n".encode()).hex()  # type: ignore[union-attr, call-arg]
