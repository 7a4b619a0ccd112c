"""Texts as rows of token ids: a plain tokenizer, and a vocabulary counted on the training texts."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from itertools import islice

import numpy as np
import torch
from torch import Tensor

PADDING = 0
"""Id that fills a row behind its text."""

UNKNOWN = 1
"""Id of every token that the vocabulary lacks."""

FIRST_WORD = 2
"""Id of the most frequent token."""

_TOKEN = re.compile(r"\w+|[^\w\s]")


def tokenize(text: str, limit: int) -> list[str]:
    """The first ``limit`` tokens of a text in lower case: words, numbers and single punctuation marks."""
    return [found.group() for found in islice(_TOKEN.finditer(text.lower()), limit)]


def count_words(texts: Iterable[str], limit: int, size: int) -> dict[str, int]:
    """Token to id, from `FIRST_WORD` up, the most frequent first and equally frequent ones in text order.

    Args:
        texts: The training texts; no other.
        limit: Tokens of each that are counted: those that a model sees.
        size: Ids in all, `PADDING` and `UNKNOWN` among them.
    """
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(tokenize(text, limit))
    ranked = sorted(counts, key=lambda token: (-counts[token], token))
    return {token: FIRST_WORD + place for place, token in enumerate(ranked[: size - FIRST_WORD])}


def encode(texts: Iterable[str], count: int, limit: int, words: Mapping[str, int]) -> Tensor:
    """Token ids of ``count`` texts: cut after ``limit`` tokens, filled up with `PADDING` at the end.

    A text without any token is one `UNKNOWN`, so that no row is nothing but padding.

    Returns:
        int64, shape (count, limit).
    """
    rows = np.full((count, limit), PADDING, np.int64)
    for row, text in zip(rows, texts, strict=True):
        ids = [words.get(token, UNKNOWN) for token in tokenize(text, limit)] or [UNKNOWN]
        row[: len(ids)] = ids
    return torch.from_numpy(rows)
