"""Which parameters are the head, the last block, and all of a network."""

from __future__ import annotations

from torch import nn


def last_block(model: nn.Module, head: str) -> str:
    """The part of a network that ends right before its head.

    That is the outermost item of a sequence (`nn.Sequential`, `nn.ModuleList`) around the last weight matrix
    or kernel registered before the head, as long as the head is not in it: the last residual, dense or
    transformer block, or in plain networks the last layer. Where there is no such sequence, the module with
    that weight: a recurrent layer, say.

    Args:
        model: The network.
        head: Name of its head.

    Returns:
        The module's name; "" where nothing comes before the head.
    """
    names = [n for n, p in model.named_parameters() if p.ndim > 1]
    before = names[: names.index(f"{head}.weight")]
    if not before:
        return ""
    path = before[-1].split(".")[:-1]
    for length in range(1, len(path) + 1):
        name = ".".join(path[:length])
        around = model.get_submodule(".".join(path[: length - 1]))
        if isinstance(around, (nn.Sequential, nn.ModuleList)) and not f"{head}.".startswith(f"{name}."):
            return name
    return ".".join(path)
