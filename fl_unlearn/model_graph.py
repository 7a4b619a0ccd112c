"""Models that inherit from one another in any way, not only in federated rounds; no Flower needed.

A model starts from one other or from the mean of several, is trained on somebody's data or on nobody's, and
is recorded with that: federated rounds, stages of incremental learning, workers of a distributed training,
fine-tuned copies. `graph_unlearning` then forgets in all of them at once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fl_unlearn.lineage import UMIG, Node, NodeKind
from fl_unlearn.plan import Parents, PlannedModel, ordered, weighted
from fl_unlearn.run_store import RunStore
from fl_unlearn.types import (
    LineageError,
    ModelMismatchError,
    Signature,
    StateDict,
    StoreError,
    signature_difference,
    signature_of,
)

Trained = nn.Module | StateDict
Progress = Callable[[int, int, str], None]
"""Called with how many models are done, how many there are in all, and the name of the next one."""


class ModelGraph:
    """A folder of models and of what each inherited from which. A context manager: it closes the store.

    Args:
        store: The folder, made when absent, or a store that is open already.

    Raises:
        StoreError: As `RunStore`.
    """

    def __init__(self, store: RunStore | str | Path) -> None:
        self.store = store if isinstance(store, RunStore) else RunStore(Path(store))

    @property
    def umig(self) -> UMIG:
        """The inheritance graph."""
        return self.store.umig

    def __enter__(self) -> ModelGraph:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the store."""
        self.store.close()

    def __contains__(self, name: object) -> bool:
        return name in self.umig

    def state(self, name: str) -> dict[str, torch.Tensor]:
        """The values of a model, as they are now.

        Raises:
            LineageError: If there is no such model.
            StoreError: If its checkpoint was not kept, or is damaged.
        """
        return dict(self.store.load(name).state)

    def start(self, parents: Parents) -> dict[str, torch.Tensor]:
        """What a child of these models starts from: a copy of the only one, or the weighted mean (`average`).

        Raises:
            LineageError: If there is no parent, one is unknown, or `plan.weighted` refuses them.
            StoreError: If a checkpoint was not kept, or is damaged.
        """
        shares = weighted(parents)
        if not shares:
            raise LineageError("a model without parents has nothing to start from; register it instead")
        return average((self.state(name), weight) for name, weight in shares.items())

    def register(
        self,
        name: str,
        model: Trained,
        *,
        parents: Parents = (),
        owner: str | None = None,
        examples: int | None = None,
        metadata: Mapping[str, Any] | None = None,
    ) -> Node:
        """Record a model that was made elsewhere, and keep it.

        Args:
            name: Its name; no other model's.
            model: The module, or its values.
            parents: What it inherits from; () for a model that began with new weights.
            owner: On whose data it was trained; None: on nobody's since its parents.
            examples: How many samples that were.
            metadata: Anything else, as JSON holds it.

        Raises:
            LineageError: If the name is taken, a parent unknown, the model none, or a value not finite.
            ModelMismatchError: If its tensors differ in name or shape from the other models'.
        """
        planned = PlannedModel(name, parents, owner)  # checks them
        state = _copied(name, model)
        made = [self.umig.node(parent).round for parent in planned.parents]
        _check_finite(name, state)
        self._check_tensors(name, state, self.store.signature() or signature_of(state))
        kind = NodeKind.TRAINED if owner else NodeKind.AGGREGATE if made else NodeKind.INITIAL
        return self.store.record(
            name,
            state,
            kind=kind,
            round_=1 + max(made, default=-1),
            parents=planned.parents,
            owner=owner,
            examples=examples,
            metadata=metadata,
        )

    def derive(
        self,
        name: str,
        parents: Parents,
        train: Callable[[dict[str, torch.Tensor]], Trained] | None = None,
        *,
        owner: str | None = None,
        examples: int | None = None,
        metadata: Mapping[str, Any] | None = None,
    ) -> Node:
        """Make a model from its parents and record it; one that is there already is not made again.

        Args:
            name: Its name.
            parents: One to continue from, or several to average.
            train: Gets the values to start from, gives the trained model; None: nothing is trained.
            owner: On whose data ``train`` trains; needed with it.
            examples: How many samples that are.
            metadata: Anything else, as JSON holds it.

        Raises:
            LineageError: If a model of that name has other parents or another owner, a parent is unknown, or
                only one of ``train`` and ``owner`` is given; and as `register`.
            ModelMismatchError: If what ``train`` gave has other tensors than its parents.
        """
        if (train is None) != (owner is None):
            raise LineageError(
                f"{name!r}: training and the owner of its data go together, got "
                f"{'no' if train is None else 'a'} training and owner {owner!r}"
            )
        planned = PlannedModel(name, parents, owner)
        if name in self:
            return self._recorded(name, planned.parents, owner=owner)
        state = self.start(planned.parents)
        model: Trained = state if train is None else train(state)
        return self.register(
            name, model, parents=planned.parents, owner=owner, examples=examples, metadata=metadata
        )

    def grow(
        self,
        plan: Iterable[PlannedModel],
        initial: Callable[[PlannedModel], Trained],
        train: Callable[[PlannedModel, dict[str, torch.Tensor]], Trained],
        *,
        examples: Mapping[str, int] | None = None,
        progress: Progress | None = None,
    ) -> list[Node]:
        """Make every model of a plan that is not there yet; what was interrupted goes on where it was.

        Args:
            plan: The models, in any order.
            initial: Gives new weights for a model without parents; it is trained too if it has an owner.
                Where there are several, it is asked for each twice: their tensors are compared first.
            train: Gets a model's plan and what it starts from, gives the trained model.
            examples: Owner to how many samples it trains on.
            progress: Told before each model.

        Returns:
            The nodes, parents before children.

        Raises:
            LineageError: If the plan has a circle, a parent is missing, or a model that is there already was
                made otherwise; before anything is trained.
            ModelMismatchError: If new weights differ in their tensors from one another or from the graph's;
                before anything is trained. If a trained model does.
            StoreError: If a checkpoint to start from is not kept; before anything is trained.
        """
        models = ordered(plan, (node.name for node in self.umig.nodes()))
        there = {
            m.name: self._recorded(m.name, m.parents, owner=m.owner, trains=m.trains)
            for m in models
            if m.name in self
        }
        missing = [model for model in models if model.name not in there]
        self._check_sources(missing)
        self._check_new_weights([model for model in missing if not model.parents], initial)
        for done, model in enumerate(models):
            if progress is not None:
                progress(done, len(models), model.name)
            if model.name in there:
                continue
            start = self.start(model.parents) if model.parents else _copied(model.name, initial(model))
            there[model.name] = self.register(
                model.name,
                start if model.owner is None else train(model, start),
                parents=model.parents,
                owner=model.owner,
                examples=(examples or {}).get(model.owner or ""),
                metadata={"trains": model.trains} if model.owner else None,
            )
        return [there[model.name] for model in models]

    def owners_behind(self, name: str) -> list[str]:
        """Whose data a model has inherited: its own owner and its ancestors', sorted."""
        nodes = [self.umig.node(name), *self.umig.ancestors([name])]
        return sorted({n.owner for n in nodes if n.owner is not None})

    # ------------------------------------------------------------------ checks
    def _recorded(self, name: str, parents: Mapping[str, float], **how: str | None) -> Node:
        """The node of a model that is there already, if it was made like this."""
        node, before = self.umig.node(name), self.umig.parents(name)
        noted: dict[str, Any] = {**node.metadata, "owner": node.owner}
        odd = {key: noted[key] for key, value in how.items() if noted.get(key, value) != value}
        if before.keys() != parents.keys() or any(
            not math.isclose(weight, parents[parent], rel_tol=1e-9) for parent, weight in before.items()
        ):
            odd["parents"] = before
        if odd:
            wanted = {key: {**how, "parents": dict(parents)}[key] for key in odd}
            raise LineageError(
                f"{name!r} is recorded with {odd}, not with {wanted}; models are never rewritten: use "
                "another name or another folder"
            )
        return node

    def _check_sources(self, missing: Sequence[PlannedModel]) -> None:
        """That what the missing models start from is kept as a checkpoint, or will be."""
        keep, made = self.store.keep, {model.name for model in missing}
        lost = [p for m in missing for p in m.parents if p not in made and self.store.info(p) is None]
        if not keep.aggregates or keep.every > 1:
            lost += [model.name for model in missing if model.parents and model.owner is None]
        if lost:
            raise StoreError(
                f"{self.store.folder} keeps no checkpoint of {lost[0]!r} to start others from, under {keep}; "
                "use another folder, and keep all means"
            )

    def _check_new_weights(
        self, models: Sequence[PlannedModel], initial: Callable[[PlannedModel], Trained]
    ) -> None:
        """That all of them have the same tensors, before the first of them is trained."""
        known = self.store.signature()
        if len(models) > (known is None):
            for model in models:
                state = _copied(model.name, initial(model))
                known = known or signature_of(state)
                self._check_tensors(model.name, state, known)

    def _check_tensors(self, name: str, state: StateDict, known: Signature) -> None:
        if (difference := signature_difference(known, signature_of(state))) is not None:
            raise ModelMismatchError(
                f"{name!r} differs from the other models of {self.store.folder}: {difference}. Models that "
                "inherit from one another have the same tensors; where their labels differ, give all of them "
                "one head over the union of the labels"
            )


