"""Scores from a server.

    POST {"prompts": [...], "completions": [...], "columns": {name: [...]}}
    200  {"scores": [number or null, ...]}, one for each completion

What may pass by itself is tried again, after `backoff * 2**n` seconds or what the server's
Retry-After asks for: timeouts, broken connections, 429 and 5xx. Everything else fails at once,
redirects too, so that the key goes to no other host. No proxy is used. The judge (judge.py) asks
its server by the same functions.
"""

import asyncio
import contextlib
import email.utils
import http.client
import json
import logging
import os
import re
import socket
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, Literal, Protocol, TypeVar
from urllib.parse import SplitResult, urlsplit

from pydantic import AfterValidator, BaseModel, Field

from posttrain.rewards.call import RewardFailure

log = logging.getLogger(__name__)

LONGEST_REPLY = 1 << 26  # bytes
LONGEST_MESSAGE = 300  # characters of the server's own words in an error

Result = TypeVar("Result")


def _plain_url(url: str) -> str:
    parts = urlsplit(url)
    if parts.username is not None or parts.password is not None:
        raise ValueError(
            "url holds a user or password: put it into an environment variable, and that "
            "variable's name into api_key_env"
        )
    well_formed = re.fullmatch(r"https?://[!-~]+", url) and parts.hostname
    if not well_formed or _bad_port(parts):
        raise ValueError("url must be of the form http://host:port/path or https://...")
    return url


def _bad_port(parts: SplitResult) -> bool:
    try:
        return parts.port == 0
    except ValueError:
        return True


def _name_not_key(name: str | None) -> str | None:
    # the value is not repeated: it may be a key that was put in the wrong place
    if name is not None and not re.fullmatch(r"[A-Z_][A-Z0-9_]*", name):
        raise ValueError(
            "api_key_env is the name of an environment variable (A to Z, 0 to 9, _), "
            "not the key itself"
        )
    return name


Url = Annotated[str, AfterValidator(_plain_url)]
KeyName = Annotated[str | None, AfterValidator(_name_not_key)]


class Http(BaseModel, extra="forbid", allow_inf_nan=False):
    """Settings of the http reward."""

    type: Literal["http"] = "http"
    url: Url
    timeout: float = Field(30.0, gt=0)
    """Seconds for one try, from the connection to the last byte."""
    retries: int = Field(3, ge=0)
    """Tries after the first."""
    backoff: float = Field(1.0, ge=0)
    """Seconds before the second try, doubled before each further one."""
    max_wait: float = Field(60.0, ge=0)
    """Longest wait before a try, in seconds; a Retry-After beyond it fails."""
    api_key_env: KeyName = None
    """The NAME of an environment variable; its value is sent as a bearer token."""
    batch_size: int = Field(64, ge=1)
    """Completions in one request."""
    max_concurrency: int = Field(4, ge=1)
    """Requests at the same time."""


class Patience(Protocol):
    """How long a server is waited for, in seconds, and how often it is asked again."""

    timeout: float
    retries: int
    backoff: float
    max_wait: float


@dataclass(repr=False)
class Server:
    """Where to and how; without a repr, since it knows the key."""

    url: SplitResult
    key: str | None
    config: Patience
    stop: threading.Event

    @property
    def name(self) -> str:
        return f"the reward server {self.url.scheme}://{self.url.netloc}{self.url.path}"

    def redacted(self, text: str, part: slice = slice(LONGEST_MESSAGE)) -> str:
        """`text` on one line without the key, which a server may repeat; cut afterwards."""
        for secret in (self.key, json.dumps(self.key)[1:-1] if self.key else None):
            text = text.replace(secret, "***") if secret else text
        return " ".join(text.split())[part]


@dataclass
class Reply:
    status: int
    retry_after: str | None
    location: str | None
    text: str


def read_key(name: str | None) -> str | None:
    """The key in the environment variable `name`; ValueError where no header can carry it."""
    if name is None:
        return None
    key = os.environ.get(name, "").strip()
    if not key:
        raise ValueError(f"reward.api_key_env: the environment variable {name} is not set")
    if not re.fullmatch(r"[!-~]+", key):
        raise ValueError(
            f"reward.api_key_env: the environment variable {name} holds spaces or characters that "
            "are not ASCII, which no HTTP header can carry"
        )
    return key


def build(config: Http) -> Callable[..., Any]:
    """The reward function for `config`: async, in batches of which a few are on the way at once."""
    key = read_key(config.api_key_env)
    url = urlsplit(config.url)
    pool = ThreadPoolExecutor(config.max_concurrency)  # of all calls that wait together

    async def reward(
        prompts: Sequence[Any], completions: Sequence[str], completion_ids: Any, **columns: Any
    ) -> list[float | None]:
        server = Server(url, key, config, threading.Event())
        starts = range(0, len(completions), config.batch_size)
        bodies = [
            _body(prompts, completions, columns, slice(i, i + config.batch_size)) for i in starts
        ]
        requests = [
            partial(_score, server, body, i, len(completions[i:][: config.batch_size]))
            for i, body in zip(starts, bodies)
        ]
        parts = await answered(server, pool, requests)
        return [score for part in parts for score in part]

    return reward


async def answered(
    server: Server, pool: ThreadPoolExecutor, requests: Sequence[Callable[[], Result]]
) -> list[Result]:
    """The result of each request, in their order; the first exception once all have ended."""
    loop = asyncio.get_running_loop()
    waiting = [loop.run_in_executor(pool, request) for request in requests]
    try:
        return await asyncio.gather(*waiting)
    finally:
        server.stop.set()  # after a failure the others neither wait nor try again
        await asyncio.gather(*waiting, return_exceptions=True)


