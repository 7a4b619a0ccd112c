"""Files of a ledger that are damaged, foreign or out of reach are absent, never an answer."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
import torch
from cases import PROBLEMS, Problem
from fisher_checks import run
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from ledger_checks import exact, fill

from fl_unlearn.fisher import FisherSums
from fl_unlearn.fisher_entry import FORMAT, encode_entry
from fl_unlearn.fisher_ledger import FisherLedger


@pytest.fixture
def mlp() -> Problem:
    return PROBLEMS["mlp"]()


@pytest.mark.parametrize("folder", ["missing", "a file"])
def test_a_folder_that_cannot_be_used_is_no_answer(folder: str, mlp: Problem, tmp_path: Path) -> None:
    (tmp_path / "a file").touch()
    ledger = FisherLedger(tmp_path / folder, "data")
    assert ledger.get(mlp.model) is None
    got, held = ledger.answer(mlp.model, mlp.batches, classes=[0])
    assert not held
    exact(got, run(mlp, keep_classes=[0]))


@given(st.data())
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
def test_a_damaged_file_is_never_an_answer(mlp: Problem, tmp_path: Path, data: st.DataObject) -> None:
    for path in tmp_path.iterdir():
        path.unlink()
    ledger = FisherLedger(tmp_path, "data")
    fill(ledger, mlp)
    (path,) = tmp_path.iterdir()
    content = bytearray(path.read_bytes())
    how = data.draw(st.sampled_from(["flip", "cut", "append", "replace", "name"]))
    if how == "flip":
        content[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(st.integers(1, 255))
    elif how == "cut":
        del content[data.draw(st.integers(0, len(content) - 1)) :]
    elif how == "append":
        content += data.draw(st.binary(min_size=1, max_size=9))
    elif how == "replace":
        content = bytearray(data.draw(st.binary(max_size=99)))
    else:
        path = path.rename(path.with_name(path.name.replace("-", "-0", 1)))
    path.write_bytes(content)
    assert ledger.get(mlp.model) is None
    got, held = ledger.answer(mlp.model, mlp.batches, classes=[0])
    assert not held
    exact(got, run(mlp, keep_classes=[0]))
    assert ledger.get(mlp.model) is not None, "it is written anew"


def payload(sums: FisherSums) -> bytes:
    return b"".join(bytes(part) for part in encode_entry({}, sums, ())[0][1:])


def forged(ledger: FisherLedger, change: Callable[[dict[str, Any]], object]) -> None:
    """An entry with another first line, or other sums, and a name that fits its content."""
    (path,) = ledger.folder.iterdir()
    line, _, rest = path.read_bytes().partition(b"\n")
    own = json.loads(line)
    other = change(own)
    content = json.dumps(own).encode() + b"\n" + (other if isinstance(other, bytes) else rest)
    path.unlink()
    start = path.name.rpartition("-")[0]
    (ledger.folder / f"{start}-{sha256(content).hexdigest()}.fisher").write_bytes(content)


def negative(_: object) -> bytes:
    sums = run(PROBLEMS["mlp"]())
    return payload(replace(sums, sums={g: {n: -t for n, t in s.items()} for g, s in sums.sums.items()}))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda own: own.update(format=FORMAT + 1), f"has format {FORMAT + 1}, this version reads {FORMAT}"),
        (lambda own: own["about"].update(data="another"), "for other data"),
        (lambda own: own["about"].update(model="another"), "another model"),
        (lambda own: own.pop("lacking"), "no entry of a ledger: KeyError"),
        (lambda own: own.update(names=["fc2.weight"]), "do not go together"),
        (lambda own: own["counts"].pop("0"), "do not go together"),
        (lambda own: own["names"].reverse(), "other parameters"),
        (lambda own: own.update(num_classes=1), "do not go together"),
        (lambda own: b"nothing", "no entry of a ledger: CorruptCheckpointError"),
        (lambda own: payload(run(PROBLEMS["mlp_without_bias"]())), "do not go together"),
        (lambda own: payload(run(PROBLEMS["mlp"]()).to(torch.float32)), "is not float64"),
        (negative, "0 or more"),
    ],
    ids=[
        "newer",
        "data",
        "model",
        "line",
        "names",
        "groups",
        "order",
        "classes",
        "torn",
        "other",
        "dtype",
        "sign",
    ],
)
def test_a_foreign_file_is_no_answer(
    change: Callable[[dict[str, Any]], object],
    message: str,
    mlp: Problem,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    ledger = FisherLedger(tmp_path, "data")
    fill(ledger, mlp)
    forged(ledger, change)
    assert ledger.get(mlp.model) is None
    assert message in caplog.text
    assert ledger.answer(mlp.model, mlp.batches, classes=[0])[1] is False
    assert ledger.get(mlp.model) is not None


def test_a_link_is_not_followed(mlp: Problem, tmp_path: Path) -> None:
    ledger = FisherLedger(tmp_path / "ledger", "data")
    fill(ledger, mlp)
    (path,) = ledger.folder.iterdir()
    path.rename(tmp_path / "elsewhere")
    path.symlink_to(tmp_path / "elsewhere")
    assert ledger.get(mlp.model) is None
