"""The http reward against a real server in this process: replies, retries, deadlines, the key."""

from __future__ import annotations

import json
import logging
import math
import socket
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace
from typing import Any
from urllib.parse import urlsplit

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from test_config import GRPO
from test_rewards import MATH, make, scores

from posttrain.common.http import Endpoint, Patience
from posttrain.rewards.base import RewardFailure
from posttrain.rewards.remote import chat, http
from posttrain.runs.config import dump, parse_config

KEY = 'sk-"secret/0123'
Reply = tuple[int, dict[str, str], str]


@dataclass
class FakeServer:
    """Answers with `reply(body, number of the request)`; None as reply drops the connection."""

    url: str = ""
    reply: Callable[[Any, int], Reply | None] = lambda body, n: ok([0.0] * len(body["prompts"]))
    bodies: list[Any] = field(default_factory=list)
    headers: list[Any] = field(default_factory=list)
    times: list[float] = field(default_factory=list)
    drip: float = 0.0  # seconds between two bytes of the reply
    most_at_once: int = 0


def ok(values: Any) -> Reply:
    return 200, {}, json.dumps({"scores": values})


@pytest.fixture
def server() -> Iterator[FakeServer]:
    fake = FakeServer()
    lock, active = threading.Lock(), [0]

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            with lock:
                active[0] += 1
                fake.most_at_once = max(fake.most_at_once, active[0])
                fake.times.append(time.monotonic())
                fake.headers.append(dict(self.headers))
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                fake.bodies.append(body)
                number = len(fake.bodies)
            reply = fake.reply(body, number)
            with lock:
                active[0] -= 1
            if reply is None:
                self.connection.shutdown(socket.SHUT_RDWR)
                return
            status, headers, text = reply
            self.send_response(status)
            for name, value in ({"Content-Length": str(len(text.encode()))} | headers).items():
                self.send_header(name, value)
            self.end_headers()
            try:
                for byte in text.encode() if fake.drip else [text.encode()]:
                    self.wfile.write(byte if isinstance(byte, bytes) else bytes([byte]))
                    self.wfile.flush()
                    time.sleep(fake.drip)
            except OSError:
                pass

        def log_message(self, *args: Any) -> None: ...

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    http.daemon_threads = True
    thread = threading.Thread(target=http.serve_forever, args=(0.02,))
    thread.start()
    fake.url = f"http://127.0.0.1:{http.server_port}/score?v=1"
    yield fake
    http.shutdown()
    thread.join()
    http.server_close()


def reward(server: FakeServer, **settings: Any) -> Any:
    return make(**{"type": "http", "url": server.url, "backoff": 0.01} | settings)


def failure(server: FakeServer, texts: str = "abc", **settings: Any) -> str:
    with pytest.raises(RewardFailure) as caught:
        scores(reward(server, **settings), list(texts), n=list(range(len(texts))))
    return str(caught.value)


def test_scores_come_back_in_order_from_batches(server: FakeServer) -> None:
    def reply(body: Any, number: int) -> Reply:
        time.sleep(0.05 / number)  # later batches answer sooner
        return ok([None if n == 3 else n + 0.5 for n in body["columns"]["n"]])

    server.reply = reply
    found = scores(reward(server, batch_size=2, max_concurrency=3), list("abcdefg"), n=[*range(7)])
    assert found == [0.5, 1.5, 2.5, None, 4.5, 5.5, 6.5]
    bodies = sorted(server.bodies, key=lambda body: body["columns"]["n"])
    assert bodies[0] == {"prompts": ["?"] * 2, "completions": ["a", "b"], "columns": {"n": [0, 1]}}
    assert [len(body["completions"]) for body in bodies] == [2, 2, 2, 1]
    assert 1 < server.most_at_once <= 3
    assert server.headers[0]["Content-Type"] == "application/json"
    assert "Authorization" not in server.headers[0]


