"""Sampling from a policy whose matrices are split over ranks (tensor parallelism).

The ranks of a group run every step together, each with its part of the matrices and of the cache,
so that they sample the prompts of all of them. Each then keeps the completions of its own prompts.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import accumulate
from typing import Any

import torch

from posttrain.common.errors import SettingError, without_section
from posttrain.common.mesh import Mesh, arrange
from posttrain.model.language_model import LanguageModel
from posttrain.model.parallel.split import split
from posttrain.rollout.native.copied import CopySampler
from posttrain.rollout.native.sampler import NativeSampler
from posttrain.rollout.sampler import Finished, Rollout, Sampler, SamplingParams


class TogetherSampler:
    """The native sampler on ranks that split a policy. All of them call `generate` together."""

    def __init__(self, inner: NativeSampler | CopySampler, group: Any) -> None:
        """Take the process group of the ranks with parts of the same matrices, None if whole."""
        self.inner, self.group = inner, group
        self.policy = inner.policy

    def update_weights(self) -> None:
        """Take over the policy's current weights. A collective if they are sharded."""
        self.inner.update_weights()

    def generate(
        self,
        prompts: Sequence[list[int]],
        params: SamplingParams,
        seeds: Sequence[int],
        finished: Finished = lambda place, rollout: None,
        adapters: Sequence[str | None] | None = None,
    ) -> list[Rollout]:
        """Return one completion per prompt. A collective of the group.

        `adapters` are None: several cannot be cut over ranks."""
        assert not any(adapters or ())
        native = self.inner.native if isinstance(self.inner, CopySampler) else self.inner
        with _whole_rows(native.policy):
            if self.group is None:
                return native.generate(prompts, params, seeds, finished)
            ranks: list[Any] = [None] * self.group.size()
            given = [list(prompt) for prompt in prompts], list(seeds)
            torch.distributed.all_gather_object(ranks, given, group=self.group)
            starts = [0, *accumulate(len(theirs) for theirs, _ in ranks)]
            first = starts[self.group.rank()]
            everything = [prompt for theirs, _ in ranks for prompt in theirs]

            def arrived(place: int, rollout: Rollout) -> None:
                if first <= place < first + len(prompts):
                    finished(place - first, rollout)

            noise = [seed for _, theirs in ranks for seed in theirs]
            rollouts = native.generate(everything, params, noise, arrived)
        return rollouts[first : first + len(prompts)]


def split_over_ranks(
    sampler: NativeSampler, tensor: int, several: bool = False
) -> NativeSampler | TogetherSampler:
    """Return the sampler of a model that `tensor` ranks split; all ranks call it together.

    Raises SettingError, of `tensor_parallel`, if the model or the ranks cannot be split so, or with
    `several` adapters."""
    if tensor == 1:
        return sampler
    if several:
        raise SettingError(
            "tensor_parallel", "rows with adapters of their own cannot be split: set it to 1"
        )
    with without_section("distributed"):
        mesh = arrange(sampler.policy.device.type, tensor)
        split(sampler.policy, mesh)
    return TogetherSampler(sampler, mesh.tensor_group)


def on_ranks(sampler: NativeSampler | CopySampler, mesh: Mesh, ahead: bool) -> Sampler:
    """Return the sampler for the ranks of a mesh; its copy of the policy, if any, is cut as well.

    A sampler that runs `ahead`, in a thread beside training, keeps a whole copy on every rank: two
    threads cannot take part in exchanges of the same ranks."""
    if mesh.per_share == 1 or (ahead and isinstance(sampler, CopySampler)):
        return sampler
    if isinstance(sampler, CopySampler):
        split(sampler.native.policy, replace(mesh, sequence=1, sequence_group=None))
    return TogetherSampler(sampler, mesh.tensor_group)


@contextmanager
def _whole_rows(policy: LanguageModel) -> Iterator[None]:
    """Let each rank run whole rows: of those that share them in training, each samples its own."""
    group, policy.sequence_group = policy.sequence_group, None
    try:
        yield
    finally:
        policy.sequence_group = group
