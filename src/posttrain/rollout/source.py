"""Prompts in, scored rollouts out: the online side of the Source seam."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

from posttrain import distributed
from posttrain.algorithms.base import Metrics
from posttrain.batch import Batch, Sequence, pack
from posttrain.data.prepare import Prompt
from posttrain.data.render import Renderer
from posttrain.data.source import EpochOrder
from posttrain.rewards import RewardFn, parts_of, score, verdict_of
from posttrain.rollout.metrics import rollout_metrics
from posttrain.rollout.sampler import Rollout, Sampler, SamplingParams


@dataclass
class Group:
    """The completions of one prompt of the step."""

    place: int  # of the prompt among the step's prompts, over all ranks
    prompt: Prompt
    rollouts: list[Rollout] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    scores: list[float | None] = field(default_factory=list)

    def is_flat(self) -> bool:
        """Whether no completion is better than another, so that there is nothing to learn."""
        return len({float(score) for score in self.scores if score is not None}) < 2


class RolloutSource:
    """Samples a group of completions for each prompt of a step and scores them.

    Every completion draws its noise from (seed, step, place in the step, attempt) alone, so the
    same completions come out for any number of ranks and after any resume.
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
        max_resamples: int = 0,
    ) -> None:
        self.prompts, self.renderer, self.sampler = prompts, renderer, sampler
        self.reward, self.params, self.group_size = reward, params, group_size
        self.order = EpochOrder(len(prompts), prompts_per_step, seed)
        self.substitutes = EpochOrder(len(prompts), 1, seed + 1)
        self.steps_per_epoch = self.order.steps_per_epoch
        self.seed, self.record, self.max_resamples = seed, record, max_resamples
        self.step = 0
        self.num_substitutes = 0

    def next_batch(self) -> tuple[Batch, Metrics]:
        places = list(enumerate(self.order.indices(self.step)))
        own = places[distributed.rank() :: distributed.num_ranks()]
        groups = {place: Group(place, self.prompts[index]) for place, index in own}
        step, used = self.step + 1, self.num_substitutes
        times = {"time/generate": 0.0, "time/score": 0.0}
        self._fill(list(groups.values()), step, 0, times)
        for attempt in range(1, self.max_resamples + 1):
            flat = [group.place for group in groups.values() if group.is_flat()]
            # all ranks agree on who gets which prompt, whatever their number
            everywhere = sorted(place for rank in distributed.all_gather(flat) for place in rank)
            if not everywhere:
                break
            for place in everywhere:
                if place in groups:
                    index = self.substitutes.indices(used)[0]
                    groups[place] = Group(place, self.prompts[index])
                used += 1
            self._fill([groups[place] for place in flat], step, attempt, times)
        # not before: after a failed generation the step is still to be done
        self.step, self.num_substitutes = step, used
        done = list(groups.values())
        self._record(done)
        metrics = rollout_metrics(
            [rollout for group in done for rollout in group.rollouts],
            [score for group in done for score in group.scores],
            [group.place for group in done for _ in group.rollouts],
        )
        metrics |= {name: (seconds, 1.0) for name, seconds in times.items()}
        if self.max_resamples and distributed.rank() == 0:
            metrics["num_resampled"] = (float(used), None)
        limit = self.params.max_new_tokens
        sequences = [
            to_sequence(rollout, score, group.place, limit)
            for group in done
            for rollout, score in zip(group.rollouts, group.scores)
        ]
        return pack(sequences), metrics

    def _fill(self, groups: list[Group], step: int, attempt: int, times: dict[str, float]) -> None:
        """Sample and score the completions of these groups."""
        members = [(group, k) for group in groups for k in range(self.group_size)]
        seeds = [
            _seed(self.seed, step, group.place * self.group_size + k, attempt)
            for group, k in members
        ]
        started = time.perf_counter()
        rollouts = self.sampler.generate(
            [group.prompt.input_ids for group, _ in members], self.params, seeds
        )
        sampled = time.perf_counter()
        texts = [self.renderer.decode(r.response_ids) for r in rollouts]
        rows = [group.prompt.row for group, _ in members]
        prompts = [row.get("prompt", row.get("messages")) for row in rows]
        scores = score(self.reward, prompts, texts, [r.response_ids for r in rollouts], rows)
        for (group, _), rollout, text, value in zip(members, rollouts, texts, scores):
            group.rollouts.append(rollout)
            group.texts.append(text)
            group.scores.append(value)
        times["time/generate"] += sampled - started
        times["time/score"] += time.perf_counter() - sampled

    def _record(self, groups: list[Group]) -> None:
        for group in groups:
            for rollout, text, value in zip(group.rollouts, group.texts, group.scores):
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
                        "answer": group.prompt.row.get("answer"),
                    }
                )

    def state_dict(self) -> dict[str, Any]:
        names = ("step", "num_substitutes")
        return {name: getattr(self, name) for name in names}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name in self.state_dict():
            setattr(self, name, state[name])


def _seed(seed: int, step: int, place: int, attempt: int) -> int:
    """A different seed for each completion of a run, from 0 to 2**63 - 1."""
    return ((seed * 1_000_003 + step) * 1_000_003 + place + attempt * 2**50) % 2**63


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