def test_concurrency_is_bounded(server: FakeServer) -> None:
    def slow(body: Any, number: int) -> Reply:
        time.sleep(0.03)
        return ok([0.0])

    server.reply = slow
    scores(reward(server, batch_size=1, max_concurrency=1), list("abc"))
    assert server.most_at_once == 1
    assert len(server.bodies) == 3


@pytest.mark.parametrize("bad", [(500, {}, "oops"), (503, {}, ""), (429, {}, "slow down"), None])
def test_what_may_pass_is_tried_again(server: FakeServer, bad: Reply | None) -> None:
    server.reply = lambda body, n: bad if n < 3 else ok([1.0])
    assert scores(reward(server, retries=2), ["a"]) == [1.0]
    assert len(server.bodies) == 3
    assert server.bodies[0] == server.bodies[2]
    server.bodies.clear()
    assert "tried 2 times" in failure(server, "a", retries=1)
    assert len(server.bodies) == 2


def test_the_wait_doubles_up_to_its_limit(
    server: FakeServer, caplog: pytest.LogCaptureFixture
) -> None:
    server.reply = lambda body, n: (500, {}, "")
    failure(server, "a", retries=4, backoff=0.05, max_wait=0.15)
    said = [record.getMessage().rpartition("again in ")[2] for record in caplog.records]
    assert said == ["0.05 s", "0.1 s", "0.15 s", "0.15 s"]
    waits = [b - a for a, b in zip(server.times, server.times[1:])]
    assert all(wait >= least for wait, least in zip(waits, (0.05, 0.1, 0.15, 0.15)))


@pytest.mark.parametrize("status", [429, 503])
def test_retry_after_is_honoured(server: FakeServer, status: int) -> None:
    server.reply = lambda body, n: (status, {"Retry-After": "1"}, "") if n == 1 else ok([1.0])
    assert scores(reward(server), ["a"]) == [1.0]
    assert server.times[1] - server.times[0] >= 1.0
    server.reply = lambda body, n: (status, {"Retry-After": "3600"}, "")
    server.bodies.clear()
    assert "asks to wait 3600 s, more than max_wait: 60" in failure(server, "a")
    assert len(server.bodies) == 1
    server.reply = lambda body, n: (status, {"Retry-After": "Fri, 31 Dec 2399 23:59:59 GMT"}, "")
    assert "more than max_wait" in failure(server, "a")
    past = {"Retry-After": "Wed, 21 Oct 2015 07:28:00 GMT"}
    server.bodies.clear()
    server.reply = lambda body, n: (status, past, "") if n == 1 else ok([1.0])
    assert scores(reward(server), ["a"]) == [1.0]


@pytest.mark.parametrize("status", [400, 401, 404, 422, 204])
def test_other_failures_fail_at_once_with_the_servers_words(
    server: FakeServer, status: int
) -> None:
    message = "" if status == 204 else "no such\n model " + "x" * 400
    server.reply = lambda body, n: (status, {}, message)
    text = failure(server, retries=3)
    assert len(server.bodies) == 1, "neither tried again, nor row by row"
    assert f"rows 1 to 3: status {status}: " in text
    if message:
        assert "no such model xxx" in text
        assert text.count("x") == 300 - len("no such model ")


