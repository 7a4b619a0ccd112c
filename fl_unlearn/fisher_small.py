"""Uses of parameters whose per-sample gradient is cheap: biases, scales of norms, embeddings.

Every tensor here has the batch in dimension 0, and g is the gradient by the output of the call. Half
precision is raised to float32 first, float64 kept. What has no formula raises NotImplementedError with the
reason, so that the caller can take another way.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from .fisher_uses import Parts, Use


def _raised(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


# --------------------------------------------------------------------------- broadcast parameters
class BroadcastUse(Use):
    """A parameter added by broadcasting: a sample's gradient is g summed over what it is broadcast over.

    Biases of linear layers, convolutions and norms, positional embeddings, an expanded class token.

    Args:
        g: Gradient of the output, shape (N, ...).
        shape: The parameter's shape.
        axis: Dimension of ``g`` that the parameter's first one lies along, such as 1 for the bias of a
            convolution. None: the last ones match, as in ``x + parameter``.

    Raises:
        NotImplementedError: If the parameter has a value per row of the batch, or does not match ``g``.
    """

    def __init__(self, g: Tensor, shape: Sequence[int], axis: int | None = None) -> None:
        self.shape = tuple(shape)
        first = g.dim() - len(self.shape) if axis is None else axis
        after = g.dim() - first - len(self.shape)
        view = (1,) * first + self.shape + (1,) * after
        if first < 0 or after < 0 or any(p not in (1, d) for p, d in zip(view, g.shape, strict=True)):
            raise NotImplementedError(f"{list(self.shape)} does not broadcast to {list(g.shape)}")
        if view[0] != 1:
            raise NotImplementedError(f"a parameter of shape {list(self.shape)} has a value per row")
        over = [d for d in range(1, g.dim()) if view[d] == 1 and g.shape[d] != 1]
        g = g.sum(over, dtype=_raised(g.dtype)) if over else g.to(_raised(g.dtype))
        self._gradients = g.reshape(len(g), *self.shape)

    def gradients(self, rows: Tensor) -> Tensor:
        """See `Use.gradients`; they are known already."""
        return self._gradients[rows]


class ScaleUse(BroadcastUse):
    """A parameter multiplied by broadcasting: a sample's gradient is g · xhat, summed likewise.

    Args:
        xhat: What the parameter multiplies, of the shape of ``g`` or broadcast to it.
        g: Gradient of the output, shape (N, ...).
        shape: The parameter's shape.
        axis: As for `BroadcastUse`.

    Raises:
        NotImplementedError: As for `BroadcastUse`.
    """

    def __init__(self, xhat: Tensor, g: Tensor, shape: Sequence[int], axis: int | None = None) -> None:
        super().__init__(g.to(_raised(g.dtype)) * xhat, shape, axis)


def _normed(xhat: Tensor, g: Tensor, shape: Sequence[int], axis: int | None = None) -> BroadcastUse:
    """`ScaleUse` for an ``xhat`` that may be overwritten; a temporary less is a third of the time."""
    fits = torch.promote_types(xhat.dtype, g.dtype) == xhat.dtype
    return BroadcastUse(xhat.mul_(g), shape, axis) if fits else ScaleUse(xhat, g, shape, axis)


def batch_norm_use(x: Tensor, mean: Tensor, var: Tensor, eps: float, g: Tensor) -> BroadcastUse:
    """Weight of a batch norm (or an instance norm) that normalises with running statistics, shape (C,)."""
    dtype = _raised(x.dtype)
    use = _normed(x.to(dtype) - mean.to(dtype).view(-1, *(1,) * (x.dim() - 2)), g, mean.shape, 1)
    use._gradients *= (var.to(dtype) + eps).rsqrt()  # later than by the book, when there is less to scale
    return use


def layer_norm_use(x: Tensor, normalized_shape: Sequence[int], eps: float, g: Tensor) -> BroadcastUse:
    """Weight of a layer norm over the last dimensions."""
    xhat = functional.layer_norm(x.to(_raised(x.dtype)), list(normalized_shape), eps=eps)
    return _normed(xhat, g, normalized_shape)


def rms_norm_use(x: Tensor, normalized_shape: Sequence[int], eps: float | None, g: Tensor) -> BroadcastUse:
    """Weight of an RMS norm over the last dimensions; eps None is that of the input's dtype."""
    eps = torch.finfo(x.dtype).eps if eps is None else eps
    xhat = functional.rms_norm(x.to(_raised(x.dtype)), list(normalized_shape), eps=eps)
    return _normed(xhat, g, normalized_shape)


