"""Sampling from a copy of the policy: where it is sharded, or trains in the meantime.

Generating through sharded layers would gather every layer for every token, in lockstep over ranks
whose completions differ in length; generating from weights that change would be from none.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from posttrain.common import distributed
from posttrain.model.config import HEAD_PREFIXES
from posttrain.model.language_model import LanguageModel
from posttrain.rollout.native.sampler import NativeSampler
from posttrain.rollout.sampler import Finished, Rollout, SamplingParams


class CopySampler:
    def __init__(self, policy: Any, whole: LanguageModel, max_num_seqs: int) -> None:
        """`whole` is a copy of the policy, from before it was sharded."""
        self.policy = policy
        self.native = NativeSampler(whole, max_num_seqs)

    @torch.no_grad()
    def update_weights(self) -> None:
        whole = self.native.policy
        if whole.version == self.policy.version:
            return
        mine = dict(whole.named_parameters())
        for name, parameter in self.policy.named_parameters():
            if parameter.requires_grad and not name.startswith(HEAD_PREFIXES):
                mine[name].copy_(distributed.full(parameter))
        whole.version = self.policy.version

    def generate(
        self,
        prompts: Sequence[list[int]],
        params: SamplingParams,
        seeds: Sequence[int],
        finished: Finished = lambda place, rollout: None,
    ) -> list[Rollout]:
        return self.native.generate(prompts, params, seeds, finished)
