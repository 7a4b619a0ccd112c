"""Scores on two groups of samples, as they travel: what a request names, and held-out samples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from flwr.app import RecordDict

from fl_unlearn.flower import records
from fl_unlearn.types import AnswerError, ClassScores

HELD_OUT = "unlearn.held-out"
"""Name of the ConfigRecord with the scores on held-out samples."""


@dataclass(frozen=True)
class DataScores:
    """One client's scores of one model, as it is and under each candidate.

    Attributes:
        forget: On what the request names of its training samples.
        held: On its held-out samples.
    """

    forget: list[ClassScores]
    held: list[ClassScores]

    @property
    def samples(self) -> int:
        """How many samples were scored on."""
        return sum(self.forget[0].total.values()) + sum(self.held[0].total.values())


def write(
    client: str,
    forget: Sequence[Sequence[ClassScores]],
    held: Sequence[Sequence[ClassScores]],
    seconds: float,
) -> RecordDict:
    """A client's scores of each model on the two groups."""
    content = records.write_scores(client, forget, seconds)
    content[HELD_OUT] = records.write_scores(client, held, 0.0)[records.HEAD]
    return content


def read(content: RecordDict, *, candidates: int) -> DataScores:
    """A client's scores of one model, checked.

    Args:
        content: The answer.
        candidates: How many scores of each group there must be.

    Raises:
        AnswerError: If they do not fit what was asked, or make no sense.
    """
    forget = records.read_scores(content, models=1, candidates=candidates)[0]
    held = content.config_records.get(HELD_OUT)
    if held is None:
        raise AnswerError("the answer has no scores on held-out samples; is its fl-unlearn too old?")
    second = records.read_scores(RecordDict({records.HEAD: held}), models=1, candidates=candidates)[0]
    return DataScores(forget, second)
