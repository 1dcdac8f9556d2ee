"""JSON requests to an inference server, with errors that say what to do."""

from __future__ import annotations

import json
import queue
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, TypeVar
from urllib.parse import urlsplit

from posttrain.common.http import Endpoint, HttpError, Patience, request
from posttrain.rollout.sampler import EngineError

FIRST_PAUSE = 0.5  # seconds before the second try; doubled for each further one
LONGEST_PAUSE = 30.0

Item = TypeVar("Item")
Result = TypeVar("Result")


class Server:
    """One inference server. Safe to use from many threads."""

    def __init__(
        self,
        url: str,
        timeout: float,
        retries: int,
        start_with: str,
        api_key: str | None = None,
    ) -> None:
        """Take `url` as http://host:port, with or without a path, but without /v1.

        `start_with` is the command that starts such a server, for messages.
        """
        self.url, self.start_with = url, start_with
        # a Retry-After is honoured up to the time that an answer may take
        patience = Patience(timeout, retries, FIRST_PAUSE, max(LONGEST_PAUSE, timeout))
        self.endpoint = Endpoint(urlsplit(url), patience, api_key)

    def hurried(self, timeout: float) -> Server:
        """Return the same server with a single attempt of at most `timeout` seconds."""
        patience, key = self.endpoint.patience, self.endpoint.key
        return Server(self.url, min(patience.timeout, timeout), 0, self.start_with, key)

    def get(self, path: str) -> Any:
        """Return the answer's JSON, or its text if it is not JSON. Raises EngineError."""
        return self._ask("GET", path, None)

    def post(self, path: str, payload: dict[str, Any]) -> Any:
        """Return the answer's JSON, or its text if it is not JSON.

        Raises EngineError if the server refuses or every attempt failed. The request must be safe
        to repeat.
        """
        return self._ask("POST", path, json.dumps(payload).encode())

    def close(self) -> None:
        """Close the open connections; servers drop idle ones after seconds anyway."""
        self.endpoint.close()

    def _ask(self, method: str, path: str, body: bytes | None) -> Any:
        try:
            reply = request(self.endpoint, method, path, body, f"server {self.url}")
        except HttpError as error:
            raise self._advice(error, f"{method} {path}") from None
        text = self.endpoint.without_key(reply.text)
        try:
            return json.loads(text)
        except ValueError:
            return text

    def _advice(self, error: HttpError, action: str) -> EngineError:
        reply = error.reply
        if error.kind == "refused" and reply is not None:
            text = self.endpoint.without_key(reply.text)
            fix = text[:500].strip() or "no text"
            if reply.status in (401, 403):
                fix = "set rollout.api_key_env to the environment variable that holds its API key"
            elif 300 <= reply.status < 400:
                fix = error.problem
            refused = f"server {self.url} refused {action} ({reply.status})"
            return EngineError(f"{refused}: {fix}", refusal=text)
        timeout = self.endpoint.patience.timeout
        reason = getattr(error.cause, "strerror", None) or self.endpoint.redacted(str(error.cause))
        problem = {
            "timeout": f"did not answer within {timeout:g} s: is it overloaded or stuck? lower "
            "rollout.max_concurrent_requests, raise rollout.timeout, or restart it with: "
            f"{self.start_with}",
            "dropped": "dropped the request without an answer "
            f"({type(error.cause).__name__}): check its log; restart it with: {self.start_with}",
            "unreachable": f"cannot be reached ({reason}): is it running? start it with: "
            f"{self.start_with}",
        }.get(error.kind, "")
        if reply is not None:
            text = self.endpoint.without_key(reply.text)
            problem = f"answered {reply.status}: {text[:300].strip() or 'no text'}"
        tries = f"tried {error.tries} times" if error.tries != 1 else "tried once"
        return EngineError(f"server {self.url} {problem} ({tries})")


def concurrently(
    work: Callable[[Item], Result], items: Sequence[Item], num_threads: int
) -> list[Result]:
    """Return work(item) for every item, in their order. The first exception is raised at once.

    The threads are daemons: one that still waits for an answer delays neither the error nor the
    end of the program.
    """
    waiting: queue.SimpleQueue[tuple[int, Item]] = queue.SimpleQueue()
    done: queue.SimpleQueue[tuple[int, Any, BaseException | None]] = queue.SimpleQueue()
    for place, item in enumerate(items):
        waiting.put((place, item))

    def run() -> None:
        while True:
            try:
                place, item = waiting.get_nowait()
            except queue.Empty:
                return
            try:
                done.put((place, work(item), None))
            except BaseException as error:
                done.put((place, None, error))

    for _ in range(min(num_threads, len(items))):
        threading.Thread(target=run, daemon=True).start()
    results: dict[int, Any] = {}
    try:
        while len(results) < len(items):
            place, result, error = done.get()
            if error is not None:
                raise error
            results[place] = result
    finally:
        with suppress(queue.Empty):  # after an error no thread starts another item
            while True:
                waiting.get_nowait()
    return [results[place] for place in range(len(items))]
