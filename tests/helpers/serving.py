"""A server of a tiny model in this process, over real HTTP."""

from __future__ import annotations

import http.client
import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import chat_templates
import torch
import uvicorn
from transformers import LlamaConfig, LlamaForCausalLM

from posttrain.serving.app import build_app
from posttrain.serving.serve import ServeSettings, build_service, build_updates, listen
from posttrain.serving.service import Service
from posttrain.serving.votes import Votes


def chat_model(folder: Path, family: str = "chatml", **changes: Any) -> Path:
    """A Llama of two layers that takes 256 tokens, with a tokenizer and its chat template."""
    torch.manual_seed(0)
    tokenizer = chat_templates.family(family)
    shape = {
        "vocab_size": len(tokenizer),
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 256,
        "initializer_range": 0.2,
        "bos_token_id": None,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": 0,
    }
    LlamaForCausalLM(LlamaConfig(**(shape | changes))).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@dataclass
class Live:
    """A running server."""

    url: str
    service: Service
    key: str | None = None

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])

    def client(self, **keys: Any) -> Any:
        import openai

        defaults = {"base_url": f"{self.url}/v1", "api_key": self.key or "none", "max_retries": 0}
        return openai.OpenAI(**(defaults | keys))

    def ask(self, method: str, path: str, body: Any = None, **headers: str) -> tuple[int, Any]:
        """Status and JSON (or text) of an answer; the body is JSON, or bytes as they are."""
        data = body if isinstance(body, bytes | None) else json.dumps(body).encode()
        sent = {"Content-Type": "application/json", **headers}
        if self.key is not None:
            sent.setdefault("Authorization", f"Bearer {self.key}")
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            connection.request(method, path, data, sent)
            reply = connection.getresponse()
            text = reply.read().decode()
        finally:
            connection.close()
        try:
            return reply.status, json.loads(text)
        except ValueError:
            return reply.status, text

    def complete(self, **body: Any) -> Any:
        """The answer of /v1/completions, which must succeed."""
        status, answer = self.ask("POST", "/v1/completions", body)
        assert status == 200, answer
        return answer

    def idle(self) -> bool:
        """Wait until nothing is sampled or waited for; False if that takes too long."""
        end = time.monotonic() + 20
        worker = self.service.worker
        while time.monotonic() < end:
            engine = worker.engine
            if not (worker.jobs or self.service.in_flight or engine.running.rows):
                return not engine.waiting
            time.sleep(0.01)
        return False


@contextmanager
def served(folder: Path, key: str | None = None, **settings: Any) -> Iterator[Live]:
    """Serve a model at a free port within a with block."""
    defaults = {"device": "cpu", "dtype": "float32", "cache_gib": 0.05, "prefix_gib": 0.01}
    chosen = ServeSettings(port=0, **(defaults | settings))
    service = build_service(str(folder), chosen)
    listener: socket.socket = listen("127.0.0.1", 0)
    second = replace(chosen, name=None)
    beside = None if chosen.beside is None else build_service(chosen.beside, second)
    votes = None if chosen.votes is None else Votes(Path(chosen.votes))
    updates = build_updates(service, chosen)
    app = build_app(service, key, chosen.host, beside, votes, updates)
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning", lifespan="on"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive(), "the server did not start"
        time.sleep(0.01)
    try:
        yield Live(f"http://127.0.0.1:{listener.getsockname()[1]}", service, key)
    finally:
        server.should_exit = True
        thread.join(20)
        assert not thread.is_alive(), "the server did not end"
        service.worker.thread.join(20)
        assert not service.worker.thread.is_alive(), "the sampler's thread did not end"
