"""Keys: made once, read back, and told from other files."""

from __future__ import annotations

import stat
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization as pem
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fl_unlearn.audit import PublicKey, SigningKey
from fl_unlearn.types import AuditError


def test_keys_are_made_once_and_read_back(tmp_path: Path) -> None:
    made = SigningKey.generate(tmp_path / "k")
    assert stat.S_IMODE((tmp_path / "k").stat().st_mode) == 0o600
    loaded = SigningKey.load(str(tmp_path / "k"))
    public = PublicKey.load(tmp_path / "k.pub")
    assert public.fingerprint == made.public.fingerprint == loaded.public.fingerprint
    signature = loaded.sign("store", "a" * 64)
    assert public.verify("store", "a" * 64, signature)
    for wrong in (("other", "a" * 64, signature), ("store", "b" * 64, signature)):
        assert not public.verify(*wrong)
    for other in (signature.upper(), signature + " ", signature[:-2], "", "ü" * 128):
        assert not public.verify("store", "a" * 64, other)
    before = (tmp_path / "k").read_bytes()
    with pytest.raises(AuditError, match="is there already; keys are not overwritten"):
        SigningKey.generate(tmp_path / "k")
    (tmp_path / "k.pub").unlink()
    with pytest.raises(AuditError, match="is there already"):
        SigningKey.generate(tmp_path / "k")
    assert (tmp_path / "k").read_bytes() == before
    assert not (tmp_path / "k.pub").exists()
    with pytest.raises(AuditError, match="cannot write the key"):
        SigningKey.generate(tmp_path / "nowhere" / "k")


def test_foreign_key_files(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    SigningKey.generate(tmp_path / "k")
    private, public = pem.PrivateFormat.PKCS8, pem.PublicFormat.SubjectPublicKeyInfo
    curve = generate_private_key(SECP256R1())
    locked = Ed25519PrivateKey.generate().private_bytes(
        pem.Encoding.PEM, private, pem.BestAvailableEncryption(b"secret")
    )
    (tmp_path / "locked").write_bytes(locked)
    (tmp_path / "curve").write_bytes(curve.private_bytes(pem.Encoding.PEM, private, pem.NoEncryption()))
    (tmp_path / "curve.pub").write_bytes(curve.public_key().public_bytes(pem.Encoding.PEM, public))
    (tmp_path / "garbage").write_bytes(b"\xff\x00garbage")
    load_private: Callable[[Path], object] = SigningKey.load
    for load, name, match in (
        (load_private, "k.pub", "holds a public key; signing needs the private one"),
        (load_private, "locked", "protected by a password"),
        (load_private, "curve", "a key of another kind"),
        (load_private, "garbage", "is no private key"),
        (load_private, "nowhere", "cannot read the key"),
        (load_private, ".", "cannot read the key"),
        (PublicKey.load, "k", "holds a private key; checking needs the public one"),
        (PublicKey.load, "curve.pub", "of another kind than Ed25519"),
        (PublicKey.load, "garbage", "is no public key"),
        (PublicKey.load, "nowhere", "cannot read the key"),
    ):
        with pytest.raises(AuditError, match=match):
            load(tmp_path / name)
    (tmp_path / "k").chmod(0o644)
    SigningKey.load(tmp_path / "k")
    assert "can be read by other users" in caplog.text
