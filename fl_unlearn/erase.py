"""Closed-form erasure of classes from a hidden layer, folded into the layer's own weight and bias.

Least-squares concept erasure (LEACE: Belrose et al., NeurIPS 2023, arXiv 2306.03819, theorem 4.3): of all
affine maps after which no linear probe finds the classes, the one that changes the layer's output least.
With z the layer's output before its activation, mu and Sigma its mean and covariance over all data, and Q an
orthonormal basis of the span of Sigma^(-1/2) Cov(z, 1[y = c]) over the classes c,

    z  <-  T (z - mu) + mu,    T = I - s A B^T,    A = Sigma^(1/2) Q,    B = Sigma^(-1/2) Q,

with strength s = 1 for the whole of it. For z = W x + b that is  W <- T W  and  b <- T (b - mu) + mu.
All that is needed of the data are sums, which clients can send and a server can add.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass

import torch
from torch import Tensor

from .layer_stats import MAX_WIDTH, LayerSums
from .types import EraseError

CUTOFF = 1e-6
"""Directions in which the output varies less than this share of the largest variance are left alone."""

_FAINT = 1e-3  # multiple correlation with a class below which there is but rounding left to erase


class NothingToEraseError(EraseError):
    """The output does not vary with the classes, or was erased before."""


@dataclass(frozen=True, eq=False)
class Erasure:
    """The affine map  z <- z - s A B^T (z - mu)  of a layer's output.

    Attributes:
        a: A, float64, shape (d, k).
        b: B, float64, shape (d, k); B^T A is the identity.
        mean: mu, float64, shape (d,).
        strength: s, in (0, 1].
    """

    a: Tensor
    b: Tensor
    mean: Tensor
    strength: float = 1.0

    def validate(self) -> None:
        """Check what came from elsewhere.

        Raises:
            EraseError: If shapes or values are not those of an erasure.
        """
        d, k = self.a.shape if self.a.ndim == 2 else (0, 0)
        shapes = [list(t.shape) for t in (self.a, self.b, self.mean)]
        if not 0 < k <= d <= MAX_WIDTH or self.b.shape != (d, k) or self.mean.shape != (d,):
            raise EraseError(f"A, B and mu of an erasure have shapes (d, k), (d, k) and (d,); got {shapes}")
        if any(t.dtype != torch.float64 or not bool(t.isfinite().all()) for t in (self.a, self.b, self.mean)):
            raise EraseError("A, B and mu of an erasure must be finite float64 values")
        if not (math.isfinite(self.strength) and 0 < self.strength <= 1):
            raise EraseError(f"the strength of an erasure lies above 0, at most 1; got {self.strength!r}")
        if not bool(((self.b.T @ self.a) - torch.eye(k, dtype=torch.float64)).abs().max() < 1e-6):
            raise EraseError("B^T A of an erasure must be the identity")

    def linear(self, values: Tensor) -> Tensor:
        """T times ``values``, float64 of shape (d, n): what becomes of a weight, or of a step of training."""
        a, b = self.a.to(values.device), self.b.to(values.device)
        return values - self.strength * (a @ (b.T @ values))

    def squared(self, values: Tensor) -> Tensor:
        """What becomes of the mean squares ``values``, shape (d, n), of independent numbers that T maps.

        It is the product with T's element-wise square, from factors: T_ij^2 = [i = j] (1 - 2 s (A B^T)_ii)
        + s^2 (A B^T)_ij^2.
        """
        a, b = self.a.to(values.device), self.b.to(values.device)
        diagonal = (a * b).sum(1, keepdim=True)
        aa, bb = ((m[:, :, None] * m[:, None, :]).flatten(1) for m in (a, b))
        out = values * (1 - 2 * self.strength * diagonal) + self.strength**2 * (aa @ (bb.T @ values))
        return out.clamp_(min=0)  # rounding

    @property
    def shift(self) -> Tensor:
        """(I - T) mu, shape (d,): what is added after the linear part."""
        return self.strength * (self.a @ (self.b.T @ self.mean))


def erasure(
    sums: LayerSums, classes: Collection[int], *, strength: float = 1.0, cutoff: float = CUTOFF
) -> Erasure:
    """The least change of a layer's output after which no linear probe finds ``classes`` in it.

    Args:
        sums: Statistics of the output over all data, the named classes apart.
        classes: The labels to erase; one that has no observation is passed over.
        strength: s, in (0, 1]; (1 - s) of the covariance with each class is left.
        cutoff: Where Sigma has an eigenvalue of at most this share of its largest, its inverse is taken as
            0: in such directions (dead units, sums of others) the output does not vary but for rounding,
            and the little it does may be large in an earlier model that the same map is applied to.

    Returns:
        The map; its rank k is at most the number of classes.

    Raises:
        NothingToEraseError: If the output does not vary with the classes.
        EraseError: If the strength is out of range, or no class has observations, or a class has all.
    """
    if not (math.isfinite(strength) and 0 < strength <= 1):
        raise EraseError(f"the strength of an erasure lies above 0, at most 1; got {strength!r}")
    n, mean = sums.count, sums.mean
    held = [c for c in classes if 0 < sums.counts.get(c, 0) < n]
    if not held:
        counts = {c: sums.counts.get(c, 0) for c in classes}
        raise EraseError(f"nothing to erase: of {n} observations, those of the classes are {counts}")
    covariance = sums.second / n - torch.outer(mean, mean)
    if not bool(covariance.isfinite().all()):
        raise EraseError("the statistics are too large to add: a client's outputs, or its answer, diverged")
    columns = []
    for c in held:
        share = sums.counts[c] / n
        # Divided by the indicator's spread, the whitened column's length is the multiple correlation.
        columns.append((sums.sums[c] / n - share * mean) / math.sqrt(share * (1 - share)))
    values, vectors = torch.linalg.eigh((covariance + covariance.T) / 2)
    kept = values > cutoff * max(float(values[-1]), 0.0)
    roots, vectors = values[kept].sqrt(), vectors[:, kept]
    whitened = (vectors.T @ torch.stack(columns, dim=1)) / roots[:, None]
    basis, lengths, _ = torch.linalg.svd(whitened, full_matrices=False)
    basis = basis[:, lengths > _FAINT]
    if not basis.shape[1]:
        raise NothingToEraseError(f"nothing to erase: the output does not vary with the classes {held}")
    made = Erasure(
        (vectors @ (roots[:, None] * basis)).cpu(),
        (vectors @ (basis / roots[:, None])).cpu(),
        mean.cpu(),
        float(strength),
    )
    made.validate()
    return made
