"""Ed25519 keys: made, read, and what they sign: entries of the audit log, and messages of other kinds."""

from __future__ import annotations

import logging
import os
import re
from hashlib import sha256
from pathlib import Path

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
    load_pem_public_key,
)

from fl_unlearn.types import AuditError

log = logging.getLogger(__name__)

_SIGNATURE = re.compile("[0-9a-f]{128}", re.ASCII)


def _message(store_id: str, entry_hash: str) -> bytes:
    # The store is named, so that an entry stands for itself and none passes for one of another store.
    return f"fl-unlearn audit entry 1\n{store_id}\n{entry_hash}\n".encode("utf-8", "surrogatepass")


class PublicKey:
    """What signatures are checked with.

    Attributes:
        fingerprint: SHA-256 (hexadecimal) of the key's 32 bytes.
    """

    def __init__(self, key: Ed25519PublicKey) -> None:
        self._key = key
        self.fingerprint = sha256(key.public_bytes(Encoding.Raw, PublicFormat.Raw)).hexdigest()

    @classmethod
    def load(cls, path: str | Path) -> PublicKey:
        """Read a PEM file.

        Raises:
            AuditError: If it cannot be read, or holds no Ed25519 public key.
        """
        data = _read(path)
        if b"PRIVATE KEY" in data:
            raise AuditError(f"{path} holds a private key; checking needs the public one ({path}.pub)")
        try:
            return cls.from_pem(data.decode())
        except ValueError as e:
            raise AuditError(f"{path} is no public key: {e}") from e

    @classmethod
    def from_pem(cls, pem: str) -> PublicKey:
        """Read PEM text; a ValueError when it is no Ed25519 public key."""
        try:
            key = load_pem_public_key(pem.encode())
        except (ValueError, UnsupportedAlgorithm) as e:
            raise ValueError("it is not PEM as `SigningKey.generate` writes it") from e
        if not isinstance(key, Ed25519PublicKey):
            raise ValueError("it is of another kind than Ed25519")
        return cls(key)

    def pem(self) -> str:
        """The key as PEM text."""
        return self._key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()

    def verify(self, store_id: str, entry_hash: str, signature: str) -> bool:
        """Whether ``signature`` was made with this key's private half for that entry of that store."""
        if not _SIGNATURE.fullmatch(signature):
            return False
        return self.verify_message(_message(store_id, entry_hash), bytes.fromhex(signature))

    def verify_message(self, message: bytes, signature: bytes) -> bool:
        """Whether ``signature`` (64 bytes) was made with this key's private half for that message."""
        try:
            self._key.verify(signature, message)
        except InvalidSignature:
            return False
        return True


class SigningKey:
    """What entries are signed with.

    Attributes:
        public: The other half, for whoever checks.
    """

    def __init__(self, key: Ed25519PrivateKey) -> None:
        self._key = key
        self.public = PublicKey(key.public_key())

    @classmethod
    def generate(cls, path: str | Path) -> SigningKey:
        """Make a key: ``path`` (PEM, PKCS8, mode 0600) and ``path``.pub (PEM). Nothing is overwritten.

        Raises:
            AuditError: If one of the files is there already, or cannot be written.
        """
        private, public = Path(path), Path(f"{path}.pub")
        made = cls(Ed25519PrivateKey.generate())
        secret = made._key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        _create(public, made.public.pem().encode(), 0o644)
        try:
            _create(private, secret, 0o600)
        except AuditError:
            public.unlink()
            raise
        return made

    @classmethod
    def load(cls, path: str | Path) -> SigningKey:
        """Read a PEM file without a password.

        Raises:
            AuditError: If it cannot be read, or holds no Ed25519 private key.
        """
        data = _read(path)
        if b"PUBLIC KEY" in data:
            raise AuditError(f"{path} holds a public key; signing needs the private one")
        try:
            key = load_pem_private_key(data, password=None)
        except TypeError as e:
            raise AuditError(f"{path} is protected by a password; give a key without one") from e
        except (ValueError, UnsupportedAlgorithm) as e:
            raise AuditError(f"{path} is no private key in PEM; make one with SigningKey.generate") from e
        if not isinstance(key, Ed25519PrivateKey):
            raise AuditError(f"{path} holds a key of another kind; make one with SigningKey.generate")
        if os.name == "posix" and Path(path).stat().st_mode & 0o077:
            log.warning("the signing key %s can be read by other users; run chmod 600 on it", path)
        return cls(key)

    def sign(self, store_id: str, entry_hash: str) -> str:
        """The signature of that entry of that store, in hexadecimal."""
        return self.sign_message(_message(store_id, entry_hash)).hex()

    def sign_message(self, message: bytes) -> bytes:
        """The signature (64 bytes) of a message, whose first line must say of what kind it is.

        What is signed as one thing must not pass for another: entries of the audit log begin with
        "fl-unlearn audit entry 1", request documents with "fl-unlearn forget-request 1".
        """
        return self._key.sign(message)


def _read(path: str | Path) -> bytes:
    try:
        return Path(path).read_bytes()
    except (OSError, ValueError) as e:
        raise AuditError(f"cannot read the key {path}: {getattr(e, 'strerror', None) or e}") from e


def _create(path: Path, data: bytes, mode: int) -> None:
    try:
        fd = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, mode)
        try:
            with open(fd, "wb") as f:
                f.write(data)
        except OSError:
            path.unlink()
            raise
    except FileExistsError as e:
        raise AuditError(f"{path} is there already; keys are not overwritten, choose another path") from e
    except (OSError, ValueError) as e:
        raise AuditError(f"cannot write the key {path}: {getattr(e, 'strerror', None) or e}") from e
