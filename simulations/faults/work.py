"""What victims do to a store, and what must come of it, worked out with plain torch."""

from __future__ import annotations

import random
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cache

import torch

from fl_unlearn.dampen import DampeningUpdate, build_update
from fl_unlearn.run_store import RunStore
from fl_unlearn.store import KeepPolicy
from fl_unlearn.tensor_file import encode
from fl_unlearn.types import TensorSpec

CLIENTS = ("0", "1", "2")
KINDS = ("in place", "rewritten", "per model")
SHAPES: dict[str, tuple[tuple[int, ...], torch.dtype]] = {
    "z.weight": ((6, 20), torch.float32),
    "a.bias": ((6,), torch.float32),
    "steps": ((), torch.int64),
    "half": ((500,), torch.float16),
    "body": ((3000,), torch.float32),
}
TOUCHED = {"in place": ("z.weight", "half"), "rewritten": ("z.weight", "half", "body")}

State = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Open:
    """Open the store, after closing it where it is open."""


@dataclass(frozen=True)
class Round:
    """Append a round: every client's update and the aggregate. Round 0 is the initial model."""

    number: int


@dataclass(frozen=True)
class Apply:
    """Stage and commit an update on the models ``names``; one asked for before is repeated."""

    number: int
    kind: str
    names: tuple[str, ...]
    clients: tuple[str, ...]

    @property
    def label(self) -> str:
        """What tells the operation from others: per model, the store has one for each set of models."""
        models = f"/{zlib.crc32(' '.join(self.names).encode())}" if self.kind == "per model" else ""
        return f"{self.number}{models}"

    def update(self, name: str) -> DampeningUpdate:
        """The update that a model gets."""
        if self.kind == "per model":
            return make_update(1000 * self.number + 1 + zlib.crc32(name.encode()) % 3, "in place")
        return make_update(1000 * self.number, self.kind)

    @property
    def client_update(self) -> DampeningUpdate:
        """The update that clients get."""
        return make_update(1000 * self.number, TOUCHED_AS[self.kind])


@dataclass(frozen=True)
class Prune:
    """Drop the oldest checkpoints until no more than ``files`` are kept."""

    files: int


@dataclass(frozen=True)
class Settle:
    """A client confirms an operation."""

    label: str
    client: str


Action = Open | Round | Apply | Prune | Settle
TOUCHED_AS = {"in place": "in place", "rewritten": "rewritten", "per model": "in place"}
KEEP_ALL = KeepPolicy(client_updates=True)


@cache
def make_state(name: str) -> State:
    """The model ``name`` as it is recorded."""
    g = torch.Generator().manual_seed(zlib.crc32(name.encode()))
    return {n: (torch.randn(shape, generator=g) * 8).to(dtype) for n, (shape, dtype) in SHAPES.items()}


@cache
def make_update(seed: int, kind: str) -> DampeningUpdate:
    """An update for models as `make_state` makes them."""
    g = torch.Generator().manual_seed(seed)
    forget = {n: torch.rand(SHAPES[n][0], generator=g) + 0.1 for n in TOUCHED[kind]}
    reference = {n: torch.rand(SHAPES[n][0], generator=g) for n in TOUCHED[kind]}
    signature = {
        n: TensorSpec(shape, str(dtype).removeprefix("torch.")) for n, (shape, dtype) in SHAPES.items()
    }
    return build_update(forget, reference, threshold=0.5, dampening=0.9, signature=signature)


@cache
def file_size() -> int:
    """Bytes of a checkpoint's file."""
    return len(encode(make_state("g0")))


def names_of(round_: int) -> list[str]:
    """The models of a round in the order in which they are recorded."""
    return [*(f"r{round_}-{c}" for c in CLIENTS if round_), f"g{round_}"]


# ---------------------------------------------------------------------- doing it
def perform(store: RunStore, action: Action) -> None:
    """Do it, except for `Open`."""
    if isinstance(action, Round):
        _append(store, action.number)
    elif isinstance(action, Apply):
        from fl_unlearn import apply

        updates = {name: action.update(name) for name in action.names}
        staged = apply.stage(store, updates, action.client_update, workers=2)
        staged.commit({"label": action.label}, action.clients)
    elif isinstance(action, Prune):
        store.keep = replace(KEEP_ALL, byte_budget=action.files * file_size())
        store.prune()
    elif isinstance(action, Settle):
        digest = next(o.digest for o in store.operations.all() if o.request["label"] == action.label)
        store.operations.settle(digest, action.client)


