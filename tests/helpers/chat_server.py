"""A small chat server in this process, of which a test decides every reply."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


def chat(text: str | None, finish_reason: str = "stop") -> str:
    message = {"role": "assistant", "content": text}
    return json.dumps({"choices": [{"message": message, "finish_reason": finish_reason}]})


@dataclass
class ChatServer:
    """Answers with the status and text that `reply(what it was asked, number of the request)`
    gives; a text alone is what the model says."""

    url: str = ""
    reply: Callable[[str, int], str | tuple[int, str]] = lambda asked, n: "Score: 1"
    paths: list[str] = field(default_factory=list)
    keys: list[str | None] = field(default_factory=list)
    bodies: list[Any] = field(default_factory=list)
    most_at_once: int = 0

    @property
    def asked(self) -> list[str]:
        return [body["messages"][0]["content"] for body in self.bodies]


@contextmanager
def chat_server() -> Iterator[ChatServer]:
    """Serve in this process, on a port of its own."""
    chats = ChatServer()
    lock, active = threading.Lock(), [0]

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with lock:
                active[0] += 1
                chats.most_at_once = max(chats.most_at_once, active[0])
                chats.paths.append(self.path)
                chats.keys.append(self.headers["Authorization"])
                chats.bodies.append(body)
                number = len(chats.bodies)
            answer = chats.reply(body["messages"][0]["content"], number)
            status, text = (200, chat(answer)) if isinstance(answer, str) else answer
            with lock:
                active[0] -= 1
            self.send_response(status)
            self.send_header("Content-Length", str(len(text.encode())))
            self.end_headers()
            self.wfile.write(text.encode())

        def log_message(self, *args: Any) -> None: ...

    class Http(ThreadingHTTPServer):
        request_queue_size = 64  # the default of 5 resets connections when many come at once

    http = Http(("127.0.0.1", 0), Handler)
    http.daemon_threads = True
    thread = threading.Thread(target=http.serve_forever, args=(0.02,))
    thread.start()
    chats.url = f"http://127.0.0.1:{http.server_port}"
    try:
        yield chats
    finally:
        http.shutdown()
        thread.join()
        http.server_close()
