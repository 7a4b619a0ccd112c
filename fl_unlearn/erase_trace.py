"""What reads a layer's output: one batch is run, and every function that is called with it is looked at."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from .batches import evaluating, map_tensors
from .layer_stats import watch

_READERS = {"linear", "conv1d", "conv2d", "conv3d", "bilinear", "lstm", "gru", "rnn_tanh", "rnn_relu"}
_READERS |= {"conv_transpose1d", "conv_transpose2d", "conv_transpose3d"}
_ALONE = {"relu", "relu_", "relu6", "leaky_relu", "leaky_relu_", "elu", "elu_", "selu", "selu_", "celu"}
_ALONE |= {"gelu", "silu", "mish", "hardtanh", "hardtanh_", "hardswish", "hardsigmoid", "sigmoid", "tanh"}
_ALONE |= {"softplus", "softsign", "logsigmoid", "prelu", "rrelu", "threshold", "hardshrink", "softshrink"}
_ALONE |= {"tanhshrink", "abs", "square", "sqrt", "exp", "neg"}
_ALONE |= {"dropout", "dropout1d", "dropout2d", "dropout3d", "alpha_dropout", "feature_alpha_dropout"}
_ALONE |= {
    f"{kind}_pool{n}d" for n in (1, 2, 3) for kind in ("max", "avg", "adaptive_max", "adaptive_avg", "lp")
}
_ALONE |= {f"{name}_with_indices" for name in list(_ALONE) if "max_pool" in name}
_ALONE |= {"flatten", "reshape", "view", "permute", "transpose", "t", "swapaxes", "movedim", "squeeze"}
_ALONE |= {
    "unsqueeze",
    "contiguous",
    "clone",
    "detach",
    "to",
    "float",
    "double",
    "half",
    "bfloat16",
    "type_as",
}
_ALONE |= {
    "unflatten",
    "expand",
    "mean",
    "sum",
    "amax",
    "pad",
    "interpolate",
    "__getitem__",
    "__get__",
}
_TOGETHER = {"add", "sub", "mul", "div", "true_divide", "truediv", "maximum", "minimum", "lerp", "where"}
_TOGETHER |= {"cat", "concat", "concatenate", "stack", "hstack", "vstack", "dstack", "addcmul"}
_TOGETHER |= {"max", "clamp", "clamp_min", "pow"}  # of one tensor alone, or with another
_NORMS = {"layer_norm", "group_norm", "instance_norm", "rms_norm", "local_response_norm", "normalize"}


@dataclass
class Trace(TorchFunctionMode):
    """Sees every function that is called with a layer's output, or with what came of it alone.

    Attributes:
        constants: The model's parameters and buffers, and what is made of such alone, by id.
        calls: Names of layers, as they were called.
        heads: Layers whose output comes out of the model.
        norms: Layer to the running mean of a batch normalisation that reads its output as it is.
        reads: Layer to how many functions read its output as it is.
        uses: Parameter or buffer, by id, to how many functions make something of it.
    """

    constants: dict[int, Tensor]
    calls: list[str] = field(default_factory=list)
    heads: set[str] = field(default_factory=set)
    norms: dict[str, Tensor] = field(default_factory=dict)
    reads: dict[str, int] = field(default_factory=dict)
    uses: Counter[int] = field(default_factory=Counter)
    _problems: dict[str, str] = field(default_factory=dict)
    # The tensors are held, so that no other gets their id while the batch runs.
    _carriers: dict[int, tuple[Tensor, frozenset[str]]] = field(default_factory=dict)
    _outputs: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__init__()

    def called(self, name: str, output: Any) -> None:
        """Take a layer's output."""
        self.calls.append(name)
        if isinstance(output, Tensor):
            self._carry(output, frozenset({name}))
            self._outputs[name] = id(output)
            self.reads[name] = 0

    def finish(self, output: Any) -> None:
        """Take what the model returned."""
        for t in _tensors(output):
            self.heads |= self._of(t)

    def problem(self, name: str) -> str | None:
        """Why the output of a layer cannot be erased in, or None."""
        if (times := self.calls.count(name)) != 1:
            return f"is called {times} times in a forward pass; only a layer that is called once can be named"
        return self._problems.get(name)

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        given, made = list(_tensors((args, kwargs or {}))), list(_tensors(out))
        carried = frozenset[str]().union(*(self._of(t) for t in given))
        if made:
            self.uses.update({id(t) for t in given if id(t) in self.constants})
        if all(map(self._constant, given)):
            self.constants |= {id(t): t for t in made}
        if carried and made:
            name = getattr(func, "__name__", str(func))
            passed = frozenset(n for n in carried if self._passes(n, name, args, kwargs or {}, given))
            for t in made:
                self._carry(t, passed)
            for layer, output in self._outputs.items():
                if name != "__get__" and any(id(t) == output for t in given):
                    self.reads[layer] += 1
                    if any(id(t) == output for t in made):  # in place: it is the output no more
                        self._outputs[layer] = 0
        return out

    def _of(self, t: Tensor) -> frozenset[str]:
        return self._carriers.get(id(t), (t, frozenset[str]()))[1]

    def _carry(self, t: Tensor, names: frozenset[str]) -> None:
        if names:
            self._carriers[id(t)] = (t, self._of(t) | names)

    def _passes(self, layer: str, name: str, args: Any, kwargs: Any, given: Sequence[Tensor]) -> bool:
        """Whether what the function gives is the layer's output still; notes what stands against it."""
        plain = name.strip("_").removeprefix("r" if name.startswith("__r") else "i" * name.startswith("__i"))
        if name in _READERS:
            return False
        if name == "batch_norm":
            return self._normalised(layer, args, kwargs)
        if name in _ALONE:
            return True
        if plain in _TOGETHER:
            strangers = [t for t in given if layer not in self._of(t) and not self._constant(t)]
            if not strangers:
                return True
            why = f"is joined ({plain}) with values that go around it, a residual sum say"
        elif name in _NORMS:
            why = f"is followed by {name}, which divides by a spread from which what was erased can be read"
        else:
            why = f"is followed by {name}, of which it is not known whether it keeps what was erased away"
        self._problems.setdefault(layer, f"{why}; name a layer that is followed by an activation or pooling")
        return False

    def _normalised(self, layer: str, args: Any, kwargs: Any) -> bool:
        names = ("input", "running_mean", "running_var", "weight", "bias", "training")
        given = {**dict(zip(names, args, strict=False)), **kwargs}
        if given.get("training"):
            why = "is followed by a batch normalisation that uses the batch's own statistics"
            self._problems.setdefault(layer, f"{why}; set track_running_stats=True")
            return False
        if id(given["input"]) == self._outputs[layer]:
            self.norms[layer] = given["running_mean"]
        return True

    def _constant(self, t: Tensor) -> bool:
        return id(t) in self.constants or t.ndim == 0


def _tensors(value: Any) -> Iterator[Tensor]:
    found: list[Tensor] = []

    def note(t: Tensor) -> Tensor:
        found.append(t)
        return t

    map_tensors(note, value)
    return iter(found)


def traced(model: nn.Module, layers: Mapping[str, nn.Module], x: Any) -> Trace:
    """Run the inputs ``x`` through the model and look at what reads the outputs of ``layers``."""
    trace = Trace({id(t): t for t in (*model.parameters(), *model.buffers())})
    hooks = [watch(m, n, trace.called) for n, m in layers.items()]
    with evaluating(model, hooks), trace:
        out = model(x)
    trace.finish(out)
    return trace