def _append(store: RunStore, number: int) -> None:
    if number == 0:
        store.record("g0", make_state("g0"), kind="initial", round_=0)
        return
    with store.round():
        for client in CLIENTS:
            name = f"r{number}-{client}"
            parents = {f"g{number - 1}": 1.0}
            store.record(
                name, make_state(name), kind="client-update", round_=number, parents=parents, owner=client
            )
        weights = {f"r{number}-{c}": 1 / len(CLIENTS) for c in CLIENTS}
        name = f"g{number}"
        store.record(name, make_state(name), kind="aggregate", round_=number, parents=weights)


# ---------------------------------------------------------------------- what must come of it
@dataclass(frozen=True)
class Model:
    """A checkpoint as it must be: its tensors, and the digests of the updates that it had, in their order."""

    state: Mapping[str, torch.Tensor]
    updates: tuple[DampeningUpdate, ...] = ()


@dataclass(frozen=True)
class Expected:
    """A store as it must be after the actions so far; never changed, `after` gives the next.

    Attributes:
        rounds: How many rounds are recorded, that of the initial model included.
        kept: Name to checkpoint, oldest first.
        operations: Label to the operation as it was first decided.
        outstanding: (label, client) of what is not confirmed.
    """

    rounds: int = 0
    kept: Mapping[str, Model] = field(default_factory=dict)
    operations: Mapping[str, Apply] = field(default_factory=dict)
    outstanding: frozenset[tuple[str, str]] = frozenset()

    def after(self, action: Action) -> Expected:
        """The store after one more action."""
        if isinstance(action, Round):
            new = {name: Model(make_state(name)) for name in names_of(action.number)}
            return replace(self, rounds=self.rounds + 1, kept={**self.kept, **new})
        if isinstance(action, Apply):
            changed = {n: dampened(self.kept[n], action.update(n)) for n in action.names if n in self.kept}
            return replace(
                self,
                kept={**self.kept, **changed},
                operations={**self.operations, action.label: self.operations.get(action.label, action)},
                outstanding=self.outstanding | {(action.label, c) for c in action.clients},
            )
        if isinstance(action, Prune):
            newest = f"g{self.rounds - 1}"
            oldest = [n for n in self.kept if n not in ("g0", newest)]
            gone = set(oldest[: max(0, len(self.kept) - action.files)])
            return replace(self, kept={n: m for n, m in self.kept.items() if n not in gone})
        if isinstance(action, Settle):
            return replace(self, outstanding=self.outstanding - {(action.label, action.client)})
        return self


def dampened(model: Model, update: DampeningUpdate) -> Model:
    """The model after the update, which it gets once; halves are multiplied in single precision."""
    if any(u.digest == update.digest for u in model.updates):
        return model
    return Model(multiplied(model.state, update), (*model.updates, update))


def multiplied(state: Mapping[str, torch.Tensor], update: DampeningUpdate) -> State:
    """Every selected element of a state times its factor, once more."""
    out = dict(state)
    for name, entry in update.entries.items():
        factors = torch.ones(state[name].numel())
        factors[entry.indices.long()] = entry.factors
        product = state[name].float() * factors.reshape(state[name].shape)
        out[name] = product.to(state[name].dtype)
    return out


def plan(expected: Expected, rng: random.Random, length: int) -> list[Action]:
    """What a victim is to do with a store: open it, then ``length`` random things."""
    actions: list[Action] = [Open()]
    for _ in range(length):
        actions.append(_next(expected, rng))
        expected = expected.after(actions[-1])
    return actions


def _next(expected: Expected, rng: random.Random) -> Action:
    if expected.rounds < 2:
        return Round(expected.rounds)
    choice = rng.random()
    if choice < 0.3:
        return Round(expected.rounds)
    if choice < 0.4 and len(expected.kept) > 8:
        return Prune(rng.randint(5, 8))
    if choice < 0.45:
        return Open()
    if choice < 0.55 and expected.outstanding:
        return Settle(*rng.choice(sorted(expected.outstanding)))
    repeated = rng.random() < 0.25 and expected.operations
    number = len(expected.operations)
    kind = rng.choice(KINDS)
    if repeated:
        before = rng.choice(list(expected.operations.values()))
        number, kind = before.number, before.kind
    names = [n for n in expected.kept if n != "g0"]
    if rng.random() < 0.5:
        names = names[rng.randrange(len(names)) :]
    return Apply(number, kind, tuple(names), tuple(rng.sample(CLIENTS, rng.randint(0, 2))))
