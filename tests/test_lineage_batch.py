"""Appending: single nodes, batches, rollbacks and reopened files, against the slow reference."""

from __future__ import annotations

import tempfile
from fractions import Fraction
from pathlib import Path

import hypothesis.strategies as st
import numpy as np
import pytest
import references_lineage
from cases_lineage import KINDS, names
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from references_lineage import SlowGraph

from fl_unlearn import lineage_append, lineage_edges
from fl_unlearn.lineage import UMIG
from fl_unlearn.types import LineageError

WEIGHTS = st.sampled_from([0.0, 0.25, 1, 1 / 3])
OWNERS = st.sampled_from([None, "0", "1", "ü"])
EXAMPLES = st.none() | st.integers(0, 9)


# --------------------------------------------------------------------------- against the slow reference
class Appending(RuleBasedStateMachine):
    """Any mix of appends leaves the graph that the reference holds; blocks and memories are tiny here."""

    def __init__(self):
        super().__init__()
        self.patch = pytest.MonkeyPatch()
        self.patch.setattr(lineage_edges, "_BLOCK", 6)
        self.patch.setattr(lineage_append, "_REMEMBERED", 5)
        self.patch.setattr(lineage_append, "_VARIABLES", 8)
        self.folder = tempfile.TemporaryDirectory()
        self.file = Path(self.folder.name) / "u"
        self.umig, self.slow = UMIG(self.file), SlowGraph()

    def teardown(self):
        self.umig.close()
        self.folder.cleanup()
        self.patch.undo()

    @initialize()
    def begin(self):
        self.one("g", {}, None, None, 0)

    def one(self, name, parents, owner, examples, round_):
        self.umig.add(
            name, kind=KINDS[round_ % 4], round=round_, parents=parents, owner=owner, examples=examples
        )
        self.slow.add(name, KINDS[round_ % 4], owner, parents, examples, round_)

    def some_parents(self, data, known):
        chosen = data.draw(st.lists(st.sampled_from(known), max_size=5, unique=True)) if known else []
        return {name: data.draw(WEIGHTS) for name in chosen}

    def append(self, data):
        known = list(self.slow.parents)
        if data.draw(st.booleans()):
            parents = self.some_parents(data, known)
            round_ = max((self.slow.round[p] for p in parents), default=0) + data.draw(st.integers(0, 1))
            self.one(f"n{len(known)}", parents, data.draw(OWNERS), data.draw(EXAMPLES), round_)
            return
        new = [f"n{len(known) + i}" for i in range(data.draw(st.integers(0, 9)))]
        round_ = max(self.slow.round.values(), default=0) + data.draw(st.integers(0, 1))
        kind = data.draw(st.sampled_from(KINDS))
        owners = data.draw(st.none() | st.lists(OWNERS, min_size=len(new), max_size=len(new)))
        examples = data.draw(st.none() | st.lists(EXAMPLES, min_size=len(new), max_size=len(new)))
        if data.draw(st.booleans()):
            parents = self.some_parents(data, known)
            each = [parents] * len(new)
        else:
            parents = each = [self.some_parents(data, known + new[:i]) for i in range(len(new))]
        ids = self.umig.add_many(
            new, kind=kind, round=round_, parents=parents, owners=owners, examples=examples
        )
        assert list(ids) == list(range(len(known) + 1, len(known) + len(new) + 1))
        for i, name in enumerate(new):
            self.slow.add(
                name, kind, owners and owners[i], each[i], examples[i] if examples else None, round_
            )

    @rule(data=st.data())
    def one_transaction(self, data):
        self.append(data)

    @rule(data=st.data(), times=st.integers(1, 4), fails=st.booleans())
    def several_in_one_transaction(self, data, times, fails):
        before = self.slow.copy()
        try:
            with self.umig.transaction():
                for _ in range(times):
                    self.append(data)
                assert names(self.umig.ancestors(list(self.slow.parents)[-1:])) == self.slow.ancestors(
                    list(self.slow.parents)[-1:]
                )
                if fails:
                    raise ZeroDivisionError
        except ZeroDivisionError:
            self.slow = before

    @rule(data=st.data())
    def a_refused_batch(self, data):
        taken = data.draw(st.sampled_from(list(self.slow.parents)))
        with self.umig.transaction():
            with pytest.raises(LineageError, match=f"a node '{taken}' already"):
                self.umig.add_many(["new", taken, "newer"], kind="stage", round=99, owners=["no"] * 3)
            with pytest.raises(LineageError, match="no node 'n-1'"):
                self.umig.add_many(["new"], kind="stage", round=99, parents={"g": 1.0, "n-1": 1.0})

    @rule(by=st.sampled_from(["writer", "reader"]))
    def open_again(self, by):
        if by == "writer":
            self.umig.close()
            self.umig = UMIG(self.file)
        else:
            with UMIG(self.file, read_only=True) as reader:
                assert names(reader) == list(self.slow.parents)

    @precondition(lambda self: self.slow.parents)
    @rule(data=st.data())
    def look(self, data):
        known = list(self.slow.parents)
        some = data.draw(st.lists(st.sampled_from(known), max_size=4))
        assert names(self.umig.ancestors(some)) == self.slow.ancestors(some)
        assert names(self.umig.descendants(some)) == self.slow.descendants(some)
        assert names(self.umig.affected(some)) == self.slow.affected(some)
        for name in some:
            assert self.umig.parents(name) == self.slow.parents[name]
            assert self.umig.children(name) == self.slow.children(name)
        for owners in (["0"], ["1", "ü"]):
            assert names(self.umig.roots(owners)) == self.slow.roots(owners)
        first = data.draw(st.integers(1, len(known)))
        last = data.draw(st.integers(first, len(known)))
        ids = {name: i for i, name in enumerate(known, 1)}
        rows = [
            (ids[n], n, self.slow.kind[n], self.slow.round[n], self.slow.owner[n], self.slow.examples[n])
            for n in known[first - 1 : last]
        ]
        edges = [
            (ids[n], ids[p], w) for n in known[first - 1 : last] for p, w in self.slow.parents[n].items()
        ]
        assert self.umig.digest(first, last) == references_lineage.digest(
            [(*row, None, None) for row in rows], edges
        )

    @invariant()
    def the_small_tables_agree(self):
        assert len(self.umig) == len(self.slow.parents)
        assert self.umig.owners() == sorted({o for o in self.slow.owner.values() if o})
        assert self.umig.owner_examples() == self.slow.most_examples()
        assert self.umig.last_round() == max(self.slow.round.values(), default=-1)


