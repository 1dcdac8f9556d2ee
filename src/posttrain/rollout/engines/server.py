"""Completions from inference servers over HTTP; the policy's LoRA adapter is delivered to them.

An adapter's name contains the version of the weights, and vLLM names the adapter that it used in
every answer, so the version of a rollout is what the server reports, not what we assume.
"""

from __future__ import annotations

import math
import shutil
import uuid
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from posttrain.common import distributed
from posttrain.rollout.engines.client import Server, concurrently
from posttrain.rollout.engines.delivery import write_adapter
from posttrain.rollout.engines.dialects import Answer, Dialect
from posttrain.rollout.generation import raise_together
from posttrain.rollout.sampler import EngineError, Finished, Rollout, SamplingParams

PREFIX = "posttrain"
PROBE_TOKENS = 8


class ServerSampler:
    """A sampler that spreads prompts over several servers, with bounded concurrency.

    update_weights is a collective: all ranks call it at the same point, and if one fails, all raise
    EngineError.
    """

    def __init__(
        self,
        policy: Any,
        servers: list[Server],
        dialect: Dialect,
        folder: Path,
        max_concurrent_requests: int,
    ) -> None:
        """Deliver adapters through `folder`, which the servers must see under the same path."""
        self.policy, self.servers, self.dialect = policy, servers, dialect
        self.folder = folder.resolve()
        self.max_concurrent_requests = max_concurrent_requests
        self.vocab_size = policy.causal_lm().config.vocab_size
        # a server that outlives a process may still hold, or have cached, that process's adapters
        self.run_id = distributed.from_rank_0(uuid.uuid4().hex[:8])
        self.delivered: int | None = None

    def adapter(self, version: int) -> str:
        """Return the adapter's name for a version of the weights."""
        return f"{PREFIX}-{self.run_id}-v{version}"

    def update_weights(self) -> None:
        """Deliver the policy's adapter to every server, and unload the previous one."""
        version = self.policy.version
        if all(distributed.all_gather(self.delivered == version)):
            return
        distributed.barrier()  # no rank still generates with the adapter that is unloaded next
        problem = None
        try:
            write_adapter(self.folder / self.adapter(version), self.policy)
            if distributed.rank() == 0:
                self._take_back(keep=self.adapter(version))
                concurrently(lambda server: self._load(server, version), self.servers, 8)
        except (EngineError, OSError) as error:
            problem = str(error)
        raise_together(problem)
        self.delivered = version

    def generate(
        self,
        prompts: Sequence[list[int]],
        params: SamplingParams,
        seeds: Sequence[int],
        finished: Finished = lambda place, rollout: None,
    ) -> list[Rollout]:
        """Return one completion per prompt; raise EngineError if a server fails or is too slow."""
        if not all(prompts):
            raise ValueError("a prompt is empty")
        assert self.delivered is not None, "update_weights comes first"
        version = self.delivered

        def complete(place: int) -> Rollout:
            rollout = self._complete(place, prompts[place], params, seeds[place], version)
            finished(place, rollout)
            return rollout

        try:
            return concurrently(complete, range(len(prompts)), self.max_concurrent_requests)
        except EngineError:
            self.delivered = None  # so that update_weights delivers again
            raise
        finally:
            for server in self.servers:
                server.close()

    def close(self) -> None:
        """Unload the adapter and delete its folder; servers that are gone are ignored."""
        if distributed.rank() == 0:
            self._take_back(keep=None)
            with suppress(OSError):
                self.folder.rmdir()

    def _complete(
        self, place: int, prompt: list[int], params: SamplingParams, seed: int, version: int
    ) -> Rollout:
        server = self.servers[(place + distributed.rank()) % len(self.servers)]
        adapter = self.adapter(version)
        try:
            answer = ask(server, self.dialect, prompt, params, seed, adapter, adapter)
        except EngineError as error:
            if adapter in (error.refusal or ""):
                raise EngineError(
                    f"{error}; the adapter was delivered to it: was it restarted since?"
                ) from None
            raise
        if self.dialect.names_adapter and answer.model != adapter:
            raise EngineError(
                f"server {server.url} generated with {answer.model!r}, but the policy's weights "
                f"are {adapter!r}: the adapter's delivery did not take effect; restart the server "
                f"with: {server.start_with}"
            )
        try:
            return to_rollout(answer, prompt, params, self.vocab_size, version)
        except EngineError as error:
            raise EngineError(f"server {server.url} {error}") from None

    def _load(self, server: Server, version: int) -> None:
        name = self.adapter(version)
        path = str(self.folder / name)
        try:
            answer = server.post(self.dialect.load, {"lora_name": name, "lora_path": path})
        except EngineError as error:
            refusal = error.refusal or ""
            if "already" in refusal and "loaded" in refusal:
                return  # by an earlier attempt whose answer was lost: the name is ours alone
            if server.start_with in str(error):
                raise
            raise EngineError(
                f"{error}; {path} must lie on a filesystem that the server sees under the same "
                f"path (rollout.adapter_dir), and the server must be started with: "
                f"{server.start_with}"
            ) from None
        if isinstance(answer, dict) and name not in answer.get("loaded_adapters", [name]):
            raise EngineError(f"server {server.url} did not load {path}: {answer}")

    def _take_back(self, keep: str | None) -> None:
        """Unload and delete the folder's adapters except `keep`, also those of a killed process."""
        for old in self.folder.glob(f"*{PREFIX}-*-v*"):
            if old.name == keep:
                continue
            for server in self.servers:
                hurried = server.hurried(10.0)
                with suppress(EngineError):  # a server that is gone or new has none of ours
                    hurried.post(self.dialect.unload, {"lora_name": old.name})
                hurried.close()
            shutil.rmtree(old, ignore_errors=True)


