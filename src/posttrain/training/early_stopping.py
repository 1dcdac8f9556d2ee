"""Early stopping: whether an evaluation is the best one so far."""

from __future__ import annotations

import math

from posttrain.algorithms.config import EarlyStopping


def is_better(early: EarlyStopping, metrics: dict[str, float], best: float | None) -> bool:
    """Return whether the watched metric is better than its best value so far; nan never is.

    Raises ValueError if there is no such metric.
    """
    if early.metric not in metrics:
        known = ", ".join(metrics)
        raise ValueError(
            f"trainer.early_stopping.metric: no metric {early.metric}; there are {known}"
        )
    sign = 1 if early.mode == "max" else -1
    value = metrics[early.metric] * sign
    return not math.isnan(value) and (best is None or value > best * sign)
