"""Metrics of forgetting, one file each: measured by clients on their own data, averaged by the server.

To add one: a file with a `contract.Metric`, its line in `METRICS`, and its test.
"""

from __future__ import annotations

from fl_unlearn.metrics.accuracy import ACCURACY
from fl_unlearn.metrics.contract import Metric

METRICS: dict[str, Metric] = {metric.name: metric for metric in (ACCURACY,)}
"""Name to metric, in the order of the tables."""
