"""Sums that nobody sees the terms of: each client adds masks, one for every other, that cancel in the sum.

The idea of Bonawitz et al. 2017 ("Practical Secure Aggregation for Privacy-Preserving Machine Learning")
without secret sharing: every two clients agree on a key (X25519), expand it (ChaCha20), and one adds what the
other subtracts, modulo 2^64. When a client drops out, its masks do not cancel, nothing can be read, and the
others must be asked again, which is cheap here: one answer each, and no training. Protects against a server
that is curious and follows the protocol, and against clients that do not join with it; a server that makes
clients up, or tells each of other ones, learns what it likes.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from numpy.typing import NDArray

from fl_unlearn.types import AnswerError, RequestError

KEY_BYTES = 32
FRACTION_BITS = 32
"""Values are whole multiples of 2^-32; a sum of all clients must stay below 2^31 in magnitude."""
LARGEST = 2.0 ** (63 - FRACTION_BITS)
FEWEST = 3
"""Among two clients, each could subtract its own part from the sum."""

Masked = NDArray[np.uint64]


class MaskKey:
    """One client's key for one sum; never use it for two.

    Args:
        private: The key, of 32 bytes; None: a new one.
    """

    def __init__(self, private: bytes | None = None) -> None:
        self._key = X25519PrivateKey.from_private_bytes(private) if private else X25519PrivateKey.generate()

    @property
    def private(self) -> bytes:
        """To be kept until the sum is asked for."""
        return self._key.private_bytes_raw()

    @property
    def public(self) -> bytes:
        """To be told to the others."""
        return self._key.public_key().public_bytes_raw()

    def mask(self, own: str, publics: Mapping[str, bytes], values: NDArray[np.float64]) -> Masked:
        """Fixed-point values under this client's masks.

        Args:
            own: This client's name.
            publics: All clients of the sum to their public keys, this one included.
            values: What is to be added, shape (K,).

        Raises:
            RequestError: If there are too few clients, this one is not among them, or a key is unusable.
            AnswerError: If a value is not finite or too large.
        """
        if len(publics) < FEWEST or len(set(publics.values())) != len(publics):
            raise RequestError(
                f"a masked sum needs {FEWEST} clients or more with keys of their own, got {len(publics)} "
                f"with {len(set(publics.values()))} keys"
            )
        if publics.get(own) != self.public:
            raise RequestError(f"client {own!r} is not in the masked sum with the key that it gave")
        total = encode(values, len(publics))
        for other, public in publics.items():
            if other == own:
                continue
            stream = self._stream(own, other, public, len(total))
            total = total + stream if own < other else total - stream
        return total

    def _stream(self, own: str, other: str, public: bytes, length: int) -> Masked:
        try:
            shared = self._key.exchange(X25519PublicKey.from_public_bytes(public))
        except ValueError as e:
            raise RequestError(f"the mask key of client {other!r} cannot be used: {e}") from e
        names = b"\0".join(sorted((own.encode(), other.encode())))
        derived = HKDF(SHA256(), KEY_BYTES, salt=None, info=b"fl-unlearn mask\0" + names).derive(shared)
        zeros = bytes(8 * length)
        data = Cipher(algorithms.ChaCha20(derived, bytes(16)), mode=None).encryptor().update(zeros)
        return np.frombuffer(data, dtype="<u8").astype(np.uint64)


def encode(values: NDArray[np.float64], clients: int) -> Masked:
    """Values in fixed point, modulo 2^64.

    Raises:
        AnswerError: If a value is not finite, or so large that the sum of so many could overflow.
    """
    largest = LARGEST / max(1, clients)
    if values.size and not np.all(np.abs(values) < largest):  # NaN compares false
        raise AnswerError(f"a value of a masked sum must be finite and below {largest:g} in magnitude")
    return np.rint(values * 2.0**FRACTION_BITS).astype(np.int64).view(np.uint64)


def decode(total: Masked) -> NDArray[np.float64]:
    """The values of a sum whose masks have cancelled."""
    return total.view(np.int64).astype(np.float64) / 2.0**FRACTION_BITS
