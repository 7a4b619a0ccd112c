"""Request documents: one form, read strictly, signed over all that they say."""

from __future__ import annotations

import json
import pickle
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone

import cases_documents as cases
import pytest
from cases_documents import ID, KEYS, NOW, SOUND, document
from hypothesis import given, settings
from hypothesis import strategies as st

from fl_unlearn.request_document import DocumentSignature, RequestDocument
from fl_unlearn.types import (
    REFUSAL_CODES,
    DocumentError,
    ForgetRequest,
    PolicyError,
    RequestError,
    UnlearnSettings,
)


@settings(max_examples=40)
@given(cases.documents())
def test_a_document_is_read_as_it_was_written(made: RequestDocument) -> None:
    data = made.to_bytes()
    assert RequestDocument.from_bytes(data) == made
    assert RequestDocument.from_json(made.to_json()) == made
    spaced = json.dumps(json.loads(data), indent=1, ensure_ascii=False).encode()
    assert RequestDocument.from_bytes(spaced).to_bytes() == data


@given(cases.documents(), st.data())
def test_of_changed_bytes_nothing_is_raised_but_a_document_error(made: RequestDocument, data) -> None:
    changed = bytearray(made.to_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(changed) - 1))
        changed[at] ^= 1 << data.draw(st.integers(0, 7))
    try:
        read = RequestDocument.from_bytes(bytes(changed))
    except DocumentError:
        return
    if made.signature is not None and read != made:
        key = next(k.public for k in KEYS.values() if k.public.fingerprint == made.signature.key)
        with pytest.raises(PolicyError):
            read.verify(key)


@settings(max_examples=40)
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    )
)
def test_of_any_values_nothing_is_raised_but_a_document_error(value) -> None:
    for plain in (value, *({**document().to_json(), name: value} for name in document().to_json())):
        with suppress(DocumentError):
            assert RequestDocument.from_json(plain).to_json() == plain
    for name in ("classes", "clients", "samples"):
        plain = document().to_json()
        plain["target"] = {**plain["target"], name: value}
        with suppress(DocumentError):
            assert RequestDocument.from_json(plain).to_json() == plain


@given(st.binary(max_size=64) | st.text().map(str.encode))
def test_of_any_bytes_nothing_is_raised_but_a_document_error(data: bytes) -> None:
    with pytest.raises(DocumentError):
        RequestDocument.from_bytes(data)


def test_the_canonical_form_and_what_is_signed() -> None:
    """Written out in full: other programs make the same bytes."""
    made = document(ForgetRequest(samples={"3": ("é",)}, reason="a"), deadline=NOW + timedelta(days=1))
    signed = made.sign(KEYS["a"])
    body = (
        '{"created":"2026-11-22T02:00:00Z","deadline":"2026-11-23T02:00:00Z",'
        f'"federation":null,"id":"{ID}","reason":"a","requester":"a","schema":"fl-unlearn/forget-request","scope":null,%s'
        r'"target":{"classes":[],"clients":[],"samples":{"3":["\u00e9"]}},"version":1}'
    )
    assert made.message() == ("fl-unlearn forget-request 1\n" + body % "").encode()
    assert made.to_bytes() == (body % '"signature":null,').encode()
    signature = f'"signature":{{"key":"{KEYS["a"].public.fingerprint}","value":"{signed.signature.value}"}},'
    assert signed.to_bytes() == (body % signature).encode()
    signed.verify(KEYS["a"].public)


@pytest.mark.parametrize("request_", SOUND.values(), ids=SOUND)
def test_a_signature_covers_everything(request_: ForgetRequest) -> None:
    signed = document(request_).sign(KEYS["a"])
    signed.verify(KEYS["a"].public)
    other = {
        "id": ID[::-1],
        "requester": "b",
        "federation": "trial-7",
        "scope": "all",
        "created": NOW - timedelta(seconds=1),
        "deadline": NOW + timedelta(days=1),
        "request": ForgetRequest((9,), reason=request_.reason),
    }
    for name, value in (*other.items(), ("request", replace(request_, reason="another"))):
        with pytest.raises(PolicyError, match=r"is not what the key .* signed") as caught:
            replace(signed, **{name: value}).verify(KEYS["a"].public)
        assert caught.value.code == "forged"


def test_signatures_that_do_not_count() -> None:
    made = document()
    for changed, code, match in (
        (made, "unsigned", "is not signed; sign it with 'a'"),
        (made.sign(KEYS["b"]), "wrong-key", "sign it with that one"),
    ):
        with pytest.raises(PolicyError, match=match) as caught:
            changed.verify(KEYS["a"].public)
        assert caught.value.code == code
    with pytest.raises(DocumentError, match=r"signature\.value must be 64 bytes in base64"):
        DocumentSignature("0" * 64, "A" * 86 + "B=")  # another text for the same bytes
    with pytest.raises(DocumentError, match=r"signature\.key must be 64 hexadecimal digits"):
        DocumentSignature("A" * 64, "A" * 86 + "==")


def test_a_refusal_keeps_its_code() -> None:
    for code in REFUSAL_CODES:
        error = pickle.loads(pickle.dumps(PolicyError(code, "why")))
        assert (error.code, str(error)) == (code, "why")
        assert isinstance(error, RequestError)


