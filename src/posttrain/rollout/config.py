"""The rollout section."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from posttrain.config.base import AlsoCalled, ForEngines, Free, StrictConfig, marks
from posttrain.config.paths import LocalPath
from posttrain.rollout.check import LEAST_TEMPERATURE


class RolloutConfig(StrictConfig):
    """How completions are sampled from the policy during training."""

    group_size: Annotated[int, AlsoCalled("num_generations")] = Field(8, ge=1)
    """Completions per prompt."""
    max_new_tokens: Annotated[
        int,
        AlsoCalled(
            "max_completion_length",
            max_tokens="rollout.max_new_tokens (also in sampling and eval)",
        ),
    ] = Field(512, ge=1)
    """Maximum completion length in tokens, including the stop token."""
    temperature: float = Field(1.0, ge=LEAST_TEMPERATURE)
    """Divides the logits; log-probs are those of the distribution sampled from."""
    max_resamples: int = Field(0, ge=0)
    """How often a group without a signal (all rewards equal) is replaced by another prompt's group
    before the step continues (DAPO's dynamic sampling); 0 never."""
    one_step_off: bool = False
    """Sample the completions of the next step while this one trains. They are then one step old, so
    trainer.sampler_correction is needed. Meant for engine server; native needs a copy of the
    policy."""
    max_staleness: Annotated[int, ForEngines("server")] = Field(0, ge=0)
    """Optimiser steps that may lie between the weights that sampled a completion and those that
    train on it. Above 0 the servers sample the completions of later steps meanwhile, and get new
    weights while they do; trainer.sampler_correction is needed."""
    record_prompts: Annotated[int, Free()] = Field(2, ge=0)
    """Prompts of each step whose completions samples.jsonl records token by token: log-probs,
    advantages, mask. About 30 bytes a token; the texts and rewards of all are recorded anyway."""
    engine: Annotated[
        Literal["native", "server", "vllm"],
        AlsoCalled(
            use_vllm="rollout.engine: server or vllm",
            vllm_mode="rollout.engine: server, or vllm (in this process)",
        ),
    ] = "native"
    """native: posttrain's own sampler; server: over HTTP; vllm: vLLM in this process."""
    max_num_seqs: Annotated[int, ForEngines("native", "vllm")] = Field(256, ge=1)
    """Maximum number of concurrent completions on one rank; bounds the memory of the KV cache."""
    gpu_memory_utilization: Annotated[
        float, Free(), ForEngines("vllm"), AlsoCalled("vllm_gpu_memory_utilization")
    ] = Field(0.3, gt=0, le=1)
    """Share of the GPU's memory for vLLM; the trainer needs the rest."""
    servers: Annotated[
        list[str], Free(), ForEngines("server"), AlsoCalled("vllm_server_base_url")
    ] = Field(default_factory=list)
    """Base URLs, such as http://127.0.0.1:8000; a request goes to the one with the fewest. One that
    fails is left out, and gets requests again once it answers."""
    server_patience: Annotated[float, Free(), ForEngines("server")] = Field(120.0, gt=0)
    """Seconds to wait for a server to come back if none is left, before the run ends."""
    server_type: Annotated[Literal["vllm", "sglang"], ForEngines("server")] = "vllm"
    """vllm: any server with vLLM's OpenAI API."""
    timeout: Annotated[float, Free(), ForEngines("server")] = Field(600.0, gt=0)
    """Seconds that a server may take for one completion."""
    retries: Annotated[int, Free(), ForEngines("server")] = Field(3, ge=0)
    """Further attempts after a connection error, a timeout or a server's own error."""
    max_concurrent_requests: Annotated[int, Free(), ForEngines("server")] = Field(64, ge=1)
    """Maximum number of concurrent requests of one rank, over all servers."""
    api_key_env: Annotated[str | None, Free(), ForEngines("server")] = None
    """Name of the environment variable that holds the servers' API key."""
    adapter_dir: Annotated[LocalPath | None, Free(), ForEngines("server")] = None
    """Folder through which weights are delivered, LoRA or all; the servers must see it under the
    same path. By default in the run directory."""

    @field_validator("servers")
    @classmethod
    def _base_urls(cls, servers: list[str]) -> list[str]:
        for url in servers:
            if not re.fullmatch(r"https?://[^/@\s]+(/\S*)?", url):
                raise ValueError(
                    "rollout.servers: write each as http://host:port, without user or key (put the "
                    "key into the environment variable that rollout.api_key_env names)"
                )
        plain = [url.rstrip("/").removesuffix("/v1").rstrip("/") for url in servers]
        places = [re.sub(r"^(https?://)localhost(?=[:/]|$)", r"\g<1>127.0.0.1", x) for x in plain]
        for url, place in zip(plain, places):
            if places.count(place) > 1:
                raise ValueError(f"rollout.servers: {url} is listed twice: remove one of them")
        return plain

    @model_validator(mode="after")
    def _engine_keys(self) -> RolloutConfig:
        unread = self.keys_of_other_engines()
        for key in sorted(self.model_fields_set & unread.keys()):
            raise ValueError(
                f"rollout.{key} is for rollout.engine: {' or '.join(unread[key])}, not for "
                f"{self.engine}"
            )
        if self.one_step_off and self.engine == "vllm":
            raise ValueError(
                "rollout.one_step_off: vLLM in this process can neither take new weights while it "
                "generates nor run during training: use rollout.engine: server"
            )
        if self.one_step_off and self.max_staleness:
            raise ValueError(
                "rollout.one_step_off and max_staleness exclude each other: remove one of them "
                "(max_staleness: 1 is at most one step off)"
            )
        if self.engine == "server" and not self.servers:
            raise ValueError(
                "rollout.engine: server needs rollout.servers, for example [http://127.0.0.1:8000]"
            )
        return self

    def keys_of_other_engines(self) -> dict[str, tuple[str, ...]]:
        """Return the keys that this engine does not read, with the engines that do."""
        return {
            name: mark.engines
            for name, info in type(self).model_fields.items()
            for mark in marks(info, ForEngines)
            if self.engine not in mark.engines
        }
