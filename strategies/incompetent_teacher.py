"""``incompetent-teacher``: an incompetent teacher for the forget data, the original for the rest.

Chundawat et al. 2023, "Can Bad Teaching Induce Forgetting? Unlearning in Deep Networks using an Incompetent
Teacher" (AAAI, arXiv 2205.08096): the student starts from the current model and minimises
KL(teacher ‖ student) at T = 1, where the teacher is the incompetent one for samples to be forgotten and the
original model for samples to be kept. Federated: rounds of FedAvg in which each client goes through all
its samples, both kinds mixed.

The incompetent teacher is a model of random weights (``"random"``, as in the paper), or the model impaired by
the noise of the forgotten classes (``"impaired"``), also repaired afterwards (``"repaired"``; both
`strategies.impairing`). Where there is no class of which to make noise, it is random whatever is asked for;
the outcome says which it was. With ``curriculum``, the retained samples come, in every step, in the order of
the original model's confidence, most confident first, with the others spread among them.

Hyper-parameters: ``teacher`` = "repaired"; ``curriculum``; ``lr`` = 0.003 of Adam; ``rounds`` = 1, with as
many local epochs as in training; those of `strategies.impairing.Impairing`. The paper has Adam at 1e-4, one
epoch, and takes 30 % of the retained samples; here all are taken. On digits nothing is forgotten at 1e-4; at
0.003 more rounds bring some of the class back. Taught by an impaired model that was not repaired, the student
keeps more of the class (14 % against 0 on digits, 2.7 against 1.5 on CIFAR-10), and no more of the others. A
client or samples are forgotten weakly: the mean with those who have nothing to forget dilutes what the one
client learns.

Targets: classes, a client, samples. Needs forget data and retained data.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal, get_args

import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from strategies.checks import require
from strategies.client import Client, batches_of
from strategies.contract import ALL_TARGETS, Federation, Need, Outcome, State, Strategy, Target
from strategies.curriculum import by_confidence, samples, spread
from strategies.history import History
from strategies.impairing import Impairing, no_noise
from strategies.soft_targets import divergence, probabilities
from strategies.tasks import Answer, Settings, Tensors, task
from strategies.training import average, fit, seed_of, state_of

Teacher = Literal["impaired", "repaired", "random"]

KEEP, FORGET = 0, 1
"""What a batch has in place of labels: which teacher a sample is for."""


def bad_teaching(
    student: nn.Module, competent: nn.Module, incompetent: nn.Module, x: Tensor, kind: Tensor
) -> Tensor:
    """KL(teacher ‖ student), mean over the samples (the paper's equation 3 without its factor).

    Args:
        student: Learns.
        competent: Teaches what is to be kept.
        incompetent: Teaches what is to be forgotten.
        x: Inputs, shape (B, ...).
        kind: `KEEP` or `FORGET`, shape (B,).
    """
    good, bad = probabilities(competent, x), probabilities(incompetent, x)
    return divergence(student(x), torch.where((kind == FORGET)[:, None], bad, good))


@task("incompetent-teacher.distil")
def distil(client: Client, tensors: Tensors, settings: Settings) -> Answer:
    """Local training of the student on all samples of the client.

    Tensors: ``model``, ``competent``, and ``incompetent`` unless it is random. Settings: ``epochs``, ``lr``,
    ``curriculum``, ``batch-size``, ``seed``, ``round``. Answers with the new ``model``.
    """
    s: Any = settings
    counts = client.count("retained"), client.count("forget")
    if not any(counts):
        return Answer(0)
    seed = seed_of(s["seed"], s["round"], client.index)
    competent = client.model(tensors["competent"])
    bad = tensors.get("incompetent")
    incompetent = client.model(bad) if bad is not None else client.fresh(RANDOM_TEACHER + s["seed"])
    parts = [samples(client, part)[0] for part in ("retained", "forget") if client.count(part)]
    x, kind = torch.cat(parts), torch.tensor([KEEP, FORGET]).repeat_interleave(torch.tensor(counts))
    kept, lost = (kind == KEEP).nonzero().squeeze(1), (kind == FORGET).nonzero().squeeze(1)
    if not s["curriculum"]:
        kept = kept[torch.randperm(len(kept), generator=torch.Generator().manual_seed(seed))]
    elif len(kept):
        kept = by_confidence(competent, x[kept])
    order = spread(kept, lost, seed)
    student = client.model(tensors["model"])

    def loss(model: nn.Module, inputs: Any, kinds: Tensor) -> Tensor:
        return bad_teaching(model, competent, incompetent, inputs, kinds)

    batches = batches_of(TensorDataset(x[order], kind[order]), size=s["batch-size"])
    optimizer = torch.optim.Adam(student.parameters(), lr=s["lr"])
    value = fit(student, batches, optimizer, epochs=s["epochs"], loss=loss)
    return Answer(sum(counts), {"model": state_of(student)}, {"loss": value})


RANDOM_TEACHER = 7_919
"""Keeps the random teacher's seed apart from that of the initial model, which has the run's own."""


@dataclass(frozen=True)
class IncompetentTeacher(Impairing, Strategy):
    """A student of both teachers."""

    name: ClassVar[str] = "incompetent-teacher"
    paper: ClassVar[str] = "Chundawat et al. 2023, arXiv 2205.08096"
    targets: ClassVar[frozenset[Target]] = ALL_TARGETS
    needs: ClassVar[frozenset[Need]] = frozenset(("forget-data", "retained-data"))

    curriculum: bool = True
    teacher: Teacher = "repaired"
    lr: float = 0.003
    rounds: int = 1

    def __post_init__(self) -> None:
        numbers = Impairing.__dataclass_fields__.keys() - {"noise_penalty", "curriculum"}
        require(self, positive=("lr", "rounds", *sorted(numbers)), teacher=get_args(Teacher))

    def unlearn(self, federation: Federation, history: History) -> Outcome:
        """Make the incompetent teacher, then have the clients distil."""
        teacher = "random" if no_noise(federation) else self.teacher
        original = history.current()
        models: dict[str, State] = {"competent": original}
        if teacher != "random":
            models["incompetent"] = self.impair(federation, history)
        if teacher == "repaired":
            models["incompetent"] = self.repair(federation, history, models["incompetent"])
        state, first = original, history.rounds[-1] + 3
        for number in range(first, first + self.rounds):
            settings = {
                "epochs": history.training.epochs,
                "lr": self.lr,
                "curriculum": self.curriculum,
                "batch-size": history.training.batch_size,
                "seed": history.training.seed,
                "round": number,
            }
            answers = federation.ask("incompetent-teacher.distil", {"model": state, **models}, settings)
            state = average({c: (a.tensors["model"], a.samples) for c, a in answers.items() if a.samples})
        return Outcome(state, facts={"rounds": self.rounds, "teacher": teacher})
