"""Multi-head attention made of ``linear`` calls that keep the samples in dimension 0.

The same as ``torch.nn.functional.multi_head_attention_forward``, which merges dimensions before its last
projection. A packed projection weight is used whole where query, key and value are one tensor, and otherwise
by its parts along dimension 0, as ``split`` gives them; so is its bias, and that of separate weights.
"""

from __future__ import annotations

import inspect
import math
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

_ARGUMENTS = inspect.signature(functional.multi_head_attention_forward)


def attention(*args: Any, **kwargs: Any) -> Any:
    """Takes and returns what ``multi_head_attention_forward`` does.

    It returns NotImplemented for dropout, static keys or values, and shapes that do not fit together.
    """
    bound = _ARGUMENTS.bind(*args, **kwargs)
    bound.apply_defaults()
    a = SimpleNamespace(**bound.arguments)
    batched = a.query.dim() == 3
    if not batched:
        _add_batch(a)
    if not _fits(a):
        return NotImplemented
    first = {id(t): t.transpose(0, 1) for t in (a.query, a.key, a.value)}  # the same stay the same
    q, k, v = _projected(a, *(first[id(t)] for t in (a.query, a.key, a.value)))
    causal = a.is_causal and a.key_padding_mask is None and not a.need_weights
    mask = _mask(a, causal)
    extra = [a.bias_k, a.bias_v] if a.bias_k is not None else []
    if extra:
        k, v = (torch.cat([t, b.expand(len(t), 1, -1)], 1) for t, b in zip((k, v), extra, strict=True))
    if a.add_zero_attn:
        k, v = (functional.pad(t, (0, 0, 0, 1)) for t in (k, v))
    if mask is not None:  # nothing of what was added is masked
        mask = functional.pad(mask, (0, k.shape[1] - mask.shape[-1]))
    q, k, v = (t.view(*t.shape[:2], a.num_heads, -1).transpose(1, 2) for t in (q, k, v))
    weights = None
    if a.need_weights:
        scores = (q * math.sqrt(1.0 / q.shape[-1])) @ k.transpose(-2, -1)
        weights = (scores if mask is None else scores + mask).softmax(-1)
        out = weights @ v
        weights = weights.mean(1) if a.average_attn_weights else weights
    else:
        out = functional.scaled_dot_product_attention(q, k, v, mask, is_causal=causal)
    out = functional.linear(out.transpose(1, 2).flatten(2), a.out_proj_weight, a.out_proj_bias)
    if not batched:
        return out.squeeze(0), None if weights is None else weights.squeeze(0)
    return out.transpose(0, 1), weights


def _add_batch(a: SimpleNamespace) -> None:
    one = {id(t): t.unsqueeze(1) for t in (a.query, a.key, a.value)}
    a.query, a.key, a.value = (one[id(t)] for t in (a.query, a.key, a.value))
    if a.key_padding_mask is not None:
        a.key_padding_mask = a.key_padding_mask.unsqueeze(0)


def _fits(a: SimpleNamespace) -> bool:
    if a.static_k is not None or a.static_v is not None or (a.training and a.dropout_p > 0):
        return False
    if any(t.dim() != 3 for t in (a.query, a.key, a.value)):
        return False
    (length, n, size), (other, *_) = a.query.shape, a.key.shape
    masks = [(length, other), (n * a.num_heads, length, other)]
    return (
        a.key.shape[:2] == a.value.shape[:2] == (other, n)
        and size == a.embed_dim_to_check
        and size % a.num_heads == 0
        and (a.bias_k is None) == (a.bias_v is None)
        and (a.attn_mask is None or tuple(a.attn_mask.shape) in masks)
        and (a.key_padding_mask is None or a.key_padding_mask.shape == (n, other))
        and not (a.is_causal and a.attn_mask is None)
    )


def _projected(a: SimpleNamespace, query: Tensor, key: Tensor, value: Tensor) -> list[Tensor]:
    """Query, key and value after their projections, each (N, length, E)."""
    w, b, size = a.in_proj_weight, a.in_proj_bias, query.shape[-1]
    if a.use_separate_proj_weight:
        each = [a.q_proj_weight, a.k_proj_weight, a.v_proj_weight]
        biases = [None] * 3 if b is None else b.chunk(3)
        return [functional.linear(*one) for one in zip((query, key, value), each, biases, strict=True)]
    if query is key and key is value:
        return list(functional.linear(query, w, b).chunk(3, -1))
    sizes = [size, 2 * size] if key is value else [size] * 3
    inputs = [query, key] if key is value else [query, key, value]
    biases = [None] * len(sizes) if b is None else torch.split(b, sizes)
    parts = zip(inputs, torch.split(w, sizes), biases, strict=True)
    return [t for one in parts for t in torch.split(functional.linear(*one), size, -1)]


def _mask(a: SimpleNamespace, causal: bool) -> Tensor | None:
    """Both masks as one to add to the scores, of shape (N or 1, heads or 1, L or 1, S), or None."""

    def added(mask: Tensor) -> Tensor:
        if mask.is_floating_point():
            return mask
        return torch.zeros_like(mask, dtype=a.query.dtype).masked_fill_(mask, -torch.inf)

    mask = None
    if a.attn_mask is not None and not causal:
        mask = added(a.attn_mask)
        mask = mask.view(-1, a.num_heads if mask.dim() == 3 else 1, *mask.shape[-2:])
    if a.key_padding_mask is not None:
        padding = added(a.key_padding_mask)[:, None, None]
        mask = padding if mask is None else mask + padding
    return mask
