"""Metrics of forgetting, one file each: measured by clients on their own data, averaged by the server.

To add one: a file with a `contract.Metric`, its line in `METRICS`, and its test.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

from fl_unlearn.metrics import membership
from fl_unlearn.metrics.accuracy import ACCURACY
from fl_unlearn.metrics.activation_distance import ACTIVATION_DISTANCE
from fl_unlearn.metrics.backdoor import BACKDOOR
from fl_unlearn.metrics.contract import Metric
from fl_unlearn.metrics.distance import DISTANCE
from fl_unlearn.metrics.entropy_svc import ENTROPY_SVC
from fl_unlearn.metrics.probe import PROBE
from fl_unlearn.metrics.relearning import RELEARNING
from fl_unlearn.metrics.zrf import ZRF
from fl_unlearn.types import SettingsError

METRICS: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        ACCURACY,
        membership.AUC,
        membership.TPR,
        ENTROPY_SVC,
        ZRF,
        ACTIVATION_DISTANCE,
        PROBE,
        RELEARNING,
        BACKDOOR,
        DISTANCE,
    )
}
"""Name to metric, in the order of the tables."""


def find(names: Iterable[str]) -> list[Metric]:
    """The metrics of these names, each once.

    Raises:
        SettingsError: If there is none of a name.
    """
    chosen = list(dict.fromkeys(names))
    for name in chosen:
        if name not in METRICS:
            close = difflib.get_close_matches(name, METRICS, n=1)
            hint = f"; did you mean {close[0]!r}?" if close else ""
            raise SettingsError(f"unknown metric {name!r}: the known ones are {', '.join(METRICS)}{hint}")
    return [METRICS[name] for name in chosen]
