"""What a server consists of, apart from HTTP: the model, its names, its bounds, its counters."""

from __future__ import annotations

import asyncio
import functools
import itertools
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from typing import Any

from posttrain.data.render import Renderer
from posttrain.model.folder import resolve_model_path
from posttrain.model.many_adapters import check_adapter, load_adapters
from posttrain.model.vocabulary import num_rows
from posttrain.rollout.native.row import Row
from posttrain.serving.errors import Gone, Refusal
from posttrain.serving.monitor import Meters
from posttrain.serving.text import decoder
from posttrain.serving.worker import Job, News, Worker


@dataclass(frozen=True)
class Bounds:
    """What a server takes on."""

    max_length: int
    """Tokens of a prompt with its completion."""
    max_waiting: int = 256
    """Completions that may wait for a place in the batch; more are refused with 429."""
    time_limit: float = 600.0
    """Seconds for a request, waiting included."""
    max_body: int = 8 << 20
    """Bytes of a request."""


@dataclass
class Adapter:
    """An adapter that requests choose by its name."""

    folder: str
    number: int
    """How many were loaded before it; its name in the sampler, since public names come back."""
    renderer: Renderer
    """Of its training: template, system prompt and stop tokens can be others than the base's."""

    @property
    def key(self) -> str:
        """Return its name in the sampler."""
        return f"adapter-{self.number}"


