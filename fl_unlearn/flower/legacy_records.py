"""What Flower's legacy API sends, as the records that all else here works with."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, MetricRecord, RecordDict
from flwr.common import FitRes, Parameters, parameters_to_ndarrays


def to_arrays(parameters: Parameters) -> ArrayRecord:
    """Legacy parameters as an ArrayRecord, named by their place; what is no array, as plain bytes."""
    try:
        values = parameters_to_ndarrays(parameters)
    except (ValueError, EOFError, OSError):
        values = [np.frombuffer(tensor, np.uint8) for tensor in parameters.tensors]
    return ArrayRecord({str(i): Array(np.asarray(value)) for i, value in enumerate(values)})


def content_of(result: FitRes, key: str) -> RecordDict:
    """A legacy client's update, with its number of examples under ``key``."""
    numbers: dict[str, Any] = {
        name: value
        for name, value in result.metrics.items()
        if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    }
    metrics = MetricRecord({**numbers, key: int(result.num_examples)})
    return RecordDict({"arrays": to_arrays(result.parameters), "metrics": metrics})