@pytest.mark.parametrize("status", [301, 302, 307, 308])
def test_a_redirect_is_not_followed(server: FakeServer, status: int, monkeypatch: Any) -> None:
    monkeypatch.setenv("MY_KEY", KEY)
    server.reply = lambda body, n: (status, {"Location": server.url + "&elsewhere"}, "")
    assert "a redirect to http://127.0.0.1" in failure(server, api_key_env="MY_KEY")
    assert len(server.bodies) == 1


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('{"scores": [1, 2]}', "rows 1 to 3: 2 scores for 3 completions"),
        ('{"scores": [1, 2, 3, 4]}', "4 scores for 3 completions"),
        ('{"scores": [1, NaN, 2]}', "row 2: the score NaN is neither a finite number nor null"),
        ('{"scores": [1, 2, 1e999]}', "row 3: the score Infinity"),
        ('{"scores": ["1", 2, 3]}', 'row 1: the score "1" is neither'),
        ('{"scores": [true, 2, 3]}', "row 1: the score true"),
        ('{"scores": 1}', 'the reply is not {"scores": [...]}: {"scores": 1}'),
        ('{"score": [1, 2, 3]}', "the reply is not"),
        ("[1, 2, 3]", "the reply is not"),
        ("<html>hello</html>", "the reply is not"),
        ("", 'the reply is not {"scores": [...]}: it is empty'),
        ("[" * 100_000, "the reply is not"),
        ('{"scores": [' + "[" * 100_000, "the reply is not"),
        ('{"scores": [' + "9" * 5000 + ", 1, 2]}", "the reply is not"),
        ('{"scores": [' + "9" * 400 + ", 1, 2]}", "row 1: the score 999"),
        ("a\n\x1b[31m\x00\x08b\u202e", 'the reply is not {"scores": [...]}: a \ufffd[31m\ufffd'),
    ],
)
def test_a_reply_of_the_wrong_form(server: FakeServer, text: str, expected: str) -> None:
    server.reply = lambda body, n: (200, {}, text)
    message = failure(server)
    assert expected in message
    assert message.isprintable()
    assert len(message) < 500
    assert len(server.bodies) == 1


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        (b"hello\r\n\r\n", "BadStatusLine: hello"),
        (b"HTTP/1.1 abc\r\n\r\n", "BadStatusLine"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 500\r\n\r\n{}", "IncompleteRead"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n-5\r\nab\r\n", "is not HTTP"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\nab\r\n", "IncompleteRead"),
        (b"HTTP/1.1 200 OK\r\nX: " + b"a" * 99_999 + b"\r\n\r\n{}", "LineTooLong"),
        (b"HTTP/1.1 200 OK\r\n" + b"A: b\r\n" * 500 + b"\r\n{}", "more than 100 headers"),
        (b"HTTP/1.1 503 X\r\nRetry-After: \xb2\r\nContent-Length: 0\r\n\r\n", "status 503"),
        (b"HTTP/1.1 503 X\r\nRetry-After: soon\r\nContent-Length: 0\r\n\r\n", "status 503"),
        (
            b"HTTP/1.1 302 X\r\nLocation: /\x1b[1m\r\nContent-Length: 0\r\n\r\n",
            "redirect to /\ufffd[",
        ),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n" + b" " * 99, "longer than 0 MiB"),
        (b"HTTP/1.1 200 OK\r\n\r\n" + b" " * 99, "longer than 0 MiB"),
    ],
)
def test_what_is_hardly_http_ends_in_one_line(
    raw: bytes, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("posttrain.common.http.LONGEST_REPLY", 64)
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def serve() -> None:
            while True:
                try:
                    connection, _ = listening.accept()
                except OSError:  # closed: the test is over
                    return
                with connection:
                    connection.settimeout(10)
                    connection.recv(65536)
                    connection.sendall(raw)
                    connection.shutdown(socket.SHUT_WR)
                    # what is left unread would reset the connection before the reply arrives
                    with suppress(OSError):
                        while connection.recv(65536):
                            pass

        threading.Thread(target=serve, daemon=True).start()
        url = f"http://127.0.0.1:{listening.getsockname()[1]}/"
        with pytest.raises(RewardFailure) as caught:
            scores(make(type="http", url=url, retries=0, backoff=0.01), ["a"])
    message = str(caught.value)
    assert expected in message
    assert "rows 1 to 1: " in message
    assert "the reward failed" not in message
    assert message.isprintable()


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["scores", "choices", "message", "content", "finish_reason"]), inner
        )
    ),
    max_leaves=12,
)


