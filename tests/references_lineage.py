"""A slow, obvious model inheritance graph: dicts of dicts and a plain depth-first search."""

from __future__ import annotations

import hashlib
import json
import struct
from dataclasses import dataclass, field


@dataclass
class SlowGraph:
    """Names in the order they came; ``parents[child][parent]`` is a weight."""

    owner: dict[str, str | None] = field(default_factory=dict)
    kind: dict[str, str] = field(default_factory=dict)
    parents: dict[str, dict[str, float]] = field(default_factory=dict)
    examples: dict[str, int | None] = field(default_factory=dict)
    round: dict[str, int] = field(default_factory=dict)

    def add(
        self,
        name: str,
        kind: str,
        owner: str | None,
        parents: dict[str, float],
        examples: int | None = None,
        round_: int = 0,
    ) -> None:
        self.owner[name], self.kind[name], self.parents[name] = owner, kind, dict(parents)
        self.examples[name], self.round[name] = examples, round_

    def copy(self) -> SlowGraph:
        return SlowGraph(*(dict(part) for part in vars(self).values()))

    def most_examples(self) -> dict[str, int]:
        most: dict[str, int] = {}
        for name, owner in self.owner.items():
            n = self.examples[name]
            if owner is not None and n is not None:
                most[owner] = max(most.get(owner, 0), n)
        return most

    def children(self, name: str) -> dict[str, float]:
        return {child: above[name] for child, above in self.parents.items() if name in above}

    def above(self, name: str) -> set[str]:
        """Everything `name` inherits from over edges with a weight above 0."""
        seen: set[str] = set()
        stack = [name]
        while stack:
            for parent, weight in self.parents[stack.pop()].items():
                if weight > 0 and parent not in seen:
                    seen.add(parent)
                    stack.append(parent)
        return seen

    def in_order(self, names: set[str]) -> list[str]:
        return [name for name in self.parents if name in names]

    def ancestors(self, names: list[str]) -> list[str]:
        return self.in_order({a for name in names for a in self.above(name)})

    def descendants(self, names: list[str]) -> list[str]:
        return self.in_order({d for d in self.parents if self.above(d) & set(names)})

    def affected(self, names: list[str]) -> list[str]:
        return self.in_order(set(names) | set(self.descendants(names)))

    def roots(self, owners: list[str]) -> list[str]:
        kinds = ("client-update", "trained")
        updates = {n for n in self.parents if self.kind[n] in kinds and self.owner[n] in owners}
        return self.in_order({n for n in updates if not self.above(n) & updates})


def digest(nodes: list[tuple[object, ...]], edges: list[tuple[int, int, float]]) -> str:
    """The digest of these rows of the table `node` and of these edges (child, parent, weight)."""
    lines = ""
    for row in sorted(nodes, key=lambda row: row[0]):
        lines += "[" + ",".join(json.dumps(value) for value in row) + "]\n"
    packed = b"".join(struct.pack("<qqd", *edge) for edge in sorted(edges))
    return hashlib.sha256(
        hashlib.sha256(lines.encode()).digest() + hashlib.sha256(packed).digest()
    ).hexdigest()
