"""A small real HTTP server that speaks vLLM's OpenAI API and SGLang's own, with LoRA adapters.

It samples with the native sampler from the seeds it is given, so a run against it can be compared
with one that samples in process. `faults` makes it misbehave.
"""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import tiny
import torch
from peft import PeftModel

from posttrain.common.batch import Sequence, pack
from posttrain.model.config import ModelConfig
from posttrain.model.forward import forward
from posttrain.model.load import load_causal_lm, prepare_policy
from posttrain.rollout.native.sampler import NativeSampler
from posttrain.rollout.sampler import Rollout, SamplingParams

# loading a model switches the default device to `meta` for all threads while it lasts
ONE_AT_A_TIME = threading.Lock()


class _Http(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 256  # the default of 5 resets connections when many come at once


class CompletionServer:
    """`with CompletionServer(folder) as server:` serves at `server.url`."""

    def __init__(
        self,
        model: str | Path,
        name: str | None = None,
        processed_logprobs: bool = True,
        api_key: str | None = None,
        max_model_len: int = 4096,
        port: int = 0,
    ) -> None:
        self.model, self.name = str(model), name or str(model)
        self.processed_logprobs, self.api_key = processed_logprobs, api_key
        self.max_model_len = max_model_len
        self.faults: dict[str, int] = {}  # kind -> how many more times
        self.policies: dict[str, Any] = {self.name: self._load(None)}
        self.samplers: dict[int, NativeSampler] = {}  # by policy: each is probed once
        self.loads: list[str] = []
        self.completions: list[dict[str, Any]] = []  # requests
        self.connections = 0
        self.in_flight = self.most_in_flight = 0
        self.counting = threading.Lock()
        self.http = _Http(("127.0.0.1", port), _handler(self))
        self.url = f"http://127.0.0.1:{self.http.server_port}"

    def __enter__(self) -> CompletionServer:
        threading.Thread(target=self.http.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *error: Any) -> None:
        self.http.shutdown()
        self.http.server_close()

    def fault(self, kind: str) -> bool:
        with self.counting:
            left = self.faults.get(kind, 0)
            self.faults[kind] = left - 1
            return left > 0

    def _load(self, adapter: str | None) -> Any:
        with ONE_AT_A_TIME:
            model = load_causal_lm(self.model, torch.float32)
            if adapter is not None:
                model = PeftModel.from_pretrained(model, adapter, is_trainable=True)
            return prepare_policy(
                model, ModelConfig(name="served", use_lora=False), tiny.CPU, torch.float32, 0
            )

    def answer(self, path: str, body: dict[str, Any]) -> tuple[int, Any]:
        """Status and JSON (or text) of a request."""
        if path == "/v1/models":
            base = {"id": self.name, "root": self.model, "max_model_len": self.max_model_len}
            adapters = [n for n in self.policies if n != self.name]
            return 200, {"data": [base, *({"id": n, "parent": self.name} for n in adapters)]}
        if path.endswith("/load_lora_adapter") and "unload" not in path:
            return self._load_adapter(body["lora_name"], body["lora_path"], path)
        if path.endswith("/unload_lora_adapter"):
            gone = self.policies.pop(body["lora_name"], None)
            return (200, "Success") if gone is not None else (404, {"error": "cannot be found"})
        if path in ("/v1/completions", "/generate"):
            return self._complete(path, body)
        return 404, {"detail": "Not Found"}

    def _load_adapter(self, name: str, path: str, endpoint: str) -> tuple[int, Any]:
        self.loads.append(name)
        if self.fault("no_lora"):
            return 404, {"detail": "Not Found"}
        if name in self.policies:
            return 400, {"message": f"The lora adapter '{name}' has already been loaded."}
        if self.fault("refuse_load"):
            return 400, {"message": "LoRA rank 8 is greater than max_lora_rank 4."}
        if self.fault("stale"):  # keeps the weights before, under the new name
            self.policies[name] = self.policies[self.name]
        elif not self.fault("ignore_load"):
            self.policies[name] = self._load(path)
        if self.fault("lost_load"):
            raise ConnectionError
        if endpoint.startswith("/v1"):
            return 200, f"Success: LoRA adapter '{name}' added successfully."
        return 200, {"success": True, "loaded_adapters": dict.fromkeys(self.policies, "path")}

    def _complete(self, path: str, body: dict[str, Any]) -> tuple[int, Any]:
        self.completions.append(body)
        for kind, status in (("500", 500), ("429", 429)):
            if self.fault(kind):
                return status, {"error": {"message": "out of memory"}}
        if self.fault("drop"):
            raise ConnectionError
        if self.fault("hang"):
            time.sleep(2)
        if path == "/generate":
            return self._sglang(body)
        asked = body["model"]
        used = self.name if self.fault("wrong_model") else asked
        if used not in self.policies:
            return 404, {"error": {"message": f"The model `{used}` does not exist."}}
        rollout = self._sample(used, body["prompt"], body, body["max_tokens"], body["seed"])
        ids, logprobs = list(rollout.response_ids), list(rollout.logprobs)
        prompt, reason = list(body["prompt"]), rollout.finish_reason
        if self.fault("other_ids"):
            ids[0] = 10**6
        if self.fault("few_logprobs"):
            logprobs.pop()
        if self.fault("cut"):
            ids, logprobs, reason = ids[:-1], logprobs[:-1], "length"
        if self.fault("own_stop"):
            ids, logprobs, reason = ids[:1], logprobs[:1], "stop"
        if self.fault("other_prompt"):
            prompt = [1, *prompt]
        if self.fault("nan"):
            logprobs[0] = float("nan")
        choice: dict[str, Any] = {
            "index": 0,
            "text": "never read",
            "finish_reason": reason,
            "logprobs": {"tokens": [f"token_id:{i}" for i in ids], "token_logprobs": logprobs},
        }
        if body.get("return_token_ids") and not self.fault("old"):
            choice |= {"token_ids": ids, "prompt_token_ids": prompt}
        usage = {"prompt_tokens": len(prompt), "completion_tokens": len(ids)}
        choices = [] if self.fault("no_choice") else [choice]
        return 200, {"model": used, "choices": choices, "usage": usage}

    def _sglang(self, body: dict[str, Any]) -> tuple[int, Any]:
        used, keys = body["lora_path"] or self.name, body["sampling_params"]
        if used not in self.policies:
            return 400, {"error": {"message": f"LoRA adapter {used} is not loaded"}}
        rollout = self._sample(
            used, body["input_ids"], keys, keys["max_new_tokens"], keys["sampling_seed"]
        )
        pairs = [[x, i, None] for x, i in zip(rollout.logprobs, rollout.response_ids)]
        meta = {
            "finish_reason": {"type": rollout.finish_reason},
            "prompt_tokens": len(body["input_ids"]),
            "output_token_logprobs": pairs,
        }
        return 200, {"text": "never read", "meta_info": meta}

    def _sample(
        self, used: str, prompt: list[int], keys: dict[str, Any], max_tokens: int, seed: int
    ) -> Rollout:
        params = SamplingParams(
            max_tokens,
            tuple(keys["stop_token_ids"]),
            keys["temperature"],
            keys["top_p"],
            max(0, keys["top_k"]),
        )
        policy = self.policies[used]
        with ONE_AT_A_TIME:
            sampler = self.samplers.setdefault(id(policy), NativeSampler(policy, 1))
            (rollout,) = sampler.generate([prompt], params, [seed])
            if not self.processed_logprobs:
                ids = torch.tensor(prompt + rollout.response_ids)
                batch = pack([Sequence(ids, torch.arange(len(ids)) >= len(prompt))])
                rollout.logprobs = forward(policy, batch).logprobs[batch.loss_mask].tolist()
        return rollout


def _handler(server: CompletionServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def setup(self) -> None:
            super().setup()
            server.connections += 1

        def log_message(self, *arguments: Any) -> None:
            pass

        def do_GET(self) -> None:
            self.respond({})

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with server.counting:
                server.in_flight += 1
                server.most_in_flight = max(server.most_in_flight, server.in_flight)
            try:
                self.respond(body)
            finally:
                with server.counting:
                    server.in_flight -= 1

        def respond(self, body: dict[str, Any]) -> None:
            wanted = None if server.api_key is None else f"Bearer {server.api_key}"
            try:
                if wanted is not None and self.headers.get("Authorization") != wanted:
                    status, value = 401, {"error": f"bad key {self.headers.get('Authorization')}"}
                elif body and server.fault("quote"):
                    status, value = 500, f"in the request with {dict(self.headers)}"
                else:
                    status, value = server.answer(self.path, body)
            except ConnectionError:  # a fault: hang up without a word
                self.close_connection = True
                return
            data = (value if isinstance(value, str) else json.dumps(value)).encode()
            with suppress(OSError):  # the client may have given up
                self.send_response(status)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

    return Handler


def total(servers: list[CompletionServer]) -> Counter[str]:
    """How often each adapter was loaded."""
    return Counter(name for server in servers for name in server.loads)
