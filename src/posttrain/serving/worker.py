"""The thread that samples, and how the event loop talks to it.

Only this thread touches the model. The event loop puts jobs, cancellations and calls into an
inbox; the thread reads it between two steps and sends back what the rows have got.
"""

from __future__ import annotations

import asyncio
import logging
import queue
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from posttrain.rollout.native.engine import Engine
from posttrain.rollout.native.row import Alternative, Row
from posttrain.rollout.native.sampler import NativeSampler
from posttrain.serving.errors import Refusal
from posttrain.serving.together import BEAT_EVERY, Leader, engine_of, sampling

log = logging.getLogger(__name__)

Since = tuple[str, int]
"""A version of the weights, and the number of tokens that older ones had sampled before."""


@dataclass
class News:
    """What a row of a job has got since the last news of it."""

    row: int
    """The row's place in the job."""
    ids: list[int]
    logprobs: list[float]
    tops: list[list[Alternative]]
    finish_reason: str | None
    versions: list[Since]
    """Of the weights that sampled the row so far."""


@dataclass(eq=False)
class Job:
    """The rows of one request."""

    rows: list[Row]
    live: bool
    """Whether news are wanted after each token, or only when a row has finished."""
    news: asyncio.Queue[News | Exception] = field(default_factory=asyncio.Queue)
    reported: list[int] = field(default_factory=list)
    """Tokens of each row that were reported; -1 once it has finished."""
    versions: list[list[Since]] = field(default_factory=list)
    """Of the weights that sampled each row so far; empty if they never change."""

    def __post_init__(self) -> None:
        self.reported = [0] * len(self.rows)


