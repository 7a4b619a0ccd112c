"""The Markdown table of a comparison, and what it says in words: known values, absences, the best."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from compare_cases import INVENTED, column, comparison, large

from fl_unlearn.types import ForgetRequest
from simulations.compare.results import COST, Comparison
from simulations.compare.sheet import BLOCKS, DASH, OTHER, Sheet
from simulations.compare.summary import NO_YARDSTICK, YARDSTICK, summarise
from simulations.compare.table import markdown, write_table

ACCURACY, SPENT = column("forget-accuracy"), COST[0]


def _rows(text: str) -> dict[str, list[str]]:
    """First cell of each line of the tables to its other cells."""
    cells = [
        [x.strip() for x in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("|")
    ]
    return {c[0]: c[1:] for c in cells}


def test_a_known_table() -> None:
    c = comparison(
        {
            "original": {"forget-accuracy": [0.9, 0.7], "client-seconds": [None, None]},
            "retrain": {"forget-accuracy": [0.1, 0.2], "client-seconds": [100.0, 120.0]},
            "not": {"forget-accuracy": [0.0, 0.0], "client-seconds": [1.5, 1.5]},
            "fiun": {"forget-accuracy": [0.1, 0.3], "client-seconds": [0.25, 0.75]},
        },
        (ACCURACY, SPENT),
        why="nothing was done",
    )
    text = markdown([c])
    assert text.index("### What it forgot") < text.index("### What it cost")
    forgot, cost = (_rows(part) for part in text.split("### What it cost"))
    assert forgot["strategy"] == ["forget-accuracy (%)"]
    assert forgot["original"] == ["80.0 ± 14.1"]
    assert forgot["*retrain* (reference)"] == ["15.0 ± 7.1"]
    assert forgot["not"] == ["0.0 ± 0.0"], "as low as can be is not nearest to retraining"
    assert forgot["fiun"] == ["**20.0 ± 14.1**"]
    assert cost["strategy"] == ["client compute (s)"]
    assert cost["original"] == [f"{DASH} (1)"]
    assert cost["not"] == ["1.50 ± 0.00"]
    assert cost["fiun"] == ["**0.500 ± 0.354**"]
    assert "- (1) nothing was done" in text


def test_one_seed_has_no_deviation() -> None:
    c = comparison({s: {"forget-accuracy": [0.5]} for s in ("retrain", "not")}, (ACCURACY,))
    assert _rows(markdown([c]))["not"] == ["50.0"]
    assert "one seed only" in markdown([c])


def _marked(
    values: dict[str, list[float | None]], good: str = "retrained", **more: dict[str, str]
) -> list[str]:
    key = column("forget-accuracy", good)  # type: ignore[arg-type]
    return Sheet(comparison({s: {key.key: v} for s, v in values.items()}, (key,), **more)).best(key.key)


def test_the_best_is_the_nearest_to_retraining_on_either_side() -> None:
    assert _marked({"retrain": [0.5], "a": [0.4], "b": [0.59], "c": [0.0]}) == ["b"]


@pytest.mark.parametrize(("good", "best"), [("low", ["a"]), ("high", ["c"])])
def test_low_and_high_need_no_retraining(good: str, best: list[str]) -> None:
    assert _marked({"a": [0.1], "b": [0.5], "c": [0.9]}, good) == best


def test_what_looks_alike_is_marked_alike() -> None:
    assert _marked({"retrain": [0.5], "a": [0.5101], "b": [0.4899], "c": [0.6]}) == ["a", "b"]
    assert _marked({"a": [0.10001], "b": [0.1], "c": [0.101]}, "low") == ["a", "b"]


def test_references_and_refused_strategies_are_not_in_the_race() -> None:
    values: dict[str, list[float | None]] = {"original": [0.0], "retrain": [0.0], "gone": [0.0]}
    assert _marked(values | {"a": [0.3], "b": [0.4]}, refused={"gone": "it changed nothing"}) == ["a"]
    assert _marked(values | {"a": [0.3], "b": [0.4]}, "low", refused={"gone": "it changed nothing"}) == ["a"]


def test_nobody_is_best_alone_or_without_a_retrained_value() -> None:
    assert _marked({"retrain": [0.5], "a": [0.5]}) == []
    assert _marked({"retrain": [0.5], "a": [0.5], "b": [None]}) == []
    assert _marked({"a": [0.5], "b": [0.4]}) == []
    assert _marked({"retrain": [None], "a": [0.5], "b": [0.4]}) == []
    assert _marked({"retrain": [0.5], "a": [0.5], "b": [0.4]}, refused={"retrain": "it broke off"}) == []


def test_absent_values_give_their_reasons_once() -> None:
    c = comparison(
        {
            "retrain": {"forget-accuracy": [0.5, 0.5], "probe-forget": [None, None]},
            "a": {"forget-accuracy": [0.5, None], "probe-forget": [None, None]},
            "b": {},
        },
        (ACCURACY, column("probe-forget")),
        refused={"b": "it needs *history*"},
    )
    text = markdown([c])
    forgot, attacks = (_rows(part) for part in text.split("### What attacks find"))
    assert forgot["a"] == ["50.0 (2)"], "a mean over one of two seeds says so"
    assert attacks["a"] == attacks["*retrain* (reference)"] == [f"{DASH} (1)"]
    assert forgot["b"] == attacks["b"] == [f"{DASH} (3)"]
    notes = re.findall(r"^- \((\d)\) (.*)$", text, re.M)
    assert notes == [
        ("1", "too few samples"),
        ("2", "mean over 1 of 2 seeds: too few samples"),
        ("3", r"it needs \*history\*"),
    ]
    assert r"- b: it needs \*history\*" in text


def test_every_column_is_in_one_block_and_unknown_ones_in_the_last() -> None:
    sheet = Sheet(large(1))
    titles = [b.title for b in sheet.blocks]
    assert titles == [*BLOCKS, OTHER]
    keys = [k.key for b in sheet.blocks for k in b.columns]
    assert sorted(keys) == sorted(k.key for k in sheet.comparison.columns)
    assert [k.key for k in sheet.blocks[-1].columns] == ["something-else"]
    for block, key in (
        ("What it forgot", "held-forget-accuracy"),
        ("What it kept", "held-retain-accuracy"),
        ("What attacks find", "relearn-steps"),
        ("Nearness to retraining", "gap-forget"),
        ("What it cost", "bytes-up"),
    ):
        assert key in [k.key for b in sheet.blocks if b.title == block for k in b.columns]


@pytest.mark.parametrize(
    ("unit", "value", "text"),
    [
        ("%", -0.0001, "0.0"),
        ("nats", 10_123.4, "10,123.40"),
        ("", 0.12345, "0.123"),
        ("steps", 12.0, "12"),
        ("steps", 12.5, "12.5"),
        ("s", 0.0123, "0.012"),
        ("s", 0.0, "0.00"),
        ("s", 1234.5, "1,234"),
        ("bytes", 2_500_000.0, "2.50"),
        ("bytes", 12.0, "12.0"),
        ("nats", 3.2e9, "3.20e+09"),
    ],
)
def test_how_values_are_shown(unit: str, value: float, text: str) -> None:
    key = column("x", unit=unit)  # type: ignore[arg-type]
    sheet = Sheet(comparison({"a": {"x": [value]}}, (key,)))
    assert sheet.cell("a", "x").text == text
    if unit == "bytes":
        assert sheet.units["x"] == ("MB" if value > 100 else "bytes")


# --------------------------------------------------------------------------- in words
def _beyond(**probe: list[float | None]) -> str:
    columns = (ACCURACY, column("probe-forget", title="the probe"))
    c = comparison({s: {"probe-forget": v} for s, v in probe.items()}, columns)
    return " ".join(summarise(Sheet(c)).beyond)


def test_who_is_no_nearer_than_mask_is_named() -> None:
    said = _beyond(
        retrain=[0.2, 0.2], mask=[0.9, 0.9], fiun=[0.4, 0.4], distill=[0.9, 0.9], unsir=[None, None]
    )
    assert "that tell mask from retraining: the probe." in said
    assert "No nearer to retraining than mask in any of these: distill." in said
    assert "Nearer than mask, by more than the deviation over seeds, in 1 of 1: fiun." in said
    assert "Without a value in these columns: unsir." in said


def test_a_difference_within_the_deviation_is_none() -> None:
    said = _beyond(retrain=[0.2, 0.2], mask=[0.9, 0.9], fiun=[0.4, 1.0], distill=[0.95, 0.95])
    assert "No nearer to retraining than mask in any of these: fiun and distill." in said
    assert "Nearer" not in said


def test_where_mask_is_like_retraining_nobody_can_be_nearer() -> None:
    said = _beyond(retrain=[0.2, 0.8], mask=[0.5, 0.6], fiun=[0.5, 0.5])
    assert "No column beyond accuracy tells mask from retraining by more than the deviation." in said
    assert "in any of these" not in said


def test_without_mask_the_original_is_held_against() -> None:
    once = _beyond(original=[0.9], retrain=[0.2], fiun=[0.4], distill=[1.0])
    assert "One seed only: without a deviation, differences beyond accuracy are not judged." in once
    said = _beyond(original=[0.9] * 2, retrain=[0.2] * 2, fiun=[0.4] * 2, distill=[1.0] * 2)
    assert "mask was not run" in said
    assert "No nearer to retraining than the model before forgetting in any of these: distill." in said
    assert "in 1 of 1: fiun." in said


def test_without_retraining_nothing_is_said_of_nearness() -> None:
    values = {s: {"probe-forget": [0.5]} for s in ("original", "mask", "fiun")}
    c = comparison(values, (column("probe-forget"),))
    said = summarise(Sheet(c))
    assert said.beyond == []
    assert NO_YARDSTICK in said.measured
    assert YARDSTICK not in said.measured


def test_what_was_and_was_not_measured_is_said() -> None:
    values = {s: {"forget-accuracy": [0.5], "probe-forget": [None]} for s in ("retrain", "mask", "fiun")}
    c = comparison(values, (ACCURACY, column("probe-forget", title="the probe")))
    said = " ".join(summarise(Sheet(c)).measured)
    assert "Nothing was measured beyond what the models answer" in said
    assert "Not measured for any strategy: the probe." in said
    said = " ".join(summarise(Sheet(large())).measured)
    assert "Measured beyond accuracy and loss: membership by loss: AUC" in said
    assert "Not measured for any strategy: U-LiRA: AUC and backdoor." in said


@pytest.mark.parametrize(
    ("request_", "said"),
    [
        (ForgetRequest((3,)), "class 3, of every client that holds it."),
        (ForgetRequest((1, 9), ("4", "7")), "classes 1 and 9, of clients 4 and 7."),
        (ForgetRequest((), ("0",)), "everything of client 0."),
        (ForgetRequest(samples={"0": (1, 5), "2": (3,)}), "2 samples of client 0 and 1 sample of client 2."),
    ],
)
def test_what_was_asked(request_: ForgetRequest, said: str) -> None:
    c = comparison({"retrain": {"forget-accuracy": [0.5]}}, (ACCURACY,), request=request_)
    assert summarise(Sheet(c)).asked.startswith(f"To be forgotten: {said} Trained on")


def test_a_planted_backdoor_is_told() -> None:
    plain = comparison({"retrain": {"forget-accuracy": [0.5]}}, (ACCURACY,))
    c = Comparison(**{**vars(plain), "setting": {"backdoor-client": "0", "backdoor-share": 0.5}})
    assert "A trigger was planted in 50 % of client 0's pictures." in summarise(Sheet(c)).asked


def test_no_text_says_more_than_was_measured() -> None:
    assert "erase" not in markdown([large()]).replace("federaser", "").lower()


def test_names_cannot_break_the_table(tmp_path: Path) -> None:
    c = comparison({"a|b\n*c*": {"forget-accuracy": [0.5]}, "<b>": {"forget-accuracy": [0.4]}}, (ACCURACY,))
    write_table([c, large()], tmp_path / "table.md")
    text = (tmp_path / "table.md").read_text()
    assert r"a\|b \*c\*" in text
    assert r"\<b\>" in text
    assert "\n<" not in text
    assert text.count("\n## ") + 1 == 2
    assert INVENTED in text
