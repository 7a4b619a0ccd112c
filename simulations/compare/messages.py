"""Tasks and their answers as Flower messages: tensors bit for bit, settings and numbers as they are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from flwr.app import ConfigRecord, RecordDict

from fl_unlearn.flower import records
from fl_unlearn.types import AnswerError, StateDict
from strategies.errors import StrategyError
from strategies.tasks import Answer, Settings, Tensors

ACTION = "compare_task"
"""The query under which clients run tasks; the task's name is in the message."""

SETTINGS, NUMBERS, NOTES = "settings", "numbers", "notes"
TENSORS = "tensors."
"""Prefix of the records that hold tensors; what follows is what they are, such as ``model``."""


def write_task(task: str, tensors: Tensors, settings: Settings) -> RecordDict:
    """What is sent to a client.

    Raises:
        StrategyError: If a tensor or a setting does not fit into a message.
    """
    return RecordDict(
        {
            records.HEAD: records.head(task=task),
            SETTINGS: _config(f"task {task!r}", {k: _listed(v) for k, v in settings.items()}),
            **_arrays(f"task {task!r}", tensors),
        }
    )


def read_task(content: RecordDict) -> tuple[str, Tensors, Settings]:
    """Name, tensors and settings of the task that a message asks for.

    Raises:
        AnswerError: If the message asks for none.
    """
    name = records.read_head(content).get("task")
    if not isinstance(name, str):
        raise AnswerError(f"the message names no task, got {name!r}")
    settings: Any = content.config_records.get(SETTINGS, {})
    return name, _states(content), dict(settings)


def write_answer(client: str, answer: Answer) -> RecordDict:
    """What a client answers.

    Raises:
        StrategyError: If a tensor, number or note does not fit into a message.
    """
    what = f"the answer of client {client}"
    numbers = {key: float(value) for key, value in answer.numbers.items()}
    return RecordDict(
        {
            records.HEAD: records.head(client=client, samples=answer.samples, seconds=answer.seconds),
            NUMBERS: _config(what, numbers),
            NOTES: _config(what, answer.notes),
            **_arrays(what, answer.tensors),
        }
    )


def read_answer(content: RecordDict) -> tuple[str, Answer]:
    """A client's name and its answer.

    Raises:
        AnswerError: If the client reports a failure, or the message is no answer.
    """
    client, record = records.read_client(content), records.read_head(content)
    samples = record.get("samples")
    if isinstance(samples, bool) or not isinstance(samples, int) or samples < 0:
        raise AnswerError(f"the answer is about {samples!r} samples; a whole number from 0 up is needed")
    numbers: Any = content.config_records.get(NUMBERS, {})
    notes: Any = content.config_records.get(NOTES, {})
    if wrong := [key for key, value in numbers.items() if not isinstance(value, float)]:
        raise AnswerError(f"the answer's {wrong[0]!r} must be a number, got {numbers[wrong[0]]!r}")
    seconds = records.read_seconds(content)
    return client, Answer(samples, _states(content), dict(numbers), dict(notes), seconds)


def _listed(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _config(what: str, values: Mapping[str, Any]) -> ConfigRecord:
    record = ConfigRecord()
    for key, value in values.items():
        try:
            record[key] = value
        except TypeError as e:
            raise StrategyError(
                f"{what}: {key!r} is {value!r}; it must be a number, text, boolean, or list of one of these"
            ) from e
    return record


def _arrays(what: str, tensors: Tensors) -> dict[str, Any]:
    out = {}
    for name, state in tensors.items():
        try:
            out[TENSORS + name] = records.to_arrays(state)
        except (TypeError, AttributeError) as e:  # NumPy knows no bfloat16; or it is no tensor
            raise StrategyError(f"{what}: the tensors {name!r} do not fit into a message: {e}") from e
    return out


def _states(content: RecordDict) -> dict[str, StateDict]:
    return {
        name.removeprefix(TENSORS): records.to_state(arrays)
        for name, arrays in content.array_records.items()
        if name.startswith(TENSORS)
    }
