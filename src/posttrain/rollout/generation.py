"""Completions on their way: sampled in a thread of their own, while the caller scores those that
are done, or trains; or at once, where a thread would only be in the way."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress

import torch

from posttrain.common import distributed
from posttrain.rollout.sampler import EngineError, Rollout, Sampler, SamplingParams

CANCEL_SECONDS = 30.0


class Generation:
    """One completion per prompt, from the weights that the sampler was last given.

    The thread takes part in no collective: it may run while the main thread does. It is a daemon:
    a program that fails meanwhile waits for it no longer than CANCEL_SECONDS.
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
        """In a thread `beside` the caller, or here, which has ended when this returns."""
        self = cls(sampler.policy.version)
        if not beside:
            self._run(sampler, prompts, params, seeds, None)
            return self
        # a thread's current device is its own
        device = torch.cuda.current_device() if torch.cuda.is_initialized() else None
        self._thread = threading.Thread(
            target=self._run, args=(sampler, prompts, params, seeds, device), daemon=True
        )
        self._thread.start()
        return self

    @classmethod
    def ended(cls, rollouts: list[Rollout]) -> Generation:
        """One whose completions a checkpoint held."""
        self = cls(rollouts[0].weight_version if rollouts else 0)
        for place, rollout in enumerate(rollouts):
            self._arrive(place, rollout)
        self._end()
        return self

    def arrivals(self) -> Iterator[list[int]]:
        """The places of those that have finished since the last time, until all have. Raises what
        the sampler raised."""
        going_on = True
        while going_on:
            places = [self._arrivals.get()]
            with suppress(queue.Empty):
                while True:
                    places.append(self._arrivals.get_nowait())
            going_on = None not in places
            if not going_on and self.error is not None:
                raise self.error
            yield [place for place in places if place is not None]

    def wait(self) -> None:
        if self._thread is not None:
            self._thread.join()

    def cancel(self) -> None:
        """Nobody wants the rest: the sampler stops when the next completion is done."""
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
                if place not in self.rollouts:  # an engine that has them all at the end
                    self._arrive(place, rollout)
        except BaseException as error:  # whatever it is, the main thread waits for the end
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
    """One completion per prompt from the policy as it is now. A collective."""
    sampler.update_weights()
    problem, rollouts = None, []
    try:
        rollouts = sampler.generate(prompts, params, seeds)
    except EngineError as error:
        problem = str(error)
    raise_together(problem)
    return rollouts


def raise_together(problem: str | None) -> None:
    """Raise on every rank what one of them met, so that none waits for it for ever."""
    problems = [p for p in distributed.all_gather(problem) if p is not None]
    if problems:
        raise EngineError(problems[0])
