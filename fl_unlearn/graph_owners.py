"""Who owns the data of a graph of models, as `graph_unlearning` asks them; and owners in this process."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import nn

from fl_unlearn.batches import sample, unpack
from fl_unlearn.dampen import DampeningUpdate
from fl_unlearn.fisher import FisherSums, fisher_diagonal
from fl_unlearn.types import REST, ClassScores, ForgetRequest, SettingsError, StateDict, UnlearnSettings
from fl_unlearn.verify import score_candidates


class Owners(Protocol):
    """Those who own the data: in this process, behind Flower, or anywhere else."""

    def counts(self, request: ForgetRequest) -> Mapping[str, Mapping[int, int]]:
        """Owner to its number of samples of each requested class, and of all that is kept (`types.REST`)."""

    def fishers(
        self, state: StateDict, request: ForgetRequest, settings: UnlearnSettings, owners: Sequence[str]
    ) -> Mapping[str, FisherSums]:
        """Owner to its Fisher sums of a model: a group for each requested class, and `types.REST`."""

    def scores(
        self,
        state: StateDict,
        request: ForgetRequest,
        settings: UnlearnSettings,
        base: DampeningUpdate,
        owners: Sequence[str],
    ) -> Mapping[str, Sequence[ClassScores]]:
        """Owner to its scores of a model: as it is, then under each candidate of ``settings.grid``."""


class LocalOwners:
    """Owners in this process.

    Args:
        build: Builds the model; its values do not matter.
        data: Owner to its batches of (inputs, labels), as `batches.unpack` takes them; gone through often.
        device: Where to compute.

    Raises:
        SettingsError: If an owner's batches can be gone through only once.
    """

    def __init__(
        self,
        build: Callable[[], nn.Module],
        data: Mapping[str, Iterable[Any]],
        *,
        device: torch.device | str = "cpu",
    ) -> None:
        if once := [owner for owner, batches in data.items() if isinstance(batches, Iterator)]:
            raise SettingsError(f"{once[0]!r}: batches are gone through often; use a DataLoader or a list")
        self._build, self._data, self._device = build, data, torch.device(device)

    def counts(self, request: ForgetRequest) -> dict[str, dict[int, int]]:
        """See `Owners.counts`."""
        found = {}
        for owner, batches in self._data.items():
            labels = torch.cat([torch.zeros(0, dtype=torch.int64), *(unpack(b)[1].cpu() for b in batches)])
            named = not request.clients or owner in request.clients
            own = {c: int((labels == c).sum()) if named else 0 for c in request.classes}
            found[owner] = {**own, REST: len(labels) - sum(own.values())}
        return found

    def fishers(
        self, state: StateDict, request: ForgetRequest, settings: UnlearnSettings, owners: Sequence[str]
    ) -> dict[str, FisherSums]:
        """See `Owners.fishers`."""
        model = self._model(state)
        return {
            owner: fisher_diagonal(
                model,
                self._data[owner],
                kind=settings.fisher_kind,
                scope=settings.fisher_scope,
                head=settings.head,
                keep_classes=request.classes if not request.clients or owner in request.clients else (),
                reference_share=settings.reference_share,
                device=self._device,
            )
            for owner in owners
        }

    def scores(
        self,
        state: StateDict,
        request: ForgetRequest,
        settings: UnlearnSettings,
        base: DampeningUpdate,
        owners: Sequence[str],
    ) -> dict[str, list[ClassScores]]:
        """See `Owners.scores`."""
        model, found = self._model(state), {}
        candidates = [None, *(base.variant(t, lam) for t, lam in settings.grid)]
        for owner in owners:
            data = sample(self._data[owner], request.classes, settings.calibration_samples)
            found[owner] = score_candidates(model, data, candidates, device=self._device, head=settings.head)
        return found

    def _model(self, state: StateDict) -> nn.Module:
        model = self._build()
        model.load_state_dict(dict(state))
        return model.to(self._device).eval()
