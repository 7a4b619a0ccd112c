"""Who may ask to forget what, and documents that are refused."""

from __future__ import annotations

import logging
import re
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from cases_documents import KEYS, NOW, SOUND, document, write_policy

from fl_unlearn.policy import MAX_AGE, TOLERANCE, Policy, Requester
from fl_unlearn.types import (
    REFUSAL_CODES,
    ForgetRequest,
    PolicyError,
    PolicyFileError,
    SettingsError,
    UnlearnError,
)

GOOD = '''
max_age = 7

[[requester]]
name = "a"
key = "a.pub"
clients = ["3", "5"]
budget = 0.05

[[requester]]
name = "operator"
key = """
%s"""
classes = "any"
''' % KEYS["b"].public.pem()  # noqa: UP031 (the text has braces of its own elsewhere)


def policy(**rights: object) -> Policy:
    return Policy([Requester("a", KEYS["a"].public, **rights)])  # type: ignore[arg-type]


def refused(policy: Policy, made, *, now: datetime = NOW, seen: bool = False) -> PolicyError:
    with pytest.raises(PolicyError) as caught:
        policy.check(made, now=now, seen=lambda id_: seen)
    assert caught.value.code in REFUSAL_CODES
    return caught.value


def test_a_policy_file_is_read(tmp_path: Path) -> None:
    read = Policy.read(write_policy(tmp_path, GOOD))
    a, operator = read.requesters["a"], read.requesters["operator"]
    assert read.max_age == timedelta(days=7)
    assert (a.classes, a.clients, a.budget) == (frozenset(), frozenset({"3", "5"}), 0.05)
    assert (operator.classes, operator.clients, operator.budget) == ("any", frozenset(), None)
    assert a.key.fingerprint == KEYS["a"].public.fingerprint
    assert operator.key.fingerprint == KEYS["b"].public.fingerprint
    signed = document(SOUND["keys"]).sign(KEYS["a"])
    assert read.check(signed, now=NOW, seen=lambda id_: False) is a
    assert Policy.read(write_policy(tmp_path, GOOD.replace("max_age = 7", ""))).max_age == MAX_AGE


def test_a_document_is_meant_for_one_federation(tmp_path: Path) -> None:
    """One key in the policies of two: what is asked of one cannot be brought to the other."""
    named = Policy.read(write_policy(tmp_path, 'federation = "trial-7"\n' + GOOD))
    assert named.federation == "trial-7"
    unnamed = Policy.read(write_policy(tmp_path, GOOD))
    assert unnamed.federation is None
    asked = document(SOUND["keys"])
    here, elsewhere = (replace(asked, federation=name).sign(KEYS["a"]) for name in ("trial-7", "trial-8"))
    assert named.check(here, now=NOW, seen=lambda id_: False).name == "a"
    for checked, made, match in (
        (
            named,
            elsewhere,
            "meant for the federation 'trial-8', and this policy is that of the federation",
        ),
        (named, asked.sign(KEYS["a"]), "meant for no federation, .* name this one in a new document"),
        (unnamed, here, "this policy is that of no federation; `federation` in the policy names it"),
    ):
        error = refused(checked, made)
        assert error.code == "wrong-federation"
        assert re.search(match, str(error))
    assert refused(named, replace(elsewhere, federation="trial-7")).code == "forged"


ANY = "any"
RIGHTS = [
    # classes, clients, what is asked for, what of it is not allowed
    (frozenset({3}), (), ForgetRequest((3,)), None),
    (frozenset({3}), (), ForgetRequest((3, 7)), "the classes 7 of everybody"),
    (ANY, (), ForgetRequest((3, 7)), None),
    (ANY, (), ForgetRequest((3,), ("5",)), None),
    (ANY, (), ForgetRequest(clients=("5",)), "the clients '5'"),
    (ANY, (), ForgetRequest(samples={"5": ("x",)}), "the clients '5'"),
    (frozenset(), frozenset({"3"}), ForgetRequest(clients=("3",)), None),
    (frozenset(), frozenset({"3"}), ForgetRequest(clients=("3", "5")), "the clients '5'"),
    (frozenset(), frozenset({"3"}), ForgetRequest(clients=("03",)), "the clients '03'"),
    (frozenset(), frozenset({"3"}), ForgetRequest(samples={"3": ("x",)}), None),
    (frozenset(), frozenset({"3"}), ForgetRequest(samples={"3": (1,), "5": (2,)}), "the clients '5'"),
    (frozenset(), frozenset({"3"}), ForgetRequest((1,)), "the classes 1 of everybody"),
    (frozenset(), frozenset({"3"}), ForgetRequest((1,), ("3",)), None),
    (frozenset(), frozenset({"3"}), ForgetRequest((1,), ("3", "5")), "the classes 1 of the clients '5'"),
    (frozenset({1}), frozenset({"3"}), ForgetRequest((1, 2), ("3", "5")), "the classes 2 of the clients '5'"),
    (frozenset({1}), frozenset({"3"}), ForgetRequest((1,), ("3", "5")), None),
    (frozenset(), ANY, ForgetRequest(clients=("5",)), None),
    (frozenset(), ANY, ForgetRequest((1,)), "the classes 1 of everybody"),
]


