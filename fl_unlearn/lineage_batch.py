"""What is appended to the lineage, checked a column at a time: a thousand nodes cost little more than one.

Each check looks at a whole column with C-speed operations first; only a column that fails it, or that holds
unusual types, is looked at value by value, which finds the culprit.
"""

from __future__ import annotations

import json
import math
import operator
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from numbers import Real
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fl_unlearn.lineage_edges import EDGE, Edges
from fl_unlearn.lineage_file import text
from fl_unlearn.types import LineageError

Parents = Mapping[str, float] | Sequence[Mapping[str, float]]
Lookup = Callable[[list[str], int], tuple[NDArray[np.int64], NDArray[np.int64] | None]]


@dataclass(frozen=True)
class Batch:
    """Nodes of one kind and round that the lineage can hold; ``columns`` as far as they were given."""

    names: list[str]
    distinct: set[str]
    kind: str
    round: int
    columns: dict[str, list[Any]]


def checked(
    names: Iterable[str],
    kind: str,
    round_: int,
    owners: Iterable[str | None] | None,
    examples: Iterable[int | None] | None,
    digests: Iterable[str | None] | None,
    metadata: Iterable[Mapping[str, Any] | None] | None,
) -> Batch:
    """The batch with these columns, None where no node has a value.

    Raises:
        LineageError: If a value cannot be kept, a name comes twice, or a column has another length.
    """
    known = _texts("a name", _listed("names", names))
    distinct = set(known)
    if len(distinct) < len(known):
        twice = Counter(known).most_common(1)[0][0]
        raise LineageError(f"the name '{twice}' comes twice in one batch; names are unique")
    kind, round_ = text("a kind", kind), integer("a round", round_)
    columns: dict[str, list[Any]] = {}
    if owners is not None:
        columns["owner"] = _optional(_texts, "an owner", _listed("owners", owners))
    if examples is not None:
        columns["examples"] = _optional(_counts, "the number of examples", _listed("examples", examples))
    if digests is not None:
        columns["digest"] = _optional(_texts, "a digest", _listed("digests", digests))
    if metadata is not None:
        columns["metadata"] = [_json(values) for values in _listed("metadata", metadata)]
    for column, values in columns.items():
        if len(values) != len(known):
            raise LineageError(f"there are {len(known)} names and {len(values)} values for '{column}'")
    return Batch(known, distinct, kind, round_, columns)


def link(batch: Batch, first: int, parents: Parents, look: Lookup) -> Edges:
    """The edges into a batch whose nodes get the ids from ``first`` up; sorted by child, then parent.

    Args:
        batch: The nodes.
        first: Id of the first one.
        parents: One mapping of names to weights for all nodes, or one for each.
        look: Ids and rounds of nodes in the graph, given their names and the batch's round; a LineageError
            for others. None for the rounds says that none is above the batch's.

    Raises:
        LineageError: If a parent is unknown or newer, or a weight is not a finite number from 0 up.
    """
    shared = isinstance(parents, Mapping)
    each = [parents] if isinstance(parents, Mapping) else _listed("parents", parents)
    for mapping in each:
        if not isinstance(mapping, Mapping):
            raise LineageError(f"parents must map names to weights, such as {{'g0': 1.0}}; got {mapping!r}")
    if not shared and len(each) != len(batch.names):
        raise LineageError(f"there are {len(batch.names)} names and {len(each)} mappings of parents")
    above = list(chain.from_iterable(each))
    child = np.repeat(np.arange(first, first + len(each)), [len(mapping) for mapping in each])

    def edge(i: int) -> str:
        return f"from '{above[i]}' to '{batch.names[child[i] - first]}'"

    weight = _weights(list(chain.from_iterable(mapping.values() for mapping in each)), edge)
    parent, made = _resolved(batch, first, above, look)
    if made is not None and (late := made > batch.round).any():
        i = int(late.argmax())
        raise LineageError(
            f"'{batch.names[child[i] - first]}' (round {batch.round}) would be older than its parent "
            f"'{above[i]}' (round {made[i]}); a child's round must not be lower"
        )
    if (ahead := parent >= child).any():
        i = int(ahead.argmax())
        raise LineageError(
            f"the edge {edge(i)} is refused: a node cannot inherit from itself, nor from one that comes "
            "later in its batch; put parents first"
        )
    order = np.lexsort((parent, child))
    times = len(batch.names) if shared else 1
    edges = np.empty(times * len(order), EDGE)
    edges["child"] = np.repeat(np.arange(first, first + times), len(order)) if shared else child[order]
    edges["parent"], edges["weight"] = np.tile(parent[order], times), np.tile(weight[order], times)
    return edges