TestAppending = Appending.TestCase
TestAppending.settings = settings(max_examples=60, stateful_step_count=20, deadline=None)


# --------------------------------------------------------------------------- batches
def start() -> UMIG:
    umig = UMIG()
    umig.add("g0", kind="initial", round=5)
    return umig


def test_a_batch_holds_what_single_appends_would():
    one, many = start(), start()
    parents = [{"g0": Fraction(1, 4)}, {"a": 1, "g0": np.float32(0.5)}]
    columns = {
        "owner": ["x", None],
        "examples": [np.int64(3), None],
        "digest": [None, "ff"],
        "metadata": [None, {"ü": (1, None)}],
    }
    for i, name in enumerate(["a", "b'"]):
        values = {key: column[i] for key, column in columns.items()}
        one.add(name, kind="it's", round=6, parents=parents[i], **values)
    ids = many.add_many(
        ["a", "b'"],
        kind="it's",
        round=6,
        parents=parents,
        owners=columns["owner"],
        examples=columns["examples"],
        digests=columns["digest"],
        metadata=columns["metadata"],
    )
    assert ids == range(2, 4)
    assert list(many) == list(one)
    assert many.edges().tolist() == one.edges().tolist() == [(2, 1, 0.25), (3, 1, 0.5), (3, 2, 1.0)]
    assert many.digest(1, 3) == one.digest(1, 3)


