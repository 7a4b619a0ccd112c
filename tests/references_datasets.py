"""Slow and obvious versions of what `simulations.datasets` computes."""

from __future__ import annotations

import numpy as np


def tokens_of(text):
    """Words, numbers and single punctuation marks in lower case, found character by character."""
    found, word = [], ""
    for character in text.lower() + " ":
        if character.isalnum() or character == "_":
            word += character
            continue
        if word:
            found.append(word)
            word = ""
        if not character.isspace():
            found.append(character)
    return found


def token_ids(train, texts, limit, size):
    """Rows of ids of `texts`, by the words of `train`: 0 is padding, 1 unknown, 2 the most frequent."""
    seen = [token for text in train for token in tokens_of(text)[:limit]]
    ranked = sorted(set(seen), key=lambda token: (-seen.count(token), token))[: size - 2]
    rows = []
    for text in texts:
        row = [2 + ranked.index(token) if token in ranked else 1 for token in tokens_of(text)[:limit]] or [1]
        rows.append(row + [0] * (limit - len(row)))
    return rows


def colour_statistics(pictures):
    """Mean and standard deviation of each colour of uint8 pictures of shape (N, 3, H, W), in 0..1."""
    values = [[float(v) / 255 for v in np.asarray(pictures)[:, c].ravel()] for c in range(3)]
    means = [sum(v) / len(v) for v in values]
    stds = [(sum((x - mean) ** 2 for x in v) / len(v)) ** 0.5 for v, mean in zip(values, means, strict=True)]
    return means, stds
