"""Takes recurrent layers and multi-head attention apart while a model is called, so that weights are seen.

torch computes them in one call that is given all weights. While `decomposed` is active, such a call is
replaced by an equal computation whose weights meet their inputs in ``linear`` and `linear_elsewhere` only;
modes entered before see these. It makes no difference which module makes the call, and no module is changed.
What is not taken apart is called as it is: dropout in training, packed sequences that no module of torch
was given, static keys, and whatever torch itself refuses.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence
from torch.overrides import TorchFunctionMode

from .fisher_attention import attention
from .fisher_recurrence import Recurrence
from .fisher_recurrent import CELLS, RECURRENT, recurrent


@contextmanager
def decomposed(model: nn.Module) -> Iterator[None]:
    """While active, LSTM, GRU, RNN, their cells and MultiheadAttention are taken apart.

    Args:
        model: Its modules may be given packed sequences.
    """
    mode = _Decompose()
    with ExitStack() as stack:
        for module in model.modules():
            if isinstance(module, nn.RNNBase):
                stack.enter_context(module.register_forward_pre_hook(mode.remember))
        stack.enter_context(mode)
        yield


class _Decompose(TorchFunctionMode):
    def __init__(self) -> None:
        super().__init__()
        self.given: PackedSequence | None = None
        self.padded: dict[int, tuple[Tensor, int]] = {}  # packed data, and the length before packing

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        out = NotImplemented
        if func in RECURRENT and not kwargs:
            out = self._recurrent(RECURRENT[func], *args)
        elif func in CELLS and not kwargs:
            x, h, w_ih, w_hh, *biases = args
            out = CELLS[func](x, h, (w_ih, w_hh), biases or (None, None))
        elif func is functional.multi_head_attention_forward:
            out = attention(*args, **kwargs)
        if out is NotImplemented:
            out = func(*args, **kwargs)
        if func is torch._pack_padded_sequence:
            padded, _, batch_first = args
            self.padded[id(out[0])] = out[0], padded.shape[1 if batch_first else 0]
        return out

    def remember(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        """Note what a module is given: torch's function is not told the order of packed samples."""
        self.given = args[0] if args and isinstance(args[0], PackedSequence) else None

    def _recurrent(self, kind: type[Recurrence], *args: Any) -> Any:
        packed = isinstance(args[3], Sequence)
        if packed:
            x, sizes, states, weights, has_biases, layers, dropout, train, bidirectional = args
        else:
            x, states, weights, has_biases, layers, dropout, train, bidirectional, batch_first = args
        if layers > 1 and dropout and train:
            return NotImplemented
        states = states if isinstance(states, Sequence) else (states,)

        def run(x: Tensor, states: Sequence[Tensor], live: Tensor | None = None) -> Any:
            return recurrent(kind, x, states, weights, has_biases, layers, bidirectional, live)

        if packed:
            return self._packed(run, x, sizes, states)
        x = x if batch_first else x.transpose(0, 1)
        if x.shape[1] == 0:
            return NotImplemented
        out, *last = run(x, states)
        return (out if batch_first else out.transpose(0, 1), *last)

    def _packed(self, run: Callable[..., Any], data: Tensor, sizes: Tensor, states: Sequence[Tensor]) -> Any:
        """As a batch padded to one length, its samples in their own order."""
        given = self.given
        if given is None or given.data is not data:
            return NotImplemented  # who knows in which order these are
        length = self.padded[id(data)][1] if id(data) in self.padded else len(sizes)
        x, lengths = pad_packed_sequence(given, True, total_length=length)
        live = torch.arange(length, device=x.device)[:, None, None] < lengths.to(x.device)[:, None]
        back, order = given.unsorted_indices, given.sorted_indices
        if back is not None and order is not None:
            states = [s.index_select(1, back) for s in states]
        out, *last = run(x, states, live)
        if back is not None and order is not None:
            last = [s.index_select(1, order) for s in last]
            out, lengths = out.index_select(0, order), lengths[order.cpu()]
        out = pack_padded_sequence(out, lengths, True).data
        self.padded[id(out)] = out, length
        return (out, *last)
