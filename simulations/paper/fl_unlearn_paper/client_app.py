"""The owners: each node trains and answers with one owner's data, the same tasks as in one process."""

from __future__ import annotations

import torch
from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from simulations.compare.flower import respond
from simulations.compare.messages import ACTION
from simulations.inheritance.flower import client_of

torch.set_num_threads(1)  # the same result as in one process, however many cores a node gets

app = ClientApp()


@app.query(ACTION)
def run_task(message: Message, context: Context) -> Message:
    """What the server asks of an owner."""
    return respond(message, context, client_of)
