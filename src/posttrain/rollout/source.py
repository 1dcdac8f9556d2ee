"""The source of online methods: prompts in, scored rollouts out."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
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
from posttrain.rollout.config import RolloutConfig
from posttrain.rollout.generation import Generation, raise_together
from posttrain.rollout.metrics import rollout_metrics
from posttrain.rollout.recording import Recorder
from posttrain.rollout.sampler import EngineError, Rollout, Sampler, SamplingParams

ATTEMPT = 2**50  # more than any place in a step, so that attempts share no seed


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


class RolloutSource:
    """Source that samples a group of completions for each prompt of a step and scores them.

    Finished groups are scored while the rest is sampled; with `one_step_off` the next step's
    completions are sampled while this step trains. A completion's noise depends only on (seed,
    step, place in the step, attempt), so the same completions come out for any number of ranks and
    after any resume. (With `one_step_off`, a generation that failed is sampled again from the
    newest weights.)
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
    ) -> None:
        """Set `beside` to sample while scoring, unless both need the same processor."""
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
        self.ahead: Pending | None = None  # the completions of the next step

    def next_batch(self) -> tuple[Batch, Metrics]:
        """Return the step's scored rollouts and their metrics. A collective."""
        step, used = self.step + 1, self.num_substitutes
        times = {"time/generate": 0.0, "time/score": 0.0}
        begun = time.perf_counter()
        pending, self.ahead = self.ahead or self._start(self._groups(step), step, 0), None
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
        if self.config.one_step_off and step < self.num_steps:
            self.ahead = self._start(self._groups(step + 1), step + 1, 0, ahead=True)
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
        if self.config.one_step_off:
            version = self.sampler.policy.version
            age = sum(version - rollout.weight_version for rollout in rollouts)
            metrics["sampling/staleness"] = (float(age), float(len(rollouts)))
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
        if self.ahead is not None:
            self.ahead.generation.wait()

    def close(self) -> None:
        """Cancel what is being sampled."""
        if self.ahead is not None:
            self.ahead.generation.cancel()

    def _groups(self, step: int) -> list[Group]:
        """Return groups, without completions yet, for this rank's share of a step's prompts."""
        places = list(enumerate(self.order.indices(step - 1)))
        local = places[distributed.rank() :: distributed.num_ranks()]
        return [Group(place, self.prompts[index]) for place, index in local]

    def _start(self, groups: list[Group], step: int, attempt: int, ahead: bool = False) -> Pending:
        """Start sampling from the policy's current weights. A collective."""
        self.sampler.update_weights()
        size = self.config.group_size
        members = [(group, k) for group in groups for k in range(size)]
        seeds = [mix(self.seed, step, g.place * size + k + attempt * ATTEMPT) for g, k in members]
        prompts = [group.prompt.input_ids for group, _ in members]
        beside = self.beside or ahead
        return Pending(groups, Generation.start(self.sampler, prompts, self.params, seeds, beside))

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
            self._check_versions(generation)
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

    def _check_versions(self, generation: Generation) -> None:
        for rollout in generation.rollouts.values():
            if rollout.weight_version != generation.version:
                raise EngineError(
                    f"the completions come from the weights of version {rollout.weight_version}, "
                    f"but the policy had version {generation.version}: they were not delivered"
                )

    def state_dict(self) -> dict[str, Any]:
        """Return the state, with what every rank has sampled ahead. A collective.

        It cannot be sampled again after a resume, since the weights that it comes from are gone."""
        names = ("step", "num_substitutes")
        return {name: getattr(self, name) for name in names} | {"ahead": self._sampled_ahead()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a state; the number of ranks may be another."""
        self.step, self.num_substitutes = state["step"], state["num_substitutes"]
        if state["ahead"] is not None:
            groups = self._groups(self.step + 1)
            entries = [entry for group in groups for entry in state["ahead"][str(group.place)]]
            prompts = [g.prompt.input_ids for g in groups for _ in range(self.config.group_size)]
            rollouts = [Rollout(list(p), **entry) for p, entry in zip(prompts, entries)]
            self.ahead = Pending(groups, Generation.ended(rollouts))

    def _sampled_ahead(self) -> dict[str, list[dict[str, Any]]] | None:
        """Return the rollouts by place of the prompt; None if there are none or sampling failed."""
        self.settle()
        mine: dict[str, list[dict[str, Any]]] | None = None
        if self.ahead is not None and self.ahead.generation.error is None:
            size, rollouts = self.config.group_size, self.ahead.generation.rollouts
            mine = {}
            for i, group in enumerate(self.ahead.groups):
                entries = [asdict(rollouts[i * size + k]) for k in range(size)]
                mine[str(group.place)] = [_without_prompt(entry) for entry in entries]
        ranks = distributed.all_gather(mine)
        if any(rank is None for rank in ranks):
            return None
        return {place: entries for rank in ranks for place, entries in rank.items()}


def _without_prompt(rollout: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in rollout.items() if name != "prompt_ids"}


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
