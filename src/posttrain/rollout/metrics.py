"""Metrics of a step's rollouts, under TRL's names."""

from __future__ import annotations

from collections import Counter

from posttrain.common.metrics import Metrics
from posttrain.rewards.score import parts_of, verdict_of
from posttrain.rollout.sampler import Rollout


def rollout_metrics(
    rollouts: list[Rollout], scores: list[float | None], groups: list[int]
) -> Metrics:
    """Return sums and counts over this rank's rollouts; `groups` has the group of each."""
    if not rollouts:
        return {}  # a rank without prompts has no shortest completion either
    known = [s for s in scores if s is not None]
    lengths = [len(r.response_ids) for r in rollouts]
    ended = [len(r.response_ids) for r in rollouts if r.finish_reason == "stop"]
    by_group: dict[int, set[float]] = {}
    for group, value in zip(groups, scores):
        if value is not None:
            by_group.setdefault(group, set()).add(float(value))
    flat = [values for values in by_group.values() if len(values) == 1]
    n = float(len(rollouts))
    metrics: Metrics = {
        "reward": (sum(known), float(len(known))),
        "reward_square": (sum(s * s for s in known), float(len(known))),
        "frac_reward_zero_std": (float(len(flat)), float(len(by_group))),
        "frac_reward_none": (n - len(known), n),
        "completions/mean_length": (float(sum(lengths)), n),
        "completions/max_length": (float(max(lengths, default=0)), 1.0),
        "completions/min_length": (float(min(lengths, default=0)), 1.0),
        "completions/mean_terminated_length": (float(sum(ended)), float(len(ended))),
        "completions/clipped_ratio": (n - len(ended), n),
    }
    parts = [p for s in scores if (p := parts_of(s)) is not None]
    for name in dict.fromkeys(name for part in parts for name in part):
        values = [value for part in parts if (value := part[name]) is not None]
        metrics[f"rewards/{name}/mean"] = (sum(values), float(len(values)))
        metrics[f"rewards/{name}/mean_square"] = (
            sum(value * value for value in values),
            float(len(values)),
        )
    for verdict, count in Counter(verdict_of(s) for s in scores).items():
        if verdict is not None:
            metrics[f"verdicts/{verdict}"] = (float(count), None)
    return metrics
