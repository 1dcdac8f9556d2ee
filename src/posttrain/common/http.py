"""The HTTP client: reused connections, retries, a time limit on the whole reply, no redirects.

Standard library only, and no proxy is used. What may succeed later is tried again: a connection
error, a timeout, 429 and 5xx, so what is posted must be safe to post twice. Everything else fails
at once, including redirects, so that the key goes to no other host.
"""

from __future__ import annotations

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
from dataclasses import dataclass, field
from typing import Literal
from urllib.parse import SplitResult

from posttrain.common.secrets import add_secret

log = logging.getLogger(__name__)

LONGEST_REPLY = 1 << 26  # bytes
LONGEST_MESSAGE = 300  # characters of the server's message in an error
CONNECT_TIMEOUT = 10.0  # seconds; a server that is up accepts at once, however busy


@dataclass(frozen=True)
class Patience:
    """How long to wait for a server, and how often to try again."""

    timeout: float
    """Seconds for one try, from the connection to the last byte."""
    retries: int
    """Tries after the first."""
    backoff: float
    """Seconds before the second try, doubled before each further one."""
    max_wait: float
    """Longest wait before a try, in seconds; a longer Retry-After is an error."""


@dataclass
class Reply:
    """A server's reply, whatever its status."""

    status: int
    text: str
    retry_after: str | None = None
    location: str | None = None


class HttpError(Exception):
    """The reason why there is no usable reply.

    `kind` is unreachable (no connection), dropped (a connection that broke), timeout, busy (429 or
    5xx) or refused (any other status, or too long a Retry-After); it is that of the last try.
    `problem` says it in words, without the key. `cause` is the exception if there was no reply.
    """

    def __init__(
        self,
        kind: Literal["unreachable", "dropped", "timeout", "busy", "refused"],
        problem: str,
        tries: int,
        reply: Reply | None = None,
        cause: Exception | None = None,
    ) -> None:
        super().__init__(problem)
        self.kind, self.problem, self.tries, self.reply = kind, problem, tries, reply
        self.cause = cause


class TooLong(Exception):
    """A reply of more than LONGEST_REPLY bytes; it would be as long at the next try."""


@dataclass(repr=False)
class Endpoint:
    """A server and how to reach it. Thread-safe. Its repr shows no fields: one is the key."""

    url: SplitResult
    """Scheme, host, port and the path that requests begin with."""
    patience: Patience
    key: str | None = None
    """Sent as a bearer token, and removed from the messages of the server."""
    stop: threading.Event = field(default_factory=threading.Event)
    """Once set, nothing is tried again."""
    idle: list[http.client.HTTPConnection] = field(default_factory=list)
    """Open connections that are not in use."""

    @property
    def place(self) -> str:
        """The address as messages show it."""
        return f"{self.url.scheme}://{self.url.netloc}{self.url.path}"

    def redacted(self, text: str, part: slice = slice(LONGEST_MESSAGE)) -> str:
        """Return `part` of the text on one line without the key, which a server may repeat.

        Control characters, which could rewrite a terminal, are replaced.
        """
        shown = " ".join(self.without_key(text).split())[part]
        return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in shown)

    def without_key(self, text: str) -> str:
        """Return `text` without the key, neither as it is nor as JSON writes it."""
        for secret in (self.key, json.dumps(self.key)[1:-1] if self.key else None):
            text = text.replace(secret, "***") if secret else text
        return text

    def close(self) -> None:
        """Close the idle connections."""
        with contextlib.suppress(IndexError):
            while True:
                self.idle.pop().close()


def bearer_key(field_name: str, variable: str | None) -> str | None:
    """Return the key in an environment variable; None if no variable is named.

    Raises ValueError that begins with `field_name` if it is not set or no header can carry it. The
    value is never part of a message.
    """
    if variable is None:
        return None
    key = os.environ.get(variable, "").strip()
    if not key:
        raise ValueError(f"{field_name}: the environment variable {variable} is not set")
    add_secret(variable)
    if not re.fullmatch(r"[!-~]+", key):
        raise ValueError(
            f"{field_name}: the environment variable {variable} holds spaces or characters that "
            "are not ASCII, which no HTTP header can carry"
        )
    return key


def request(
    server: Endpoint, method: str, path: str = "", body: bytes | None = None, what: str = ""
) -> Reply:
    """Return the reply to a request, with a status of 200 to 299, trying again as needed.

    `what` names the request in the log. Raises HttpError if the server refuses or every try fails.
    """
    patience = server.patience
    error = HttpError("unreachable", "given up", 0)
    for attempt in range(patience.retries + 1):
        if server.stop.is_set():
            break
        wait = min(patience.backoff * 2**attempt, patience.max_wait)
        try:
            reply = _exchange(server, method, path, body)
        except TooLong as cause:
            raise HttpError("refused", str(cause), attempt + 1) from None
        except (OSError, http.client.HTTPException) as cause:
            server.close()  # a server that was restarted has dropped the idle connections too
            error = _unusable(server, cause, attempt + 1)
        else:
            if 200 <= reply.status < 300:
                return reply
            error = _refused(server, reply, attempt + 1)
            if error.kind == "refused":
                raise error
            retry_after = seconds_of(reply.retry_after)
            if retry_after > patience.max_wait:
                raise HttpError(
                    "refused",
                    f"{error.problem}; it asks to wait {retry_after:g} s, more than max_wait: "
                    f"{patience.max_wait:g}",
                    attempt + 1,
                    reply,
                )
            wait = max(wait, retry_after)
        if attempt == patience.retries:
            break
        log.warning("%s: %s; trying again in %g s", what or server.place, error.problem, wait)
        server.stop.wait(wait)
    raise error


