"""Which strategies will run: decided before anything is trained."""

from __future__ import annotations

from functools import cached_property

import strategies
from strategies.contract import Federation, State, Strategy
from strategies.errors import UnsupportedError
from strategies.history import History


class Planned(History):
    """A run before its training: it will have all its rounds and keep every update."""

    @cached_property
    def rounds(self) -> tuple[int, ...]:
        """Numbers of the rounds to come."""
        return tuple(range(1, self.training.rounds + 1))

    @cached_property
    def has_updates(self) -> bool:
        """Every client update of every round will be kept."""
        return True

    def current(self) -> State:
        """The initial model, which has the names and shapes that the trained one will have."""
        return self.initial()


def choose(names: str, federation: Federation, history: History) -> tuple[list[Strategy], dict[str, str]]:
    """The strategies to run, and why others do not.

    Args:
        names: Names with commas between; "": all that can serve the request.
        federation: The clients.
        history: The run; `Planned` where it is not trained yet.

    Returns:
        The strategies, and for those of all that cannot serve the request, why.

    Raises:
        StrategyError: If a name is not known.
        UnsupportedError: If a strategy that is named cannot serve the request.
    """
    named = [part.strip() for part in names.split(",") if part.strip()]
    chosen = [strategies.get(name) for name in named or strategies.STRATEGIES]
    problems = {strategy.name: strategy.problem(federation, history) for strategy in chosen}
    refused = {name: why for name, why in problems.items() if why is not None}
    if named and refused:
        raise UnsupportedError("; ".join(f"{name}: {why}" for name, why in refused.items()))
    return [strategy for strategy in chosen if strategy.name not in refused], refused
