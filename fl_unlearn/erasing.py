"""The erasure of a request: layer by layer, statistics from the clients, one map each from the server."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence

import torch

from fl_unlearn import evidence
from fl_unlearn.dampen import DampeningUpdate, apply_update
from fl_unlearn.erase import NothingToEraseError, erasure
from fl_unlearn.erase_layers import folded
from fl_unlearn.layer_stats import pool
from fl_unlearn.run_store import RunStore
from fl_unlearn.statistics_gather import LayerAnswers
from fl_unlearn.types import ForgetRequest, StateDict, UnlearnSettings, signature_of
from fl_unlearn.update import ErasedLayer

log = logging.getLogger(__name__)

Ask = Callable[[Sequence[dict[str, torch.Tensor]], int], LayerAnswers]
"""Asks clients for their statistics of one hidden layer (a number, in the order of a forward pass) in each of
some models."""


def erased(state: StateDict, erasures: Mapping[str, ErasedLayer]) -> dict[str, torch.Tensor]:
    """A model after some erasures; it shares the tensors that they do not touch."""
    return apply_update(state, DampeningUpdate({}, 1.0, 1.0, erasures))


def find_erasures(
    ask: Ask,
    request: ForgetRequest,
    settings: UnlearnSettings,
    store: RunStore,
    state: dict[str, torch.Tensor],
) -> dict[str, ErasedLayer]:
    """What is to be erased in which layer, in the order of a forward pass; layers with nothing are left out.

    Each layer's statistics are taken with the layers before it erased already. Nothing is changed.

    Args:
        ask: The way to the clients.
        request: What is to be forgotten.
        settings: How much is erased, and on how many models the statistics are taken.
        store: The run's store.
        state: The current global model.

    Raises:
        RequestError: As `evidence.holders`.
        NotEnoughAnswersError: If too few answers are usable, or a named client did not answer.
        EraseError: If the clients' model has no layer to erase in.
    """
    found: dict[str, ErasedLayer] = {}
    earlier: list[dict[str, torch.Tensor]] | None = None
    position, layers = 0, 1
    while position < layers:
        answers = ask([erased(state, found)], position)
        held = evidence.holders(request, store, answers.counts)
        hidden, layers = answers.layers, len(answers.layers)
        if earlier is None:
            affected = evidence.lineage(
                request, store, answers.counts, held, all_affected=settings.all_affected
            )[1]
            earlier = evidence.earlier_globals(store, affected, settings.erase_snapshots - 1)
        parts = [*answers.sums]
        if earlier:
            parts += ask([erased(s, found) for s in earlier], position).sums
        at = hidden[position]
        position += 1
        try:
            made = erasure(pool(parts), request.classes, strength=settings.erase_strength)
        except NothingToEraseError as e:  # the same request before, say
            log.warning("%r is left as it is: %s", at.layer, e)
            continue
        found[at.layer] = folded(at, made, signature_of(state))
        log.info("erasing %d directions of the %d outputs of %r", made.a.shape[1], at.width, at.layer)
    return found
