"""The native sampler: token ids in and out, with the policy's own weights."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import torch

from posttrain.model.kernels.quantized import dense
from posttrain.model.language_model import LanguageModel
from posttrain.model.vocabulary import check_ids
from posttrain.rollout.native.alone import EQUAL, Way, agrees, generate_apart, way_of
from posttrain.rollout.native.engine import Engine
from posttrain.rollout.native.prefill import rows_of
from posttrain.rollout.native.row import Row
from posttrain.rollout.sampler import Finished, Rollout, SamplingParams

log = logging.getLogger(__name__)


class NativeSampler:
    """A sampler that uses the policy's own weights, without a copy."""

    def __init__(self, policy: LanguageModel, max_num_seqs: int) -> None:
        self.policy = policy
        self.max_num_seqs = max_num_seqs
        self.batched: bool | None = None
        """Whether completions share a cache; found out before the first ones are sampled."""
        self.way: Way = EQUAL
        """How completions that do not are sampled."""

    def update_weights(self) -> None:
        """Do nothing: the weights that train are the weights that sample."""

    def generate(
        self,
        prompts: Sequence[list[int]],
        params: SamplingParams,
        seeds: Sequence[int],
        finished: Finished = lambda place, rollout: None,
        adapters: Sequence[str | None] | None = None,
    ) -> list[Rollout]:
        """Return one completion per prompt; raise ValueError if a prompt is empty.

        `adapters` are names of the policy's `adapters`, one per prompt; None is none of them.
        """
        if not all(prompts):
            raise ValueError("a prompt is empty")
        check_ids(self.policy.causal_lm(), max(map(max, prompts), default=0))
        names: list[str | None] = list(adapters or [None] * len(prompts))
        was_training = self.policy.training
        self.policy.eval()
        compute = self.policy.autocast or torch.float32
        try:
            with torch.no_grad(), self.policy.precision(), dense(self.policy, compute):
                return self._generate(prompts, params, seeds, finished, names)
        finally:
            self.policy.train(was_training)

    def _generate(
        self,
        prompts: Sequence[list[int]],
        params: SamplingParams,
        seeds: Sequence[int],
        finished: Finished,
        adapters: list[str | None],
    ) -> list[Rollout]:
        limit, rollouts = params.max_new_tokens, dict[int, Rollout]()
        shared = [self.shares_cache(len(prompt) + limit) for prompt in prompts]
        for part, chosen in (
            (self._apart, [i for i, shares in enumerate(shared) if not shares]),
            (self._together, [i for i, shares in enumerate(shared) if shares]),
        ):

            def arrived(place: int, rollout: Rollout, chosen: list[int] = chosen) -> None:
                finished(chosen[place], rollout)

            texts, names = [prompts[i] for i in chosen], [adapters[i] for i in chosen]
            found = part(texts, params, [seeds[i] for i in chosen], arrived, names)
            rollouts |= dict(zip(chosen, found))
        return [rollouts[i] for i in range(len(prompts))]

    def shares_cache(self, length: int) -> bool:
        """Return whether a sequence of this length can be in a cache with others."""
        policy = self.policy
        if self.batched is None:
            self.batched = policy.unpacked is None and agrees(policy, self._greedy)
            if not self.batched:
                self.way = way_of(policy)
                name = type(policy.causal_lm()).__name__
                log.warning("%s samples by transformers' generate: slowly", name)
        return self.batched and policy.packs([length])

    def _together(
        self,
        prompts: Sequence[list[int]],
        params: SamplingParams,
        seeds: Sequence[int],
        finished: Finished,
        adapters: Sequence[str | None],
    ) -> list[Rollout]:
        policy, version = self.policy, self.policy.version
        rows = [Row(list(p), params, s, a) for p, s, a in zip(prompts, seeds, adapters)]
        places = {row: place for place, row in enumerate(rows)}
        engine = Engine(
            policy,
            self.max_num_seqs,
            max(map(len, prompts), default=0) + params.max_new_tokens,
            lambda row: finished(places[row], row.rollout(version)),
        )
        engine.add(rows)
        while engine.step():
            pass
        return [row.rollout(version) for row in rows]

    def _apart(
        self,
        prompts: Sequence[list[int]],
        params: SamplingParams,
        seeds: Sequence[int],
        finished: Finished,
        adapters: list[str | None],
    ) -> list[Rollout]:
        rows = rows_of(self.policy, adapters)
        size = self.max_num_seqs
        return generate_apart(self.policy, self.way, prompts, params, seeds, size, finished, rows)

    def _greedy(self, prompts: Sequence[list[int]], params: SamplingParams) -> list[Rollout]:
        seeds, names = [0] * len(prompts), [None] * len(prompts)
        return self._together(prompts, params, seeds, lambda *_: None, names)
