"""One update for a whole graph: what it is made of, what is chosen, what it leaves alone."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import references_update as slow_update
import torch
from hypothesis import given
from hypothesis import strategies as st
from references import reference_fisher
from torch import Tensor, nn

from fl_unlearn import ForgetRequest, KeepPolicy, RunStore, UnlearnSettings
from fl_unlearn.audit_verify import verify_store
from fl_unlearn.calibration import Candidate, Tally, choose, judge
from fl_unlearn.graph_unlearning import LocalOwners, choose_for, find, nearest, spread
from fl_unlearn.merge import RULES, FisherPart
from fl_unlearn.model_graph import ModelGraph
from fl_unlearn.types import REST, ClassScores, RequestError, SettingsError
from fl_unlearn.verify import score_state

Batches = list[tuple[Tensor, Tensor]]
CLASSES = 4
REQUEST = ForgetRequest((0,))


def build() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, CLASSES))


def blobs(labels: list[int], each: int, seed: int) -> Batches:
    """Samples around one point a class, in batches of 20."""
    generator = torch.Generator().manual_seed(seed)
    centres = 3 * torch.randn(CLASSES, 6, generator=torch.Generator().manual_seed(99))
    y = torch.tensor(labels).repeat(each)
    x = centres[y] + torch.randn(len(y), 6, generator=generator)
    return list(zip(x.split(20), y.split(20), strict=True))


DATA = {
    "clean": blobs([1, 2, 3], 30, 1),
    "ann": blobs([0, 1, 2, 3], 30, 2),
    "bob": blobs([0, 1, 2, 3], 20, 3),
}
TEST = blobs([0, 1, 2, 3], 50, 4)


def trained_on(owner: str) -> Callable[[dict[str, Tensor]], nn.Module]:
    def train(start: dict[str, Tensor]) -> nn.Module:
        model = build()
        model.load_state_dict(start)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for _ in range(10):
            for x, y in DATA[owner]:
                optimizer.zero_grad()
                nn.functional.cross_entropy(model(x), y).backward()
                optimizer.step()
        return model

    return train


@pytest.fixture
def graph(tmp_path: Path) -> Iterator[ModelGraph]:
    """start -> c (clean); a = c -> ann; b = mean(start, a) -> bob; m = mean(a, b), nobody trains."""
    torch.manual_seed(0)
    with ModelGraph(tmp_path / "graph") as graph:
        graph.register("start", build())
        graph.derive("c", ["start"], trained_on("clean"), owner="clean")
        graph.derive("a", ["c"], trained_on("ann"), owner="ann")
        graph.derive("b", {"start": 0.2, "a": 0.8}, trained_on("bob"), owner="bob")
        graph.derive("m", ["a", "b"])
        yield graph


@pytest.fixture
def owners() -> LocalOwners:
    return LocalOwners(build, DATA)


def accuracy(state: dict[str, Tensor], *labels: int) -> float:
    scores = score_state(build(), state, TEST)
    found = scores.without(set(range(CLASSES)) - set(labels)).accuracy()
    assert found is not None
    return found


def test_every_model_that_inherited_a_class_forgets_it_and_no_other_changes(graph, owners):
    before = {name: graph.state(name) for name in ("start", "c", "a", "b", "m")}
    assert min(accuracy(before[name], 0) for name in ("a", "b", "m")) > 0.9
    found = find(graph, REQUEST, owners)
    assert (found.roots, found.affected, found.sources) == (("a",), ("a", "b", "m"), ("a", "b", "m"))
    assert {name: graph.state(name)["2.bias"].tolist() for name in before} == {
        name: state["2.bias"].tolist() for name, state in before.items()
    }  # nothing is changed before it is committed
    assert found.commit(graph) == 3
    for name in ("a", "b", "m"):
        after = graph.state(name)
        assert accuracy(after, 0) == 0
        assert accuracy(after, 1, 2, 3) >= accuracy(before[name], 1, 2, 3) - 0.01
        assert torch.equal(after["0.weight"], before[name]["0.weight"])  # the head alone was in scope
    for name in ("start", "c"):
        torch.testing.assert_close(graph.state(name), before[name], rtol=0, atol=0)
    assert not verify_store(graph.store).problems


def test_one_update_serves_all_models_and_is_not_repeated(graph, owners):
    found = find(graph, REQUEST, owners)
    assert found.shared is not None
    assert len({update.digest for update in found.updates.values()}) == 1
    found.commit(graph)
    once = graph.state("m")
    assert found.commit(graph) == 0
    torch.testing.assert_close(graph.state("m"), once, rtol=0, atol=0)


def test_the_update_equals_slow_arithmetic_over_sources_holders_and_classes(tmp_path):
    """Three sources, two of them leaves; classes 0 and 1 held by two owners."""
    torch.manual_seed(1)
    with ModelGraph(tmp_path / "graph") as graph:
        graph.register("start", build())
        graph.derive("a", ["start"], trained_on("ann"), owner="ann")
        graph.derive("x", ["a"], trained_on("bob"), owner="bob")
        graph.derive("y", ["a"], trained_on("clean"), owner="clean")
        request, names = ForgetRequest((0, 1)), ["2.weight", "2.bias"]
        settings = UnlearnSettings(threshold=2.0, dampenings=(0.5,), force=True)
        found = find(graph, request, LocalOwners(build, DATA), settings)
        assert found.sources == ("a", "x", "y")
        parts, references = [], []
        for source, behind in (("a", ["ann"]), ("x", ["ann", "bob"]), ("y", ["ann", "clean"])):
            model = build()
            model.load_state_dict(graph.state(source))
            rest, kept = {n: torch.zeros(()).double() for n in names}, 0
            for owner in behind:
                sums, counts = reference_fisher(model, DATA[owner], "normalized", names, keep_classes=(0, 1))
                for label in (0, 1):
                    if counts.get(label):
                        mean = {n: sums[label][n] / counts[label] for n in names}
                        parts.append(FisherPart(f"{source}{owner}", label, mean, counts[label]))
                rest = {n: rest[n] + sums[REST][n] for n in names}
                kept += counts[REST]
            references.append({n: rest[n] / kept for n in names})
        forget = slow_update.merge(parts, "max")
        state = graph.state("x")
        for name in names:
            reference = (references[0][name] + references[1][name] + references[2][name]) / 3
            factor = torch.where(forget[name] > 2 * reference, 0.5 * reference / forget[name], 1.0).clamp(
                max=1
            )
            changed = found.updates["x"].entries[name]
            got = torch.ones(factor.numel())
            got[changed.indices.long()] = changed.factors
            torch.testing.assert_close(got.reshape(factor.shape), factor.float(), rtol=1e-4, atol=1e-7)
            assert 0 < len(changed.indices) < state[name].numel()


def test_owners_are_asked_only_about_models_that_inherited_their_data(graph):
    asked: list[tuple[str, tuple[str, ...]]] = []

    class Watched(LocalOwners):
        def fishers(self, state, request, settings, owners):
            asked.append(("fisher", tuple(owners)))
            return super().fishers(state, request, settings, owners)

        def scores(self, state, request, settings, base, owners):
            asked.append(("scores", tuple(owners)))
            return super().scores(state, request, settings, base, owners)

    find(graph, REQUEST, Watched(build, {**DATA, "stranger": blobs([0, 1], 5, 7)}))
    everybody = ("ann", "bob", "clean")
    assert asked == [
        ("fisher", ("ann", "clean")),  # a
        ("fisher", everybody),  # b
        ("fisher", everybody),  # m
        ("scores", ("ann", "clean")),  # a
        ("scores", everybody),  # b
        ("scores", everybody),  # m
    ]


def test_what_no_variant_achieves_is_refused_and_nothing_changes(graph, owners):
    before = graph.state("m")
    found = find(graph, REQUEST, owners, UnlearnSettings(candidates=(1e6,), dampenings=(1.0,)))
    assert not found.updates
    assert "nothing was changed" in found.refused
    with pytest.raises(RequestError, match="nothing was changed"):
        found.commit(graph)
    torch.testing.assert_close(graph.state("m"), before, rtol=0, atol=0)


def test_same_graph_same_update(graph, owners):
    first, second = (find(graph, REQUEST, owners).updates["m"].digest for _ in range(2))
    assert first == second


@pytest.mark.parametrize(
    ("request_", "settings", "error", "message"),
    [
        (ForgetRequest(clients=("ann",)), {}, RequestError, "only classes"),
        (ForgetRequest((7,)), {}, RequestError, "holds class 7"),
        (ForgetRequest((0, 1, 2, 3)), {}, RequestError, "nothing would be retained"),
        (ForgetRequest((0,), clients=("eve",)), {}, RequestError, "unknown clients"),
        (REQUEST, {"erase": "auto"}, SettingsError, "erase='none'"),
        (REQUEST, {"reference": "per-model"}, SettingsError, "reference='shared'"),
    ],
)
def test_what_cannot_be_asked_is_said_before_anything_is_computed(
    graph, owners, request_, settings, error, message
):
    with pytest.raises(error, match=message):
        find(graph, request_, owners, UnlearnSettings(**settings))


def test_a_graph_that_learned_nothing_of_it_is_said(tmp_path, owners):
    with ModelGraph(tmp_path / "graph") as graph:
        graph.register("start", build())
        graph.derive("c", ["start"], trained_on("clean"), owner="clean")
        with pytest.raises(RequestError, match=r"holders \['ann', 'bob'\] contributed no update"):
            find(graph, REQUEST, owners)


@pytest.mark.parametrize("limits", [{"most_sources": 0}, {"most_scored": 0}])
def test_at_least_one_model_is_looked_at(graph, owners, limits):
    with pytest.raises(SettingsError, match="at least one model"):
        find(graph, REQUEST, owners, **limits)


def test_a_request_about_one_owner_takes_its_samples_alone(graph, owners):
    counts = owners.counts(ForgetRequest((0,), clients=("bob",)))
    assert counts == {
        "clean": {0: 0, REST: 90},
        "ann": {0: 0, REST: 120},
        "bob": {0: 20, REST: 60},
    }
    found = find(graph, ForgetRequest((0,), clients=("bob",)), owners)
    assert found.roots == ("b",)
    assert found.affected == ("b", "m")


# ------------------------------------------------------------------ choosing
def candidate(t: float, passed: bool, cost: float = 0.0) -> Candidate:
    return Candidate(
        t, 1.0, 0.0 if passed else 0.9, 0.8, cost, 0.0 if passed else 0.9, cost, cost, passed, passed
    )


def test_a_variant_that_suits_all_is_taken_before_better_ones_that_do_not():
    scored = {
        "a": [candidate(1, True, 0.03), candidate(2, True, 0.0)],
        "b": [candidate(1, True, 0.03), candidate(2, False)],
    }
    shared, own = choose_for(scored)
    assert shared is not None
    assert shared.threshold == 1
    assert own == {"a": (1, 1.0), "b": (1, 1.0)}


def test_of_those_that_suit_all_the_cheapest_on_average_is_taken():
    scored = {
        "a": [candidate(1, True, 0.04), candidate(2, True, 0.0)],
        "b": [candidate(1, True, 0.0), candidate(2, True, 0.01)],
    }
    shared, _ = choose_for(scored)
    assert shared is not None
    assert (shared.threshold, shared.retain_drop, shared.cost) == (2, 0.01, 0.005)


def test_within_a_quarter_of_a_point_the_lower_retained_loss_decides():
    small, large = candidate(1, True, 0.001), replace(candidate(9, True, 0.0), retain_loss_change=-0.2)
    assert choose_for({"a": [small, large]})[1] == {"a": (9, 1.0)}
    assert choose([small, large]) is small  # otherwise the smallest threshold


@given(st.lists(st.tuples(st.integers(1, 20), st.floats(0, 9), st.floats(0, 9)), min_size=1, max_size=4))
def test_the_change_of_the_retained_loss_is_the_mean_over_models(models):
    def tally(count: int, loss: float) -> Tally:
        forget = ClassScores({0: 0}, {0: 1}, {0: 0.0})
        return Tally(forget, ClassScores({1: count}, {1: count}, {1: loss * count}))

    rows = [[tally(count, before), tally(count, after)] for count, before, after in models]
    settings = UnlearnSettings(threshold=2.0)
    expected = sum(after - before for _, before, after in models) / len(models)
    assert judge(rows, settings)[0].retain_loss_change == pytest.approx(expected, abs=1e-9)


def test_where_none_suits_all_each_model_gets_its_own():
    scored = {
        "a": [candidate(1, True), candidate(2, False)],
        "b": [candidate(1, False), candidate(2, True)],
    }
    assert choose_for(scored) == (None, {"a": (1, 1.0), "b": (2, 1.0)})


def test_one_model_without_a_variant_refuses_all():
    scored = {"a": [candidate(1, True)], "b": [candidate(1, False)]}
    assert choose_for(scored) == (None, {})


@given(st.integers(1, 60), st.integers(1, 60))
def test_spread_takes_first_and_last_and_no_more_than_asked(count, most):
    names = [str(i) for i in range(count)]
    chosen = spread(names, most)
    assert len(chosen) == len(set(chosen)) == min(most, count)
    assert chosen == sorted(chosen, key=int)
    assert chosen[0] == names[0] or most == 1
    assert chosen[-1] == names[-1] or most == 1


def test_nearest_prefers_the_newer_of_two():
    names = list("abcde")
    assert [nearest(names, n, {"b": 0, "d": 0}) for n in names] == ["b", "b", "d", "d", "d"]


# ------------------------------------------------------------------ reviewed: what a user may come with
def test_a_class_forgotten_before_does_not_come_back_with_the_next_request(tmp_path):
    """Class 0 lies beside class 1: where 1 is forgotten too, the others' logits are lower than its 0."""
    centres = torch.tensor([[4.0, 0, 0], [3, 2, 0], [-4, 0, 3], [-4, 0, -3]])
    near = nn.functional.pad(centres, (0, 3))
    generator = torch.Generator().manual_seed(2)
    y = torch.arange(CLASSES).repeat(30)
    x = near[y] + 0.7 * torch.randn(len(y), 6, generator=generator)
    data = {"ann": list(zip(x.split(20), y.split(20), strict=True))}
    zeros, model = x[y == 0], build()
    torch.manual_seed(0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(60):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    with ModelGraph(tmp_path / "graph") as graph:
        graph.register("a", model, owner="ann")
        for label in (0, 1):
            found = find(graph, ForgetRequest((label,)), LocalOwners(build, data))
            assert found.request.classes == (label,)
            found.commit(graph)
            model.load_state_dict(graph.state("a"))
            assert not (model(zeros).argmax(1) == 0).any()
        assert (model(x[y > 1]).argmax(1) == y[y > 1]).all()


def test_models_of_an_owner_who_cannot_be_asked_forget_too(graph):
    found = find(graph, REQUEST, LocalOwners(build, {o: d for o, d in DATA.items() if o != "ann"}))
    assert (found.roots, found.affected) == (("a",), ("a", "b", "m"))
    assert "a" not in found.scored  # nobody is left who could measure it
    found.commit(graph)
    assert [accuracy(graph.state(name), 0) for name in ("a", "b", "m")] == [0, 0, 0]


def test_a_model_that_saw_nothing_else_gets_the_update_of_its_nearest(tmp_path):
    data = {"ann": blobs([0], 30, 2), "bob": DATA["bob"]}
    torch.manual_seed(0)
    with ModelGraph(tmp_path / "graph") as graph:
        graph.register("a", build(), owner="ann")
        graph.derive("b", ["a"], trained_on("bob"), owner="bob")
        found = find(graph, REQUEST, LocalOwners(build, data))
        assert (found.affected, found.sources, [*found.scored]) == (("a", "b"), ("b",), ["b"])
        assert found.commit(graph) == 2
        with pytest.raises(RequestError, match="of 2 affected models none can be measured"):
            find(graph, REQUEST, LocalOwners(build, {"ann": data["ann"], "eve": DATA["clean"]}))


def test_models_without_a_checkpoint_are_neither_sources_nor_scored(tmp_path):
    torch.manual_seed(0)
    with ModelGraph(RunStore(tmp_path / "graph", keep=KeepPolicy(aggregates=False))) as graph:
        graph.register("start", build())
        graph.derive("a", ["start"], trained_on("ann"), owner="ann")
        graph.derive("b", ["start"], trained_on("bob"), owner="bob")
        graph.derive("m", ["a", "b"])
        found = find(graph, REQUEST, LocalOwners(build, DATA))
        assert (found.affected, [*found.scored]) == (("a", "b", "m"), ["a", "b"])
        assert found.commit(graph) == 2


def test_a_hidden_layer_is_not_taken_for_the_head(graph, owners):
    hidden = UnlearnSettings(fisher_scope="0.*")
    with pytest.raises(SettingsError, match="centring needs the head's name"):
        find(graph, REQUEST, owners, hidden)
    assert not any(u.erasures for u in find(graph, REQUEST, owners, hidden, centre=False).updates.values())


def test_batches_that_can_be_used_once_are_refused():
    with pytest.raises(SettingsError, match="'ann': batches are gone through often"):
        LocalOwners(build, {"bob": DATA["bob"], "ann": iter(DATA["ann"])})


def test_another_graph_gets_nothing(graph, owners, tmp_path):
    found = find(graph, REQUEST, owners)
    with ModelGraph(tmp_path / "other") as other:
        other.register("start", build())
        with pytest.raises(RequestError, match=r"other has no model 'a'"):
            found.commit(other)
        assert not other.store.operations.all()


def test_merging_sees_every_source_of_a_holder_under_the_holders_name(graph, owners, monkeypatch):
    """Rules that count holders, such as the reference code's, must not count sources."""
    seen: list[tuple[str, int]] = []

    class Spy:
        def __init__(self) -> None:
            self.largest = RULES["max"]()

        def add(self, part: FisherPart) -> None:
            seen.append((part.holder, part.label))
            self.largest.add(part)

        def result(self) -> dict[str, Tensor]:
            return self.largest.result()

    monkeypatch.setitem(RULES, "spy", Spy)
    find(graph, REQUEST, owners, UnlearnSettings(merge_rule="spy"))
    # Of a: ann; of b and of their mean: ann and bob.
    assert sorted(seen) == [("ann", 0)] * 3 + [("bob", 0)] * 2
