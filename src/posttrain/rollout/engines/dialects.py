"""Requests and answers of inference servers: vLLM's OpenAI API and SGLang's own.

Token ids go in and come out; the servers' text is never read. Every sampling parameter is sent,
since a server takes a missing one from the model's generation_config.json.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from posttrain.rollout.sampler import SamplingParams

LORA_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)  # the values that vLLM accepts for --max-lora-rank


@dataclass
class Answer:
    """A completion as the server returned it, not checked yet."""

    ids: list[int]
    logprobs: list[float]
    finish_reason: str
    num_prompt_tokens: int
    prompt_ids: list[int] | None = None
    """None if the server does not return them."""
    model: str | None = None
    """Model or adapter that the server reports; None if it reports none."""
    version: str | None = None
    """Of the weights that sampled the first token; None if the server does not report it."""


@dataclass(frozen=True)
class Dialect:
    """Paths, requests and answers of one kind of server."""

    generate: str
    load: str
    unload: str
    request: Callable[[list[int], SamplingParams, int, str | None, str], dict[str, Any]]
    """(prompt ids, params, seed, adapter or None, base model) -> JSON to post to `generate`."""
    read: Callable[[Any], Answer]
    """JSON -> Answer; raises KeyError, IndexError, TypeError or ValueError for anything else."""
    start: str
    """The command that starts such a server for a {model} and adapters up to {rank}."""
    start_full: str | None
    """The command for a server whose weights can all be replaced; None if there is none."""
    logprobs: str
    """What to do if its log-probs are not those of the distribution sampled from."""
    always_tempered: bool
    """Whether its log-probs always include the temperature, however it was started."""
    names_adapter: bool
    """Whether an answer names the adapter that generated it."""


def vllm_request(
    prompt: list[int], params: SamplingParams, seed: int, adapter: str | None, base: str
) -> dict[str, Any]:
    """Return the JSON for /v1/completions."""
    return {
        "model": adapter or base,
        "prompt": prompt,
        "max_tokens": params.max_new_tokens,
        "temperature": params.temperature,
        "top_p": params.top_p,
        "top_k": params.top_k or -1,
        "min_p": params.min_p,
        "repetition_penalty": 1.0,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
        "seed": seed,
        "logprobs": 1,
        # only our stop tokens: without ignore_eos the server would add its end-of-sequence token
        "stop_token_ids": list(params.stop_token_ids),
        "ignore_eos": True,
        "skip_special_tokens": False,
        "return_token_ids": True,
        "return_tokens_as_token_ids": True,  # for versions without return_token_ids
    }


def vllm_read(answer: Any) -> Answer:
    """Return the completion in an answer of /v1/completions."""
    (choice,) = answer["choices"]
    logprobs, ids = choice["logprobs"], choice.get("token_ids")
    if ids is None:
        ids = [int(token.removeprefix("token_id:")) for token in logprobs["tokens"]]
    spans = choice.get("weight_versions") or []
    return Answer(
        [int(i) for i in ids],
        [float(x) for x in logprobs["token_logprobs"]],
        choice["finish_reason"],
        answer["usage"]["prompt_tokens"],
        choice.get("prompt_token_ids"),
        answer["model"],
        str(spans[0]["version"]) if spans else None,
    )


def sglang_request(
    prompt: list[int], params: SamplingParams, seed: int, adapter: str | None, base: str
) -> dict[str, Any]:
    """Return the JSON for /generate."""
    return {
        "input_ids": prompt,
        "lora_path": adapter,
        "return_logprob": True,
        "sampling_params": {
            "max_new_tokens": params.max_new_tokens,
            "temperature": params.temperature,
            "top_p": params.top_p,
            "top_k": params.top_k or -1,
            "min_p": params.min_p,
            "repetition_penalty": 1.0,
            "presence_penalty": 0.0,
            "frequency_penalty": 0.0,
            "sampling_seed": seed % 2**31,  # read only with --enable-deterministic-inference
            "stop_token_ids": list(params.stop_token_ids),
            "ignore_eos": False,  # True would also ignore stop_token_ids
            "skip_special_tokens": False,
        },
    }


def sglang_read(answer: Any) -> Answer:
    """Return the completion in an answer of /generate."""
    meta = answer["meta_info"]
    pairs = meta["output_token_logprobs"]  # (log-prob, token id, text or None)
    return Answer(
        [int(pair[1]) for pair in pairs],
        [float(pair[0]) for pair in pairs],
        meta["finish_reason"]["type"],
        meta["prompt_tokens"],
    )


def max_lora_rank(rank: int) -> int:
    """Return the smallest --max-lora-rank that admits an adapter of this rank."""
    return next((limit for limit in LORA_RANKS if limit >= rank), rank)


DIALECTS = {
    "vllm": Dialect(
        generate="/v1/completions",
        load="/v1/load_lora_adapter",
        unload="/v1/unload_lora_adapter",
        request=vllm_request,
        read=vllm_read,
        start="VLLM_ALLOW_RUNTIME_LORA_UPDATING=True vllm serve {model} --enable-lora "
        "--max-lora-rank {rank} --logprobs-mode processed_logprobs",
        start_full="VLLM_SERVER_DEV_MODE=1 vllm serve {model} --weight-transfer-config "
        '\'{{"backend": "disk"}}\' --logprobs-mode processed_logprobs',
        logprobs="start it with --logprobs-mode processed_logprobs",
        always_tempered=False,
        names_adapter=True,
    ),
    "sglang": Dialect(
        generate="/generate",
        load="/load_lora_adapter",
        unload="/unload_lora_adapter",
        request=sglang_request,
        read=sglang_read,
        start="python -m sglang.launch_server --model-path {model} --enable-lora "
        "--max-lora-rank {rank} --lora-target-modules all",
        start_full=None,
        logprobs="SGLang leaves top_p and top_k out of them: use rollout.server_type: vllm",
        always_tempered=True,
        names_adapter=False,
    ),
}
