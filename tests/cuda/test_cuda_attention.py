"""The attention that runs for a GPU, dtype, head size and version of torch, and its result."""

from __future__ import annotations

import inspect

import device_steps
import pretend_cuda
import pytest
import tiny
import torch
from device_counts import Watch
from repeats import choice
from torch.nn.attention import varlen

from posttrain.common.batch import pack, sequences_of
from posttrain.model.device import choose_dtype
from posttrain.model.forward import forward
from posttrain.model.kernels import flash

pretend_cuda.only_here()

CUDA = torch.device("cuda", 0)
T4, V100, RTX_4090, B200 = (7, 5), (7, 0), (8, 9), (10, 0)


@pytest.fixture
def gpu(monkeypatch):
    """Pretends another GPU."""

    def choose(capability):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: capability)

    return choose


def shared_prompts():
    """Pairs that share their prompts, and a row of its own."""
    return [*sequences_of(tiny.random_pairs()), *tiny.random_sequences(1)]


def bare(rows):
    for row in rows:
        row.per_token, row.per_seq = {}, {}
    return rows


def logprobs_and_gradient(device, dtype, lora=True, **changes):
    made = device_steps.models(device, dtype, lora, **changes)
    batch = pack(bare(shared_prompts())).to(device)
    with Watch() as watch:
        out = forward(made.policy, batch).logprobs
        out[batch.loss_mask].sum().backward()
    grads = {n: p.grad.cpu() for n, p in made.trainable().items()}
    return out.detach().cpu(), grads, watch.kernels["_varlen_attn"]


SHAPES: list[tuple[dict, bool]] = [
    ({}, True),
    ({"num_key_value_heads": 4}, True),
    ({"head_dim": 40}, True),
    ({"head_dim": 12}, False),
    ({"head_dim": 264}, False),
    ({"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1}, True),
]
FORMS = [(*shape, lora) for lora in (True, False) for shape in SHAPES]


@pytest.mark.parametrize(("changes", "uses_flash", "lora"), choice(FORMS, FORMS[:7]))
def test_the_flash_kernel_where_it_fits_and_the_same_result(changes, uses_flash, lora):
    logprobs, grads, calls = logprobs_and_gradient("cuda", "bfloat16", lora, **changes)
    assert (calls > 0) == uses_flash
    if uses_flash:
        assert calls == 2, "one call per layer, whatever the number of sequences"
    expected, theirs, _ = logprobs_and_gradient("cpu", "float32", lora, **changes)
    assert (logprobs - expected).abs().max() < 0.1
    tiny.assert_same(theirs, grads, rtol=0.15)


def test_fp32_attends_sequence_by_sequence():
    assert logprobs_and_gradient("cuda", "float32")[2] == 0


@pytest.mark.parametrize("capability", [T4, pytest.param(V100, marks=pytest.mark.slow)])
def test_an_old_gpu_takes_fp32_and_no_flash_kernel(gpu, capability):
    gpu(capability)
    assert choose_dtype("auto", CUDA) == torch.float32
    logprobs, _, calls = logprobs_and_gradient("cuda", "bfloat16")  # asked for by name
    assert calls == 0
    assert (logprobs - logprobs_and_gradient("cpu", "float32")[0]).abs().max() < 0.1


def test_a_new_gpu_takes_bf16(gpu):
    for capability in ((8, 0), RTX_4090, (9, 0), B200):
        gpu(capability)
        assert choose_dtype("auto", CUDA) == torch.bfloat16
        assert flash.unsuitable(CUDA, torch.bfloat16, 128) is None


@pytest.mark.parametrize(
    ("size", "value_size", "capability", "why"),
    [
        (64, 64, T4, "capability"),
        (100, 100, (9, 0), "head size"),
        (512, 512, (9, 0), "head size"),
        (192, 128, (9, 0), "values"),
        (200, 200, RTX_4090, "backward"),
        (200, 200, (12, 0), "backward"),
        (200, 200, (9, 0), None),
        (256, 256, RTX_4090, None),
    ],
)
def test_what_the_kernel_refuses_is_known_with_the_reason(gpu, size, value_size, capability, why):
    gpu(capability)
    reason = flash.unsuitable(CUDA, torch.bfloat16, size, value_size)
    assert reason is None if why is None else why in reason


def torch_2_10(
    query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, is_causal=False, return_aux=None
):
    raise AssertionError("it has no scale and no window")


def torch_2_11(
    query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, *, return_aux=None, scale=None,
    window_size=(-1, -1),
):  # fmt: skip
    heads = query.shape[1] != key.shape[1]  # the kernel groups them by itself
    return CURRENT(
        query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, scale=scale, window_size=window_size,
        enable_gqa=heads,
    )  # fmt: skip


CURRENT = varlen.varlen_attn


@pytest.mark.parametrize(
    ("function", "uses_flash"), [(torch_2_10, False), (torch_2_11, True), (CURRENT, True)]
)
def test_every_version_of_torch(monkeypatch, function, uses_flash):
    """LoRA in bf16 with grouped heads: torch 2.11 lacks enable_gqa, 2.10 scale and window_size."""
    monkeypatch.setattr(varlen, "varlen_attn", function)
    flash._keywords.cache_clear()
    try:
        logprobs, _, calls = logprobs_and_gradient("cuda", "bfloat16")
    finally:
        flash._keywords.cache_clear()
    assert (calls > 0) == uses_flash
    assert (logprobs - logprobs_and_gradient("cpu", "float32")[0]).abs().max() < 0.1


def test_a_torch_without_varlen(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "torch.nn.attention.varlen", None)
    monkeypatch.delattr("torch.nn.attention.varlen")
    flash._keywords.cache_clear()
    try:
        assert "variable-length" in flash.unsuitable(CUDA, torch.bfloat16, 64)
        assert logprobs_and_gradient("cuda", "bfloat16")[2] == 0
    finally:
        flash._keywords.cache_clear()


def test_the_signature_that_is_installed_is_one_we_know():
    assert {"scale", "window_size"} <= set(inspect.signature(CURRENT).parameters)
