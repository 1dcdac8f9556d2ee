"""JSON over HTTP to an inference server: connections kept open, retries, errors that say the cause.

Standard library only. Nothing here knows what a completion is.
"""

from __future__ import annotations

import http.client
import json
import queue
import ssl
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, TypeVar
from urllib.parse import urlsplit

FIRST_PAUSE = 0.5  # seconds before the second attempt; doubled for each further one
LONGEST_PAUSE = 30.0
CONNECT_TIMEOUT = 10.0  # seconds; a server that is there accepts at once, however busy

Item = TypeVar("Item")
Result = TypeVar("Result")


class EngineError(ValueError):
    """The engine that generates failed: the weights and the last finished step are unharmed."""

    def __init__(self, message: str, refusal: str | None = None) -> None:
        """`refusal`: what the server wrote where it understood and said no (4xx)."""
        super().__init__(message)
        self.refusal = refusal


@dataclass
class Server:
    """One server. Safe to use from many threads."""

    url: str
    """http://host:port, perhaps with a path, without /v1."""
    timeout: float
    """Seconds that one answer may take."""
    retries: int
    """Further attempts after a connection error, a timeout, 429 or 5xx."""
    start_with: str
    """The command that starts such a server, for messages."""
    api_key: str | None = field(default=None, repr=False)
    idle: list[http.client.HTTPConnection] = field(default_factory=list, repr=False)

    def get(self, path: str) -> Any:
        return self._ask("GET", path, None)

    def post(self, path: str, payload: dict[str, Any]) -> Any:
        """The answer's JSON, or its text where it is none.

        Raises EngineError when the server refuses or every attempt failed. What is posted must
        be safe to post twice.
        """
        return self._ask("POST", path, payload)

    def close(self) -> None:
        """Give up the open connections; servers drop idle ones after seconds anyway."""
        with suppress(IndexError):
            while True:
                self.idle.pop().close()

    def _ask(self, method: str, path: str, payload: dict[str, Any] | None) -> Any:
        for attempt in range(self.retries + 1):
            if attempt:
                time.sleep(min(FIRST_PAUSE * 2 ** (attempt - 1), LONGEST_PAUSE))
            try:
                status, text = self._exchange(method, path, payload)
            except (OSError, http.client.HTTPException) as error:
                problem = self._unreachable(error)
                self.close()  # a server that was restarted has dropped the idle ones too
                continue
            if status == 429 or status >= 500:
                problem = f"answered {status}: {text[:300].strip() or 'no text'}"
                continue
            if status >= 400:
                raise self._refusal(method, path, status, text)
            try:
                return json.loads(text)
            except ValueError:
                return text
        tries = f"tried {self.retries + 1} times" if self.retries else "tried once"
        raise EngineError(f"server {self.url} {problem} ({tries})")

    def _exchange(self, method: str, path: str, payload: Any) -> tuple[int, str]:
        headers = {"Content-Type": "application/json"}
        if self.api_key is not None:
            headers["Authorization"] = f"Bearer {self.api_key}"
        try:
            connection = self.idle.pop()
        except IndexError:
            connection = self._connect()
        try:
            body = None if payload is None else json.dumps(payload)
            connection.request(method, urlsplit(self.url).path + path, body, headers)
            response = connection.getresponse()
            text = response.read().decode("utf-8", "replace")
        except BaseException:
            connection.close()
            raise
        self.idle.append(connection)
        if self.api_key:  # a server may quote the request in its answer
            text = text.replace(self.api_key, "***")
        return response.status, text

    def _connect(self) -> http.client.HTTPConnection:
        parts = urlsplit(self.url)
        assert parts.hostname is not None
        timeout = min(CONNECT_TIMEOUT, self.timeout)
        connection = http.client.HTTPConnection(parts.hostname, parts.port, timeout=timeout)
        if parts.scheme == "https":
            context = ssl.create_default_context()
            connection = http.client.HTTPSConnection(
                parts.hostname, parts.port, timeout=timeout, context=context
            )
        try:
            connection.connect()
        except TimeoutError:
            raise ConnectionError(f"no connection within {timeout:g} s") from None
        connection.timeout = self.timeout
        connection.sock.settimeout(self.timeout)
        return connection

    def _unreachable(self, error: Exception) -> str:
        if isinstance(error, TimeoutError):
            return (
                f"did not answer within {self.timeout:g} s: is it overloaded or stuck? lower "
                "rollout.max_concurrent_requests, raise rollout.timeout, or restart it with: "
                f"{self.start_with}"
            )
        if isinstance(error, (http.client.HTTPException, ConnectionResetError, BrokenPipeError)):
            return (
                f"dropped the request without an answer ({type(error).__name__}): look at its "
                f"log; restart it with: {self.start_with}"
            )
        reason = getattr(error, "strerror", None) or str(error)
        return f"can not be reached ({reason}): is it running? start it with: {self.start_with}"

    def _refusal(self, method: str, path: str, status: int, text: str) -> EngineError:
        what = f"server {self.url} refused {method} {path} ({status})"
        fix = text[:500].strip() or "no text"
        if status in (401, 403):
            fix = "set rollout.api_key_env to the environment variable that holds its API key"
        return EngineError(f"{what}: {fix}", refusal=text)


def concurrently(
    work: Callable[[Item], Result], items: Sequence[Item], num_threads: int
) -> list[Result]:
    """work(item) of every item, in their order. The first exception is raised at once.

    The threads are daemons: one that still waits for an answer keeps neither the error nor the
    end of the program waiting.
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
        with suppress(queue.Empty):  # nothing new is started after an error
            while True:
                waiting.get_nowait()
    return [results[place] for place in range(len(items))]