PLAIN = document(SOUND["keys"]).to_json()
LONE = "\ud800"
BAD = {
    "no object": ([], "must be an object"),
    "no field": ({**PLAIN, "extra": 1}, "has no field 'extra'"),
    "typing error": ({**PLAIN, "scop": None}, "did you mean 'scope'"),
    "too few": ({k: v for k, v in PLAIN.items() if k != "scope"}, "lacks scope"),
    "another schema": ({**PLAIN, "schema": "x"}, "schema must be 'fl-unlearn/forget-request', got 'x'"),
    "another version": ({**PLAIN, "version": 2}, "version must be 1, got 2"),
    "true is no version": ({**PLAIN, "version": True}, "version must be 1, got True"),
    "id in capitals": ({**PLAIN, "id": ID.upper()}, "id must be 32 hexadecimal digits"),
    "short id": ({**PLAIN, "id": ID[1:]}, "id must be"),
    "no requester": ({**PLAIN, "requester": ""}, "requester must have 1 to 200 characters, got 0"),
    "long requester": ({**PLAIN, "requester": "x" * 201}, "got 201"),
    "number as requester": ({**PLAIN, "requester": 3}, "requester must be a text, got 3"),
    "line break": ({**PLAIN, "requester": "a\n"}, r"printable .* got 'a\\n'"),
    "direction mark": ({**PLAIN, "requester": "a\u202eb"}, r"printable .* got 'a\\u202eb'"),
    "half a character": ({**PLAIN, "scope": LONE}, "scope must be of printable"),
    "spaces": ({**PLAIN, "scope": " head"}, "without spaces at its ends"),
    "control character": ({**PLAIN, "reason": "\x1b[2J"}, "reason must be of printable"),
    "long reason": ({**PLAIN, "reason": "x" * 2001}, "0 to 2000 characters, got 2001"),
    "no reason": ({**PLAIN, "reason": None}, "reason must be a text, got None"),
    "no time": ({**PLAIN, "created": None}, "created must be a time in UTC"),
    "local time": ({**PLAIN, "created": "2026-11-22T02:00:00+01:00"}, "created must be a time in UTC"),
    "no such day": ({**PLAIN, "created": "2026-02-30T00:00:00Z"}, "created must be a time"),
    "hour 24": ({**PLAIN, "created": "2026-11-22T24:00:00Z"}, "created must be a time"),
    "other digits": ({**PLAIN, "created": "\u0662026-11-22T02:00:00Z"}, "created must be a time"),
    "too late": ({**PLAIN, "deadline": PLAIN["created"]}, "deadline must be later than created"),
    "signature": ({**PLAIN, "signature": "x"}, "signature must be an object with key, value"),
    "half a signature": ({**PLAIN, "signature": {"key": "0" * 64}}, "signature lacks value"),
}
TARGET = {"classes": [], "clients": [], "samples": {}}
BAD_TARGETS = {
    "none": ({}, "must name at least one class"),
    "both": ({"classes": [1], "samples": {"3": ["a"]}}, "samples go with neither"),
    "extra": ({"classes": [1], "sample": 1}, "target has no field 'sample'"),
    "text as class": ({"classes": ["1"]}, r"target.classes\[0\] must be a whole number .* got '1'"),
    "true as class": ({"classes": [True]}, r"target.classes\[0\] must be a whole number"),
    "negative": ({"classes": [-1]}, "from 0 to 2147483647, got -1"),
    "large": ({"classes": [2**31]}, "from 0 to 2147483647"),
    "enormous": ({"classes": [10**5000]}, "got a value of type int"),
    "order": ({"classes": [2, 1]}, "target.classes must ascend without repeats, got 2 before 1"),
    "repeated class": ({"classes": [1, 1]}, "target.classes must ascend"),
    "no list": ({"classes": {}}, "target.classes must be a list"),
    "many": ({"classes": [*range(10_001)]}, "at most 10000 entries, got 10001"),
    "client number": ({"clients": [3]}, r"target.clients\[0\] must be a text, got 3"),
    "repeated client": ({"clients": ["3", "3"]}, "target.clients must have no repeats"),
    "samples list": ({"samples": ["a"]}, "target.samples must be an object"),
    "no samples": ({"samples": {"3": []}}, "no sample of client '3' is named"),
    "mixed": ({"samples": {"3": ["a", 1]}}, r"target.samples\['3'\]\[1\] must be a text, got 1"),
    "mixed the other way": ({"samples": {"3": [1, "a"]}}, "must be a whole number .* got 'a'"),
    "key order": ({"samples": {"3": ["b", "a"]}}, "must ascend without repeats"),
    "empty key": ({"samples": {"3": [""]}}, "1 to 200 characters"),
    "empty client": ({"samples": {"": ["a"]}}, "a client in target.samples must have"),
    "many samples": ({"samples": {"3": [*range(60_000)], "4": [*range(60_000)]}}, "got 2 and 120000"),
}
BAD |= {f"target: {n}": ({**PLAIN, "target": {**TARGET, **t}}, m) for n, (t, m) in BAD_TARGETS.items()}


