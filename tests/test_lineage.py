from __future__ import annotations

import pickle
import time
from fractions import Fraction

import pytest
from cases_lineage import KINDS, add_round, federation, graphs, names
from hypothesis import given, settings
from hypothesis import strategies as st

from fl_unlearn import lineage
from fl_unlearn.lineage import UMIG, NodeKind
from fl_unlearn.types import LineageError


# --------------------------------------------------------------------------- against the slow reference
@settings(max_examples=150, deadline=None)
@given(graphs(), st.data())
def test_queries_match_the_slow_reference(pair, data):
    umig, slow = pair
    known = list(slow.parents)
    assert names(umig) == known
    assert [node.id for node in umig] == list(range(1, len(known) + 1))
    assert len(umig) == len(known)
    assert umig.last_round() == max((n.round for n in umig), default=-1)
    assert umig.owners() == sorted({o for o in slow.owner.values() if o})
    assert umig.owner_examples() == slow.most_examples()
    assert [o for o in ("0", "1", "ü", "nobody") if umig.has_owner(o)] == umig.owners()
    for name in known:
        assert umig.parents(name) == slow.parents[name]
        assert umig.children(name) == slow.children(name)
        assert name in umig
        assert umig.node(name).name == name
    some = data.draw(st.lists(st.sampled_from(known), max_size=4)) if known else []
    assert names(umig.ancestors(some)) == slow.ancestors(some)
    assert names(umig.descendants(some)) == slow.descendants(some)
    assert names(umig.descendants(some, include_self=True)) == slow.affected(some)
    assert names(umig.affected(some)) == slow.affected(some)
    owners = data.draw(st.lists(st.sampled_from(["0", "1", "ü", "nobody"]), unique=True))
    assert names(umig.roots(owners)) == slow.roots(owners)
    kind, owner = data.draw(st.sampled_from(KINDS)), data.draw(st.sampled_from(["0", "ü"]))
    assert names(umig.nodes(kind=kind)) == [n for n in known if slow.kind[n] == kind]
    assert names(umig.nodes(kind=kind, owner=owner)) == [
        n for n in known if (slow.kind[n], slow.owner[n]) == (kind, owner)
    ]
    last = umig.last(kind)
    assert (last and last.name) == next((n for n in reversed(known) if slow.kind[n] == kind), None)


# --------------------------------------------------------------------------- what is kept
def test_a_node_comes_back_as_it_was_added(tmp_path):
    with UMIG(tmp_path / "umig.sqlite") as umig:
        first = umig.add("g0", kind="initial", round=0)
        node = umig.add(
            "u",
            kind="worker",
            round=2**63 - 1,
            parents={"g0": Fraction(1, 4)},
            owner="7",
            examples=0,
            digest="ab",
            metadata={"tuple": (1, None), "ü": {"x": 1.5}, "half": "\ud800"},
        )
    with UMIG(tmp_path / "umig.sqlite") as again:
        assert again.node("g0") == first
        assert (first.owner, first.examples, first.digest, first.metadata) == (None, None, None, {})
        assert again.node("u") == node
        assert node.metadata == {"tuple": [1, None], "ü": {"x": 1.5}, "half": "\ud800"}
        assert again.parents("u") == {"g0": 0.25}
        assert len({node, first, pickle.loads(pickle.dumps(node))}) == 2


def test_the_graph_goes_on_after_reopening(tmp_path):
    file = tmp_path / "umig with ? and #.sqlite"
    federation(file, rounds=2).close()
    assert file.exists()
    with UMIG(file) as umig:
        assert len(umig) == 1 + 2 * 4
        add_round(umig, 3)
        assert umig.last(NodeKind.AGGREGATE) == umig.node("g3")
    with UMIG(str(file), read_only=True) as umig:
        assert len(umig) == 13
        assert umig.last_round() == 3
        assert umig.connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)


def test_an_empty_graph():
    umig = UMIG()
    assert (len(umig), list(umig), umig.owners(), umig.last("initial"), umig.last_round()) == (
        0,
        [],
        [],
        None,
        -1,
    )
    assert list(umig.affected([])) == []
    assert umig.roots([]) == []


def test_synchronous_is_full(tmp_path):
    with UMIG(tmp_path / "u") as umig:
        assert umig.connection.execute("PRAGMA synchronous").fetchone() == (2,)


def test_meta_is_kept_and_replaced(tmp_path):
    with UMIG(tmp_path / "u") as umig:
        assert umig.get_meta("model") is None
        umig.set_meta("model", "cnn")
        umig.set_meta("model", "resnet")
    with UMIG(tmp_path / "u") as umig:
        assert umig.get_meta("model") == "resnet"
        with pytest.raises(LineageError, match="format's own"):
            umig.set_meta("schema_version", "9")


def test_the_first_updates_of_the_holders_are_the_roots():
    umig = federation(rounds=2)
    umig.add("late", kind="client-update", round=2, parents={"g0": 1.0}, owner="9")
    assert names(umig.roots(["1", "2", "9"])) == ["u1.1", "u1.2", "late"]
    assert names(umig.roots("1")) == ["u1.1"]
    assert names(umig.affected("u2.1")) == ["u2.1", "g2"]


