"""Files of a ledger that are damaged, foreign or out of reach are absent, never an answer."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from cases import PROBLEMS, Problem
from fisher_checks import run
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from ledger_checks import exact, fill

from fl_unlearn.fisher_ledger import FORMAT, FisherLedger, _checksum


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


def forged(ledger: FisherLedger, p: Problem, change: Callable[[dict[str, object]], object]) -> None:
    """An entry with another header, or other sums, and a name that fits its content."""
    (path,) = ledger.folder.iterdir()
    line, _, payload = path.read_bytes().partition(b"\n")
    header = json.loads(line)
    payload = change(header) or payload
    content = json.dumps(header).encode() + b"\n" + payload
    path.unlink()
    (ledger.folder / f"{path.name.rsplit('-', 1)[0]}-{_checksum(content)}.fisher").write_bytes(content)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda h: h.update(format=FORMAT + 1), f"has format {FORMAT + 1}, this version reads {FORMAT}"),
        (lambda h: h.update(data="another"), "holds for other data"),
        (lambda h: h.update(model="another"), "holds for other data"),
        (lambda h: h.pop("without"), "no entry of a ledger"),
        (lambda h: b"nothing", "no Fisher sums"),
        (lambda h: run(PROBLEMS["mlp"](), kind="true").to_bytes(), "another kind or scope"),
        (lambda h: run(PROBLEMS["mlp_without_bias"]()).to_bytes(), "other parameters"),
    ],
    ids=["newer", "data", "model", "header", "payload", "kind", "names"],
)
def test_a_foreign_file_is_no_answer(
    change: Callable[[dict[str, object]], object],
    message: str,
    mlp: Problem,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    ledger = FisherLedger(tmp_path, "data")
    fill(ledger, mlp)
    forged(ledger, mlp, change)
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
