"""The JSON Schema of request documents: what it refuses, the library refuses too."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from random import Random

import cases_documents as cases
import jsonschema
import pytest
from cases_documents import KEYS, SOUND, document
from hypothesis import given, settings

import fl_unlearn
from fl_unlearn import document_checks as checks
from fl_unlearn.request_document import SCHEMA, VERSION, RequestDocument, json_schema
from fl_unlearn.types import DocumentError
from simulations.fuzz.document_changes import JSON_CHANGES

VALIDATOR = jsonschema.Draft202012Validator(json_schema())


def test_the_schema_is_one_and_says_the_same_limits() -> None:
    VALIDATOR.check_schema(json_schema())
    assert json_schema() == json.loads((Path(fl_unlearn.__file__).parent / "request_schema.json").read_text())
    properties, text = json_schema()["properties"], json_schema()["$defs"]["text"]
    target = properties["target"]["properties"]
    each = target["samples"]["additionalProperties"]
    assert (properties["schema"]["const"], properties["version"]["const"]) == (SCHEMA, VERSION)
    assert text["maxLength"] == checks.MAX_TEXT
    assert properties["reason"]["maxLength"] == checks.MAX_REASON
    for part in (
        target["classes"]["maxItems"],
        target["clients"]["maxItems"],
        target["samples"]["maxProperties"],
    ):
        assert part == checks.MAX_NAMED
    assert each["maxItems"] == checks.MAX_SAMPLES
    assert target["classes"]["items"]["maximum"] == checks.MAX_CLASS
    assert each["anyOf"][1]["items"]["maximum"] == checks.MAX_POSITION


@settings(max_examples=40)
@given(cases.documents())
def test_documents_satisfy_the_schema(made: RequestDocument) -> None:
    VALIDATOR.validate(made.to_json())


@pytest.mark.parametrize("name", SOUND)
def test_what_the_schema_refuses_is_refused(name: str) -> None:
    """Documents with values changed in the ways that the fuzzing knows."""
    random, refused = Random(name), 0
    for _ in range(100):
        plain = copy.deepcopy(document(SOUND[name]).sign(KEYS["a"]).to_json())
        random.choice([*JSON_CHANGES.values()])(random, plain)
        if not VALIDATOR.is_valid(plain):
            refused += 1
            with pytest.raises(DocumentError):
                RequestDocument.from_json(plain)
    assert refused > 20
