"""Documents at random: the library does with them what independent rules say; and the fuzzing can fail."""

from __future__ import annotations

import base64
import json
import logging
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fl_unlearn import request_document
from fl_unlearn.audit_keys import PublicKey
from fl_unlearn.policy import Policy, Requester
from fl_unlearn.types import REFUSAL_CODES
from simulations.fuzz.__main__ import fuzz, main
from simulations.fuzz.documents import Documents
from simulations.fuzz.guided import BytesRandom

DOCUMENTS = Documents()


def test_four_hundred_documents_and_their_like() -> None:
    counts = fuzz(DOCUMENTS, 400, seed=7)
    assert counts.good, counts.kept
    assert set(counts.outcomes) == {"accepted", "malformed", *REFUSAL_CODES}
    assert counts.total == 400


@settings(max_examples=60)
@given(st.randoms(use_true_random=False))
def test_documents_as_hypothesis_draws_them(random: Random) -> None:
    verdict = DOCUMENTS.judge(DOCUMENTS.draw(random))
    assert verdict.outcome == verdict.expected


def test_the_same_seed_gives_the_same_inputs() -> None:
    one, two, other = ([DOCUMENTS.draw(Random(f"{seed}/{i}")).data for i in range(20)] for seed in (3, 3, 4))
    assert one == two
    assert one != other


def test_chance_can_be_read_from_bytes() -> None:
    """As atheris chooses them: the same bytes give the same input, and they decide what it is."""
    for data in (b"", b"\0" * 4000, b"\xff" * 4000, *(Random(i).randbytes(300) for i in range(40))):
        one, two = (DOCUMENTS.draw(BytesRandom(data)) for _ in range(2))
        assert (one.mutation, one.data) == (two.mutation, two.data)
        verdict = DOCUMENTS.judge(one)
        assert verdict.outcome == verdict.expected
    source = BytesRandom(b"\x01\x02\x03")
    assert (source.getrandbits(16), source.getrandbits(5)) == (0x0201, 0)
    assert all(0 <= source.random() < 1 for _ in range(20))


def test_what_does_not_check_signatures_is_found_out(monkeypatch, tmp_path, capsys) -> None:
    monkeypatch.setattr(PublicKey, "verify_message", lambda self, message, signature: True)
    path = tmp_path / "found.json"
    assert main(["documents", "--examples", "150", "--json", str(path)]) == 1
    found = json.loads(path.read_text())
    assert found["faults"]["wrong acceptance"] > 0
    assert found["faults"]["crash"] == 0
    kept = next(k for k in found["kept"] if k["fault"] == "wrong acceptance")
    assert DOCUMENTS.draw(Random(f"0/{kept['number']}")).data == base64.b64decode(kept["data"])
    assert "| wrong acceptance |" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("place", "name", "broken", "fault"),
    [
        (Policy, "_check_age", lambda self, made, now: None, "wrong acceptance"),
        (Policy, "_check_federation", lambda self, made: None, "wrong acceptance"),
        (Requester, "problem", lambda self, request: "all", "wrong refusal"),
        (request_document, "parse_json", lambda data: 1 / 0, "crash"),
    ],
)
def test_other_flaws_are_found_out(monkeypatch, tmp_path, place, name, broken, fault) -> None:
    path = tmp_path / "found.json"
    arguments = ["documents", "--examples", "150", "--json", str(path)]
    levels = [logging.getLogger(n).level for n in ("fl_unlearn", "flwr")]
    assert main(arguments) == 0
    assert [logging.getLogger(n).level for n in ("fl_unlearn", "flwr")] == levels
    monkeypatch.setattr(place, name, broken)
    assert main(arguments) == 1
    found = json.loads(path.read_text())["faults"]
    assert found[fault] > 0