@pytest.mark.parametrize(("classes", "clients", "request_", "beyond"), RIGHTS)
def test_what_a_requester_may_ask_for(classes, clients, request_, beyond) -> None:
    checked = policy(classes=classes, clients=clients or frozenset())
    signed = document(request_).sign(KEYS["a"])
    if beyond is None:
        assert checked.check(signed, now=NOW, seen=lambda id_: False).name == "a"
        return
    error = refused(checked, signed)
    assert error.code == "not-allowed"
    assert f"'a' may not ask to forget {beyond}; the policy allows it classes: " in str(error)


def test_long_lists_are_cut_in_messages() -> None:
    error = refused(
        policy(classes=frozenset({0})), document(ForgetRequest(tuple(range(1, 200)))).sign(KEYS["a"])
    )
    assert "the classes 1, 2, 3, 4, 5, 6, 7, 8 and 191 more of everybody" in str(error)


def test_documents_that_are_not_by_whom_they_say() -> None:
    checked = policy(classes="any")
    made = document()
    signed = made.sign(KEYS["a"])
    for changed, code, match in (
        (made, "unsigned", "is not signed"),
        (replace(signed, requester="A"), "unknown-requester", "'A' is no requester of the policy, only 'a'"),
        (made.sign(KEYS["b"]), "wrong-key", "sign it with that one"),
        (replace(signed, request=ForgetRequest((1,))), "forged", "it was altered"),
        (replace(signed, deadline=NOW + MAX_AGE), "forged", "it was altered"),
    ):
        error = refused(checked, changed)
        assert error.code == code
        assert match in str(error)
    with pytest.raises(PolicyError, match="did you mean 'hospital'"):
        Policy([Requester("hospital", KEYS["a"].public, "any")]).check(
            replace(signed, requester="hopsital"), now=NOW, seen=lambda id_: False
        )


def test_a_document_counts_once_and_only_an_authentic_one() -> None:
    checked, signed, asked = policy(classes="any"), document().sign(KEYS["a"]), []

    def seen(id_: str) -> bool:
        asked.append(id_)
        return len(asked) > 1

    assert checked.check(signed, now=NOW, seen=seen).name == "a"
    with pytest.raises(PolicyError, match="was accepted before, and counts once") as caught:
        checked.check(signed, now=NOW, seen=seen)
    assert caught.value.code == "replayed"
    assert asked == [signed.id] * 2
    assert refused(checked, replace(signed, scope="all"), seen=True).code == "forged"


def test_documents_that_come_too_early_or_too_late() -> None:
    checked, second = policy(classes="any"), timedelta(seconds=1)
    for offset, deadline, code in (
        (-TOLERANCE, None, None),
        (-TOLERANCE - second, None, "from-the-future"),
        (MAX_AGE, None, None),
        (MAX_AGE + second, None, "expired"),
        (second, 2 * second, None),
        (2 * second, 2 * second, "expired"),
    ):
        signed = document(deadline=None if deadline is None else NOW + deadline).sign(KEYS["a"])
        if code is None:
            checked.check(signed, now=NOW + offset, seen=lambda id_: False)
        else:
            assert refused(checked, signed, now=NOW + offset).code == code
    young = Policy(checked.requesters.values(), max_age=timedelta(days=1))
    error = refused(young, document().sign(KEYS["a"]), now=NOW + timedelta(days=3))
    assert "was created 3 days ago, and the policy takes none older than 1 days" in str(error)
    with pytest.raises(SettingsError, match="now needs a time zone"):
        checked.check(document().sign(KEYS["a"]), now=datetime(2026, 1, 1), seen=lambda id_: False)


