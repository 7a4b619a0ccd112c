"""BERT as a classifier, by the package ``transformers``, which only it needs."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from simulations.datasets.bundle import Inputs
from simulations.models.errors import ModelError


class Bert(nn.Module):
    """BERT (Devlin et al. 2019, arXiv 1810.04805) with a linear head on its pooled first token.

    Its values have the names that ``BertForSequenceClassification`` of transformers gives them.

    Args:
        config: A ``transformers.BertConfig``.
        num_classes: Number of outputs.
    """

    def __init__(self, config: Any, num_classes: int) -> None:
        super().__init__()
        self.bert = _transformers().BertModel(config)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.classifier = nn.Linear(config.hidden_size, num_classes)
        nn.init.normal_(self.classifier.weight, 0.0, config.initializer_range)
        nn.init.zeros_(self.classifier.bias)

    def forward(self, ids: Tensor) -> Tensor:
        """Logits (N, num_classes) of token ids (N, tokens), 0 being padding."""
        # The first token is always seen, lest an empty text has nothing to attend to.
        seen = (ids != 0) | (torch.arange(ids.shape[1], device=ids.device) == 0)
        # transformers takes a mask of this form as it is; for others it looks into the values, which neither
        # vmap nor the recorded pass of a Fisher can follow.
        weight = self.classifier.weight
        unseen = torch.full_like(seen, torch.finfo(weight.dtype).min, dtype=weight.dtype)
        mask = unseen.masked_fill(seen, 0.0)[:, None, None, :].expand(-1, 1, ids.shape[1], -1)
        pooled = self.bert(input_ids=ids, attention_mask=mask).pooler_output
        logits: Tensor = self.classifier(self.dropout(pooled))
        return logits


def bert(inputs: Inputs, num_classes: int, small: bool) -> nn.Module:
    """A `Bert` of BERT-base's sizes; small: 2 layers, 64 wide."""
    (tokens,) = inputs.shape
    sizes = {"max_position_embeddings": max(512, tokens)}
    if small:
        sizes = {
            "max_position_embeddings": tokens,
            "hidden_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "intermediate_size": 128,
        }
    return Bert(_transformers().BertConfig(vocab_size=inputs.vocabulary, **sizes), num_classes)


def _transformers() -> Any:
    try:
        import transformers
    except ImportError as e:
        raise ModelError(
            "bert needs the package transformers, which is not installed; install it with: "
            "pip install 'fl-unlearn[bert]'"
        ) from e
    return transformers
