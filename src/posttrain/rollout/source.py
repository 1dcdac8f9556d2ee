"""Prompts in, scored rollouts out: the online side of the Source seam."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch

from posttrain import distributed
from posttrain.algorithms.base import Metrics
from posttrain.batch import Batch, Sequence, pack
from posttrain.data.prepare import Prompt
from posttrain.data.render import Renderer
from posttrain.data.source import EpochOrder
from posttrain.rewards import RewardFn, parts_of, score, verdict_of
from posttrain.rollout.sampler import Rollout, Sampler, SamplingParams

log = logging.getLogger(__name__)

PATIENCE = 3  # steps without signal before the log explains why


class RolloutSource:
    """Samples a group of completions for each prompt of a step and scores them.

    Every completion draws its noise from (seed, step, place in the step) alone, so the same
    completions come out for any number of ranks and after any resume.
    """

    def __init__(
        self,
        prompts: list[Prompt],
        renderer: Renderer,
        sampler: Sampler,
        reward: RewardFn,
        params: SamplingParams,
        group_size: int,
        prompts_per_step: int,
        seed: int,
        record: Callable[[dict[str, Any]], None],
    ) -> None:
        self.prompts, self.renderer, self.sampler = prompts, renderer, sampler
        self.reward, self.params, self.group_size = reward, params, group_size
        self.order = EpochOrder(len(prompts), prompts_per_step, seed)
        self.steps_per_epoch = self.order.steps_per_epoch
        self.seed, self.record = seed, record
        self.step = 0
        self.steps_without_signal = 0

    def next_batch(self) -> tuple[Batch, Metrics]:
        places = list(enumerate(self.order.indices(self.step)))
        places = places[distributed.rank() :: distributed.num_ranks()]
        step = self.step + 1
        rows, prompt_ids, seeds, groups = [], [], [], []
        for place, index in places:
            for member in range(self.group_size):
                rows.append(self.prompts[index].row)
                prompt_ids.append(self.prompts[index].input_ids)
                seeds.append(_seed(self.seed, step, place * self.group_size + member))
                groups.append(place)
        rollouts = self.sampler.generate(prompt_ids, self.params, seeds)
        self.step = step  # not before: after a failed generation the step is still to be done
        texts = [self.renderer.decode(r.response_ids) for r in rollouts]
        prompts = [row.get("prompt", row.get("messages")) for row in rows]
        scores = score(self.reward, prompts, texts, [r.response_ids for r in rollouts], rows)
        for row, text, rollout, value in zip(rows, texts, rollouts, scores):
            self.record(
                {
                    "step": self.step,
                    "kind": "rollout",
                    "prompt": self.renderer.tokenizer.decode(rollout.prompt_ids),
                    "completion": text,
                    "reward": value,
                    "verdict": verdict_of(value),
                    "rewards": parts_of(value),
                    "finish_reason": rollout.finish_reason,
                    "answer": row.get("answer"),
                }
            )
        metrics = rollout_metrics(rollouts, scores, groups)
        self._diagnose(metrics)
        max_new_tokens = self.params.max_new_tokens
        sequences = [
            to_sequence(rollout, value, group, max_new_tokens)
            for rollout, value, group in zip(rollouts, scores, groups)
        ]
        return pack(sequences), metrics

    def state_dict(self) -> dict[str, Any]:
        return {"step": self.step, "steps_without_signal": self.steps_without_signal}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.step = state["step"]
        self.steps_without_signal = state["steps_without_signal"]

    def _diagnose(self, metrics: Metrics) -> None:
        """Say in the log why nothing is learned, once it has lasted a while."""
        flat, count = metrics["frac_reward_zero_std"]
        clipped = metrics["completions/clipped_ratio"][0]
        self.steps_without_signal = self.steps_without_signal + 1 if flat == count else 0
        if self.steps_without_signal == PATIENCE:
            log.warning(
                "no learning signal for %d steps: in every group all completions got the same "
                "reward, so every advantage is 0 (mean reward %.2f); %s",
                PATIENCE,
                metrics["reward"][0] / (metrics["reward"][1] or 1.0),
                "most completions are cut off: raise rollout.max_new_tokens"
                if clipped > 0.9 * (metrics["completions/clipped_ratio"][1] or 1.0)
                else "the prompts are all too hard or all too easy, or the reward is constant",
            )


def _seed(seed: int, step: int, place: int) -> int:
    """A different seed for each completion of a run, from 0 to 2**63 - 1."""
    return ((seed * 1_000_003 + step) * 1_000_003 + place) % 2**63


def to_sequence(rollout: Rollout, value: float | None, group: int, max_new_tokens: int) -> Sequence:
    prompt, response = rollout.prompt_ids, rollout.response_ids
    ids = torch.tensor(prompt + response)
    logprobs = torch.tensor([0.0] * len(prompt) + rollout.logprobs)
    return Sequence(
        input_ids=ids,
        loss_mask=torch.arange(len(ids)) >= len(prompt),
        per_token={"sampler_logprobs": logprobs},
        per_seq={
            "rewards": float("nan") if value is None else float(value),
            "group": group,
            "max_new_tokens": max_new_tokens,
            "truncated": rollout.finish_reason == "length",
        },
    )


def rollout_metrics(
    rollouts: list[Rollout], scores: list[float | None], groups: list[int]
) -> Metrics:
    """Sums and counts over this rank's rollouts, under TRL's names."""
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
