"""Models that inherit from one another in any way, not only in federated rounds; no Flower needed.

A model starts from one other or from the mean of several, is trained on somebody's data or on nobody's, and
is recorded with that: federated rounds, stages of incremental learning, workers of a distributed training,
fine-tuned copies. `graph_unlearning` then forgets in all of them at once.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import nn

from fl_unlearn.lineage import UMIG, Node, NodeKind
from fl_unlearn.plan import Parents, PlannedModel, ordered, weighted
from fl_unlearn.run_store import RunStore
from fl_unlearn.types import LineageError, StateDict, signature_difference, signature_of

log = logging.getLogger(__name__)

Trained = nn.Module | StateDict
Progress = Callable[[int, int, str], None]
"""Called with how many models are done, how many there are in all, and the name of the next one."""


class ModelGraph:
    """A folder of models and of what each inherited from which.

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

    def __exit__(
        self, kind: type[BaseException] | None, e: BaseException | None, tb: TracebackType | None
    ) -> None:
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
        """What a child of these models starts from: a copy of the only one, or the weighted mean.

        Raises:
            LineageError: If there is no parent, or one is unknown or names are given twice.
        """
        shares = weighted(parents)
        if not shares:
            raise LineageError("a model without parents has nothing to start from; register it instead")
        return average([(self.state(name), weight) for name, weight in shares.items()])

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
            LineageError: If the name is taken or a parent unknown.
            ModelMismatchError: If its tensors differ in name or shape from the other models'.
        """
        shares = weighted(parents)
        for parent in shares:
            self.umig.node(parent)  # an unknown one is an error before anything is written
        kind = NodeKind.TRAINED if owner else NodeKind.AGGREGATE if shares else NodeKind.INITIAL
        stage = 1 + max((self.umig.node(p).round for p in shares), default=-1)
        return self.store.record(
            name,
            _copied(model),
            kind=kind,
            round_=stage,
            parents=shares,
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
                only one of ``train`` and ``owner`` is given.
            ModelMismatchError: If what ``train`` gave has other tensors than its parents.
        """
        if (train is None) != (owner is None):
            raise LineageError(
                f"{name!r}: training and the owner of its data go together, got "
                f"{'no' if train is None else 'a'} training and owner {owner!r}"
            )
        shares = weighted(parents)
        if name in self.umig:
            return self._recorded(name, shares, owner)
        state = self.start(shares)
        model: Trained = train(dict(state)) if train is not None else state
        return self.register(name, model, parents=shares, owner=owner, examples=examples, metadata=metadata)

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
            train: Gets a model's plan and what it starts from, gives the trained model.
            examples: Owner to how many samples it trains on.
            progress: Told before each model.

        Returns:
            The nodes, parents before children.

        Raises:
            LineageError: If the plan has a circle, a parent is missing, or a model that is there already was
                made otherwise; before anything is trained.
        """
        models = ordered(plan, (n.name for n in self.umig.nodes()))
        for model in models:
            if model.name in self.umig:
                self._recorded(model.name, model.parents, model.owner)
        nodes = []
        for done, model in enumerate(models):
            if progress is not None:
                progress(done, len(models), model.name)
            if model.name in self.umig:
                nodes.append(self.umig.node(model.name))
                continue
            state: Trained = self.start(model.parents) if model.parents else _copied(initial(model))
            if model.owner is not None:
                state = train(model, dict(_copied(state)))
            count = (examples or {}).get(model.owner) if model.owner else None
            how = {"trains": model.trains} if model.owner else None
            nodes.append(
                self.register(
                    model.name, state, parents=model.parents, owner=model.owner, examples=count, metadata=how
                )
            )
        return nodes

    def owners_behind(self, name: str) -> list[str]:
        """Whose data a model has inherited: its own owner and its ancestors', sorted."""
        nodes = [self.umig.node(name), *self.umig.ancestors([name])]
        return sorted({n.owner for n in nodes if n.owner is not None})

    def _recorded(self, name: str, parents: Mapping[str, float], owner: str | None) -> Node:
        node, before = self.umig.node(name), self.umig.parents(name)
        if before.keys() != parents.keys() or node.owner != owner:
            raise LineageError(
                f"{name!r} is recorded with the parents {sorted(before)} and the owner {node.owner!r}, not "
                f"{sorted(parents)} and {owner!r}; models are never rewritten, use another name or folder"
            )
        return node


def average(models: Iterable[tuple[StateDict, float]]) -> dict[str, torch.Tensor]:
    """The mean of models, weighted; in float64, then back to each tensor's dtype.

    Args:
        models: Values and weight, > 0, of each.

    Raises:
        LineageError: If there is none, their tensors differ, or a mean is not finite.
    """
    given = list(models)
    if not given:
        raise LineageError("there is no model to average")
    first = given[0][0]
    for state, _ in given[1:]:
        if (difference := signature_difference(signature_of(first), signature_of(state))) is not None:
            raise LineageError(f"models to be averaged must have the same tensors: {difference}")
    if len(given) == 1:
        return {name: tensor.detach().clone() for name, tensor in first.items()}
    total, out = sum(weight for _, weight in given), {}
    for name, tensor in first.items():
        mean = torch.zeros(tensor.shape, dtype=torch.float64)
        for state, weight in given:
            mean += (weight / total) * state[name].detach().cpu().double()
        if not bool(mean.isfinite().all()):
            raise LineageError(f"the mean of {name!r} is not finite: a model has diverged")
        out[name] = (mean if tensor.is_floating_point() else mean.round()).to(tensor.dtype)
    return out


def _copied(model: Trained) -> StateDict:
    state = model.state_dict() if isinstance(model, nn.Module) else model
    return {name: tensor.detach().cpu().clone() for name, tensor in state.items()}
