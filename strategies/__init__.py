"""Complete ways to forget, one file each, for comparison; not part of the installed library.

To add one: a file with a `contract.Strategy`, its line in `STRATEGIES`, and its test.
"""

from __future__ import annotations

import difflib
from typing import Any

from strategies.contract import Strategy
from strategies.distill import Distill
from strategies.errors import StrategyError
from strategies.federaser import FedEraser
from strategies.fedquit import FedQuit
from strategies.fedunlearn_pe import FedUnlearnPE
from strategies.fine_tune import FineTune
from strategies.fiun import Fiun, FiunDeep
from strategies.fiun_paper import FiunPaper
from strategies.gradient_ascent import GradientAscent
from strategies.gradient_ascent_paper import GradientAscentPaper
from strategies.incompetent_teacher import IncompetentTeacher
from strategies.mask import Mask
from strategies.measuring import measure_all as measure_all
from strategies.not_ import Not
from strategies.retrain import Retrain
from strategies.unsir import Unsir

STRATEGIES: dict[str, type[Strategy]] = {
    kind.name: kind
    for kind in (
        Retrain,
        Fiun,
        FiunDeep,
        FiunPaper,
        Mask,
        FineTune,
        FedEraser,
        GradientAscent,
        GradientAscentPaper,
        Not,
        FedQuit,
        Unsir,
        IncompetentTeacher,
        Distill,
        FedUnlearnPE,
    )
}
"""Name to strategy, in the order of the tables: the yardstick, ours, then the others."""


def get(name: str, **parameters: Any) -> Strategy:
    """A strategy by its name.

    Args:
        name: One of `STRATEGIES`.
        **parameters: Hyper-parameters that differ from the paper's.

    Raises:
        StrategyError: If there is no such strategy or hyper-parameter.
    """
    if name not in STRATEGIES:
        close = difflib.get_close_matches(name, STRATEGIES, n=1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise StrategyError(f"unknown strategy {name!r}: the known ones are {', '.join(STRATEGIES)}{hint}")
    try:
        return STRATEGIES[name](**parameters)
    except TypeError as e:
        raise StrategyError(f"strategy {name!r}: {e}") from e
