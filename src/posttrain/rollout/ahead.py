"""Steps whose completions are sampled before it is their turn.

With `one_step_off` the next step is sampled from the weights that this one starts with. With
`max_staleness` servers work through a queue of steps while weights change: step s begins to be
sampled as many steps before its turn as the bound allows, and each request has the newest weights
that its server was given when it was sent. So no completion is older than the bound when it is
trained on, and most are younger.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from posttrain.common import distributed
from posttrain.common.metrics import Metrics
from posttrain.data.kinds.prompt import Prompt
from posttrain.rollout.config import RolloutConfig
from posttrain.rollout.generation import Generation
from posttrain.rollout.sampler import EngineError, Finished, Rollout, Sampler, SamplingParams


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


@dataclass
class Pending:
    """Groups whose completions are being sampled."""

    groups: list[Group]
    generation: Generation


Known = dict[int, dict[int, Rollout]]
"""Completions of a step that a checkpoint holds, by the place of the prompt and their own."""


@dataclass
class Remembering:
    """A sampler of which some completions are known already."""

    sampler: Sampler
    known: dict[int, Rollout]
    """By their place among the prompts."""

    def __post_init__(self) -> None:
        self.policy = self.sampler.policy

    def update_weights(self) -> None:
        """Take over the policy's current weights."""
        self.sampler.update_weights()

    def generate(
        self,
        prompts: Sequence[list[int]],
        params: SamplingParams,
        seeds: Sequence[int],
        finished: Finished = lambda place, rollout: None,
    ) -> list[Rollout]:
        """Return one completion per prompt, of which those that are not known are sampled."""
        for place, rollout in self.known.items():
            finished(place, rollout)
        rest = [place for place in range(len(prompts)) if place not in self.known]
        sampled = self.sampler.generate(
            [prompts[place] for place in rest],
            params,
            [seeds[place] for place in rest],
            lambda i, rollout: finished(rest[i], rollout),
        )
        found = self.known | dict(zip(rest, sampled))
        return [found[place] for place in range(len(prompts))]


def remembering(sampler: Sampler, members: list[tuple[int, int]], known: Known) -> Sampler:
    """Return the sampler for members (place, k) of groups, some of which may be known."""
    there = {
        i: known[place][k] for i, (place, k) in enumerate(members) if k in known.get(place, {})
    }
    return Remembering(sampler, there) if there else sampler


