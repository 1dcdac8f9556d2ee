"""Completions on a CPU's workers: each samples its share of the rows in a cache of its own."""

from __future__ import annotations

from collections.abc import Sequence
from threading import Lock
from typing import Protocol

from posttrain.model.kernels.quantized import quantised
from posttrain.model.language_model import LanguageModel
from posttrain.model.workers import on_workers
from posttrain.rollout.native.engine import Engine
from posttrain.rollout.sampler import Finished, Rollout, SamplingParams

ROWS = 16  # of a worker; with fewer, reading the weights takes longer than computing with them


class Together(Protocol):
    """What samples rows in one cache, that of an engine if it is given one."""

    def __call__(
        self,
        prompts: Sequence[list[int]],
        params: SamplingParams,
        seeds: Sequence[int],
        finished: Finished,
        adapters: Sequence[str | None],
        engine: Engine | None = None,
    ) -> list[Rollout]:
        """Return one completion per prompt."""


def side_by_side(
    together: Together,
    policy: LanguageModel,
    max_num_seqs: int,
    prompts: Sequence[list[int]],
    params: SamplingParams,
    seeds: Sequence[int],
    finished: Finished,
    adapters: Sequence[str | None],
) -> list[Rollout]:
    """Return one completion per prompt, sampled by the policy's workers if there are enough."""
    longest = max(map(len, prompts), default=0) + params.max_new_tokens
    turns = policy.rope_limit is not None and longest > policy.rope_limit
    # quantised weights are dequantised once for all
    alone = turns or quantised(policy)
    shares = [] if alone else _shares(policy, prompts, max_num_seqs)
    if len(shares) < 2:
        return together(prompts, params, seeds, finished, adapters)
    size = max_num_seqs // len(shares)
    first, telling = Engine(policy, size, longest), Lock()
    rollouts: dict[int, Rollout] = {}

    def sample(network: LanguageModel, share: list[int]) -> None:
        def arrived(place: int, rollout: Rollout) -> None:
            with telling:
                finished(share[place], rollout)

        chosen, own = [prompts[i] for i in share], [seeds[i] for i in share]
        names = [adapters[i] for i in share]
        engine = first if network is policy else Engine(network, size, longest, like=first)
        with network.precision():  # of this thread
            rollouts.update(zip(share, together(chosen, params, own, arrived, names, engine)))

    list(on_workers(policy, shares, sample))
    return [rollouts[i] for i in range(len(prompts))]


def _shares(
    policy: LanguageModel, prompts: Sequence[list[int]], max_num_seqs: int
) -> list[list[int]]:
    """Return the indices of each worker's prompts; equal ones, which run once, stay together."""
    workers = 1 if policy.workers is None else policy.workers.number
    number = max(1, min(workers, len(prompts) // ROWS, max_num_seqs // ROWS))
    groups: dict[tuple[int, ...], list[int]] = {}
    for i, prompt in enumerate(prompts):
        groups.setdefault(tuple(prompt), []).append(i)
    most = -(-len(prompts) // number)
    shares: list[list[int]] = [[] for _ in range(number)]
    for group in sorted(groups.values(), key=lambda group: -len(prompts[group[0]])):
        for start in range(0, len(group), most):
            min(shares, key=len).extend(group[start : start + most])
    return [share for share in shares if share]