def _unusable(server: Endpoint, cause: Exception, tries: int) -> HttpError:
    if isinstance(cause, TimeoutError):
        return HttpError("timeout", f"TimeoutError: {cause}", tries, cause=cause)
    broken = (http.client.HTTPException, ConnectionResetError, BrokenPipeError)
    kind: Literal["dropped", "unreachable"] = (
        "dropped" if isinstance(cause, broken) else "unreachable"
    )
    problem = server.redacted(f"{type(cause).__name__}: {cause}")
    return HttpError(kind, problem, tries, cause=cause)


def _refused(server: Endpoint, reply: Reply, tries: int) -> HttpError:
    problem = f"status {reply.status}: {server.redacted(reply.text) or 'no message'}"
    if 300 <= reply.status < 400:
        where = server.redacted(reply.location or "nowhere")
        problem = f"status {reply.status}, a redirect to {where}: use that URL instead"
    busy = reply.status == 429 or reply.status >= 500
    return HttpError("busy" if busy else "refused", problem, tries, reply)


def seconds_of(retry_after: str | None) -> float:
    """Return the seconds from now of a Retry-After, a number or a date; 0 if there is none."""
    if retry_after is None:
        return 0.0
    if re.fullmatch(r"\s*[0-9]+\s*", retry_after):  # isdigit() is true of superscripts too
        return float(retry_after)
    try:
        then = email.utils.parsedate_to_datetime(retry_after).timestamp()
    except ValueError:
        return 0.0
    return max(0.0, then - time.time())


def _exchange(server: Endpoint, method: str, path: str, body: bytes | None) -> Reply:
    """Return the reply of one try, on an idle connection if the server has kept one open."""
    with contextlib.suppress(IndexError):
        kept = server.idle.pop()
        try:
            return _ask(server, kept, method, path, body)
        except (http.client.RemoteDisconnected, ConnectionResetError, BrokenPipeError):
            pass  # idle for too long, which does not count as a failed try
    return _ask(server, _connect(server), method, path, body)


def _connect(server: Endpoint) -> http.client.HTTPConnection:
    url = server.url
    assert url.hostname is not None
    secure = url.scheme == "https"
    kind = http.client.HTTPSConnection if secure else http.client.HTTPConnection
    timeout = min(CONNECT_TIMEOUT, server.patience.timeout)
    connection = kind(url.hostname, url.port, timeout=timeout)
    try:
        connection.connect()
    except TimeoutError:
        connection.close()
        if timeout < CONNECT_TIMEOUT:
            raise TimeoutError(f"no full reply within {timeout:g} s") from None
        raise ConnectionError(f"no connection within {timeout:g} s") from None
    return connection


def _ask(
    server: Endpoint,
    connection: http.client.HTTPConnection,
    method: str,
    path: str,
    body: bytes | None,
) -> Reply:
    """Return the reply, or raise TimeoutError after `timeout` seconds even if bytes keep coming."""
    timeout = server.patience.timeout
    headers = {"Content-Type": "application/json", "Accept": "application/json"}
    if server.key is not None:
        headers["Authorization"] = f"Bearer {server.key}"
    expired = threading.Event()
    stream = connection.sock
    stream.settimeout(timeout)

    def expire() -> None:
        expired.set()
        with contextlib.suppress(OSError):  # closed in the meantime
            # the plain socket's method: TLS's would wait for a lock that the reading thread holds
            socket.socket.shutdown(stream, socket.SHUT_RDWR)

    watch = threading.Timer(timeout, expire)
    watch.daemon = True
    watch.start()
    try:
        target = (server.url.path + path or "/") + (
            f"?{server.url.query}" if server.url.query else ""
        )
        connection.request(method, target, body, headers)
        response = connection.getresponse()
        data = response.read(LONGEST_REPLY)
        if response.length or response.read(1):  # too few bytes, or too many
            if len(data) == LONGEST_REPLY:
                raise TooLong(f"the reply is longer than {LONGEST_REPLY >> 20} MiB")
            raise http.client.IncompleteRead(data, response.length)
        if expired.is_set():  # expire() ended the stream, not the server
            raise TimeoutError
    except ValueError as error:  # of http.client, for a chunk of negative size
        connection.close()
        raise http.client.HTTPException(f"the reply is not HTTP: {error}") from None
    except BaseException as error:
        connection.close()
        timed_out = expired.is_set() or isinstance(error, TimeoutError)
        if timed_out and isinstance(error, (OSError, http.client.HTTPException)):
            raise TimeoutError(f"no full reply within {timeout:g} s") from None
        raise
    finally:
        watch.cancel()
    if response.will_close:
        connection.close()
    else:
        server.idle.append(connection)
    text = data.decode("utf-8", errors="replace")
    return Reply(
        response.status, text, response.getheader("Retry-After"), response.getheader("Location")
    )