@given(JSON, st.sampled_from(["", "{}", '{{"scores": {}}}', '{{"choices": [{{"message": {}}}]}}']))
def test_any_reply_is_a_result_or_one_line(value: Any, form: str) -> None:
    server = Endpoint(urlsplit("http://x"), Patience(1, 0, 0, 0))
    text = form.format(json.dumps(value)) if form else str(value)
    for read in (http._score, chat.chat_reply):
        with pytest.MonkeyPatch.context() as patch:
            for module in (http, chat):
                patch.setattr(module, "post", lambda *_: SimpleNamespace(text=text))
            try:
                result = read(server, b"", *((0, 2) if read is http._score else ("row 1",)))
            except RewardFailure as failed:
                result = str(failed)
        if isinstance(result, str):
            assert result.isprintable()
        elif read is chat.chat_reply:
            assert isinstance(result[0], str)
        else:
            assert all(x is None or math.isfinite(x) for x in result)
            assert len(result) == 2


def test_a_row_of_a_later_batch_has_its_own_number(server: FakeServer) -> None:
    server.reply = lambda body, n: ok([None if c != "c" else "x" for c in body["completions"]])
    assert "row 3: the score" in failure(server, "abcd", batch_size=2)


def test_a_slow_server_is_a_timeout_in_all_not_per_byte(server: FakeServer) -> None:
    server.drip = 0.5  # 17 bytes: a timeout for each byte would never be reached
    started = time.monotonic()
    text = failure(server, "a", timeout=0.4, retries=1)
    assert "TimeoutError: no full reply within 0.4 s; tried 2 times" in text
    assert 0.8 <= time.monotonic() - started < 6
    server.drip = 0.0
    server.reply = lambda body, n: time.sleep(0.5) or ok([1.0])  # type: ignore[func-returns-value]
    assert "no full reply within 0.2 s" in failure(server, "a", timeout=0.2, retries=0)


def test_a_slow_reply_without_a_length_is_not_taken_for_a_whole_one(server: FakeServer) -> None:
    # the end of such a reply is the end of the connection, which our own deadline brings about
    server.drip = 0.1
    server.reply = lambda body, n: (200, {"Content-Length": ""}, json.dumps({"scores": [1]}))
    assert "TimeoutError" in failure(server, "a", timeout=0.4, retries=0)


def test_a_reply_that_is_cut_off_is_tried_again(server: FakeServer) -> None:
    whole = ok([1.0])
    cut = (200, {"Content-Length": "999"}, whole[2])
    server.reply = lambda body, n: cut if n == 1 else whole
    assert scores(reward(server), ["a"]) == [1.0]
    assert len(server.bodies) == 2


def test_nobody_listens() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
    with pytest.raises(RewardFailure, match=r"ConnectionRefusedError.*tried 2 times"):
        scores(make(type="http", url=url, retries=1, backoff=0.01), ["a"])


def test_after_a_failure_the_other_batches_neither_wait_nor_try(server: FakeServer) -> None:
    server.reply = lambda body, n: (
        (400, {}, "no") if body["completions"] == ["a"] else (500, {}, "")
    )
    started = time.monotonic()
    failure(server, "abcdef", batch_size=1, max_concurrency=2, backoff=30)
    assert time.monotonic() - started < 5
    assert len(server.bodies) <= 3


def test_columns_that_are_no_json_are_named(server: FakeServer) -> None:
    with pytest.raises(RewardFailure, match=r"rows 1 to 2 cannot be sent as JSON .*set.*column"):
        scores(reward(server), ["a", "b"], n=[1, {2}])
    with pytest.raises(RewardFailure, match="cannot be sent as JSON"):
        scores(reward(server), ["a"], n=[float("nan")])
    assert server.bodies == []


