"""Faults that only a GPU shows, put in on purpose: each has to be caught by what the other files of
this folder check."""

from __future__ import annotations

import device_steps
import pretend_cuda
import pytest
import torch
from seeded import edit

from posttrain.algorithms import advantages, preference
from posttrain.model import language_model, shared_prompts
from posttrain.model.kernels import flash
from posttrain.model.output_head import HeadLogprobs

pretend_cuda.only_here()
pytestmark = pytest.mark.slow

TWO_DEVICES = "same device|on cpu|be on CUDA"
# the probe may meet the fault first: it refuses the head, or device_steps the policy, unpacked
REFUSED = (RuntimeError, IndexError, AssertionError, ValueError)


def step(name, dtype="bfloat16", lora=False):
    return device_steps.step(name, "cuda", dtype, lora)


def is_chosen_on_the_host(patch):
    plain = preference.is_chosen
    patch.setattr(preference, "is_chosen", lambda batch: plain(batch).cpu())


def place_in_gae_on_the_host(patch):
    edit(patch, advantages.gae, "device=mask.device) - before", "device='cpu') - before")


def head_targets_on_the_host(patch):
    plain = HeadLogprobs.apply

    def apply(states, weight, bias, targets, *rest):
        return plain(states, weight, bias, targets.cpu(), *rest)

    patch.setattr(language_model.HeadLogprobs, "apply", apply)


def places_not_moved(patch):
    old = "torch.cat([NO_INDICES, *places]).to(device)"
    edit(patch, shared_prompts.share_prompts, old, "torch.cat([NO_INDICES, *places])")


@pytest.mark.parametrize(
    ("fault", "method"),
    [
        (is_chosen_on_the_host, "dpo"),
        (place_in_gae_on_the_host, "ppo"),
        (head_targets_on_the_host, "sft"),
        (places_not_moved, "sft"),
    ],
)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_tensor_on_the_wrong_device(fault, method, dtype, monkeypatch):
    step(method, dtype)
    fault(monkeypatch)
    with pytest.raises(REFUSED, match=TWO_DEVICES):
        step(method, dtype)


def test_cu_seqlens_in_int64(monkeypatch):
    plain = shared_prompts.cumulative
    monkeypatch.setattr(shared_prompts, "cumulative", lambda lengths: plain(lengths).long())
    with pytest.raises(REFUSED, match="int32"):
        step("sft")


def test_a_window_that_is_not_causal(monkeypatch):
    edit(monkeypatch, flash.varlen, "sliding_window - 1, 0)", "sliding_window - 1, -1)")
    with pytest.raises(AssertionError, match="log-probs would differ"):
        step("sft")


def test_a_head_whose_backward_pass_is_in_fp32(monkeypatch):
    forward = language_model.LanguageModel.forward
    edit(monkeypatch, forward, "states.to(self.autocast or states.dtype)", "states.float()")
    assert step("sft").cost.fp32_share > 0.02


def test_a_wait_too_many(monkeypatch):
    plain = HeadLogprobs.apply

    def apply(*arguments):
        for _ in range(2):
            float(arguments[0].detach().sum())
        return plain(*arguments)

    monkeypatch.setattr(language_model.HeadLogprobs, "apply", apply)
    assert "waits" in step("sft").cost.exceeds(device_steps.budget("sft", "bfloat16 full"))


def test_attention_sequence_by_sequence_in_bf16(monkeypatch):
    monkeypatch.setattr(flash, "unsuitable", lambda *arguments: "not today")
    assert "kernels" in step("dpo").cost.exceeds(device_steps.budget("dpo", "bfloat16 full"))


def test_a_sum_without_a_deterministic_kernel(monkeypatch):
    torch.use_deterministic_algorithms(True)
    try:
        with pytest.raises(RuntimeError, match="deterministic"):
            torch.ones(3, device="cuda").cumsum(0)
    finally:
        torch.use_deterministic_algorithms(False)
