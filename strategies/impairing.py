"""Noise, impair, repair, federated.

Tarun et al. 2021, "Fast Yet Effective Machine Unlearning" (arXiv 2111.08947):

1. *Noise*: every holder learns inputs that the model is most wrong about, for each class to be forgotten:
   argmin over x of −CE(model(x), class) + λ‖x‖², by Adam from normal noise. They are sent up and pooled;
   no real sample travels.
2. *Impair*: one round of FedAvg, with as many local epochs as in training, on the pooled noise, under the
   forgotten labels, with the client's retained data.
3. *Repair*: one round of FedAvg on retained data.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import TensorDataset

from fl_unlearn.types import StateDict
from strategies.client import Client, batches_of
from strategies.contract import Federation, State, holders
from strategies.curriculum import by_confidence, samples, spread
from strategies.errors import StrategyError
from strategies.history import History
from strategies.tasks import Answer, Settings, Tensors, task
from strategies.training import average, fit, seed_of, state_of


def noise_loss(model: nn.Module, x: Tensor, y: Tensor, penalty: float) -> Tensor:
    """−CE(model(x), y) + λ‖x‖², mean over the samples (the paper's equation 1)."""
    return penalty * x.square().flatten(1).sum(1).mean() - cross_entropy(model(x), y)


@task("impairing.noise")
def learn_noise(client: Client, tensors: Tensors, settings: Settings) -> Answer:
    """Error-maximising inputs for each of the classes that the client is to forget samples of.

    Tensors: ``model``. Settings: ``samples`` (inputs a class), ``steps``, ``lr``, ``penalty``, ``seed``.
    Answers with ``noise``: its ``inputs`` and ``labels``.
    """
    s: Any = settings
    x, y = samples(client, "forget")
    if not x.is_floating_point():
        raise StrategyError(f"noise can only be learned for inputs that are real numbers, got {x.dtype}")
    labels = torch.tensor(sorted(set(y.tolist()))).repeat_interleave(s["samples"]).to(client.device)
    model = client.model(tensors["model"]).requires_grad_(False)
    generator = torch.Generator().manual_seed(s["seed"] + client.index)
    noise = torch.randn(len(labels), *x.shape[1:], generator=generator).to(client.device).requires_grad_()
    optimizer = torch.optim.Adam([noise], lr=s["lr"])
    for _ in range(s["steps"]):
        optimizer.zero_grad()
        noise_loss(model, noise, labels, s["penalty"]).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return Answer(client.count("forget"), {"noise": {"inputs": noise.detach().cpu(), "labels": labels.cpu()}})


@task("impairing.train")
def train(client: Client, tensors: Tensors, settings: Settings) -> Answer:
    """Local training by Adam on retained data, with noise where some is sent.

    Tensors: ``model``; ``noise``: ``inputs`` and ``labels``; ``original``: by whose confidence the retained
    samples are ordered, without it they are shuffled. Settings: ``share`` (noise a class, as a share of
    the retained samples), ``epochs``, ``lr``, ``batch-size``, ``seed``, ``round``.
    Answers with the trained ``model``.
    """
    s: Any = settings
    count = client.count("retained")
    if not count:
        return Answer(0)
    seed = seed_of(s["seed"], s["round"], client.index)
    x, y = samples(client, "retained")
    if "original" in tensors:
        order = by_confidence(client.model(tensors["original"]), x)
    else:
        order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    if "noise" in tensors:
        inputs, labels = tensors["noise"]["inputs"], tensors["noise"]["labels"]
        rows = noise_rows(labels, max(1, round(s["share"] * count)))
        x, y = torch.cat((x, inputs[rows])), torch.cat((y, labels[rows]))
        order = spread(order, torch.arange(count, len(x)), seed)
    model = client.model(tensors["model"])
    batches = batches_of(TensorDataset(x[order], y[order]), size=s["batch-size"])
    loss = fit(model, batches, torch.optim.Adam(model.parameters(), lr=s["lr"]), epochs=s["epochs"])
    return Answer(count, {"model": state_of(model)}, {"loss": loss})


def noise_rows(labels: Tensor, wanted: int) -> Tensor:
    """Positions of ``wanted`` noise samples of each class, all in turn, as often as it takes."""
    classes = [(labels == c).nonzero().squeeze(1) for c in sorted(set(labels.tolist()))]
    return torch.cat([own[torch.arange(wanted) % len(own)] for own in classes])


@dataclass(frozen=True)
class Impairing:
    """Hyper-parameters of noise, impair, repair, and the two rounds themselves.

    Attributes:
        noise_samples: Noise inputs a holder and class.
        noise_steps: Steps of Adam on them.
        noise_lr: Its learning rate.
        noise_penalty: λ of ‖x‖².
        noise_share: Noise a class in the impair epoch, as a share of the client's retained samples.
        impair_lr: Adam's learning rate in the impair epoch.
        repair_lr: Adam's learning rate in the repair epoch.
        curriculum: Whether the retained samples come in the order of the original model's confidence.
    """

    noise_samples: int = 32
    noise_steps: int = 40
    noise_lr: float = 0.1
    noise_penalty: float = 0.1
    noise_share: float = 0.2
    impair_lr: float = 0.01
    repair_lr: float = 0.005
    curriculum: bool = False

    def impair(self, federation: Federation, history: History) -> State:
        """The current model after noise and the impair round."""
        original = history.current()
        settings = {
            "samples": self.noise_samples,
            "steps": self.noise_steps,
            "lr": self.noise_lr,
            "penalty": self.noise_penalty,
            "seed": history.training.seed,
        }
        answers = federation.ask("impairing.noise", {"model": original}, settings, holders(federation))
        noise = {
            name: torch.cat([a.tensors["noise"][name] for a in answers.values()])
            for name in ("inputs", "labels")
        }
        return self._round(federation, history, original, self.impair_lr, 1, noise)

    def repair(self, federation: Federation, history: History, state: StateDict) -> State:
        """An impaired model after the repair round."""
        return self._round(federation, history, state, self.repair_lr, 2)

    def _round(
        self,
        federation: Federation,
        history: History,
        state: StateDict,
        lr: float,
        number: int,
        noise: StateDict | None = None,
    ) -> State:
        tensors = {"model": state}
        if noise is not None:
            tensors["noise"] = noise
        if self.curriculum:
            tensors["original"] = history.current()
        settings = {
            "share": self.noise_share,
            "epochs": history.training.epochs,
            "lr": lr,
            "batch-size": history.training.batch_size,
            "seed": history.training.seed,
            "round": history.rounds[-1] + number,
        }
        answers = federation.ask("impairing.train", tensors, settings)
        return average({c: (a.tensors["model"], a.samples) for c, a in answers.items() if a.samples})


def no_noise(federation: Federation) -> str | None:
    """Why there is no class to learn noise for, or None."""
    request = federation.request
    if request.kind != "classes":
        return "noise can be learned only for a class that nobody is to know any more"
    if request.clients:
        return "noise impairs a class at every client; it cannot make those of some clients only forgotten"
    return None
