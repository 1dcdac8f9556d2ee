"""One question to a language model behind an OpenAI-compatible chat server.

POST {url}/v1/chat/completions    model, one user message, max_tokens, temperature
200  choices[0].message.content   the reply
"""

from __future__ import annotations

import json
from typing import Any
from urllib.parse import SplitResult, urlsplit

from posttrain.common.http import Endpoint
from posttrain.rewards.base import RewardFailure
from posttrain.rewards.remote.http import json_in, name_of, post

# reasons for which a reply is not whole, by vLLM, SGLang, TGI and the APIs
CUT_OFF = ("length", "max_tokens", "content_filter", "abort", "error")


def chat_url(url: str) -> SplitResult:
    """Return the address of chat completions for a server's base URL, with or without /v1."""
    base = urlsplit(url)
    path = base.path.rstrip("/").removesuffix("/v1") + "/v1/chat/completions"
    return base._replace(path=path)


def chat_body(model: str, content: str, max_tokens: int, temperature: float = 0.0) -> bytes:
    """Return the body of a request with one user message."""
    request = {
        "model": model,
        "messages": [{"role": "user", "content": content}],
        "max_tokens": max_tokens,
        "temperature": temperature,
    }
    return json.dumps(request).encode()


def chat_reply(server: Endpoint, body: bytes, row: str) -> tuple[str, bool]:
    """Return the text of the model's reply, and whether it is complete."""
    reply = post(server, body, row)
    try:
        choice: Any = json_in(reply.text)["choices"][0]
        text = choice["message"]["content"]
        text = "" if text is None else text  # null if the reply is reasoning only
        if not isinstance(text, str):
            raise TypeError
    except (ValueError, TypeError, KeyError, IndexError):
        raise RewardFailure(
            f"{name_of(server)}, {row}: the reply is not a chat completion: "
            f"{server.redacted(reply.text) or 'it is empty'}"
        ) from None
    return text, choice.get("finish_reason") not in CUT_OFF
