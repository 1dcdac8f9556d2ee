"""Sampling from a sharded policy: a whole copy of the model on every rank, refreshed each time.

Generating through sharded layers would gather every layer for every token, in lockstep over ranks
whose completions differ in length.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from posttrain import distributed
from posttrain.forward import LanguageModel
from posttrain.rollout.sampler import NativeSampler, Rollout, SamplingParams


class GatheredSampler:
    def __init__(self, policy: Any, whole: LanguageModel, max_num_seqs: int) -> None:
        """`whole` is a copy of the policy from before it was sharded."""
        self.policy = policy
        self.native = NativeSampler(whole, max_num_seqs)

    @torch.no_grad()
    def update_weights(self, policy: nn.Module) -> None:
        """A collective: every rank calls it at the same point."""
        whole = self.native.policy
        mine = dict(whole.named_parameters())
        for name, parameter in policy.named_parameters():
            if parameter.requires_grad:
                mine[name].copy_(distributed.full(parameter))
        whole.version = self.policy.version

    def generate(
        self, prompts: Sequence[list[int]], params: SamplingParams, seeds: Sequence[int]
    ) -> list[Rollout]:
        if self.native.policy.version != self.policy.version:
            self.update_weights(self.policy)
        return self.native.generate(prompts, params, seeds)
