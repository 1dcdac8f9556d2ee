"""Scores from a server.

    POST {"prompts": [...], "completions": [...], "columns": {name: [...]}}
    200  {"scores": [number or null, ...]}, one for each completion

A request that may succeed later is tried again (`common/http.py`), after `backoff * 2**n` seconds
or the server's Retry-After if that is longer. The judge (judge.py) uses the same functions.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Annotated, Any, Literal, Protocol, TypeVar
from urllib.parse import SplitResult, urlsplit

from pydantic import AfterValidator, Field

from posttrain.common.http import Endpoint, HttpError, Patience, Reply, bearer_key, request
from posttrain.config.base import Free
from posttrain.rewards.base import Reward, RewardConfig, RewardFailure

Result = TypeVar("Result")


def _plain_url(url: str) -> str:
    parts = urlsplit(url)
    if parts.username is not None or parts.password is not None:
        raise ValueError(
            "url contains a user name or password: put the key in an environment variable and the "
            "name of that variable in api_key_env"
        )
    well_formed = re.fullmatch(r"https?://[!-~]+", url) and parts.hostname
    if not well_formed or _bad_port(parts) or _bad_host(parts):
        raise ValueError("url must be of the form http://host:port/path or https://...")
    return url


def _bad_port(parts: SplitResult) -> bool:
    try:
        return parts.port == 0
    except ValueError:
        return True


def _bad_host(parts: SplitResult) -> bool:
    try:
        (parts.hostname or "").encode("idna")
    except UnicodeError:  # a label that is empty, or longer than 63 characters
        return True
    return False


def _name_not_key(name: str | None) -> str | None:
    # the message does not repeat the value: it may be a key in the wrong place
    if name is not None and not re.fullmatch(r"[A-Z_][A-Z0-9_]*", name):
        raise ValueError(
            "api_key_env must be the name of an environment variable (A to Z, 0 to 9, _), "
            "not the key itself"
        )
    return name


Url = Annotated[str, AfterValidator(_plain_url)]
KeyName = Annotated[str | None, AfterValidator(_name_not_key)]


class Http(RewardConfig):
    """Settings of the http reward."""

    type: Literal["http"] = "http"
    url: Annotated[Url, Free()]
    """URL to which the rows are posted."""
    timeout: float = Field(30.0, gt=0)
    """Time limit of one try in seconds, from the connection to the last byte."""
    retries: Annotated[int, Free()] = Field(3, ge=0)
    """Number of tries after the first."""
    backoff: Annotated[float, Free()] = Field(1.0, ge=0)
    """Wait before the second try, in seconds; doubled before each further try."""
    max_wait: Annotated[float, Free()] = Field(60.0, ge=0)
    """Longest wait before a try, in seconds; a longer Retry-After is an error."""
    api_key_env: Annotated[KeyName, Free()] = None
    """NAME of an environment variable, whose value is sent as a bearer token."""
    batch_size: int = Field(64, ge=1)
    """Completions in one request."""
    max_concurrency: Annotated[int, Free()] = Field(4, ge=1)
    """Maximum number of concurrent requests."""


class Patient(Protocol):
    """The keys of a reward that asks a server."""

    timeout: float
    retries: int
    backoff: float
    max_wait: float


def endpoint_of(config: Patient, url: SplitResult, key: str | None) -> Endpoint:
    """Return the server for one call of a reward: a failure in the call stops all its retries."""
    patience = Patience(config.timeout, config.retries, config.backoff, config.max_wait)
    return Endpoint(url, patience, key)


def name_of(server: Endpoint) -> str:
    """Return the name of the server in messages."""
    return f"the reward server {server.place}"


def build(config: Http) -> Callable[..., Any]:
    """Return the reward function, which is async and sends its batches concurrently."""
    key = bearer_key("reward.api_key_env", config.api_key_env)
    url = urlsplit(config.url)
    pool = ThreadPoolExecutor(config.max_concurrency)  # shared by all concurrent calls

    async def reward(
        prompts: Sequence[Any], completions: Sequence[str], completion_ids: Any, **columns: Any
    ) -> list[float | None]:
        server = endpoint_of(config, url, key)
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
    server: Endpoint, pool: ThreadPoolExecutor, requests: Sequence[Callable[[], Result]]
) -> list[Result]:
    """Return the result of each request, in order.

    Raise the first exception after all requests have ended.
    """
    loop = asyncio.get_running_loop()
    waiting = [loop.run_in_executor(pool, request) for request in requests]
    try:
        return await asyncio.gather(*waiting)
    finally:
        server.stop.set()  # after a failure the other requests neither wait nor retry
        await asyncio.gather(*waiting, return_exceptions=True)
        server.close()


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
            f"rows {rows.start + 1} to {rows.start + len(completions[rows])} cannot be sent as "
            f"JSON ({error}): leave the column out, or turn its values into text or numbers"
        ) from None


def _score(server: Endpoint, body: bytes, start: int, count: int) -> list[float | None]:
    """Return the scores of `count` rows from `start`; raise RewardFailure that names the rows."""
    rows = f"rows {start + 1} to {start + count}"
    reply = post(server, body, rows)
    try:
        scores = json_in(reply.text)["scores"]
        if not isinstance(scores, list):
            raise TypeError
    except (ValueError, TypeError, KeyError):
        raise RewardFailure(
            f'{name_of(server)}, {rows}: the reply is not {{"scores": [...]}}: '
            f"{server.redacted(reply.text) or 'it is empty'}"
        ) from None
    if len(scores) != count:
        raise RewardFailure(
            f"{name_of(server)}, {rows}: {len(scores)} scores for {count} completions: it must "
            "return one number or null for each, in order"
        )
    for i, score in enumerate(scores):
        number = type(score) in (int, float) and -1e308 <= score <= 1e308  # not nan
        if score is not None and not number:
            raise RewardFailure(
                f"{name_of(server)}, row {start + i + 1}: the score "
                f"{server.redacted(json.dumps(score))} is neither a finite number nor null"
            )
    return scores


def json_in(text: str) -> Any:
    """Return the value of a JSON text; raise ValueError if it is none, or nested too deeply."""
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def post(server: Endpoint, body: bytes, rows: str) -> Reply:
    """Return the reply with status 200, after retries if needed.

    Raise RewardFailure that names `rows` if there is none.
    """
    try:
        reply = request(server, "POST", "", body, name_of(server))
        if reply.status == 200:
            return reply
        problem = f"status {reply.status}: {server.redacted(reply.text) or 'no message'}"
        problem = f"{name_of(server)}, {rows}: {problem}"
    except HttpError as error:
        retryable = error.kind != "refused"
        advice = (
            f"; tried {error.tries} times (raise reward.timeout or reward.retries, or check the "
            "server)"
        )
        problem = f"{name_of(server)}, {rows}: {error.problem}{advice if retryable else ''}"
    raise RewardFailure(problem)


REWARD = Reward(Http, build)