def test_an_empty_batch_is_nothing():
    umig = start()
    assert list(umig.add_many([], kind="stage", round=0, owners=[])) == []
    assert names(umig) == ["g0"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"names": ["a", "a"]}, "'a' comes twice"),
        ({"names": "ab"}, "names must be a list"),
        ({"names": 3}, "names must be a list"),
        ({"names": ["a", ""]}, "a name must be a non-empty text, got ''"),
        ({"names": ["a", 3]}, "a name must be a non-empty text, got 3"),
        ({"names": ["a", "x\0"]}, "NUL"),
        ({"names": ["a", "ü\udc00"]}, "surrogate"),
        ({"names": ["a", "g0"], "parents": {}}, "a node 'g0' already"),
        ({"kind": "\0"}, "NUL"),
        ({"round": 4}, r"'a' \(round 4\) would be older than its parent 'g0' \(round 5\)"),
        ({"round": 2**63}, "64 bits"),
        ({"owners": ["x"]}, "2 names and 1 values for 'owner'"),
        ({"owners": "xy"}, "owners must be a list"),
        ({"owners": ["x", ""]}, "an owner must be"),
        ({"owners": ["x", 3]}, "an owner must be"),
        ({"examples": [1, -1]}, "0 or more, got -1"),
        ({"examples": [1, 2**63]}, "64 bits"),
        ({"examples": [None, 0.5]}, "whole number, got 0.5"),
        ({"digests": [None, b"x"]}, "a digest must be"),
        ({"metadata": [None, {1: 2}]}, "text keys"),
        ({"metadata": {"x": 1}}, "metadata must be a list"),
        ({"parents": None}, "parents must be a list"),
        ({"parents": ["g0", "g0"]}, "map names to weights.*got 'g0'"),
        ({"parents": [{"g0": 1.0}]}, "2 names and 1 mappings"),
        ({"parents": [{}, {"g": 1.0}]}, "no node 'g'; did you mean 'g0'"),
        ({"parents": [{}, {3: 1.0}]}, "non-empty text, got 3"),
        ({"parents": {"b": 1.0}}, "from 'b' to 'a' is refused"),
        ({"parents": [{}, {"g0": 1.0, "b": 1.0}]}, "from 'b' to 'b' is refused: .* from itself"),
        ({"parents": [{"b": 1.0}, {}]}, "comes later in its batch"),
        ({"parents": [{"g0": 1.0}, {"g0": 1, "a": -1}]}, "from 'a' to 'b' must be a finite"),
        ({"parents": {"g0": 10**400}}, "from 'g0' to 'a' must be a finite"),
        ({"parents": {"g0": "1"}}, "from 'g0' to 'a' must be a finite"),
    ],
)
def test_a_batch_that_cannot_be_kept_leaves_no_trace(change, message):
    umig = start()
    good = {"names": ["a", "b"], "kind": "stage", "round": 5, "parents": {"g0": 1.0}, "owners": ["x", None]}
    changed = {**good, **change}
    with pytest.raises(LineageError, match=message):
        umig.add_many(changed.pop("names"), **changed)
    with umig.transaction():  # a refused batch does not spoil a transaction that goes on
        changed = {**good, **change}
        with pytest.raises(LineageError, match=message):
            umig.add_many(changed.pop("names"), **changed)
        assert umig.owners() == []
        umig.add_many(good.pop("names"), **good)
    assert names(umig) == ["g0", "a", "b"]
    assert umig.children("g0") == {"a": 1.0, "b": 1.0}
    assert umig.owners() == ["x"]


def test_a_name_that_is_taken_at_the_end_of_a_large_batch_undoes_all_of_it(tmp_path):
    umig = UMIG(tmp_path / "u")
    umig.add("g0", kind="initial", round=0)
    new = [f"n{i}" for i in range(2000)]
    with umig.transaction():
        with pytest.raises(LineageError, match="'g0' already"):
            umig.add_many([*new, "g0"], kind="stage", round=0, owners=["x"] * 2001)
        assert names(umig) == ["g0"]
        assert umig.add_many(new, kind="stage", round=0, parents={"g0": 1.0}) == range(2, 2002)
    assert names(umig.descendants(["g0"])) == new
    assert umig.owners() == []


def test_an_older_round_is_refused_whether_the_parent_is_remembered_or_not(monkeypatch):
    for remembered in (0, 20_000):
        monkeypatch.setattr(lineage_append, "_REMEMBERED", remembered)
        umig = start()
        umig.add("high", kind="stage", round=9)
        umig.add("fits", kind="stage", round=5, parents={"g0": 1.0})
        with pytest.raises(LineageError, match=r"its parent 'high' \(round 9\)"):
            umig.add_many(["a"], kind="stage", round=8, parents={"g0": 1.0, "high": 1.0})


def test_two_writers_take_turns(tmp_path):
    with UMIG(tmp_path / "u") as one, UMIG(tmp_path / "u") as two:
        for r in range(6):
            writer = (one, two)[r % 2]
            above = {f"{r - 1}.1": 1.0} if r else {}
            writer.add_many(
                [f"{r}.0", f"{r}.1"],
                kind="stage",
                round=r,
                parents=above,
                owners=["x"] * 2,
                examples=[r, 9 - r],
            )
        assert list(one) == list(two)
        assert names(one.descendants(["3.1"])) == ["4.0", "4.1", "5.0", "5.1"]
        assert one.owner_examples() == {"x": 9}
