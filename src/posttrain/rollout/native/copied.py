"""Sampling from a copy of the policy, if the policy is sharded or trains meanwhile.

Generating through sharded layers would gather every layer for every token, in lockstep over ranks
whose completions differ in length. Weights that change while a completion is generated would make
it a sample of no policy.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from posttrain.common import shards
from posttrain.model.config import HEAD_PREFIXES
from posttrain.model.language_model import LanguageModel
from posttrain.rollout.native.sampler import NativeSampler
from posttrain.rollout.sampler import Finished, Rollout, SamplingParams


class CopySampler:
    """The native sampler on a copy of the policy, whole or cut over ranks that sample together."""

    def __init__(self, policy: Any, whole: LanguageModel, max_num_seqs: int) -> None:
        """Take `whole`, a copy of the policy made before it was sharded."""
        self.policy = policy
        self.native = NativeSampler(whole, max_num_seqs)

    @torch.no_grad()
    def update_weights(self) -> None:
        """Copy the trainable weights, gathered, if they are newer. A collective if sharded."""
        whole = self.native.policy
        if whole.version == self.policy.version:
            return
        copies = dict(whole.named_parameters())
        for name, parameter in self.policy.named_parameters():
            if parameter.requires_grad and not name.startswith(HEAD_PREFIXES):
                shards.copy_full(copies[name], shards.full(parameter))
        whole.version = self.policy.version

    def generate(
        self,
        prompts: Sequence[list[int]],
        params: SamplingParams,
        seeds: Sequence[int],
        finished: Finished = lambda place, rollout: None,
    ) -> list[Rollout]:
        """Return one completion per prompt from the copy."""
        return self.native.generate(prompts, params, seeds, finished)