class Worker:
    """The sampler's thread. All methods but `_run` and its helpers are the event loop's."""

    def __init__(
        self,
        sampler: NativeSampler,
        longest: int,
        max_cells: int | None,
        prefix_bytes: int,
        leader: Leader | None = None,
    ) -> None:
        """Take the longest sequence that a request may have, in tokens.

        The `leader` tells the other ranks, if there are any, what to repeat."""
        self.sampler, self.policy, self.leader = sampler, sampler.policy, leader
        self.longest, self.max_cells, self.prefix_bytes = longest, max_cells, prefix_bytes
        self.inbox: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self.jobs: list[Job] = []
        self.engine: Engine | None = None
        self.beat = time.monotonic()
        """When the thread last began a step or looked for work."""
        self.busy = False
        self.version: str | None = None
        """Of the weights; None if they never change."""
        self.failure: BaseException | None = None
        """What has ended the thread, if it did not end as it was told to."""
        self.on_failure: Callable[[], None] = lambda: None
        """What is to be done then, in the thread."""
        self.thread = threading.Thread(target=self._run, name="sampler", daemon=True)
        self.ready: Future[None] = Future()

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        """Start the thread, which reports to the loop; `ready` is done once it can sample."""
        self.loop = loop
        self.thread.start()

    def stop(self) -> None:
        """End the thread after its current step; unfinished jobs get an error."""
        self.inbox.put(None)

    def submit(self, job: Job) -> None:
        """Let the rows of a job be sampled."""
        self.inbox.put(lambda: self._add(job))

    def cancel(self, job: Job) -> None:
        """End what is left of a job."""
        self.inbox.put(lambda: self._cancel(job, range(len(job.rows))))

    def cancel_row(self, job: Job, row: int) -> None:
        """End one row of a job."""
        self.inbox.put(lambda: self._cancel(job, [row]))

    def call(self, function: Callable[[], Any]) -> asyncio.Future[Any]:
        """Run a function between two steps; the result is the function's."""
        result: Future[Any] = Future()

        def run() -> None:
            try:
                result.set_result(function())
            except BaseException as error:
                result.set_exception(error)

        self.inbox.put(run)
        return asyncio.wrap_future(result, loop=self.loop)

    def uses(self, adapter: str) -> bool:
        """Whether a row of the adapter is unfinished; to be called in the thread."""
        rows = (row for job in self.jobs for row in job.rows)
        return any(row.adapter == adapter and row.finish_reason is None for row in rows)

    def swap(self, change: Callable[[], None], version: str) -> None:
        """Change the weights between two steps; to be called in the thread.

        Completions that have begun go on with the new weights, which read their tokens so far
        again; their versions tell which tokens are whose."""
        engine = self.engine
        assert engine is not None
        engine.collect()
        begun = [row for row in engine.running.rows if row.finish_reason is None]
        self.version = "unknown"  # should the change fail half-way
        change()
        self.version = version
        self.policy.version += 1  # so that no keys and values of the old weights are used
        engine.clear()
        engine.refresh()
        engine.waiting += [[row] for row in begun]
        for job in self.jobs:
            for row, versions in zip(job.rows, job.versions):
                if row.finish_reason is None:
                    versions.append((version, len(row.response_ids)))

    def _run(self) -> None:
        try:
            with sampling(self.policy):
                self.engine = engine = engine_of(
                    self.sampler, self.longest, self.max_cells, self.prefix_bytes
                )
                self.ready.set_result(None)
                while self._read_inbox():
                    self._step(engine)
        except BaseException as error:
            if self.leader is None:  # else the ranks say together which is lost
                log.exception("the sampler's thread has ended")
            if not self.ready.done():
                self.ready.set_exception(error)
            self._fail(Refusal("the sampler has ended", 503))
            self.failure = error
            self.on_failure()
        self._fail(Refusal("the server is shutting down", 503))
        if self.leader is not None:
            with suppress(RuntimeError):  # the other ranks are gone
                self.leader.end()

    def _read_inbox(self) -> bool:
        """Do what was asked, waiting for it if there are no jobs; return False at the end."""
        while True:
            self.beat, self.busy = time.monotonic(), bool(self.jobs)
            try:
                beat = None if self.leader is None else BEAT_EVERY
                action = self.inbox.get(block=not self.jobs, timeout=beat)
            except queue.Empty:
                if self.jobs:
                    return True
                assert self.leader is not None
                self.leader.send()
                continue
            if action is None:
                return False
            action()

    def _step(self, engine: Engine) -> None:
        if self.leader is not None:
            self.leader.step(engine)
        try:
            engine.step()
            engine.collect()
        except Exception as error:  # of torch: the requests fail, the server does not
            if self.leader is not None:  # unless other ranks may be in another state now
                raise
            log.exception("a step has failed")
            engine.clear()
            engine.waiting.clear()
            self._fail(error)
        self._report()
        if not self.jobs:
            engine.clear()
            if self.leader is not None:
                self.leader.clear()

    def _add(self, job: Job) -> None:
        assert self.engine is not None
        apart = [row for row in job.rows if not self._shares_cache(row)]
        job.versions = [[] if self.version is None else [(self.version, 0)] for _ in job.rows]
        self.jobs.append(job)
        try:
            shared = [row for row in job.rows if row not in apart]
            if self.leader is not None:
                self.leader.add(shared)
            self.engine.add(shared)
            for row in apart:  # each to its end at once
                self._sample_apart(row)
        except Exception as error:
            log.exception("a request has failed")
            self._drop(job, error)

    def _shares_cache(self, row: Row) -> bool:
        return self.sampler.shares_cache(len(row.prompt_ids) + row.params.max_new_tokens)

    def _sample_apart(self, row: Row) -> None:
        if row.scored or row.top or not row.params.max_new_tokens:
            raise ValueError(
                "log-probs of the prompt and of other tokens are not available for this model, "
                "which samples one sequence at a time"
            )
        (rollout,) = self.sampler.generate(
            [row.prompt_ids], row.params, [row.seed], adapters=[row.adapter]
        )
        row.response_ids, row.logprobs = rollout.response_ids, rollout.logprobs
        row.finish_reason = rollout.finish_reason

    def _cancel(self, job: Job, places: Iterable[int]) -> None:
        assert self.engine is not None
        for place in places:
            if job.rows[place].finish_reason is None:
                if self.leader is not None:
                    self.leader.cancel(job.rows[place])
                self.engine.cancel(job.rows[place])

    def _report(self) -> None:
        """Send the news of all jobs to the event loop, and forget those that have ended."""
        batch: list[tuple[Job, News | Exception]] = []
        ended = False
        for job in self.jobs:
            for place, row in enumerate(job.rows):
                start, end = job.reported[place], len(row.response_ids)
                if start < 0 or not (row.finish_reason or (job.live and end > start)):
                    continue
                job.reported[place] = -1 if row.finish_reason else end
                ended = ended or row.finish_reason is not None
                new = slice(start, end)
                values = row.response_ids[new], row.logprobs[new], row.tops[new]
                versions = list(job.versions[place])
                batch.append((job, News(place, *values, row.finish_reason, versions)))
        if ended:
            self.jobs = [job for job in self.jobs if max(job.reported) >= 0]
        self._send(batch)

    def _drop(self, job: Job, error: Exception) -> None:
        self._cancel(job, range(len(job.rows)))
        self.jobs = [other for other in self.jobs if other is not job]
        self._send([(job, error)])

    def _fail(self, error: Exception) -> None:
        for job in list(self.jobs):
            self._drop(job, error)

    def _send(self, batch: list[tuple[Job, News | Exception]]) -> None:
        if batch:
            with suppress(RuntimeError):  # the loop is closed
                self.loop.call_soon_threadsafe(_deliver, batch)


def _deliver(batch: list[tuple[Job, News | Exception]]) -> None:
    for job, news in batch:
        job.news.put_nowait(news)
