"""Models for texts: token ids (N, tokens), 0 being padding. Where the padding stands makes no difference.

Every builder takes the texts' shape, the number of classes, and whether the smaller variant is wanted.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from simulations.datasets.bundle import Inputs
from simulations.models.bert import bert


def real_first(ids: Tensor) -> tuple[Tensor, Tensor]:
    """Token ids with the padding moved to the end.

    Args:
        ids: int64, shape (N, tokens).

    Returns:
        The ids, each text's in its order; and which are real, bool, shape (N, tokens, 1).
    """
    order = (ids == 0).to(torch.int8).argsort(dim=1, stable=True)
    ids = ids.gather(1, order)
    return ids, (ids != 0).unsqueeze(2)


def mean_over(values: Tensor, real: Tensor) -> Tensor:
    """The mean of (N, tokens, features) over each text's real tokens: (N, features), 0 for an empty text."""
    return (values * real).sum(1) / real.sum(1).clamp(min=1)


class Lstm(nn.Module):
    """Word-level LSTM: the mean of its outputs over a text's words goes into the head.

    The baseline of Zhang et al., NIPS 2015 (arXiv 1509.01626, section 3), where the Yahoo! Answers data set
    comes from; here its word vectors are learned.

    Args:
        vocabulary: How many token ids there are.
        num_classes: Number of outputs.
        embedding: Features of a token.
        hidden: Features of the LSTM.
    """

    def __init__(self, vocabulary: int, num_classes: int, embedding: int, hidden: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, embedding, padding_idx=0)
        self.lstm = nn.LSTM(embedding, hidden, batch_first=True)
        self.head = nn.Linear(hidden, num_classes)

    def forward(self, ids: Tensor) -> Tensor:
        """Logits (N, num_classes) of token ids (N, tokens)."""
        # It reads from left to right, so padding at the end changes none of a text's own outputs.
        ids, real = real_first(ids)
        outputs, _ = self.lstm(self.embedding(ids))
        logits: Tensor = self.head(mean_over(outputs, real))
        return logits


class GatedConvolutions(nn.Module):
    """Stacked gated convolutions with residuals: h + (h * W + b) ⊙ σ(h * V + c).

    Dauphin et al., ICML 2017 (arXiv 1612.08083, equation 1 and section 2). That is a language model, whose
    convolutions may not see the words to come; for the class of a whole text they are centred, and the mean
    over its words goes into the head. Without the paper's weight normalisation.

    Args:
        vocabulary: How many token ids there are.
        num_classes: Number of outputs.
        width: Features of a token in every layer.
        blocks: How many gated convolutions.
        kernel: How many tokens each of them sees; odd.
    """

    def __init__(self, vocabulary: int, num_classes: int, width: int, blocks: int, kernel: int = 3) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width, padding_idx=0)
        self.blocks = nn.ModuleList(
            nn.Conv1d(width, 2 * width, kernel, padding=kernel // 2) for _ in range(blocks)
        )
        self.head = nn.Linear(width, num_classes)

    def forward(self, ids: Tensor) -> Tensor:
        """Logits (N, num_classes) of token ids (N, tokens)."""
        ids, real = real_first(ids)
        h, mask = self.embedding(ids).transpose(1, 2), real.transpose(1, 2)
        for convolution in self.blocks:
            h = (h + functional.glu(convolution(h), dim=1)) * mask  # padding stays 0, as beyond the borders
        logits: Tensor = self.head(mean_over(h.transpose(1, 2), real))
        return logits


def lstm(inputs: Inputs, num_classes: int, small: bool) -> nn.Module:
    """An `Lstm` of the sizes of Zhang et al.: 300 and 512; small: 64 and 64."""
    embedding, hidden = (64, 64) if small else (300, 512)
    return Lstm(inputs.vocabulary, num_classes, embedding, hidden)


def gcnn(inputs: Inputs, num_classes: int, small: bool) -> nn.Module:
    """`GatedConvolutions`: 8 of 300 features; small: 2 of 64."""
    width, blocks = (64, 2) if small else (300, 8)
    return GatedConvolutions(inputs.vocabulary, num_classes, width, blocks)


TEXTS: dict[str, Callable[[Inputs, int, bool], nn.Module]] = {"lstm": lstm, "gcnn": gcnn, "bert": bert}
"""Models for texts, by name."""
