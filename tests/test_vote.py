import pytest
import references_defence as reference
from hypothesis import given
from hypothesis import strategies as st

from fl_unlearn.calibration import Candidate, choose, explain_refusal, judge, sum_scores
from fl_unlearn.types import ClassScores, ForgetRequest, UnlearnSettings
from fl_unlearn.vote import Votes, differs

Counts = dict[int, tuple[int, list[int]]]
"""Class to its samples, and to the correct ones: of the model as it is, then of each candidate."""


def scores(counts: Counts) -> list[ClassScores]:
    rows = len(next(iter(counts.values()))[1])
    return [
        ClassScores({c: k[i] for c, (_, k) in counts.items()}, {c: n for c, (n, _) in counts.items()})
        for i in range(rows)
    ]


@st.composite
def ballots(draw: st.DrawFn) -> dict[str, Counts]:
    out: dict[str, Counts] = {}
    for client in "abcdefg"[: draw(st.integers(1, 7))]:
        labels = draw(st.sets(st.integers(0, 3), min_size=1))
        out[client] = {}
        for label in sorted(labels):
            n = draw(st.integers(1, 9))
            out[client][label] = (n, [draw(st.integers(0, n)) for _ in range(2)])
    return out


@given(ballots(), st.sampled_from([0.0, 0.2, 0.3, 0.45]))
def test_verdict_equals_reference(counts: dict[str, Counts], share: float) -> None:
    votes = Votes([0], liars=share)
    for client, own in counts.items():
        votes.add(client, scores(own))
    got = votes.verdict(1)
    for forgotten in (True, False):
        claims = [
            (client, label, float(n), k[1] / n if forgotten else k[0] / n - k[1] / n)
            for client, own in counts.items()
            for label, (n, k) in own.items()
            if (label == 0) == forgotten
        ]
        value, least = (got.forget, got.least_forget) if forgotten else (got.drop, got.least_drop)
        if not claims:
            assert value is None
            continue
        trimmed = reference.winsorised(claims, votes.liars)
        if not forgotten:
            trimmed = max(trimmed, reference.by_client(claims, votes.liars))
        assert value == pytest.approx(trimmed, abs=1e-12)
        assert least == pytest.approx(reference.least(claims, votes.liars), abs=1e-12)
        limit = value - 1e-9
        fewest = next((f for f in range(votes.liars + 1) if reference.least(claims, f) <= limit), None)
        limits = (limit, 1.0) if forgotten else (1.0, limit)
        assert len(votes.against(1, *limits)) == (fewest or 0)


def federation(candidate: list[int], lies: dict[str, Counts] | None = None) -> dict[str, Counts]:
    """Ten clients with 20 samples of the class to forget, 0, and 40 each of the classes 1 and 2."""
    honest: Counts = {c: (n, [n, k]) for c, n, k in zip((0, 1, 2), (20, 40, 40), candidate, strict=True)}
    return {str(i): honest for i in range(10)} | (lies or {})


def judged(counts: dict[str, Counts], liars: float = 0.3) -> Candidate:
    settings, request = UnlearnSettings(threshold=1.0), ForgetRequest((0,))
    votes = Votes([0], liars=liars)
    answers = {}
    for client, own in counts.items():
        plain = [ClassScores(s.correct, s.total, dict.fromkeys(s.total, 0.0)) for s in scores(own)]
        answers[client] = [plain]
        votes.add(client, plain)
    return judge(sum_scores(answers, request), settings, votes)[0]


LOST: Counts = {0: (20, [20, 20]), 1: (40, [40, 0]), 2: (40, [40, 0])}
FINE: Counts = {0: (20, [20, 0]), 1: (40, [0, 40]), 2: (40, [0, 40])}


@pytest.mark.parametrize("liars", [1, 2, 3])
def test_liars_cannot_block_a_good_candidate(liars: int) -> None:
    lies = {str(i): LOST for i in range(liars)}
    good = judged(federation([0, 40, 39], lies))
    assert good.passed
    assert good.disputed
    assert set(good.against) == set(lies)
    assert good.trimmed_forget == 0
    assert good.trimmed_drop == pytest.approx(0.0125)
    assert not judged(federation([0, 40, 39], lies), liars=0.0).passed


