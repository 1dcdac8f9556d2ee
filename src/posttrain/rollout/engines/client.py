"""JSON requests to an inference server, with errors that say what to do."""

from __future__ import annotations

import json
import queue
import threading
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TypeVar
from urllib.parse import urlsplit

from posttrain.common.http import Endpoint, HttpError, Patience, request
from posttrain.rollout.sampler import EngineError

FIRST_PAUSE = 0.5  # seconds before the second try; doubled for each further one
LONGEST_PAUSE = 30.0

Item = TypeVar("Item")
Result = TypeVar("Result")


class ServerError(EngineError):
    """A server gave no usable answer; whether another one would can be told from `kind`."""

    def __init__(self, message: str, kind: str, short: str, refusal: str | None = None) -> None:
        """Take the kind of common.http.HttpError, and what happened in a few words."""
        super().__init__(message, refusal)
        self.kind, self.short = kind, short


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

    def hurried(self, timeout: float | None = None) -> Server:
        """Return the same server with a single attempt, of at most `timeout` seconds if given."""
        patience, key = self.endpoint.patience, self.endpoint.key
        seconds = patience.timeout if timeout is None else min(patience.timeout, timeout)
        return Server(self.url, seconds, 0, self.start_with, key)

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

    def _advice(self, error: HttpError, action: str) -> ServerError:
        reply = error.reply
        if error.kind == "refused" and reply is not None:
            text = self.endpoint.without_key(reply.text)
            fix = message_in(text)[:500].strip() or "no text"
            if reply.status == 401 or (reply.status == 403 and not text.strip()):
                fix = "set rollout.api_key_env to the environment variable that holds its API key"
            elif 300 <= reply.status < 400:
                fix = error.problem
            short = f"refused {action} ({reply.status})"
            return ServerError(f"server {self.url} {short}: {fix}", error.kind, short, text)
        timeout = self.endpoint.patience.timeout
        reason = getattr(error.cause, "strerror", None) or self.endpoint.redacted(str(error.cause))
        short, advice = {
            "timeout": (
                f"did not answer within {timeout:g} s",
                "is it overloaded or stuck? lower rollout.max_concurrent_requests, raise "
                f"rollout.timeout, or restart it with: {self.start_with}",
            ),
            "dropped": (
                f"dropped the request without an answer ({type(error.cause).__name__})",
                f"check its log; restart it with: {self.start_with}",
            ),
            "unreachable": (
                f"cannot be reached ({reason})",
                f"is it running? start it with: {self.start_with}",
            ),
        }.get(error.kind, ("", ""))
        if reply is not None:
            text = self.endpoint.without_key(reply.text)
            short, advice = f"answered {reply.status}", text[:300].strip() or "no text"
        tries = f"tried {error.tries} times" if error.tries != 1 else "tried once"
        message = f"server {self.url} {short}: {advice} ({tries})"
        return ServerError(message, error.kind, short)


def message_in(text: str) -> str:
    """Return the message in an error of OpenAI's API, or the text if it is none."""
    try:
        return str(json.loads(text)["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return text


class Line:
    """Threads that do the work of several callers, in the order in which it came.

    They are daemons: one that still waits for an answer delays neither an error nor the end of the
    program.
    """

    def __init__(self, num_threads: int) -> None:
        self.num_threads = num_threads
        self.lock = threading.Lock()
        self.waiting: deque[Callable[[], None]] = deque()
        self.running = 0  # threads

    def run(self, work: Callable[[Item], Result], items: Sequence[Item]) -> list[Result]:
        """Return work(item) for every item, in their order.

        The first exception is raised at once, and no item that still waits is begun."""
        done: queue.SimpleQueue[tuple[int, Any, BaseException | None]] = queue.SimpleQueue()
        over = threading.Event()

        def do(place: int, item: Item) -> None:
            if over.is_set():
                return
            try:
                done.put((place, work(item), None))
            except BaseException as error:
                done.put((place, None, error))

        with self.lock:
            self.waiting += [partial(do, place, item) for place, item in enumerate(items)]
            while self.running < min(self.num_threads, len(self.waiting)):
                self.running += 1
                threading.Thread(target=self._work, daemon=True).start()
        results: dict[int, Any] = {}
        while len(results) < len(items):
            place, result, error = done.get()
            if error is not None:
                over.set()
                raise error
            results[place] = result
        return [results[place] for place in range(len(items))]

    def _work(self) -> None:
        while True:
            with self.lock:
                if not self.waiting:
                    self.running -= 1
                    return
                task = self.waiting.popleft()
            task()


def concurrently(
    work: Callable[[Item], Result], items: Sequence[Item], num_threads: int
) -> list[Result]:
    """Return work(item) for every item, in their order. The first exception is raised at once."""
    return Line(num_threads).run(work, items)