def _resolved(
    batch: Batch, first: int, above: list[str], look: Lookup
) -> tuple[NDArray[np.int64], NDArray[np.int64] | None]:
    """Ids and rounds (as `link`'s ``look``) of the parents, each in the graph or in the batch."""
    if batch.distinct.isdisjoint(above):
        return look(above, batch.round)
    ids = np.empty(len(above), np.int64)
    made = np.full(len(above), batch.round)
    own = dict(zip(batch.names, range(first, first + len(batch.names)), strict=True))
    inside = np.array([name in own for name in above], np.bool_)
    ids[inside] = [own[name] for name in above if name in own]
    ids[~inside], rounds = look([name for name in above if name not in own], batch.round)
    if rounds is not None:
        made[~inside] = rounds
    return ids, made


def _weights(values: list[Any], edge: Callable[[int], str]) -> NDArray[np.float64]:
    if set(map(type, values)) <= {float, int}:
        try:
            weights = np.array(values, np.float64)
        except OverflowError:
            weights = np.array([math.inf])
        if (np.isfinite(weights) & (weights >= 0)).all():
            return weights
    return np.array([_weight(value, edge(i)) for i, value in enumerate(values)], np.float64)


def _weight(value: Any, where: str) -> float:
    try:
        weight = float(value) if isinstance(value, Real) else math.nan
    except OverflowError:
        weight = math.inf
    if not (math.isfinite(weight) and weight >= 0):
        raise LineageError(f"the weight of the edge {where} must be a finite number from 0 up, got {value!r}")
    return weight


def _listed(what: str, values: Iterable[Any]) -> list[Any]:
    if isinstance(values, str | bytes | Mapping) or not isinstance(values, Iterable):
        raise LineageError(f"{what} must be a list with one entry a node, got {values!r}")
    return list(values)


def _optional(check: Callable[[str, list[Any]], list[Any]], what: str, values: list[Any]) -> list[Any]:
    if type(None) not in set(map(type, values)):
        return check(what, values)
    found = iter(check(what, [value for value in values if value is not None]))
    return [None if value is None else next(found) for value in values]


def _texts(what: str, values: list[Any]) -> list[str]:
    if set(map(type, values)) == {str} and all(values):
        joined = "".join(values)
        if "\0" not in joined and (joined.isascii() or _encodable(joined)):
            return values
    return [text(what, value) for value in values]


def _encodable(joined: str) -> bool:
    try:
        joined.encode()
    except UnicodeEncodeError:
        return False
    return True


def _counts(what: str, values: list[Any]) -> list[int]:
    if set(map(type, values)) == {int} and min(values) >= 0 and max(values) < 2**63:
        return values
    return [integer(what, value, least=0) for value in values]


def integer(what: str, value: Any, least: int = -(2**63)) -> int:
    """``value`` as a whole number of 64 bits that is at least ``least``; else a LineageError."""
    try:
        number = operator.index(value)
    except TypeError:
        raise LineageError(f"{what} must be a whole number, got {value!r}") from None
    if not -(2**63) <= number < 2**63:
        raise LineageError(f"{what} must fit into 64 bits, got a number of {number.bit_length()} bits")
    if number < least:
        raise LineageError(f"{what} must be {least} or more, got {number}")
    return number


def known_texts(names: Iterable[str], what: str = "a name") -> list[str]:
    """The names as a list; a single text counts as a list of one."""
    return [text(what, n) for n in ([names] if isinstance(names, str) else names)]


def _json(metadata: Mapping[str, Any] | None) -> str | None:
    if metadata is not None and not (
        isinstance(metadata, Mapping) and all(isinstance(key, str) for key in metadata)
    ):
        raise LineageError(f"metadata must be a mapping with text keys, got {metadata!r}")
    try:
        return json.dumps(dict(metadata), allow_nan=False) if metadata else None
    except (TypeError, ValueError, RecursionError) as e:
        raise LineageError(f"metadata must be something JSON can hold ({e}); leave such values out") from e