def group_norm_use(x: Tensor, num_groups: int, eps: float, g: Tensor) -> BroadcastUse:
    """Weight of a group norm, shape (C,); with C groups, of an instance norm by the input's statistics."""
    xhat = functional.group_norm(x.to(_raised(x.dtype)), num_groups, eps=eps)
    return _normed(xhat, g, x.shape[1:2], 1)


def prelu_use(x: Tensor, shape: Sequence[int], g: Tensor) -> ScaleUse:
    """Weight of a PReLU, one value or one a channel (dimension 1): it multiplies what is negative."""
    return ScaleUse(x.clamp(max=0), g, shape, 1 if x.dim() > 1 else None)


# --------------------------------------------------------------------------- embeddings
class EmbeddingUse(Use):
    """A table (V, D) that entries look up rows of: a sample's gradient is zero but for the rows it names.

    Entries of one sample that name the same row are summed before squaring; nothing of size V is formed for
    each sample.

    Args:
        tokens: The row that each entry looks up, int64, shape (E,).
        samples: The sample that each entry belongs to, int64, shape (E,).
        g: Gradients of the outputs, shape (M, D).
        source: The row of ``g`` that each entry takes, int64, shape (E,).
        scale: Factor of each entry, shape (E,). None: 1.
        size: Number of samples.
        shape: (V, D).
    """

    def __init__(
        self,
        tokens: Tensor,
        samples: Tensor,
        g: Tensor,
        source: Tensor,
        scale: Tensor | None,
        size: int,
        shape: Sequence[int],
    ) -> None:
        self.shape = tuple(shape)
        self._tokens, self._samples, self._g, self._source, self._scale = tokens, samples, g, source, scale
        self._entries = torch.bincount(samples, minlength=size)

    def _summed(self, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Position in ``rows``, row of the table, and gradient (U, D) of every pair that occurs."""
        place = torch.full_like(self._entries, -1)
        place[rows] = torch.arange(len(rows), device=rows.device)
        place = place[self._samples]
        chosen = (place >= 0).nonzero().squeeze(1)
        pairs, which = torch.unique(place[chosen] * self.shape[0] + self._tokens[chosen], return_inverse=True)
        g = self._g[self._source[chosen]].to(_raised(self._g.dtype))
        if self._scale is not None:
            g *= self._scale[chosen, None]
        summed = g.new_zeros(len(pairs), self.shape[1]).index_add_(0, which, g)
        return pairs // self.shape[0], pairs % self.shape[0], summed

    def gradients(self, rows: Tensor) -> Tensor:
        """See `Use.gradients`."""
        place, token, summed = self._summed(rows)
        out = summed.new_zeros(len(rows), *self.shape)
        out[place, token] = summed
        return out

    def add_squares(self, parts: Parts, budget: int) -> None:
        """See `Use.add_squares`."""
        for rows, total in parts:
            for some in self._split(rows, budget):
                _, token, summed = self._summed(some)
                total.index_add_(0, token, summed.double().square_())

    def _split(self, rows: Tensor, budget: int) -> Iterator[Tensor]:
        """``rows`` in pieces whose entries fit into the budget."""
        # An entry takes two rows of float32 and one of float64 (more for float64), and some indices.
        a_row = int(self._entries.max()) * (3 * 8 * self.shape[1] + 64) if len(rows) else 1
        yield from torch.split(rows, max(1, budget // max(1, a_row)))


def _refuse_lookup(max_norm: float | None, scale_grad_by_freq: bool) -> None:
    if max_norm is not None:
        raise NotImplementedError("an embedding with max_norm changes its weight while it is used")
    if scale_grad_by_freq:
        raise NotImplementedError("scale_grad_by_freq makes a sample's gradient depend on its batch")


def embedding_use(
    indices: Tensor,
    g: Tensor,
    shape: Sequence[int],
    padding_idx: int | None = None,
    max_norm: float | None = None,
    scale_grad_by_freq: bool = False,
) -> EmbeddingUse:
    """Weight of ``torch.nn.functional.embedding``; its other arguments make no difference to gradients.

    Args:
        indices: Shape (N, ...).
        g: Gradient of the output, shape (N, ..., D).
        shape: (V, D).
        padding_idx: Row that gets no gradient; negative ones count from the end.
        max_norm: As given to the call.
        scale_grad_by_freq: As given to the call.

    Raises:
        NotImplementedError: If max_norm or scale_grad_by_freq is set.
    """
    _refuse_lookup(max_norm, scale_grad_by_freq)
    tokens = indices.reshape(-1).long()
    source = torch.arange(len(tokens), device=tokens.device)
    samples = source // max(1, math.prod(indices.shape[1:]))
    if padding_idx is not None:
        source = (tokens != padding_idx % shape[0]).nonzero().squeeze(1)
        tokens, samples = tokens[source], samples[source]
    return EmbeddingUse(tokens, samples, g.reshape(-1, shape[1]), source, None, len(indices), shape)


def embedding_bag_use(
    indices: Tensor,
    g: Tensor,
    shape: Sequence[int],
    offsets: Tensor | None = None,
    max_norm: float | None = None,
    scale_grad_by_freq: bool = False,
    mode: str = "mean",
    per_sample_weights: Tensor | None = None,
    include_last_offset: bool = False,
    padding_idx: int | None = None,
) -> EmbeddingUse:
    """Weight of ``torch.nn.functional.embedding_bag`` where each bag is a sample.

    Args:
        indices: Shape (N, L), or (E,) with ``offsets``.
        g: Gradient of the output, shape (N, D).
        shape: (V, D).
        offsets: Where each bag starts; with ``include_last_offset`` also where the last one ends.
        max_norm: As given to the call.
        scale_grad_by_freq: As given to the call.
        mode: "sum" or "mean".
        per_sample_weights: Factor of each entry, of the shape of ``indices``.
        include_last_offset: See ``offsets``.
        padding_idx: Row that takes no part; negative ones count from the end.

    Raises:
        NotImplementedError: If max_norm or scale_grad_by_freq is set, or mode is another.
    """
    _refuse_lookup(max_norm, scale_grad_by_freq)
    if mode not in ("sum", "mean"):
        raise NotImplementedError(f"embedding_bag with mode {mode!r} has no formula")
    tokens, numbers = indices.reshape(-1).long(), torch.arange(len(g), device=g.device)
    if offsets is None:
        samples = numbers.repeat_interleave(indices.shape[1])
    else:
        ends = (
            offsets[1:]
            if include_last_offset
            else torch.cat([offsets[1:], offsets.new_tensor([len(tokens)])])
        )
        samples = numbers.repeat_interleave(ends - offsets[: len(ends)])
    scale = None if per_sample_weights is None else per_sample_weights.reshape(-1)
    if padding_idx is not None:
        kept = (tokens != padding_idx % shape[0]).nonzero().squeeze(1)
        tokens, samples, scale = tokens[kept], samples[kept], None if scale is None else scale[kept]
    if mode == "mean":
        sizes = torch.bincount(samples, minlength=len(g))
        scale = sizes.to(_raised(g.dtype)).reciprocal()[samples]
    return EmbeddingUse(tokens, samples, g, samples, scale, len(g), shape)
