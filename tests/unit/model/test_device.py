"""Device, dtype and attention path: what is chosen, what is said of it, and bf16's tolerances."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
import tiny
import torch
from conftest import ROOT
from torch import nn

from posttrain.algorithms.policy_gradient import MAX_LOGPROB_DIFFERENCE, GRPOConfig, check_sampler
from posttrain.common import distributed
from posttrain.model import device as devices
from posttrain.model import shared_prompts
from posttrain.model.config import ModelConfig
from posttrain.model.kernels import flash
from posttrain.model.load import prepare_policy
from posttrain.runs.config import parse_config
from posttrain.runs.hardware import attention_path, hardware
from posttrain.runs.plan import with_device_defaults

BF16, FP32 = torch.bfloat16, torch.float32


def bf16_policy():
    model = tiny.causal_lm(num_hidden_layers=4, initializer_range=0.4)
    config = ModelConfig(name="tiny", dtype="bfloat16", use_lora=False)
    return prepare_policy(model, config, tiny.CPU, BF16, 0)


def test_rounding_that_depends_on_the_batch_is_no_fault_in_bf16(monkeypatch):
    """cuBLAS adds in another order for another number of rows: here and there a product rounds to
    the neighbouring bf16 number. The tolerance of single log-probs was 0.05."""
    generator = torch.Generator().manual_seed(3)
    plain = nn.functional.linear

    def noisy(x, weight, bias=None):
        out = plain(x, weight, bias)
        flips = torch.rand(out.shape, generator=generator) < 0.05
        return torch.where(flips, out * (1 + 2**-8), out) if out.dtype == BF16 else out

    monkeypatch.setattr(nn.functional, "linear", noisy)
    policy = bf16_policy()
    assert policy.unpacked is None
    ids = torch.arange(4, 16)[None]
    with torch.no_grad(), policy.precision():
        model = policy.causal_lm()
        model.set_attn_implementation("sdpa")
        first, second = (model(input_ids=ids).logits.float().log_softmax(-1) for _ in range(2))
    assert (first - second).abs().max() > 0.05, "the noise is too weak to show anything"


def test_a_completion_that_does_not_see_its_prompt_is_found_in_bf16(monkeypatch):
    plain = shared_prompts.Packed

    def forgetful(lengths, cu_seqlens):
        layout = plain(lengths, cu_seqlens)
        object.__setattr__(layout, "__class__", Forgetful)
        return layout

    class Forgetful(plain):
        def __setattr__(self, name, value):
            object.__setattr__(self, name, None if name == "prefixes" else value)

    monkeypatch.setattr(shared_prompts, "Packed", forgetful)
    assert "would differ" in bf16_policy().unpacked


@pytest.mark.parametrize(("dtype", "limit"), [("float32", 0.05), ("bfloat16", 0.15)])
def test_the_sampler_may_differ_more_in_bf16(dtype, limit, tmp_path):
    tree = tiny.run_config(tmp_path, "grpo")
    tree["model"]["dtype"] = dtype
    config = with_device_defaults(parse_config(tree, "test"), tiny.CPU).trainer
    assert config.max_logprob_difference == limit == MAX_LOGPROB_DIFFERENCE[dtype]
    name = "sampling/sampling_logp_difference/mean"
    check_sampler({name: limit - 0.01}, config)
    with pytest.raises(ValueError, match=f"max_logprob_difference={limit}"):
        check_sampler({name: limit + 0.01}, config)
    assert GRPOConfig(max_steps=1, max_logprob_difference=0.3).max_logprob_difference == 0.3


class Gpu:
    """What torch would say of one."""

    def __init__(self, monkeypatch, capability, name="a GPU"):
        answers = {
            "is_available": True,
            "get_device_capability": capability,
            "get_device_name": name,
            "device_count": 1,
        }
        for key, answer in answers.items():
            monkeypatch.setattr(torch.cuda, key, lambda *a, _answer=answer, **k: _answer)
        native = capability >= (8, 0)
        supported = lambda including_emulation=True: including_emulation or native  # noqa: E731
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", supported)


@pytest.mark.parametrize("capability", [(7, 0), (7, 5)])
def test_a_gpu_that_only_emulates_bf16_gets_fp32(monkeypatch, capability):
    Gpu(monkeypatch, capability)
    device = devices.choose_device("auto")
    assert device.type == "cuda"
    assert devices.choose_dtype("auto", device) == FP32
    assert "no native" in devices.dtype_reason("auto", FP32, device)
    assert "emulates" in devices.dtype_reason("bfloat16", BF16, device)
    assert "compute capability 8.0" in flash.unsuitable(device, BF16, 64)


def test_what_is_said_of_a_gpu(monkeypatch):
    Gpu(monkeypatch, (9, 0), "NVIDIA H100")
    device = devices.choose_device("auto")
    assert devices.choose_dtype("auto", device) == BF16
    assert devices.device_reason("auto", device) == "NVIDIA H100, compute capability 9.0"
    assert devices.dtype_reason("bfloat16", BF16, device) == "bfloat16, as model.dtype says"


def test_a_run_names_device_dtype_and_attention():
    policy = tiny.models().policy
    lines = hardware(ModelConfig(name="tiny", dtype="float32", use_lora=False), policy)
    assert lines[0].startswith("device: the CPU, since torch sees no CUDA device; float32, as")
    assert "sequence by sequence, since the flash kernel needs a CUDA device" in lines[1]
    policy.unpacked = "it reads position ids of its own"
    assert "one sequence at a time, since it reads position" in attention_path(policy)


def test_deterministic_is_torchs_switch(monkeypatch):
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    try:
        devices.use_deterministic()
        assert torch.are_deterministic_algorithms_enabled()
        assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    finally:
        torch.use_deterministic_algorithms(False)


def test_more_ranks_than_gpus(monkeypatch):
    Gpu(monkeypatch, (9, 0))
    for name, value in zip(distributed.VARIABLES, ("1", "1", "2", "127.0.0.1", "29500")):
        monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match="rank 1 of this machine has no GPU: torch sees 1"):
        distributed.start("auto")


def test_the_vllm_extra_does_not_replace_torch():
    """vLLM pins torch exactly: a version of it is right for one version of torch only."""
    pins = dict(re.findall(r"^(\S+)==(\S+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE))
    extra = re.search(r'vllm = \["vllm==(\S+)\.\*"\]', (ROOT / "pyproject.toml").read_text())
    assert extra is not None, "the extra allows versions that pin another torch"
    assert pins["vllm"].startswith(extra[1])
    assert pins["torch"] == {"0.29": "2.13.0"}[extra[1]], "look up what the new version pins"


def test_the_page_has_the_recorded_costs(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(ROOT) / "scripts"))
    import gpu_costs

    costs = gpu_costs.json.loads(gpu_costs.BUDGET.read_text())
    assert gpu_costs.page(costs) == gpu_costs.PAGE.read_text(), "run scripts/gpu_costs.py"


def test_free_memory_has_one_definition():
    from posttrain.model.kernels import quantized
    from posttrain.serving import serve

    assert quantized.free_memory is serve.free_memory is devices.free_memory
