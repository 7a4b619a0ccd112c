"""``fedquit``: the holders distil from the global model with the true class taken out of its answers.

Mora et al. 2024, "FedQUIT: On-Device Federated Unlearning via a Quasi-Competent Virtual Teacher" (arXiv
2408.07587):

1. Each holder starts a student from the global model and minimises, over its forget samples,
   KL(virtual teacher ‖ student). The virtual teacher is the frozen global model whose answer for the true
   class is lowered: its logit replaced by the sample's least one (``"logits"``), or its probability by 0 and
   the others renormalised (``"softmax"``). How the other classes relate is kept.
2. The student is the new global model; of several holders, the mean weighted by forget samples.
3. Recovery: rounds of FedAvg on retained data, as in training.

Hyper-parameters: ``virtual`` = "logits"; ``lr`` = 0.001 of Adam and ``epochs`` = 10 over the forget samples;
``recovery`` = 2 rounds of one local epoch of SGD, ``recovery_lr`` = 0.03. The paper has Adam at 1e-4, and its
code 20 epochs: on digits, where a client's forget set fills one batch, that leaves 84 % of the class.
Recovery at training's own rate (0.1 on digits) brings back 41 % of a class that was gone; at 0.03, none.

Targets: a client, as in the paper; and, by the same steps, classes and samples. Needs forget data and, for
recovery, retained data.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal, get_args

import torch
from torch import Tensor, nn

from strategies.checks import require
from strategies.client import Client
from strategies.contract import ALL_TARGETS, Federation, Need, Outcome, Strategy, Target, holders
from strategies.history import History
from strategies.soft_targets import divergence
from strategies.tasks import Answer, Settings, Tensors, task
from strategies.training import average, fedavg, fit, seed_of, state_of

Virtual = Literal["logits", "softmax"]


def virtual_teacher(logits: Tensor, y: Tensor, kind: Virtual) -> Tensor:
    """The virtual teacher's probabilities, shape (B, C).

    Args:
        logits: The global model's, shape (B, C).
        y: True classes, shape (B,).
        kind: What becomes of the true class: see the module.
    """
    # A probability of 0 is a logit of -inf: exact even where the teacher gives all others a rounded 0.
    least = logits.amin(1, keepdim=True) if kind == "logits" else torch.full_like(logits[:, :1], -torch.inf)
    return logits.scatter(1, y[:, None], least).softmax(1)


@task("fedquit.forget")
def forget(client: Client, tensors: Tensors, settings: Settings) -> Answer:
    """Distil the model from its own virtual teacher, on the forget samples.

    Tensors: ``model``. Settings: ``virtual``, ``epochs``, ``lr``, ``batch-size``, ``seed``, ``round``.
    Answers with the new ``model``.
    """
    s: Any = settings
    student, teacher = client.model(tensors["model"]), client.model(tensors["model"])

    def loss(model: nn.Module, x: Any, y: Tensor) -> Tensor:
        with torch.no_grad():
            targets = virtual_teacher(teacher(x), y, s["virtual"])
        return divergence(model(x), targets)

    batches = client.batches(
        "forget", size=s["batch-size"], seed=seed_of(s["seed"], s["round"], client.index)
    )
    optimizer = torch.optim.Adam(student.parameters(), lr=s["lr"])
    value = fit(student, batches, optimizer, epochs=s["epochs"], loss=loss)
    return Answer(client.count("forget"), {"model": state_of(student)}, {"loss": value})


@dataclass(frozen=True)
class FedQuit(Strategy):
    """Distillation from the virtual teacher at the holders, then recovery."""

    name: ClassVar[str] = "fedquit"
    paper: ClassVar[str] = "Mora et al. 2024, arXiv 2408.07587"
    targets: ClassVar[frozenset[Target]] = ALL_TARGETS
    needs: ClassVar[frozenset[Need]] = frozenset(("forget-data", "retained-data"))

    virtual: Virtual = "logits"
    lr: float = 1e-3
    epochs: int = 10
    recovery: int = 2
    recovery_lr: float = 0.03

    def __post_init__(self) -> None:
        require(self, positive=("lr", "epochs", "recovery", "recovery_lr"), virtual=get_args(Virtual))

    def unlearn(self, federation: Federation, history: History) -> Outcome:
        """Forget at the holders, then recover with everybody."""
        first = history.rounds[-1] + 1
        settings = {
            "virtual": self.virtual,
            "epochs": self.epochs,
            "lr": self.lr,
            "batch-size": history.training.batch_size,
            "seed": history.training.seed,
            "round": first,
        }
        answers = federation.ask(
            "fedquit.forget", {"model": history.current()}, settings, holders(federation)
        )
        state = average({c: (a.tensors["model"], a.samples) for c, a in answers.items()})
        state = fedavg(
            federation,
            state,
            history.training,
            rounds=self.recovery,
            first=first + 1,
            lr=self.recovery_lr,
            epochs=1,
        )
        return Outcome(state, facts={"rounds": 1 + self.recovery})