def _body(
    prompts: Sequence[Any], completions: Sequence[str], columns: dict[str, Any], rows: slice
) -> bytes:
    content = {
        "prompts": prompts[rows],
        "completions": completions[rows],
        "columns": {name: values[rows] for name, values in columns.items()},
    }
    try:
        return json.dumps(content, allow_nan=False).encode()
    except (TypeError, ValueError) as error:
        raise RewardFailure(
            f"rows {rows.start + 1} to {rows.start + len(completions[rows])} can not be sent as "
            f"JSON ({error}): leave the column out or make it text or numbers"
        ) from None


def _score(server: Server, body: bytes, start: int, count: int) -> list[float | None]:
    """The scores of the rows from `start`, or RewardFailure that names them."""
    rows = f"rows {start + 1} to {start + count}"
    reply = post(server, body, rows)
    try:
        scores = json.loads(reply.text)["scores"]
        if not isinstance(scores, list):
            raise TypeError
    except (ValueError, TypeError, KeyError):
        raise RewardFailure(
            f'{server.name}, {rows}: the reply is not {{"scores": [...]}}: '
            f"{server.redacted(reply.text)}"
        ) from None
    if len(scores) != count:
        raise RewardFailure(
            f"{server.name}, {rows}: {len(scores)} scores for {count} completions: it must return "
            "one number or null for each, in their order"
        )
    for i, score in enumerate(scores):
        number = type(score) in (int, float) and -1e308 <= score <= 1e308  # not nan
        if score is not None and not number:
            raise RewardFailure(
                f"{server.name}, row {start + i + 1}: the score "
                f"{server.redacted(json.dumps(score))} is neither a finite number nor null"
            )
    return scores


def post(server: Server, body: bytes, rows: str) -> Reply:
    """The reply with status 200, after as many tries as it takes; RewardFailure names `rows`."""
    config = server.config
    problem = ""
    for attempt in range(config.retries + 1):
        if server.stop.is_set():
            break
        wait = min(config.backoff * 2**attempt, config.max_wait)
        try:
            reply = _try(server, body)
        except (OSError, http.client.HTTPException) as error:
            problem = server.redacted(f"{type(error).__name__}: {error}")
        else:
            if reply.status == 200:
                return reply
            problem = f"status {reply.status}: {server.redacted(reply.text) or 'no message'}"
            if 300 <= reply.status < 400:
                where = server.redacted(reply.location or "nowhere")
                problem = f"status {reply.status}, a redirect to {where}: give that url itself"
            if reply.status != 429 and reply.status < 500:
                raise RewardFailure(f"{server.name}, {rows}: {problem}")
            asked = _seconds(reply.retry_after)
            if asked > config.max_wait:
                raise RewardFailure(
                    f"{server.name}, {rows}: {problem}; it asks to wait {asked:g} s, more than "
                    f"max_wait: {config.max_wait:g}"
                )
            wait = max(wait, asked)
        if attempt == config.retries:
            break
        log.warning("%s: %s; trying again in %g s", server.name, problem, wait)
        server.stop.wait(wait)
    raise RewardFailure(
        f"{server.name}, {rows}: {problem}; tried {attempt + 1} times (raise reward.timeout or "
        "reward.retries, or look at the server)"
    )


def _seconds(retry_after: str | None) -> float:
    """Retry-After in seconds from now: a number or a date; 0 where there is none."""
    if retry_after is None:
        return 0.0
    if retry_after.strip().isdigit():
        return float(retry_after)
    try:
        then = email.utils.parsedate_to_datetime(retry_after).timestamp()
    except ValueError:
        return 0.0
    return max(0.0, then - time.time())


def _try(server: Server, body: bytes) -> Reply:
    """One try. TimeoutError after `timeout` seconds in all, however slowly the bytes drip in."""
    timeout, url = server.config.timeout, server.url
    assert url.hostname is not None
    secure = url.scheme == "https"
    kind = http.client.HTTPSConnection if secure else http.client.HTTPConnection
    headers = {"Content-Type": "application/json", "Accept": "application/json"}
    if server.key is not None:
        headers["Authorization"] = f"Bearer {server.key}"
    deadline = time.monotonic() + timeout
    expired = threading.Event()
    connection = kind(url.hostname, url.port, timeout=timeout)

    def expire() -> None:
        expired.set()
        with contextlib.suppress(OSError):  # closed in the meantime
            # the plain socket's: TLS would wait for the lock that the reading thread holds
            socket.socket.shutdown(stream, socket.SHUT_RDWR)

    watch = None
    try:
        connection.connect()
        stream = connection.sock
        watch = threading.Timer(max(0.0, deadline - time.monotonic()), expire)
        watch.daemon = True
        watch.start()
        path = (url.path or "/") + (f"?{url.query}" if url.query else "")
        connection.request("POST", path, body, headers)
        response = connection.getresponse()
        data = response.read(LONGEST_REPLY)
        if response.length or response.read(1):  # bytes that are missing, or too many
            raise http.client.IncompleteRead(data, response.length)
        if expired.is_set():  # the end of the stream was of our own making
            raise TimeoutError
    except (OSError, http.client.HTTPException) as error:
        if expired.is_set() or isinstance(error, TimeoutError):
            raise TimeoutError(f"no full reply within {timeout:g} s") from None
        raise
    finally:
        if watch is not None:
            watch.cancel()
        connection.close()
    text = data.decode("utf-8", errors="replace")
    return Reply(
        response.status, response.getheader("Retry-After"), response.getheader("Location"), text
    )