@pytest.mark.parametrize("liars", [1, 2, 3])
@pytest.mark.parametrize("harm", [[0, 20, 40], [0, 34, 34], [10, 40, 40]])
def test_liars_cannot_pass_a_harmful_candidate(liars: int, harm: list[int]) -> None:
    lies = {str(i): FINE for i in range(liars)}
    assert not judged(federation(harm, lies)).passed
    if liars > 1 and harm[0] == 0:
        assert judged(federation(harm, lies), liars=0.0).passed


def test_an_honest_vote_is_the_sums() -> None:
    for candidate in ([0, 40, 40], [0, 37, 40], [1, 40, 40], [0, 30, 40]):
        plain, voted = judged(federation(candidate), liars=0.0), judged(federation(candidate))
        assert (voted.passed, voted.cost, voted.disputed) == (plain.passed, plain.cost, False)


def test_a_class_with_one_holder_is_taken_at_its_word() -> None:
    alone: dict[str, Counts] = {"9": {0: (20, [20, 0]), 3: (80, [80, 0])}}
    lost = judged(federation([0, 40, 40], alone))
    assert not lost.passed
    assert lost.trimmed_drop == pytest.approx(0.1)
    settings = UnlearnSettings(threshold=1.0)
    assert "Without the word of client 9 one would have passed" in explain_refusal([lost], settings)


def test_a_gain_of_one_holder_makes_up_for_nothing() -> None:
    gain: dict[str, Counts] = {"9": {0: (20, [20, 0]), 3: (80, [0, 80])}}
    harmed = judged(federation([0, 36, 36], gain))
    assert harmed.retain_drop < 0.05
    assert not harmed.passed
    settings = UnlearnSettings(threshold=1.0)
    assert "other holders of the same classes say otherwise" in explain_refusal([harmed], settings)


def test_disputed_candidates_come_last() -> None:
    sure = Candidate(5.0, 1.0, 0.0, 0.9, 0.04, 0.0, 0.04, 0.04, passed=True, everywhere=False)
    better = Candidate(
        1.0, 1.0, 0.3, 0.9, 0.2, 0.3, 0.2, 0.2, True, False, 0.0, 0.0, 0.0, disputed=True, against=("1",)
    )
    assert choose([better, sure]) is sure
    worse = Candidate(
        2.0, 1.0, 0.3, 0.9, 0.2, 0.3, 0.2, 0.0, True, False, 0.0, 0.0, 0.03, disputed=True, against=("1",)
    )
    assert choose([worse, better]) is better


def test_samples_count_as_far_as_a_client_was_seen_to_train() -> None:
    votes = Votes([0], weight=2.0, trained={"a": 10, "b": 10})
    votes.add("a", scores({0: (1, [1, 0]), 1: (19, [19, 19])}))
    votes.add("b", scores({1: (200, [200, 0])}))
    assert votes.verdict(1).drop == pytest.approx(20 / 39)


def test_named_clients_only() -> None:
    votes = Votes([0], ["a"])
    votes.add("a", scores({0: (10, [10, 0])}))
    votes.add("b", scores({0: (30, [30, 15])}))
    verdict = votes.verdict(1)
    assert (verdict.forget, verdict.drop) == (0.0, 0.5)
    assert votes.said(1) == {"a": ((0.0, 10), (0.0, 0)), "b": ((0.0, 0), (0.5, 30))}


def test_what_counts_as_a_contradiction() -> None:
    assert differs((0.0, 100), (0.5, 100), 0.02)
    assert not differs((0.90, 100), (0.95, 100), 0.02)  # drawing samples again explains it
    assert differs((0.90, 100_000), (0.95, 100_000), 0.02)
    assert not differs((0.9, 0), (0.1, 100), 0.02)


def test_as_few_as_possible_are_named() -> None:
    alone: Counts = {0: (20, [20, 0]), 3: (80, [80, 0])}
    settings = UnlearnSettings(threshold=1.0)
    both = judged(federation([0, 40, 40], {"8": {**alone, 4: (1, [1, 0])}, "9": alone}))
    assert both.against == ("8", "9")
    assert "of clients 8, 9 one would have passed" in explain_refusal([both], settings)
    (worst,) = judged(federation([0, 40, 40], {"8": {0: (20, [20, 0]), 4: (9, [9, 0])}, "9": alone})).against
    assert worst == "9"
    assert judged(federation([0, 0, 0], {"9": alone})).against == ()
