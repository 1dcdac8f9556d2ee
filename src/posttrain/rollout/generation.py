"""Completions that are being sampled: in a background thread, or in the caller's own.

With a background thread the caller scores finished completions, or trains, meanwhile. The caller's
own is used if the two would only compete for the same processor.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress

import torch

from posttrain.common import distributed
from posttrain.model.workers import as_here
from posttrain.rollout.sampler import EngineError, Rollout, Sampler, SamplingParams

CANCEL_SECONDS = 30.0  # longest wait for a cancelled generation


class Generation:
    """One completion per prompt, from the weights of the sampler's last update.

    The thread takes part in no collective, so it may run beside the main thread. It is a daemon: a
    program that fails meanwhile waits for it no longer than CANCEL_SECONDS.
    """

    def __init__(self, version: int) -> None:
        self.version = version  # of the weights
        self.rollouts: dict[int, Rollout] = {}
        self.ended_at: float | None = None
        self.error: BaseException | None = None
        self._cancelled = False
        self._arrivals: queue.SimpleQueue[int | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None

    @classmethod
    def start(
        cls,
        sampler: Sampler,
        prompts: Sequence[list[int]],
        params: SamplingParams,
        seeds: Sequence[int],
        beside: bool,
    ) -> Generation:
        """Return a generation in a thread `beside` the caller, or one that has already ended."""
        self = cls(sampler.policy.version)
        if not beside:
            self._run(sampler, prompts, params, seeds, None)
            return self
        # the current CUDA device is per thread: the new one must set it
        device = torch.cuda.current_device() if torch.cuda.is_initialized() else None
        self._thread = threading.Thread(
            target=as_here(self._run), args=(sampler, prompts, params, seeds, device), daemon=True
        )
        self._thread.start()
        return self

    @classmethod
    def ended(cls, rollouts: list[Rollout]) -> Generation:
        """Return a generation that has ended, with completions from a checkpoint."""
        self = cls(rollouts[0].weight_version if rollouts else 0)
        for place, rollout in enumerate(rollouts):
            self._arrive(place, rollout)
        self._end()
        return self

    def arrivals(self) -> Iterator[list[int]]:
        """Yield the indices of newly finished completions until all have finished.

        Raises what the sampler raised."""
        running = True
        while running:
            places = [self._arrivals.get()]
            with suppress(queue.Empty):
                while True:
                    places.append(self._arrivals.get_nowait())
            running = None not in places
            if not running and self.error is not None:
                raise self.error
            yield [place for place in places if place is not None]

    def wait(self) -> None:
        """Wait until sampling has ended."""
        if self._thread is not None:
            self._thread.join()

    def cancel(self) -> None:
        """Stop the sampler when its next completion is done, and wait for that."""
        self._cancelled = True
        if self._thread is not None:
            self._thread.join(timeout=CANCEL_SECONDS)

    def _run(
        self,
        sampler: Sampler,
        prompts: Sequence[list[int]],
        params: SamplingParams,
        seeds: Sequence[int],
        device: int | None,
    ) -> None:
        if device is not None:
            torch.cuda.set_device(device)
        try:
            rollouts = sampler.generate(prompts, params, seeds, self._arrive)
            for place, rollout in enumerate(rollouts):
                if place not in self.rollouts:  # an engine without a callback
                    self._arrive(place, rollout)
        except BaseException as error:  # raised by `arrivals`, in the main thread
            self.error = error
        self._end()

    def _end(self) -> None:
        self.ended_at = time.perf_counter()
        self._arrivals.put(None)

    def _arrive(self, place: int, rollout: Rollout) -> None:
        if self._cancelled:
            raise _CancelledError
        self.rollouts[place] = rollout
        self._arrivals.put(place)


class _CancelledError(Exception):
    pass


def generate(
    sampler: Sampler, prompts: Sequence[list[int]], params: SamplingParams, seeds: Sequence[int]
) -> list[Rollout]:
    """Return one completion per prompt from the policy's current weights. A collective."""
    sampler.update_weights()
    problem, rollouts = None, []
    try:
        rollouts = sampler.generate(prompts, params, seeds)
    except EngineError as error:
        problem = str(error)
    raise_together(problem)
    return rollouts


def raise_together(problem: str | None) -> None:
    """Raise EngineError on every rank if one has a problem, so that none waits for it forever."""
    problems = [p for p in distributed.all_gather(problem) if p is not None]
    if problems:
        raise EngineError(problems[0])
