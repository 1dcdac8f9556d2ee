"""The source of online methods: prompts in, scored rollouts out."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch

from posttrain.common import distributed
from posttrain.common.batch import Batch, Sequence, pack
from posttrain.common.metrics import Metrics
from posttrain.common.seeds import mix
from posttrain.data.kinds.prompt import Prompt
from posttrain.data.render import Renderer
from posttrain.data.source import EpochOrder
from posttrain.rewards.base import RewardFn
from posttrain.rewards.scoring import score_each
from posttrain.rollout.ahead import Ahead, Group, Known, Pending, remembering
from posttrain.rollout.config import RolloutConfig
from posttrain.rollout.generation import Generation, raise_together
from posttrain.rollout.metrics import rollout_metrics
from posttrain.rollout.recording import Recorder
from posttrain.rollout.sampler import EngineError, Rollout, Sampler, SamplingParams

ATTEMPT = 2**50  # more than any place in a step, so that attempts share no seed


class RolloutSource:
    """Source that samples a group of completions for each prompt of a step and scores them.

    Finished groups are scored while the rest is sampled; with `one_step_off` the next step's
    completions are sampled while this step trains. A completion's noise depends only on (seed,
    step, place in the step, attempt), so the same completions come out for any number of ranks and
    after any resume. (With `one_step_off`, a generation that failed is sampled again from the
    newest weights. With `max_staleness`, they also depend on when servers get new weights.)
    """

    def __init__(
        self,
        prompts: list[Prompt],
        renderer: Renderer,
        sampler: Sampler,
        reward: RewardFn,
        config: RolloutConfig,
        prompts_per_step: int,
        num_steps: int,
        seed: int,
        record: Callable[[dict[str, Any]], None],
        beside: bool,
        updates: int = 1,
    ) -> None:
        """Set `beside` to sample while scoring, unless both need the same processor.

        A step's completions are trained on in `updates` optimiser steps."""
        self.prompts, self.renderer, self.sampler = prompts, renderer, sampler
        self.reward, self.config, self.num_steps = reward, config, num_steps
        self.params = SamplingParams(
            config.max_new_tokens, renderer.stop_token_ids, config.temperature
        )
        self.order = EpochOrder(len(prompts), prompts_per_step, seed)
        self.substitutes = EpochOrder(len(prompts), 1, seed + 1)
        self.steps_per_epoch = self.order.steps_per_epoch
        self.seed, self.beside = seed, beside
        self.recorder = Recorder(record, renderer.tokenizer, config.record_prompts)
        self.step = 0
        self.num_substitutes = 0
        self.done: list[Group] = []  # the groups of the last batch
        self.ahead = Ahead(config, sampler, self._begin, num_steps, updates)

    def next_batch(self) -> tuple[Batch, Metrics]:
        """Return the step's scored rollouts and their metrics. A collective."""
        step, used = self.step + 1, self.num_substitutes
        times = {"time/generate": 0.0, "time/score": 0.0}
        begun = time.perf_counter()
        pending = self.ahead.take(step)
        begun += self.ahead.delivering
        groups = {group.place: group for group in pending.groups}
        self._finish(pending, begun, times)
        for attempt in range(1, self.config.max_resamples + 1):
            flat = [group.place for group in groups.values() if group.is_flat()]
            # substitutes go by place over all ranks, so that they do not depend on their number
            all_flat = sorted(place for rank in distributed.all_gather(flat) for place in rank)
            if not all_flat:
                break
            for place in all_flat:
                if place in groups:
                    index = self.substitutes.indices(used)[0]
                    groups[place] = Group(place, self.prompts[index])
                used += 1
            begun = time.perf_counter()
            pending = self._start([groups[place] for place in flat], step, attempt)
            self._finish(pending, begun, times)
        self.ahead.follow(step)
        # only now: after a failed generation the step is still to be done
        self.step, self.num_substitutes = step, used
        self.done = done = list(groups.values())
        rollouts = [rollout for group in done for rollout in group.rollouts]
        metrics = rollout_metrics(
            rollouts,
            [score for group in done for score in group.scores],
            [group.place for group in done for _ in group.rollouts],
        )
        metrics |= {name: (seconds, 1.0) for name, seconds in times.items()}
        metrics |= self.ahead.metrics(rollouts)
        if self.config.max_resamples and distributed.rank() == 0:
            metrics["num_resampled"] = (float(used), None)
        limit = self.params.max_new_tokens
        sequences = [
            to_sequence(rollout, score, group.place, k, limit)
            for group in done
            for k, (rollout, score) in enumerate(zip(group.rollouts, group.scores))
        ]
        if not sequences:  # fewer prompts than ranks
            one = Rollout([0], [0], [0.0], "stop", 0)
            return pack([to_sequence(one, 0.0, 0, 0, limit)]).select([]), metrics
        return pack(sequences), metrics

    def prepared(self, batch: Batch) -> None:
        """Record the step's completions with their advantages."""
        self.recorder.record(self.step, self.done, batch)

    def settle(self) -> None:
        """Wait until nothing is being sampled, so that the sampler is free."""
        self.ahead.settle()

    def close(self) -> None:
        """Cancel what is being sampled."""
        self.ahead.close()

    def _groups(self, step: int) -> list[Group]:
        """Return groups, without completions yet, for this rank's share of a step's prompts."""
        places = list(enumerate(self.order.indices(step - 1)))
        local = places[distributed.rank() :: distributed.num_ranks()]
        return [Group(place, self.prompts[index]) for place, index in local]

    def _begin(self, step: int, known: Known, ahead: bool) -> Pending:
        """Start sampling a step's groups but for what is `known` of them. A collective."""
        return self._start(self._groups(step), step, 0, known, ahead)

    def _start(
        self,
        groups: list[Group],
        step: int,
        attempt: int,
        known: Known | None = None,
        ahead: bool = False,
    ) -> Pending:
        """Start sampling from the policy's current weights. A collective."""
        self.sampler.update_weights()
        size = self.config.group_size
        members = [(group, k) for group in groups for k in range(size)]
        seeds = [mix(self.seed, step, g.place * size + k + attempt * ATTEMPT) for g, k in members]
        prompts = [group.prompt.input_ids for group, _ in members]
        sampler = remembering(self.sampler, [(g.place, k) for g, k in members], known or {})
        beside = self.beside or ahead
        return Pending(groups, Generation.start(sampler, prompts, self.params, seeds, beside))

    def _finish(self, pending: Pending, begun: float, times: dict[str, float]) -> None:
        """Score each group when all its completions are done. A collective."""
        groups, generation, size = pending.groups, pending.generation, self.config.group_size
        missing = [size] * len(groups)
        problem = None
        try:
            for places in generation.arrivals():
                for place in places:
                    missing[place // size] -= 1
                done = sorted({place // size for place in places if missing[place // size] == 0})
                for i in done:
                    members = range(i * size, (i + 1) * size)
                    groups[i].rollouts = [generation.rollouts[place] for place in members]
                self._score([groups[i] for i in done])
            self.ahead.check(generation)
        except EngineError as error:
            problem = str(error)
        except BaseException:
            generation.cancel()
            raise
        raise_together(problem)
        now = time.perf_counter()
        assert generation.ended_at is not None
        # scoring that overlaps with sampling counts as generation
        generated = max(0.0, generation.ended_at - begun)
        times["time/generate"] += generated
        times["time/score"] += now - begun - generated

    def _score(self, groups: list[Group]) -> None:
        calls = []
        for group in groups:
            row = group.prompt.row
            ids = [rollout.response_ids for rollout in group.rollouts]
            group.texts = [self.renderer.decode(x) for x in ids]
            prompt = row.get("prompt", row.get("messages"))
            calls.append(([prompt] * len(ids), group.texts, ids, [row] * len(ids)))
        for group, scores in zip(groups, score_each(self.reward, calls)):
            group.scores = scores

    def state_dict(self) -> dict[str, Any]:
        """Return the state, with what every rank has sampled ahead. A collective.

        It cannot be sampled again after a resume, since the weights that it comes from are gone."""
        ahead = self.ahead.state_dict(self.config.group_size)
        return {"step": self.step, "num_substitutes": self.num_substitutes, "ahead": ahead}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a state; the number of ranks may be another."""
        self.step, self.num_substitutes = state["step"], state["num_substitutes"]
        self.ahead.load_state_dict(state["ahead"], self.step, self._groups)


def to_sequence(
    rollout: Rollout, value: float | None, group: int, member: int, max_new_tokens: int
) -> Sequence:
    """Return a rollout with its reward and its place in a group, to be packed; NaN if unscored."""
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
            "member": member,
            "max_new_tokens": max_new_tokens,
            "truncated": rollout.finish_reason == "length",
        },
    )