REQUESTER = '[[requester]]\nname = "a"\nkey = "a.pub"\nclasses = [3]\n'
BAD = {
    "empty": ("", "the policy has no requester"),
    "no TOML": (REQUESTER + "budget = \n", r"it is not TOML: .*line 5"),
    "not UTF-8": (b"\xff", "it is not TOML"),
    "unknown key of the file": (
        "max_aeg = 3\n" + REQUESTER,
        "has no key 'max_aeg', .* did you mean 'max_age'",
    ),
    "unknown key": (REQUESTER + "clases = [4]\n", r"requester 1 \('a'\) has no key 'clases', .* 'classes'"),
    "one bracket": (REQUESTER.replace("[[requester]]", "[requester]"), "in two brackets"),
    "no name": (REQUESTER.replace('name = "a"', ""), "requester 1 has no name"),
    "no key": (REQUESTER.replace('key = "a.pub"', ""), r"requester 1 \('a'\) has no key; every"),
    "name of another kind": (REQUESTER.replace('"a"', "3", 1), "name must be a text as documents can hold"),
    "name with a mark": (REQUESTER.replace('"a"', '"a\\u202e"', 1), "name must be a text as documents"),
    "key of another kind": (REQUESTER.replace('"a.pub"', "3"), "key must be the path .* got 3"),
    "no such key": (REQUESTER.replace("a.pub", "d.pub"), r"requester 1 \('a'\): cannot read the key .*d.pub"),
    "not PEM": (REQUESTER.replace("a.pub", "policy.toml"), "is no public key"),
    "PEM cut": (REQUESTER.replace("a.pub", "-----BEGIN PUBLIC KEY-----"), "key is no public key"),
    "private": (REQUESTER.replace("a.pub", "-----BEGIN PRIVATE KEY-----"), "key is a private one"),
    "class as text": (REQUESTER.replace("[3]", '["3"]'), 'classes must be "any" or a list of whole numbers'),
    "true as class": (REQUESTER.replace("[3]", "[true]"), "classes must be"),
    "negative": (REQUESTER.replace("[3]", "[-1]"), "classes must be"),
    "all": (REQUESTER.replace("[3]", '"all"'), "classes must be .* got 'all'"),
    "client number": (REQUESTER + "clients = [3]\n", 'clients must be "any" or a list of texts'),
    "nothing": (REQUESTER.replace("[3]", "[]"), "may ask for nothing"),
    "budget": (REQUESTER + "budget = 5\n", "budget must be a share of accuracy, 0 to 1, got 5"),
    "no budget": (REQUESTER + "budget = nan\n", "budget must be a share"),
    "true budget": (REQUESTER + "budget = true\n", "budget must be a share"),
    "federation": ("federation = 7\n" + REQUESTER, "federation must be a text .*, got 7"),
    "age": ("max_age = 0\n" + REQUESTER, "max_age must be days, 1 to 36500, got 0"),
    "infinite age": ("max_age = inf\n" + REQUESTER, "max_age must be days"),
    "same name": (REQUESTER + REQUESTER.replace("a.pub", "b.pub"), "two requesters 'a'"),
    "same key": (REQUESTER + REQUESTER.replace('"a"', '"b"'), "'a' and 'b' have the same key"),
}


@pytest.mark.parametrize(("text", "match"), BAD.values(), ids=BAD)
def test_bad_policies_are_refused_with_what_to_change(tmp_path: Path, text, match: str) -> None:
    path = write_policy(tmp_path, "")
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(PolicyFileError, match=f"policy {re.escape(str(path))}: .*{match}") as caught:
        Policy.read(path)
    assert isinstance(caught.value, SettingsError)
    assert isinstance(caught.value, UnlearnError)


def test_policies_that_cannot_be_read_or_that_others_can_write(tmp_path: Path, caplog) -> None:
    for path in (tmp_path / "nowhere.toml", tmp_path, "\0"):
        with pytest.raises(PolicyFileError, match="it cannot be read"):
            Policy.read(path)
    KEYS["a"].generate(tmp_path / "mine")
    secret = (tmp_path / "mine").read_text()
    for key in ("mine", secret):
        text = REQUESTER.replace('"a.pub"', f'"""{key}"""')
        with pytest.raises(PolicyFileError, match="private") as caught:
            Policy.read(write_policy(tmp_path, text))
        assert secret.splitlines()[1] not in str(caught.value)
    path = write_policy(tmp_path, REQUESTER)
    with caplog.at_level(logging.WARNING, "fl_unlearn"):
        Policy.read(path)
        assert not caplog.records
        path.chmod(0o620)
        Policy.read(path)
    assert "can be changed by other users" in caplog.text
