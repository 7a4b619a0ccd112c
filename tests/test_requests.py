"""What a request may name, and which of a client's samples it is about."""

from __future__ import annotations

import json

import pytest
import torch

from fl_unlearn import ForgetRequest
from fl_unlearn.forget_set import forget_mask
from fl_unlearn.types import RequestError

LABELS = torch.tensor([3, 0, 3, 1])


@pytest.mark.parametrize(
    ("request_", "kind", "of_a", "of_b"),
    [
        (ForgetRequest((3,)), "classes", [0, 2], [0, 2]),
        (ForgetRequest((3, 1)), "classes", [0, 2, 3], [0, 2, 3]),
        (ForgetRequest((3,), ("a",)), "classes", [0, 2], []),
        (ForgetRequest(clients=("a",)), "client", [0, 1, 2, 3], []),
        (ForgetRequest(samples={"a": (3, 0, 3)}), "samples", [0, 3], []),
        (ForgetRequest(samples={"a": (3, 0, 3), "c": ("x",)}), "samples", [0, 3], []),
    ],
)
def test_kinds_and_what_they_name(request_, kind, of_a, of_b) -> None:
    assert request_.kind == kind
    for client, rows in (("a", of_a), ("b", of_b)):
        assert forget_mask(ForgetRequest((3,)), client, LABELS[:0]).tolist() == []
        mask = forget_mask(request_, client, LABELS)
        assert mask.dtype == torch.bool
        assert mask.shape == LABELS.shape
        assert mask.nonzero().squeeze(1).tolist() == rows
    assert ForgetRequest.from_json(json.loads(json.dumps(request_.to_json()))) == request_


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({}, "at least one class, client or sample"),
        ({"classes": (1,), "samples": {"a": (0,)}}, "samples go with neither classes nor clients"),
        ({"clients": ("a",), "samples": {"a": (0,)}}, "samples go with neither classes nor clients"),
        ({"classes": (3,), "clients": "10"}, "clients is a tuple of names"),
        ({"samples": {"a": ()}}, "no sample of client 'a' is named"),
        ({"samples": {"a": (-1,)}}, "a sample's position is a whole number from 0 up, got -1"),
        ({"samples": {"a": (True,)}}, "a sample's position is a whole number from 0 up, got True"),
        (
            {"samples": {"a": "patient-1"}},
            r"positions or of keys, got 'patient-1'; try \{'a': \('patient-1',\)\}",
        ),
        ({"samples": {"a": ("patient-1", 2)}}, r"named by keys and otherwise \(2\)"),
        ({"samples": {"a": (2, "patient-1")}}, r"named by keys and otherwise \(2\)"),
        ({"samples": {"a": ("", "b")}}, "a key of a sample is not empty, got '' for client 'a'"),
        ({"classes": (1.5,)}, "a class is a whole number from 0 up, got 1.5"),
    ],
)
def test_a_senseless_request_is_an_error(arguments, said) -> None:
    with pytest.raises(RequestError, match=said):
        ForgetRequest(**arguments)


def test_a_sample_that_the_client_does_not_have_is_an_error() -> None:
    with pytest.raises(RequestError, match=r"client 'a' has 4 training samples, 0 to 3; .* names sample 4"):
        forget_mask(ForgetRequest(samples={"a": (1, 4)}), "a", LABELS)


def test_keys_are_kept_as_texts_and_must_be_looked_up_by_their_client() -> None:
    request = ForgetRequest(samples={"a": ("12", "7", "12"), "b": (12, 7)}, reason="asked")
    assert request.samples == {"a": ("12", "7"), "b": (7, 12)}
    assert request.kind == "samples"
    plain = json.loads(json.dumps(request.to_json()))
    assert plain["samples"] == {"a": ["12", "7"], "b": [7, 12]}
    assert ForgetRequest.from_json(plain) == request
    assert ForgetRequest(samples={"a": ("1",)}) != ForgetRequest(samples={"a": (1,)})
    assert (request.positions("b"), request.positions("c")) == ((7, 12), ())
    for use in (lambda: request.positions("a"), lambda: forget_mask(request, "a", LABELS)):
        with pytest.raises(RequestError, match="2 samples of client 'a' by its keys, the first of them '12'"):
            use()
    assert forget_mask(request, "c", LABELS).sum() == 0


def test_classes_beyond_the_labels_dtype_are_nobodys() -> None:
    labels = LABELS.to(torch.uint8)
    assert forget_mask(ForgetRequest((3, 300, 2**40)), "a", labels).tolist() == [True, False, True, False]


def test_requests_written_before_samples_could_be_named_are_read() -> None:
    old = {"classes": [3], "clients": [], "reason": "asked"}
    assert ForgetRequest.from_json(old) == ForgetRequest((3,), reason="asked")
    assert ForgetRequest((3,), reason="asked").to_json() == old