class Ahead:
    """The steps that are sampled before their turn."""

    def __init__(
        self,
        config: RolloutConfig,
        sampler: Sampler,
        start: Callable[[int, Known, bool], Pending],
        num_steps: int,
        updates: int,
    ) -> None:
        """Take `updates`, the optimiser steps that train on the completions of one step.

        `start` begins to sample a step from the current weights, but for what is known of it,
        beside the training or not. A collective.
        """
        self.sampler, self.start, self.num_steps = sampler, start, num_steps
        self.bound = config.max_staleness
        self.queued = self.bound // updates
        """Steps that servers sample while another one is trained on."""
        self.next_too = config.one_step_off
        self.pending: dict[int, Pending] = {}
        self.known: dict[int, Known] = {}
        self.delivering = 0.0  # seconds that the last step took to deliver weights

    def take(self, step: int) -> Pending:
        """Return the completions of a step whose turn it is, which may still be sampled."""
        if self.queued:
            begun = time.perf_counter()
            self.sampler.update_weights()  # what waits in the queue gets the newest
            for later in range(step, min(step + self.queued, self.num_steps) + 1):
                if later not in self.pending:
                    self.pending[later] = self.start(later, self.known.pop(later, {}), True)
            self.delivering = time.perf_counter() - begun
        elif step not in self.pending:
            self.pending[step] = self.start(step, {}, False)
        return self.pending.pop(step)

    def follow(self, step: int) -> None:
        """Begin to sample what is sampled while this step is trained on."""
        if self.next_too and step < self.num_steps:
            self.pending[step + 1] = self.start(step + 1, {}, True)

    def check(self, generation: Generation) -> None:
        """Raise EngineError if a completion comes from weights that it may not come from."""
        newest = self.sampler.policy.version if self.queued else generation.version
        for rollout in generation.rollouts.values():
            if not newest - self.bound <= rollout.weight_version <= newest:
                raise EngineError(
                    f"the completions come from the weights of version {rollout.weight_version}, "
                    f"but the policy had version {newest}: they were not delivered"
                )

    def metrics(self, rollouts: list[Rollout]) -> Metrics:
        """Return how old a step's completions are, and what is there of later steps."""
        if not (self.queued or self.next_too):
            return {}
        version = self.sampler.policy.version
        ages = [float(version - rollout.weight_version) for rollout in rollouts]
        metrics: Metrics = {"sampling/staleness": (sum(ages), float(len(ages)))}
        if self.queued:
            ready = sum(len(later.generation.rollouts) for later in self.pending.values())
            metrics["sampling/max_staleness"] = (max(ages, default=0.0), 1.0)
            metrics["sampling/queue"] = (float(ready), None)
            metrics["time/deliver"] = (self.delivering, 1.0)
        return metrics

    def settle(self) -> None:
        """Wait until the sampler is free. Servers always are: they serve several callers."""
        for later in self.pending.values() if self.next_too else ():
            later.generation.wait()

    def close(self) -> None:
        """Cancel what is being sampled."""
        for later in self.pending.values():
            later.generation.cancel()

    def state_dict(self, group_size: int) -> dict[str, Any] | None:
        """Return the rollouts by step and place; None if there are none. A collective.

        What one_step_off samples is waited for, as all of it comes from weights that a resumed run
        no longer has; None if it failed. Of a queue, what has ended is returned at once.
        """
        self.settle()
        mine: dict[str, Any] = {}
        failed = False
        for step, later in self.pending.items():
            failed = failed or (self.next_too and later.generation.error is not None)
            ended = later.generation.rollouts.copy()
            mine[str(step)] = {
                str(group.place): {
                    str(k): without_prompt(ended[i * group_size + k])
                    for k in range(group_size)
                    if i * group_size + k in ended
                }
                for i, group in enumerate(later.groups)
            }
        for step, known in self.known.items():
            mine[str(step)] = {
                str(place): {str(k): without_prompt(rollout) for k, rollout in members.items()}
                for place, members in known.items()
            }
        ranks = distributed.all_gather(None if failed else mine)
        if any(rank is None for rank in ranks) or not any(ranks):
            return None
        joined: dict[str, Any] = {}
        for rank in ranks:
            for step, places in rank.items():
                joined.setdefault(step, {}).update(places)
        return joined

    def load_state_dict(
        self, state: dict[str, Any] | None, step: int, groups: Callable[[int], list[Group]]
    ) -> None:
        """Continue after a step from a state; `groups` returns this rank's share of a step."""
        state = state or {}
        if state and isinstance(next(iter(state.values())), list):  # saved by version 0.2
            state = {str(step + 1): {p: dict(enumerate(x)) for p, x in state.items()}}
        for name, places in state.items():
            mine = groups(int(name))
            known: Known = {
                group.place: {
                    int(k): Rollout(list(group.prompt.input_ids), **entry)
                    for k, entry in places.get(str(group.place), {}).items()
                }
                for group in mine
            }
            if self.next_too:
                rollouts = [known[g.place][k] for g in mine for k in sorted(known[g.place])]
                self.pending[int(name)] = Pending(mine, Generation.ended(rollouts))
            elif self.queued:
                self.known[int(name)] = known


def without_prompt(rollout: Rollout) -> dict[str, Any]:
    """Return a rollout's fields but for the prompt, which follows from the data."""
    return {name: value for name, value in asdict(rollout).items() if name != "prompt_ids"}
