"""Completions from inference servers over HTTP; the policy's weights are delivered to them.

Every version of the weights has a name that contains its number: an adapter's own name, or the
`weight_version` of all weights. vLLM names the adapter that it used in every answer, and `posttrain
serve` the versions, so the version of a rollout is what the server reports, not what we assume.
"""

from __future__ import annotations

import math
import re
import shutil
import threading
import uuid
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from posttrain.common import distributed
from posttrain.rollout.engines.client import Line, Server, ServerError
from posttrain.rollout.engines.delivery import has_adapter, write_adapter, write_weights
from posttrain.rollout.engines.dialects import Answer, Dialect
from posttrain.rollout.engines.pool import Lease, Pool
from posttrain.rollout.engines.transfer import (
    base_card,
    load_adapter,
    load_weights,
    present_version,
)
from posttrain.rollout.generation import raise_together
from posttrain.rollout.sampler import EngineError, Finished, Rollout, SamplingParams

PREFIX = "posttrain"
PROBE_TOKENS = 8


class ServerSampler:
    """A sampler that spreads prompts over several servers, with bounded concurrency.

    update_weights is a collective: all ranks call it at the same point, and if one fails, all raise
    EngineError. With `overlaps` it may be called while completions are sampled; those come from the
    version that their server has when they are sent, or a newer one that it gets meanwhile, and are
    labelled with the oldest.
    """

    def __init__(
        self,
        policy: Any,
        servers: list[Server],
        dialect: Dialect,
        folder: Path,
        max_concurrent_requests: int,
        patience: float = 120.0,
        overlaps: bool = False,
        welcome: Callable[[Server], None] = lambda server: None,
        say: Callable[[str], None] = print,
    ) -> None:
        """Deliver weights through `folder`, which the servers must see under the same path.

        `welcome` raises EngineError for a server that came back and cannot generate for this run.
        """
        self.policy, self.dialect, self.folder = policy, dialect, folder.resolve()
        self.vocab_size = policy.causal_lm().config.vocab_size
        # a server that outlives a process may still hold, or have cached, that process's adapters
        self.run_id = distributed.from_rank_0(uuid.uuid4().hex[:8])
        self.full, self.overlaps = not has_adapter(policy), overlaps
        leads = distributed.rank() == 0
        load = self._load if leads else self._find
        self.pool = Pool(servers, load, welcome, patience, say if leads else None)
        self.line = Line(max_concurrent_requests)
        self.delivered: int | None = None

    @property
    def servers(self) -> list[Server]:
        """All servers, also those that are left out."""
        return [member.server for member in self.pool.members]

    def adapter(self, version: int) -> str:
        """Return the name of a version of the weights."""
        return f"{PREFIX}-{self.run_id}-v{version}"

    def update_weights(self) -> None:
        """Deliver the policy's weights to every server, and take back what none uses any more."""
        version = self.policy.version
        if all(distributed.all_gather(self.delivered == version)):
            return
        running = distributed.all_gather(self.pool.oldest_running())
        write = write_weights if self.full else write_adapter
        problem, models = None, None
        try:
            write(self.folder / self.adapter(version), self.policy)
            if distributed.rank() == 0:
                # a rank sends requests for the version before until it hears of this one
                used = [v for v in (*running, self.pool.version) if v is not None]
                oldest = min(used, default=version) if self.overlaps else version
                self._take_back(set(range(oldest, version + 1)))
                self.pool.deliver(version)
                models = self.pool.models()
        except (EngineError, OSError) as error:
            problem = str(error)
        raise_together(problem)
        models = distributed.from_rank_0(models)
        if distributed.rank() != 0:
            self.pool.adopt(version, models)
        self.delivered = version

    def generate(
        self,
        prompts: Sequence[list[int]],
        params: SamplingParams,
        seeds: Sequence[int],
        finished: Finished = lambda place, rollout: None,
    ) -> list[Rollout]:
        """Return one completion per prompt; raise EngineError if no server is left to give one."""
        if not all(prompts):
            raise ValueError("a prompt is empty")
        assert self.delivered is not None, "update_weights comes first"

        given_up = threading.Event()

        def complete(place: int) -> Rollout:
            rollout = self._complete(prompts[place], params, seeds[place], given_up)
            finished(place, rollout)
            return rollout

        try:
            return self.line.run(complete, range(len(prompts)))
        except EngineError:
            self.delivered = None  # so that update_weights delivers again
            raise
        finally:
            given_up.set()  # what was under way asks no other server

    def close(self) -> None:
        """Unload the adapter and delete its folder; servers that are gone are ignored."""
        self.pool.close()
        if distributed.rank() == 0:
            self._take_back(set())
            with suppress(OSError):
                self.folder.rmdir()
        for server in self.servers:
            server.close()

    def _complete(
        self, prompt: list[int], params: SamplingParams, seed: int, given_up: threading.Event
    ) -> Rollout:
        """Return a completion of the first server that gives one."""
        while not given_up.is_set():
            lease = self.pool.take()
            patient, hurried = lease.member.server, lease.member.once
            try:
                try:
                    server = hurried if lease.others else patient
                    rollout = self._ask(server, lease, prompt, params, seed)
                except ServerError as error:
                    if error.kind != "busy" or not lease.others:
                        raise
                    rollout = self._ask(patient, lease, prompt, params, seed)
                self.pool.trust(lease)
                return rollout
            except ServerError as error:
                if error.kind == "refused":
                    raise
                self.pool.distrust(lease, error)
            finally:
                self.pool.give_back(lease)
        raise EngineError("nobody waits for the completion any more")

    def _ask(
        self, server: Server, lease: Lease, prompt: list[int], params: SamplingParams, seed: int
    ) -> Rollout:
        """Return a server's completion, with the version that it reports."""
        version, adapter = lease.version, None if self.full else lease.model
        try:
            answer = ask(server, self.dialect, prompt, params, seed, adapter, lease.model)
        except ServerError as error:
            if self.adapter(version) in (error.refusal or ""):
                text = f"{error}; the adapter was delivered to it: was it restarted since?"
                raise ServerError(
                    text, "weights", "no longer has the weights it was given"
                ) from None
            raise
        used = answer.version if self.full else answer.model
        if used is not None and (self.full or self.dialect.names_adapter):
            version = self._version_of(server, used, version)
        try:
            return to_rollout(answer, prompt, params, self.vocab_size, version)
        except EngineError as error:
            raise EngineError(f"server {server.url} {error}") from None

    def _version_of(self, server: Server, used: str, version: int) -> int:
        """Return the version that a server names; raise ServerError if it is older than asked for.

        A newer one is right if all weights were replaced while the request waited."""
        found = re.fullmatch(re.escape(self.adapter(0)[:-1]) + r"(\d+)", used)
        number = None if found is None else int(found[1])
        if number == version or (self.full and number is not None and number > version):
            return number
        short = f"generated with {used!r}, but the policy's weights are {self.adapter(version)!r}"
        text = (
            f"server {server.url} {short}: the delivery did not take effect; restart the server "
            f"with: {server.start_with}"
        )
        raise ServerError(text, "weights", short)

    def _load(self, server: Server, version: int) -> str:
        """Give a server a version of the weights; return what requests call it."""
        folder = self.folder / self.adapter(version)
        return (
            load_weights(server, folder)
            if self.full
            else load_adapter(server, self.dialect, folder)
        )

    def _find(self, server: Server, version: int) -> str:
        """Return what requests call a version that rank 0 has delivered."""
        folder = self.folder / self.adapter(version)
        return present_version(server, self.dialect, folder, self.full)

    def _take_back(self, keep: set[int]) -> None:
        """Unload and delete what the folder holds but for these versions, also a killed process's.

        All weights are read when they are delivered, and kept for servers that join."""
        kept = {self.adapter(version) for version in keep}
        for old in self.folder.glob(f"*{PREFIX}-*-v*"):
            if old.name in kept:
                continue
            for server in [] if self.full else self.pool.live():
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
    card, _ = base_card(server)
    names = {card["id"], str(card.get("root") or card["id"])}
    limit = card.get("max_model_len")
    if Path(model).name.lower() not in {Path(name).name.lower() for name in names}:
        raise EngineError(
            f"server {server.url} serves {card['id']}, but the run trains weights of {model}; "
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