def average(models: Iterable[tuple[StateDict, float]]) -> dict[str, torch.Tensor]:
    """The mean of models, weighted; in float64, then to the dtype of the first; whole numbers are rounded.

    Args:
        models: Values and weight, > 0, of each.

    Raises:
        LineageError: If there is none, a weight is not above 0, tensors differ, or a mean is not finite.
    """
    given = list(models)
    if not given:
        raise LineageError("there is no model to average")
    if odd := [weight for _, weight in given if not 0 < weight < math.inf]:
        raise LineageError(f"the weight of a model must be a finite number above 0, got {odd[0]!r}")
    first = given[0][0]
    for state, _ in given[1:]:
        if (difference := signature_difference(signature_of(first), signature_of(state))) is not None:
            raise LineageError(f"models to be averaged must have the same tensors: {difference}")
    if len(given) == 1:  # whole numbers of 64 bits do not fit into a float64
        _check_finite("the mean", first)
        return _copied("the mean", first)
    total, out = sum(weight for _, weight in given), {}
    for name, tensor in first.items():
        mean = torch.zeros(tensor.shape, dtype=torch.float64)
        for state, weight in given:
            mean += (weight / total) * state[name].detach().cpu().double()
        out[name] = (mean if tensor.is_floating_point() else mean.round()).to(tensor.dtype)
        _check_finite("the mean", {name: mean})
    return out


def _check_finite(name: str, state: StateDict) -> None:
    for key, tensor in state.items():
        if odd := int((~tensor.isfinite()).sum()):
            raise LineageError(
                f"{name!r}: {odd} of {tensor.numel()} values of {key!r} are not finite: training diverged; "
                "lower the learning rate (a mask of infinities belongs in a buffer that is not persistent)"
            )


def _copied(name: str, model: Trained) -> dict[str, torch.Tensor]:
    """A copy of a model's values, on the CPU."""
    state = model.state_dict() if isinstance(model, nn.Module) else model
    if not isinstance(state, Mapping):
        raise LineageError(f"{name!r} must be a module or its state_dict, got {type(model).__name__}")
    for key, tensor in state.items():
        if not isinstance(tensor, torch.Tensor):
            raise LineageError(f"{name!r} must hold tensors alone, {key!r} is {type(tensor).__name__}")
    return {key: tensor.detach().cpu().clone() for key, tensor in state.items()}
