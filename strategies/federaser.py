"""``federaser``: the stored updates are replayed without the forget set, their directions calibrated.

Liu et al., "FedEraser: Enabling Efficient Client-Level Data Removal from Federated Learning Models",
IWQoS 2021. Algorithm, from the initial model on, over every Δt-th round that was stored:

1. Each client trains the model made so far for a few epochs on its retained data: the calibrated update Û.
2. Its stored update U of that round gives the length, Û the direction: Ũ = ‖U‖ · Û/‖Û‖ (the paper's
   equation for update calibration).
3. The model moves by the mean of the Ũ, weighted by samples.

In the first round the model is still the one that the stored updates began from: those of clients that have
nothing to forget are taken as they are (as in the paper).

Norms are taken for each parameter tensor, as the authors' code does, and for each client, as the paper
writes; the authors' code takes them of the mean over the clients. Buffers, such as the statistics of batch
normalisation, are averaged as trained.

Hyper-parameters: ``interval`` Δt = 2; ``ratio`` r = 0.5, calibration's share of the local epochs, rounded up
(both the paper's values).
Targets: a client (the paper's), which is left out; classes and samples by extension: their holders calibrate
on what they keep, and only the lengths of their stored updates still owe something to the forget set.
Needs history and retained data.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from fl_unlearn.types import StateDict
from strategies.client import Client
from strategies.contract import ALL_TARGETS, Federation, Need, Outcome, State, Strategy, Target, keepers
from strategies.errors import StrategyError
from strategies.history import History
from strategies.tasks import Answer, Settings, Tensors, task
from strategies.training import average, train, train_settings


@task("federaser.calibrate")
def calibrate(client: Client, tensors: Tensors, settings: Settings) -> Answer:
    """Local training as in the task ``train``, answered with what it changed.

    Tensors and settings: as of ``train``. Answers with the ``update`` of the parameters and the ``buffers``.
    """
    answer = train(client, tensors, settings)
    if not answer.samples:
        return answer
    before, after = tensors["model"], answer.tensors["model"]
    parameters = {n for n, _ in client.model(before).named_parameters(remove_duplicate=False)}
    update = {n: t - before[n] for n, t in after.items() if n in parameters}
    buffers = {n: t for n, t in after.items() if n not in parameters}
    return Answer(answer.samples, {"update": update, "buffers": buffers}, answer.numbers)


@dataclass(frozen=True)
class FedEraser(Strategy):
    """Stored updates replayed: new direction, stored length.

    Attributes:
        interval: Δt: every how many rounds one is replayed.
        ratio: r: epochs of calibration as a share of the local epochs of training.
    """

    name: ClassVar[str] = "federaser"
    paper: ClassVar[str] = "Liu et al. 2021, FedEraser (IWQoS)"
    targets: ClassVar[frozenset[Target]] = ALL_TARGETS
    needs: ClassVar[frozenset[Need]] = frozenset(("history", "retained-data"))

    interval: int = 2
    ratio: float = 0.5

    def __post_init__(self) -> None:
        if self.interval < 1:
            raise StrategyError(f"federaser: interval must be at least 1, got {self.interval}")
        if not 0 < self.ratio <= 1:
            raise StrategyError(f"federaser: ratio must be above 0, at most 1, got {self.ratio!r}")

    def unlearn(self, federation: Federation, history: History) -> Outcome:
        """Replay the stored rounds from the initial model."""
        state: State = history.initial()
        epochs = math.ceil(self.ratio * history.training.epochs)
        kept, replayed = set(keepers(federation)), 0
        for number in history.rounds[:: self.interval]:
            old = history.global_model(number - 1)
            stored = {c: change(old, model) for c, (model, _) in history.updates(number).items() if c in kept}
            if not stored:  # nobody who still counts took part in this round
                continue
            state = self._step(
                federation, history, state, number, stored, direct=number == history.rounds[0], epochs=epochs
            )
            replayed += 1
        if not replayed:
            raise StrategyError(f"{self.name}: no client that keeps anything took part in a replayed round")
        return Outcome(state, facts={"rounds": replayed, "epochs": epochs})

    def _step(
        self,
        federation: Federation,
        history: History,
        state: State,
        number: int,
        stored: Mapping[str, State],
        *,
        direct: bool,
        epochs: int,
    ) -> State:
        counts = federation.clients
        taken = {c for c in stored if direct and not counts[c]["forget"]}
        moved: dict[str, tuple[StateDict, float]] = {
            c: ({n: t + stored[c][n] for n, t in state.items()}, counts[c]["retained"]) for c in taken
        }
        if asked := [c for c in stored if c not in taken]:
            settings = train_settings(history.training, "retained", number, epochs=epochs)
            answers = federation.ask("federaser.calibrate", {"model": state}, settings, asked)
            for client, answer in answers.items():
                update = calibrated(answer.tensors["update"], stored[client])
                model = {n: state[n] + t for n, t in update.items()} | dict(answer.tensors["buffers"])
                moved[client] = (model, answer.samples)
        return average(moved)


def change(before: StateDict, after: StateDict) -> State:
    """What turns one model into the other."""
    return {n: t - before[n] for n, t in after.items()}


def calibrated(update: StateDict, stored: StateDict) -> State:
    """The direction of one update with the length of another, tensor by tensor: ‖U‖ · Û/‖Û‖.

    Args:
        update: Û; what does not move in it stays.
        stored: U; has every tensor of ``update``, and may have more.
    """
    out: dict[str, Any] = {}
    for name, tensor in update.items():
        length = tensor.norm()
        out[name] = tensor * (stored[name].norm() / length) if length > 0 else tensor
    return out