def ask(
    server: Server,
    dialect: Dialect,
    prompt: list[int],
    params: SamplingParams,
    seed: int,
    adapter: str | None,
    base: str,
) -> Answer:
    """Return one completion, not checked yet; raise EngineError if the answer is none."""
    answer = server.post(dialect.generate, dialect.request(prompt, params, seed, adapter, base))
    try:
        return dialect.read(answer)
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise EngineError(
            f"server {server.url} sent no completion with token ids and log-probs "
            f"({type(error).__name__}: {error}): is rollout.server_type right, and the server new "
            f"enough? It answered {str(answer)[:200]!r}"
        ) from None


def to_rollout(
    answer: Answer, prompt: list[int], params: SamplingParams, vocab_size: int, version: int
) -> Rollout:
    """Return the answer as a rollout; raise EngineError if it is not what was asked for."""
    ids, logprobs, last = answer.ids, answer.logprobs, answer.ids[-1] if answer.ids else None
    stops = set(params.stop_token_ids)
    if answer.prompt_ids not in (None, prompt) or answer.num_prompt_tokens != len(prompt):
        raise EngineError(
            f"read another prompt ({answer.num_prompt_tokens} tokens) than the {len(prompt)} token "
            "ids it was sent: it has another tokenizer, or truncates prompts"
        )
    if len(ids) != len(logprobs) or not ids:
        raise EngineError(f"returned {len(ids)} token ids with {len(logprobs)} log-probs")
    unknown = [i for i in ids if not 0 <= i < vocab_size]
    if unknown:
        raise EngineError(
            f"returned the token id {unknown[0]}, outside the policy's vocabulary of {vocab_size}: "
            "it serves another model"
        )
    if not all(math.isfinite(x) and x < 1e-3 for x in logprobs):
        raise EngineError(f"returned invalid log-probs, such as {max(logprobs)}")
    early = [i for i in ids[:-1] if i in stops]
    if early:
        raise EngineError(f"continued after the stop token {early[0]}")
    if last not in stops and answer.finish_reason == "stop":
        raise EngineError(
            f"stopped at the token {last}, which is not one of the stop tokens {sorted(stops)}: "
            "it has stop tokens or strings of its own"
        )
    if last not in stops and (
        answer.finish_reason != "length" or len(ids) != params.max_new_tokens
    ):
        raise EngineError(
            f"ended after {len(ids)} of {params.max_new_tokens} tokens without a stop token "
            f"(finish_reason {answer.finish_reason!r}): the request was aborted, or its context "
            "length is too small for the prompt"
        )
    return Rollout(prompt, ids, logprobs, "stop" if last in stops else "length", version)


def check_server(
    server: Server,
    dialect: Dialect,
    model: str,
    room: int,
    prompt: list[int],
    params: SamplingParams,
) -> None:
    """Raise EngineError if a server cannot generate for this run.

    It must serve the base model `model`, take `room` tokens, read token ids as they are, and return
    log-probs of the distribution that it samples from.
    """
    listed = server.get("/v1/models")
    try:
        card = next(card for card in listed["data"] if not card.get("parent"))
        names = {str(card["id"]), str(card.get("root") or card["id"])}
        limit = card.get("max_model_len")
    except (KeyError, TypeError, AttributeError, StopIteration):
        raise EngineError(
            f"server {server.url} lists no model under /v1/models; start it with: "
            f"{server.start_with}"
        ) from None
    if Path(model).name.lower() not in {Path(name).name.lower() for name in names}:
        raise EngineError(
            f"server {server.url} serves {card['id']}, but the run trains an adapter of {model}; "
            f"start it with: {server.start_with} (the same model under another name: add "
            f"--served-model-name {Path(model).name})"
        )
    if limit is not None and limit < room:
        raise EngineError(
            f"server {server.url} takes {limit} tokens, but the longest prompt and its completion "
            f"have {room}: start it with a larger context length, or lower rollout.max_new_tokens"
        )
    # with top_k = 1 the truncated distribution has one token of probability 1: its log-probs are
    # 0, those of the model's own distribution are not
    probe = SamplingParams(PROBE_TOKENS, params.stop_token_ids, temperature=1.0, top_k=1)
    answer = ask(server, dialect, prompt, probe, 0, None, card["id"])
    try:
        to_rollout(answer, prompt, probe, 2**31, 0)
    except EngineError as error:
        raise EngineError(f"server {server.url} {error}") from None
    truncated = params.top_k > 0 or params.top_p < 1
    tempered = params.temperature != 1 and not dialect.always_tempered
    if (truncated or tempered) and min(answer.logprobs) < -1e-2:
        raise EngineError(
            f"server {server.url} returns log-probs of another distribution than the one it "
            f"samples from: {dialect.logprobs}"
        )
    server.close()
