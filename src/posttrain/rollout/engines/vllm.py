"""vLLM in the training process: one rank, one device shared by the trainer and the engine.

An adapter is delivered as a folder with a new id per version; full weights are copied into the
engine's model. vLLM is imported only here, and only if this engine is chosen.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from posttrain.model.config import HEAD_PREFIXES
from posttrain.rollout.engines.delivery import has_adapter, write_adapter
from posttrain.rollout.engines.dialects import Answer, max_lora_rank
from posttrain.rollout.engines.server import to_rollout
from posttrain.rollout.sampler import EngineError, Finished, Rollout, SamplingParams


def check_installed() -> None:
    """Raise ValueError if vLLM is not installed."""
    if importlib.util.find_spec("vllm") is None:
        raise ValueError(
            "rollout.engine: vllm needs the package vllm: pip install 'posttrain[vllm]', or use "
            "rollout.engine: native"
        )


class VllmSampler:
    """A sampler with a vLLM engine in this process."""

    def __init__(
        self,
        policy: Any,
        base_model: str,
        folder: Path,
        max_num_seqs: int,
        max_model_len: int,
        gpu_memory_utilization: float,
        seed: int,
    ) -> None:
        """Have vLLM load `base_model`; adapters are delivered to it through `folder`."""
        # an engine in another process could not be given tensors
        os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
        from vllm import LLM

        self.policy, self.folder = policy, folder.resolve()
        self.vocab_size = policy.causal_lm().config.vocab_size
        dtype = policy.autocast or torch.float32
        options: dict[str, Any] = {}
        if has_adapter(policy):
            rank = max_lora_rank(policy.model.peft_config["default"].r)
            options = {"enable_lora": True, "max_loras": 1, "max_lora_rank": rank}
        self.llm = LLM(
            model=base_model,
            dtype=str(dtype).removeprefix("torch."),
            seed=seed,
            max_num_seqs=max_num_seqs,
            max_model_len=max_model_len,
            gpu_memory_utilization=gpu_memory_utilization,
            # log-probs of the distribution sampled from: after temperature, top_k and top_p
            logprobs_mode="processed_logprobs",
            **options,
        )
        self.lora: Any = None
        self.delivered: int | None = None

    def update_weights(self) -> None:
        """Deliver the policy's adapter, or copy its full weights, if they are newer."""
        version = self.policy.version
        if self.delivered == version:
            return
        if has_adapter(self.policy):
            self._deliver_adapter(version)
        else:
            weights = [
                (name.removeprefix("model."), p.detach())
                for name, p in self.policy.named_parameters()
                if not name.startswith(HEAD_PREFIXES)  # PPO's value head, which vLLM lacks
            ]
            self.llm.collective_rpc(_load_weights, args=(weights,))
            self.llm.reset_prefix_cache()  # computed with the previous weights
        self.delivered = version

    def _deliver_adapter(self, version: int) -> None:
        from vllm.lora.request import LoRARequest

        path = self.folder / f"policy-v{version}"
        if self.lora is not None:
            self.llm.llm_engine.remove_lora(self.lora.lora_int_id)
        shutil.rmtree(self.folder, ignore_errors=True)
        write_adapter(path, self.policy)
        # vLLM caches adapters by this id: one used before would mean the old weights
        self.lora = LoRARequest(path.name, version + 1, str(path))

    def generate(
        self,
        prompts: Sequence[list[int]],
        params: SamplingParams,
        seeds: Sequence[int],
        finished: Finished = lambda place, rollout: None,
    ) -> list[Rollout]:
        """Return one completion per prompt, all at the end; `finished` is not called."""
        from vllm import SamplingParams as VllmParams

        if not all(prompts):
            raise ValueError("a prompt is empty")
        outputs = self.llm.generate(
            [{"prompt_token_ids": prompt} for prompt in prompts],
            [
                VllmParams(
                    max_tokens=params.max_new_tokens,
                    temperature=params.temperature,
                    top_p=params.top_p,
                    top_k=params.top_k or -1,
                    seed=seed,
                    logprobs=0,
                    # only our stop tokens: vLLM would add the model's end-of-sequence tokens
                    stop_token_ids=list(params.stop_token_ids),
                    ignore_eos=True,
                    detokenize=False,
                )
                for seed in seeds
            ],
            use_tqdm=False,
            lora_request=self.lora,
        )
        if len(outputs) != len(prompts):
            raise EngineError(f"vLLM returned {len(outputs)} of {len(prompts)} completions")
        return [self._check(prompt, output, params) for prompt, output in zip(prompts, outputs)]

    def _check(self, prompt: list[int], output: Any, params: SamplingParams) -> Rollout:
        assert self.delivered is not None, "update_weights comes first"
        used: int | None = self.delivered
        if has_adapter(self.policy):  # then the engine reports which one it used
            used = output.lora_request.lora_int_id - 1 if output.lora_request else None
        if used != self.delivered:
            raise EngineError(
                f"vLLM generated with the weights of version {used}, but was given version "
                f"{self.delivered}"
            )
        try:
            return to_rollout(_read(output), prompt, params, self.vocab_size, self.delivered)
        except EngineError as error:
            raise EngineError(f"vLLM {error}") from None

    def close(self) -> None:
        """Delete the adapters' folder."""
        with suppress(OSError):
            shutil.rmtree(self.folder)


def _read(output: Any) -> Answer:
    completion = output.outputs[0]
    ids = list(completion.token_ids)
    logprobs = [step[i].logprob for step, i in zip(completion.logprobs, ids)]
    prompt = list(output.prompt_token_ids)
    return Answer(ids, logprobs, completion.finish_reason, len(prompt), prompt)


def _load_weights(worker: Any, weights: list[tuple[str, Tensor]]) -> None:
    worker.model_runner.model.load_weights(weights)