class Service:
    """A model that answers requests."""

    def __init__(
        self,
        name: str,
        root: str,
        renderer: Renderer,
        worker: Worker,
        bounds: Bounds,
        renderer_of: Callable[[str], Renderer],
    ) -> None:
        """Start without adapters; `renderer_of` returns that of an adapter's folder."""
        self.name, self.root, self.renderer, self.load_renderer = name, root, renderer, renderer_of
        self.worker, self.bounds, self.meters = worker, bounds, Meters()
        self.created = int(time.time())
        self.vocab_size = num_rows(worker.policy.causal_lm())
        self.adapters: dict[str, Adapter] = {}
        self.numbers = itertools.count()
        self.in_flight = 0
        """Completions that were taken on and have not been answered."""
        # a tokenizer is not to be used by two threads at once, and takes long for long texts
        self.text = ThreadPoolExecutor(1, thread_name_prefix="text")
        self.loading = asyncio.Lock()
        widest = max(map(len, renderer.tokenizer.get_vocab()), default=1)
        self.longest_text = bounds.max_length * widest
        """Characters beyond which no text fits, so that millions of them are not tokenised."""
        self.decoders = {skip: decoder(renderer, skip) for skip in (False, True)}
        """By whether special tokens are left out."""
        decode = self.decoders[False]
        self.piece = functools.lru_cache(maxsize=1 << 16)(lambda token: decode([token]))

    async def in_text(self, function: Any, *arguments: Any) -> Any:
        """Run what renders and tokenises, beside the event loop."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self.text, function, *arguments)

    def adapter_of(self, model: str | None) -> Adapter | None:
        """Return the adapter that a request names, None for the model itself."""
        if model is None or model == self.name:
            return None
        if model not in self.adapters:
            known = ", ".join([self.name, *self.adapters])
            raise Refusal(f"The model `{model}` does not exist; served: {known}", 404, "model")
        return self.adapters[model]

    def renderer_of(self, model: str | None) -> Renderer:
        """Return the renderer of the model or adapter that a request names."""
        adapter = self.adapter_of(model)
        return self.renderer if adapter is None else adapter.renderer

    async def load_adapter(self, name: str, folder: str) -> None:
        """Load the LoRA adapter in a folder or run; raise Refusal if it cannot be."""
        async with self.loading:
            try:
                await self.worker.call(lambda: self.load_now(name, folder))
            except (ValueError, OSError) as error:
                raise Refusal(f"{folder} is not loaded: {error}", 400, "lora_path") from None

    def load_now(self, name: str, folder: str) -> None:
        """Load an adapter, in the sampler's thread if that runs; raise ValueError if it cannot."""
        if name == self.name or name in self.adapters:
            raise ValueError(f"The lora adapter '{name}' has already been loaded.")
        folder = resolve_model_path(folder)
        check_adapter(folder)
        adapter = Adapter(folder, next(self.numbers), self.load_renderer(folder))
        policy = self.worker.policy
        try:
            if policy.adapters is None:
                load_adapters(policy, {})
            assert policy.adapters is not None
            policy.adapters.add(adapter.key, adapter.folder)
        finally:  # an adapter that is refused can be the first, too
            policy.eval()
            if self.worker.engine is not None:
                self.worker.engine.refresh()
        self.adapters[name] = adapter

    async def unload_adapter(self, name: str) -> None:
        """Take no more requests for an adapter, and unload it once the last one is answered."""
        async with self.loading:
            adapter = self.adapters.pop(name, None)
            if adapter is None:
                raise Refusal(f"The lora adapter '{name}' cannot be found.", 404)
            while await self.worker.call(lambda: not self._unload(adapter)):
                await asyncio.sleep(0.05)

    def _unload(self, adapter: Adapter) -> bool:
        """Return whether it is unloaded; it is not while rows use it."""
        policy, worker = self.worker.policy, self.worker
        if worker.uses(adapter.key):
            return False
        assert policy.adapters is not None
        assert worker.engine is not None
        policy.adapters.remove(adapter.key)
        if worker.engine.prefixes is not None:
            worker.engine.prefixes.forget(adapter.key)
        worker.engine.refresh()
        return True

    def check_number(self, completions: int) -> int:
        """Return how many completions may be in flight; raise Refusal for a request with more."""
        capacity = self.worker.sampler.max_num_seqs + self.bounds.max_waiting
        if completions > capacity:
            raise Refusal(f"the request has {completions} completions, the server takes {capacity}")
        return capacity

    def check_ids(self, ids: list[int]) -> None:
        """Raise Refusal if the model has no token of one of the ids."""
        if ids and max(ids) >= self.vocab_size:
            raise Refusal(
                f"prompt: the token id {max(ids)} is not below the model's {self.vocab_size}",
                param="prompt",
            )

    def check_text(self, text: str, param: str) -> None:
        """Raise Refusal for a text that is too long to be tokenised."""
        if len(text) > self.longest_text:
            raise Refusal(
                f"{param}: a text has {len(text)} characters, more than the model's "
                f"{self.bounds.max_length} tokens can hold: shorten it",
                param=param,
            )

    @asynccontextmanager
    async def sampling(
        self, rows: list[Row], live: bool
    ) -> AsyncIterator[tuple[Job, AsyncIterator[News]]]:
        """Sample rows: the news of a job within a with block, whose end frees its rows."""
        capacity = self.check_number(len(rows))
        if self.in_flight + len(rows) > capacity:
            self.meters.refused.inc()
            raise Refusal(
                f"the server is busy with {self.in_flight} completions of at most {capacity}: "
                "try again later",
                429,
                headers={"Retry-After": "1"},
            )
        if not self.worker.thread.is_alive():
            raise Refusal("the sampler has ended: restart the server", 503)
        job = Job(rows, live)
        loop = asyncio.get_running_loop()
        limit = self.bounds.time_limit
        late = Refusal(f"the request took longer than the server's time limit of {limit:g} s", 504)
        timer = loop.call_later(limit, job.news.put_nowait, late)
        self.in_flight += len(rows)
        self.worker.submit(job)
        try:
            async with aclosing(self._news(job)) as news:
                yield job, news
        finally:
            timer.cancel()
            self.in_flight -= len(rows)
            self.worker.cancel(job)

    async def _news(self, job: Job) -> AsyncGenerator[News]:
        left = len(job.rows)
        started: float | None = time.monotonic()
        while left:
            item = await job.news.get()
            if isinstance(item, Refusal | Gone):
                raise item
            if isinstance(item, Exception):
                raise Refusal(f"the completion failed: {item}", 500)
            left -= item.finish_reason is not None
            if started is not None and job.live:
                self.meters.first_token.observe(time.monotonic() - started)
                started = None
            self.meters.sampled.inc(len(item.ids))
            yield item


@dataclass
class Prompt:
    """A prompt of a request: its ids, and its text if it is to be repeated."""

    ids: list[int]
    text: str = ""