@pytest.mark.parametrize(("plain", "match"), BAD.values(), ids=BAD)
def test_bad_documents_are_refused_with_what_to_change(plain, match: str) -> None:
    with pytest.raises(DocumentError, match=match) as caught:
        RequestDocument.from_json(plain)
    assert len(str(caught.value)) < 500
    assert str(caught.value).isprintable()


DATA = document().to_bytes()
BAD_BYTES = {
    "text": (DATA.decode(), "read from bytes, got str"),
    "nothing": (b"", "not JSON"),
    "another encoding": (DATA.decode().encode("utf-16"), "not JSON in UTF-8"),
    "byte order mark": (b"\xef\xbb\xbf" + DATA, "not JSON"),
    "field twice": (DATA.replace(b'{"created"', b'{"id":"x","created"'), "has 'id' twice"),
    "class twice": (DATA.replace(b'"classes"', b'"classes":[9],"classes"'), "has 'classes' twice"),
    "fraction": (DATA.replace(b"[3,7]", b"[3.0,7]"), "whole numbers only, got '3.0'"),
    "exponent": (DATA.replace(b"[3,7]", b"[3e0,7]"), "whole numbers only"),
    "no number": (DATA.replace(b"[3,7]", b"[NaN]"), "whole numbers only, got 'NaN'"),
    "digits": (DATA.replace(b"[3,7]", b"[" + b"9" * 5000 + b"]"), "not JSON"),
    "deep": (DATA.replace(b"[3,7]", b"[" * 100_000 + b"]" * 100_000), "nested too deeply"),
    "large": (DATA + b" " * 2**20, "at most 1048576 bytes"),
    "after the end": (DATA + b"{}", "not JSON"),
}


@pytest.mark.parametrize(("data", "match"), BAD_BYTES.values(), ids=BAD_BYTES)
def test_bad_bytes_are_refused(data, match: str) -> None:
    with pytest.raises(DocumentError, match=match) as caught:
        RequestDocument.from_bytes(data)
    assert len(str(caught.value)) < 500


def test_a_document_that_is_too_long_when_it_is_escaped_is_refused() -> None:
    made = document(ForgetRequest(samples={"3": tuple(f"{i:05}" + "患" * 50 for i in range(5000))}))
    data = json.dumps(made.to_json(), ensure_ascii=False).encode()
    assert len(data) < 2**20
    for use in (made.to_bytes, lambda: made.sign(KEYS["a"]), lambda: RequestDocument.from_bytes(data)):
        with pytest.raises(DocumentError, match="at most 1048576 bytes, with all but ASCII escaped"):
            use()


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"created": datetime(2026, 1, 1)}, "created must be a datetime in UTC in whole seconds"),
        ({"created": NOW.astimezone(timezone(timedelta(hours=1)))}, "created must be a datetime in UTC"),
        ({"created": NOW.replace(microsecond=1)}, "in whole seconds"),
        ({"deadline": "2026-11-23T02:00:00Z"}, "deadline must be a datetime"),
        ({"request": {"classes": [3]}}, "request must be a ForgetRequest"),
        ({"signature": "x"}, "signature must be a DocumentSignature or None"),
        ({"id": None}, "id must be 32"),
        ({"request": ForgetRequest((2**31,))}, "from 0 to 2147483647"),
        ({"request": ForgetRequest((1,), reason="a\nb")}, "reason must be of printable"),
    ],
)
def test_a_document_is_checked_when_it_is_made(changes, match: str) -> None:
    with pytest.raises(DocumentError, match=match):
        document(**changes)


def test_new_documents_have_ids_of_their_own_and_the_time() -> None:
    before = datetime.now(UTC).replace(microsecond=0)
    one, two = (RequestDocument.new("a", SOUND["keys"]) for _ in range(2))
    assert one.id != two.id
    assert before <= one.created <= datetime.now(UTC)
    assert RequestDocument.new("a", SOUND["keys"], now=NOW + timedelta(microseconds=5)).created == NOW
    assert one.signature is None


def test_the_scope_says_how_deep_and_nothing_else() -> None:
    base = UnlearnSettings(fisher_scope="fc1.*", erase="fc1", max_retain_drop=0.02, timeout=5)
    for scope, fisher_scope, erase in (
        (None, "fc1.*", "fc1"),
        ("fast", "head", "none"),
        ("deep", "head", "auto"),
        ("head", "head", "fc1"),
        ("all", "all", "fc1"),
        ("fc2.*, fc3.*", "fc2.*, fc3.*", "fc1"),
    ):
        settings = document(scope=scope).settings(base)
        assert settings == replace(base, fisher_scope=fisher_scope, erase=erase)


def test_a_deadline_passes() -> None:
    made = document(deadline=NOW + timedelta(hours=1))
    document().check_deadline(NOW + timedelta(days=9999))
    made.check_deadline(NOW + timedelta(minutes=59))
    with pytest.raises(PolicyError, match="was to be served before 2026-11-22T03:00:00Z") as caught:
        made.check_deadline(NOW + timedelta(hours=1))
    assert caught.value.code == "expired"
