"""The native sampler: token ids in and out, with the policy's own weights."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial

import torch

from posttrain.model.kernels.quantized import dense
from posttrain.model.language_model import LanguageModel
from posttrain.model.quirks import changes_with_every_length
from posttrain.model.rotations import rotated_by_row, rotating
from posttrain.model.vocabulary import check_ids
from posttrain.rollout.native.alone import EQUAL, Way, agrees, generate_apart, way_of
from posttrain.rollout.native.engine import Engine
from posttrain.rollout.native.prefill import rows_of
from posttrain.rollout.native.row import Row
from posttrain.rollout.native.side_by_side import side_by_side
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
        # rows beyond the limit of the rotation share the engine's cache here, but not a server's
        by_row = bool(rotating(self.policy.backbone()))
        shared = [self.shares_cache(len(p) + limit) or (self.batched and by_row) for p in prompts]
        together = partial(side_by_side, self._together, self.policy, self.max_num_seqs)
        for part, chosen in (
            (self._apart, [i for i, shares in enumerate(shared) if not shares]),
            (together, [i for i, shares in enumerate(shared) if shares]),
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
                if self.way.generated:
                    log.warning("%s samples by transformers' generate: slowly", name)
        return self.batched and policy.packs([length])

    def _together(
        self,
        prompts: Sequence[list[int]],
        params: SamplingParams,
        seeds: Sequence[int],
        finished: Finished,
        adapters: Sequence[str | None],
        engine: Engine | None = None,
    ) -> list[Rollout]:
        policy, version = self.policy, self.policy.version
        rows = [Row(list(p), params, s, a) for p, s, a in zip(prompts, seeds, adapters)]
        places = {row: place for place, row in enumerate(rows)}
        longest = max(map(len, prompts), default=0) + params.max_new_tokens

        def ended(row: Row) -> None:
            place = places[row]
            if row.finish_reason == "length" and row.params is not params:
                rows[place] = replace(row, params=params, finish_reason=None)
                places[rows[place]] = place
                cache.add([rows[place]])  # read again, under the rotation of longer rows
            else:
                finished(place, row.rollout(version))

        cache = engine or Engine(policy, self.max_num_seqs, longest)
        cache.finished = ended
        with ExitStack() as stack:
            if policy.rope_limit is not None and longest > policy.rope_limit:
                for row in rows:
                    row.params = _up_to_change(policy, len(row.prompt_ids), params)
                stack.enter_context(rotated_by_row(policy.backbone(), policy.rope_limit, longest))
            cache.add(rows)
            while cache.step() or cache.num_waiting:
                pass
        cache.finished = lambda row: None  # else it and `ended` keep each other, and weights
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


def _up_to_change(policy: LanguageModel, length: int, params: SamplingParams) -> SamplingParams:
    """Return what ends a completion at the length at which all of its rotation changes, if any.

    A rotation that changes with every length is transformers' on the way: that of a key is the one
    of the length at which it was read."""
    limit = policy.rope_limit
    assert limit is not None
    left = limit - length + 1  # the first token that is read beyond the limit is sampled within it
    if changes_with_every_length(policy.causal_lm().config) or not 0 < left < params.max_new_tokens:
        return params
    return replace(params, max_new_tokens=left)
