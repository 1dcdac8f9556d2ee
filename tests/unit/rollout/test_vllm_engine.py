"""vLLM in process, against a stand-in for the package: it can not be installed where tests run.

The stand-in has the signatures of vLLM's own calls and samples with the native sampler from
whatever weights it was given, so what is tested is what we call and when; vLLM itself is not.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib.machinery import ModuleSpec
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import tiny
import torch
from peft import PeftModel
from test_server_engine import grpo, run, steps
from test_server_engine import trained as trained

from posttrain.model.config import ModelConfig
from posttrain.model.load import load_causal_lm, prepare_policy
from posttrain.rollout.engines.vllm import VllmSampler
from posttrain.rollout.native.sampler import NativeSampler
from posttrain.rollout.sampler import EngineError, SamplingParams
from posttrain.runs.config import parse_config


@dataclass(frozen=True)
class FakeParams:
    n: int = 1
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    seed: int | None = None
    stop_token_ids: list[int] | None = None
    ignore_eos: bool = False
    max_tokens: int | None = 16
    logprobs: int | None = None
    detokenize: bool = True
    skip_special_tokens: bool = True


@dataclass(frozen=True)
class FakeLoRARequest:
    lora_name: str
    lora_int_id: int
    lora_path: str = ""


class FakeLLM:
    latest: FakeLLM

    def __init__(
        self,
        model: str,
        *,
        dtype: str = "auto",
        seed: int = 0,
        gpu_memory_utilization: float = 0.92,
        enable_lora: bool = False,
        max_loras: int = 1,
        max_lora_rank: int = 16,
        max_num_seqs: int | None = None,
        max_model_len: int | None = None,
        logprobs_mode: str = "raw_logprobs",
    ) -> None:
        assert logprobs_mode == "processed_logprobs"
        assert max_lora_rank in (1, 8, 16, 32, 64, 128, 256, 320, 512)
        FakeLLM.latest = self
        self.model, self.dtype, self.enable_lora = model, dtype, enable_lora
        self.max_model_len = max_model_len
        self.policy = self._load(None)
        self.adapters: dict[int, Any] = {}
        self.resets = 0
        self.answers_with: int | None = None
        self.llm_engine = SimpleNamespace(remove_lora=lambda lora_id: self.adapters.pop(lora_id))

    def _load(self, adapter: str | None) -> Any:
        model = load_causal_lm(self.model, torch.float32)
        if adapter is not None:
            model = PeftModel.from_pretrained(model, adapter, is_trainable=True)
        config = ModelConfig(name="served", use_lora=False)
        return prepare_policy(model, config, tiny.CPU, torch.float32, 0)

    def generate(
        self,
        prompts: list[dict[str, list[int]]],
        sampling_params: list[FakeParams] | None = None,
        *,
        use_tqdm: bool = True,
        lora_request: FakeLoRARequest | None = None,
    ) -> list[Any]:
        assert sampling_params is not None
        policy = self.policy
        if lora_request is not None:
            assert self.enable_lora
            assert lora_request.lora_int_id > 0
            if lora_request.lora_int_id not in self.adapters:  # an id that it knows is not reloaded
                self.adapters[lora_request.lora_int_id] = self._load(lora_request.lora_path)
            policy = self.adapters[lora_request.lora_int_id]
            if self.answers_with is not None:
                lora_request = FakeLoRARequest("other", self.answers_with)
        outputs = []
        for prompt, asked in zip(prompts, sampling_params, strict=True):
            assert asked.ignore_eos
            assert asked.logprobs == 0
            assert asked.seed is not None
            params = SamplingParams(
                asked.max_tokens or 16,
                tuple(asked.stop_token_ids or ()),
                asked.temperature,
                asked.top_p,
                max(0, asked.top_k),
            )
            ids = prompt["prompt_token_ids"]
            (rollout,) = NativeSampler(policy, 1).generate([ids], params, [asked.seed])
            steps = zip(rollout.response_ids, rollout.logprobs)
            completion = SimpleNamespace(
                token_ids=tuple(rollout.response_ids),
                finish_reason=rollout.finish_reason,
                logprobs=[{i: SimpleNamespace(logprob=x)} for i, x in steps],
            )
            outputs.append(
                SimpleNamespace(
                    prompt_token_ids=ids, outputs=[completion], lora_request=lora_request
                )
            )
        return outputs

    def collective_rpc(
        self,
        method: Callable[..., Any],
        timeout: float | None = None,
        args: tuple = (),
        kwargs: dict[str, Any] | None = None,
    ) -> list[Any]:
        def load_weights(weights: list[tuple[str, torch.Tensor]]) -> None:
            mine = dict(self.policy.model.named_parameters())
            for name, value in weights:
                mine[name].data.copy_(value)

        model = SimpleNamespace(load_weights=load_weights)
        return [method(SimpleNamespace(model_runner=SimpleNamespace(model=model)), *args)]

    def reset_prefix_cache(self) -> bool:
        self.resets += 1
        return True


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, content in {
        "vllm": {"LLM": FakeLLM, "SamplingParams": FakeParams},
        "vllm.lora": {},
        "vllm.lora.request": {"LoRARequest": FakeLoRARequest},
    }.items():
        module = ModuleType(name)
        module.__dict__.update(content)
        module.__spec__ = ModuleSpec(name, None)
        monkeypatch.setitem(sys.modules, name, module)


@pytest.mark.slow
@pytest.mark.parametrize("use_lora", [True, False])
def test_training_with_vllm_equals_training_in_process(use_lora, trained, tmp_path, fake):
    found = []
    for engine in ("native", "vllm"):
        tree = grpo(tmp_path / engine, trained, max_steps=3, learning_rate=0.01)
        tree["model"] = {"name": str(trained), "use_lora": use_lora}
        tree["rollout"]["engine"] = engine
        found.append(run(tree))
    for a, b in zip(*map(steps, found), strict=True):
        assert b == pytest.approx(a, rel=1e-4, abs=1e-6)
    llm = FakeLLM.latest
    assert llm.dtype == "float32"
    if use_lora:
        assert list(llm.adapters) == [3], "one adapter at a time, with a new id for each version"
    else:
        assert llm.resets == 3, "the prefix cache holds keys and values of old weights"
    assert not (found[1] / "adapters").exists()


@pytest.mark.parametrize("value_model", [pytest.param("own", marks=pytest.mark.slow), "shared"])
def test_ppo_does_not_send_its_value_head(value_model, trained, tmp_path, fake):
    """vLLM's loader raises for a name that the model does not have, as the stand-in does."""
    tree = tiny.run_config(tmp_path, "ppo", max_steps=2, value_model=value_model)
    tree["model"] = {"name": str(trained), "use_lora": False}
    tree["rollout"]["engine"] = "vllm"
    run(tree)
    assert FakeLLM.latest.resets == 2