def test_models_trained_outside_of_rounds_are_roots_too():
    umig = UMIG()
    umig.add("base", kind=NodeKind.INITIAL, round=0, owner="0")
    umig.add("a", kind=NodeKind.TRAINED, round=1, parents={"base": 1.0}, owner="0")
    umig.add("b", kind=NodeKind.TRAINED, round=1, parents={"base": 1.0}, owner="1")
    umig.add("c", kind=NodeKind.CLIENT_UPDATE, round=2, parents={"a": 0.5, "b": 0.5}, owner="0")
    umig.add("d", kind=NodeKind.TRAINED, round=3, parents={"c": 1.0}, owner="2")
    assert names(umig.roots(["0"])) == ["a"]
    assert names(umig.roots(["2", "1"])) == ["b"]
    assert names(umig.affected(["a"])) == ["a", "c", "d"]


def test_a_share_of_zero_inherits_nothing():
    umig = UMIG()
    umig.add("u", kind="client-update", round=0, owner="0")
    umig.add("g", kind="aggregate", round=0, parents={"u": 0.0})
    umig.add("v", kind="client-update", round=1, parents={"g": 1}, owner="0")
    assert list(umig.descendants(["u"])) == []
    assert list(umig.ancestors(["g"])) == []
    assert umig.children("u") == {"g": 0.0}
    assert names(umig.roots(["0"])) == ["u", "v"]


def test_many_diamonds_do_not_blow_up():
    umig = UMIG()
    with umig.transaction():
        umig.add("0", kind="stage", round=0)
        for i in range(1, 400):  # each from the last two: the number of paths grows like Fibonacci's numbers
            umig.add(str(i), kind="stage", round=0, parents={str(j): 0.5 for j in range(max(0, i - 2), i)})
    start = time.perf_counter()
    assert len(list(umig.descendants(["0"]))) == 399
    assert len(list(umig.ancestors(["399"]))) == 399
    assert time.perf_counter() - start < 2


def test_streams_end_with_what_was_there_and_cross_pages(monkeypatch):
    monkeypatch.setattr(lineage, "_PAGE", 2)
    umig = federation(rounds=1)
    seen = []
    for node in umig.nodes():
        seen.append(node.name)
        umig.add(f"copy of {node.name}", kind="copy", round=1, parents={node.name: 1})
    assert seen == ["g0", "u1.0", "u1.1", "u1.2", "g1"]
    assert len(umig) == 10


# --------------------------------------------------------------------------- what is refused
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": "g0", "parents": {}}, "already"),
        ({"name": ""}, "a name must be a non-empty text"),
        ({"name": 3}, "a name must be a non-empty text"),
        ({"name": "a\0b"}, "NUL"),
        ({"name": "\ud800"}, "surrogate"),
        ({"kind": ""}, "a kind must be"),
        ({"owner": ""}, "an owner must be"),
        ({"owner": 3}, "an owner must be"),
        ({"digest": b"x"}, "a digest must be"),
        ({"parents": {"g0 ": 1.0}}, "did you mean 'g0'"),
        ({"parents": {"zzzz": 1.0}}, "add it first"),
        ({"parents": ["g0"]}, "map names to weights"),
        ({"parents": {"new": 1.0}}, "inherit from itself"),
        ({"round": 4}, "older than its parent 'g0'"),
        ({"round": 5.0}, "whole number"),
        ({"round": 2**63}, "64 bits"),
        ({"round": -(10**9000)}, "64 bits"),
        ({"examples": -1}, "0 or more, got -1"),
        ({"examples": 2**63}, "64 bits"),
        ({"examples": "many"}, "whole number"),
        ({"metadata": {"x": object()}}, "JSON"),
        ({"metadata": {"x": float("nan")}}, "JSON"),
        ({"metadata": {1: "x"}}, "text keys"),
        ({"metadata": [("x", 1)]}, "mapping"),
        *(
            ({"parents": {"g0": w}}, "finite number from 0 up")
            for w in (-0.1, float("nan"), float("inf"), 10**400, "1", None)
        ),
    ],
)
def test_a_node_that_cannot_be_kept_leaves_no_trace(change, message):
    umig = UMIG()
    umig.add("g0", kind="initial", round=5)
    good = {"name": "new", "kind": "stage", "round": 5, "parents": {"g0": 1.0}}
    with pytest.raises(LineageError, match=message):
        umig.add(**{**good, **change})
    with umig.transaction():  # a refused node does not spoil a transaction that goes on
        with pytest.raises(LineageError, match=message):
            umig.add(**{**good, **change})
        umig.add(**good)
    assert names(umig) == ["g0", "new"]
    assert umig.parents("new") == {"g0": 1.0}


@pytest.mark.parametrize("look", ["node", "parents", "children"])
def test_an_unknown_name_is_refused_with_a_hint(look):
    umig = federation()
    with pytest.raises(LineageError, match=r"no node 'u1\.9'; did you mean 'u1"):
        getattr(umig, look)("u1.9")
    for walk in (umig.ancestors, umig.descendants, umig.affected):
        with pytest.raises(LineageError, match="no node"):
            walk(["u1.0", "nothing"])  # at the call, not at the first node
    assert 3 not in umig
    assert "\ud800" not in umig


def test_owners_are_texts():
    with pytest.raises(LineageError, match="an owner must be"):
        federation().roots([1])