def test_beside_other_rewards(server: FakeServer) -> None:
    server.reply = lambda body, n: ok([0.25] * len(body["completions"]))
    part = {"type": "http", "url": server.url, "weight": 2.0, "name": "judge"}
    found = scores(make(type="weighted", rewards=[MATH, part]), ["A: 7", "A: 8"], answer=["7", "7"])
    assert found == [1.5, 0.5]
    assert found[0].parts == {"math_correctness": 1.0, "judge": 0.25}


# --- the key --------------------------------------------------------------------------------------


def test_the_key_is_sent_and_seen_nowhere(
    server: FakeServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("MY_KEY", f" {KEY}\n")
    caplog.set_level(logging.DEBUG)
    function = reward(server, api_key_env="MY_KEY", retries=1)
    assert scores(function, ["a"]) == [0.0]
    assert server.headers[0]["Authorization"] == f"Bearer {KEY}"
    seen = [repr(function), repr(vars(function))]
    # a server that repeats what it was sent: as a message, as JSON, across the cut, as a score
    echoes: list[Callable[[Any, int], Reply]] = [
        lambda body, n: (401, {}, f"bad key {KEY}!"),
        lambda body, n: (500, {}, json.dumps({"authorization": f"Bearer {KEY}"})),
        lambda body, n: (400, {}, "x" * 295 + KEY),
        lambda body, n: (302, {"Location": f"http://x/?{KEY}"}, ""),
        lambda body, n: (200, {}, json.dumps({"scores": [KEY]})),
        lambda body, n: (200, {}, f"key: {KEY}"),
        lambda body, n: (200, {"Content-Length": f"{KEY}"}, ""),
    ]
    for echo in echoes:
        server.reply = echo
        with pytest.raises(RewardFailure) as caught:
            scores(function, ["a"])
        seen.append("".join(traceback.format_exception(caught.value)))
    seen.append(caplog.text)
    assert "trying again" in caplog.text
    assert "***" in seen[2]
    for text in seen:
        assert "secret" not in text
        assert "sk-" not in text


def test_the_key_is_in_no_saved_config(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_KEY", KEY)
    tree = GRPO | {"reward": {"type": "http", "url": "http://x/", "api_key_env": "MY_KEY"}}
    config = parse_config(tree, "run.yaml")
    text = yaml.safe_dump(dump(config)) + repr(config)
    assert "MY_KEY" in text
    assert "secret" not in text


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, "the environment variable MY_KEY is not set"),
        ("", "is not set"),
        (" \n", "is not set"),
        ("sec ret", "holds spaces or characters"),
        ("sec\nret", "holds spaces or characters"),
        ("secrét", "holds spaces or characters"),
    ],
)
def test_a_key_that_can_not_be_sent(
    value: str | None, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MY_KEY", raising=False)
    if value is not None:
        monkeypatch.setenv("MY_KEY", value)
    with pytest.raises(ValueError, match=expected) as caught:
        make(type="http", url="http://x", api_key_env="MY_KEY")
    assert "sec" not in str(caught.value)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"api_key_env": "sk-123"}, "not the key itself"),
        ({"api_key_env": "sk_live_123"}, "not the key itself"),
        ({"url": "http://me:sk-123@x/"}, "url contains a user name or password"),
        ({"url": "ftp://x/"}, "url must be of the form"),
        ({"url": "localhost:80"}, "url must be of the form"),
        ({"url": "http://"}, "url must be of the form"),
        ({"url": "http://x:99999/"}, "url must be of the form"),
        ({"url": "http://x/a b"}, "url must be of the form"),
        ({"url": "http://a..b/"}, "url must be of the form"),
        ({"url": "http://" + "a" * 64}, "url must be of the form"),
    ],
)
def test_settings_that_make_no_sense(settings: dict[str, Any], expected: str) -> None:
    tree = GRPO | {"reward": {"type": "http", "url": "http://x"} | settings}
    with pytest.raises(ValueError, match=expected) as caught:
        parse_config(tree, "run.yaml")
    assert "123" not in str(caught.value)