def test_an_adapter_of_another_version_is_an_error(trained, tmp_path, fake):
    policy = prepare_policy(
        load_causal_lm(str(trained), torch.float32),
        ModelConfig(name="x", use_lora=True),
        tiny.CPU,
        torch.float32,
        0,
    )
    sampler = VllmSampler(policy, str(trained), tmp_path / "adapters", 8, 99, 0.3, 0)
    sampler.update_weights()
    sampler.generate([[5, 6]], SamplingParams(4, (3,)), [0])
    FakeLLM.latest.answers_with = 5
    with pytest.raises(EngineError, match="weights of version 4, but was given version 0"):
        sampler.generate([[5, 6]], SamplingParams(4, (3,)), [0])


def test_without_vllm_the_run_says_what_to_install(trained, tmp_path):
    tree = grpo(tmp_path, trained)
    tree["rollout"]["engine"] = "vllm"
    with pytest.raises(ValueError, match=r"pip install 'posttrain\[vllm\]'"):
        run(tree)
    assert not list(tmp_path.glob("grpo_*"))


def test_random_weights_have_no_name_to_load(tmp_path):
    tree = tiny.run_config(tmp_path, "grpo")
    tree["rollout"]["engine"] = "vllm"
    with pytest.raises(ValueError, match=r"model.scratch has none: use rollout.engine: native"):
        run(tree)
    parse_config(tree, "test")
