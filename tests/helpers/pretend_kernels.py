"""Operators of the pretended CUDA device that exist on CUDA only, or are one kernel there.

Each checks what its CUDA source checks (dtype, device, head size, contiguity, lengths) and computes
in fp32 on the CPU. Imported once the device is installed (pretend_cuda.py).
"""

from __future__ import annotations

import torch
from torch import Tensor

check = torch._check
_KEPT: list[torch.library.Library] = []  # a library goes when nobody holds it


def register() -> None:
    aten = torch.library.Library("aten", "IMPL")
    own = torch.library.Library("pretend", "DEF")
    _KEPT.extend((aten, own))
    aten.impl("_flash_attention_forward", flash_forward, "CUDA")
    aten.impl("_flash_attention_backward", flash_backward, "CUDA")
    aten.impl("_fused_rms_norm", rms_norm, "CUDA")
    aten.impl("_fused_rms_norm_backward", rms_norm_backward, "CUDA")
    aten.impl("silu_backward", silu_backward, "CUDA")
    keys = "Tensor q, Tensor k, Tensor v, Tensor? mask, bool causal, float scale"
    own.define(f"attention({keys}) -> Tensor")
    own.define(f"attention_backward(Tensor grad, {keys}) -> (Tensor, Tensor, Tensor)")
    own.impl("attention", fused, "CUDA")
    own.impl("attention_backward", fused_backward, "CUDA")
    for key in ("AutogradCUDA", "CUDA"):
        aten.impl("scaled_dot_product_attention", sdpa, key)


# --- variable-length flash attention: mha_varlen_fwd and mha_varlen_bwd of flash_api.cpp ----------

Part = tuple[Tensor, Tensor, Tensor, Tensor]
"""q [H, S, D], k and v [H, L, D] in fp32 on the CPU, and what is seen, [S, L] bool."""


def segments(query, key, value, cu_q, cu_k, causal: bool, left: int, right: int) -> list[Part]:
    check(torch.cuda.get_device_capability() >= (8, 0), lambda: "only supports Ampere or newer")
    check(
        query.dtype in (torch.float16, torch.bfloat16), lambda: f"fp16 or bf16, not {query.dtype}"
    )
    check(key.dtype == value.dtype == query.dtype, lambda: "query, key and value differ in dtype")
    for x in (query, key, value):
        check(x.is_cuda, lambda: "must be on CUDA")
        check(x.stride(-1) == 1, lambda: "the last dimension must be contiguous")
    for x in (cu_q, cu_k):
        fits = x.is_cuda and x.dtype == torch.int32 and x.is_contiguous()
        check(fits, lambda: "cu_seqlens must have dtype int32, be on CUDA and contiguous")
    size, heads, heads_k = query.shape[2], query.shape[1], key.shape[1]
    check(size % 8 == 0, lambda: "head_size must be a multiple of 8")
    check(size <= 256, lambda: "head_size must be at most 256")
    check(value.shape == key.shape, lambda: "values must have the shape of keys")
    check(heads % heads_k == 0, lambda: "heads of keys must divide heads of queries")
    ends_q, ends_k = cu_q.cpu().tolist(), cu_k.cpu().tolist()
    check(len(ends_q) == len(ends_k), lambda: "cu_seqlens_k must have shape [batch + 1]")
    # the kernel would read what lies beyond, or leave rows unwritten, without a word
    whole = ends_q[-1] == len(query) and ends_k[-1] == len(key)
    check(whole, lambda: "cu_seqlens do not end at the last token")
    parts = []
    for n in range(len(ends_q) - 1):
        q, k, v = (
            x.cpu()[ends[n] : ends[n + 1]].float().transpose(0, 1)
            for x, ends in ((query, ends_q), (key, ends_k), (value, ends_k))
        )
        k, v = (x.repeat_interleave(heads // heads_k, 0) for x in (k, v))
        rows, columns = q.shape[1], k.shape[1]
        at = torch.arange(rows)[:, None] + columns - rows  # aligned at the bottom right
        column, seen = torch.arange(columns), torch.ones(rows, columns, dtype=torch.bool)
        if causal or right >= 0:
            seen &= column <= at + (0 if causal else right)
        if left >= 0:
            seen &= column >= at - left
        parts.append((q, k, v, seen))
    return parts


def _window(left: int | None, right: int | None) -> tuple[int, int]:
    return (-1 if left is None else left), (-1 if right is None else right)


def flash_forward(
    query, key, value, cum_seq_q, cum_seq_k, max_q, max_k, dropout_p, is_causal, return_debug_mask,
    *, scale=None, window_size_left=None, window_size_right=None, **unused,
):  # fmt: skip
    left, right = _window(window_size_left, window_size_right)
    parts = segments(query, key, value, cum_seq_q, cum_seq_k, is_causal, left, right)
    check(max_q == max(p[0].shape[1] for p in parts), lambda: "max_q is not the longest")
    check(max_k == max(p[1].shape[1] for p in parts), lambda: "max_k is not the longest")
    scale = query.shape[2] ** -0.5 if scale is None else scale
    outs, sums = [], []
    for q, k, v, seen in parts:
        scores = (q @ k.transpose(1, 2) * scale).masked_fill(~seen, -torch.inf)
        outs.append((scores.softmax(-1) @ v).transpose(0, 1))
        sums.append(scores.logsumexp(-1))
    out = torch.cat(outs).to(query.dtype).to(query.device)
    nothing = torch.zeros(2, dtype=torch.uint64), torch.zeros(()), torch.zeros(0)
    return out, *(x.to(query.device) for x in (torch.cat(sums, 1), *nothing))


def flash_backward(
    grad_out, query, key, value, out, logsumexp, cum_seq_q, cum_seq_k, max_q, max_k, dropout_p,
    is_causal, rng_state, unused, *, scale=None, window_size_left=None, window_size_right=None,
):  # fmt: skip
    check(grad_out.dtype == query.dtype, lambda: "the gradient must have the dtype of query")
    left, right = _window(window_size_left, window_size_right)
    parts = segments(query, key, value, cum_seq_q, cum_seq_k, is_causal, left, right)
    scale = query.shape[2] ** -0.5 if scale is None else scale
    grads, start, group = [], 0, query.shape[1] // key.shape[1]
    for q, k, v, seen in parts:
        grad = grad_out.cpu()[start : start + q.shape[1]].float().transpose(0, 1)
        start += q.shape[1]
        weights = (q @ k.transpose(1, 2) * scale).masked_fill(~seen, -torch.inf).softmax(-1)
        grads.append([x.transpose(0, 1) for x in _backward(grad, q, k, v, weights, scale, group)])
    return tuple(torch.cat(parts).to(query.dtype).to(query.device) for parts in zip(*grads))


def _backward(grad, q, k, v, weights, scale: float, group: int) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q, k and v; those of the `group` heads that share a key are summed."""
    scores = grad @ v.transpose(-2, -1)
    scores = weights * (scores - (scores * weights).sum(-1, keepdim=True)) * scale
    to_k, to_v = (
        x.unflatten(-3, (-1, group)).sum(-3)
        for x in (scores.transpose(-2, -1) @ q, weights.transpose(-2, -1) @ grad)
    )
    return scores @ k, to_k, to_v


# --- scaled_dot_product_attention: the choice of kernel on an A100 or newer, without cuDNN --------


def _weights(q, k, mask, causal: bool, scale: float) -> Tensor:
    scores = q @ k.transpose(-2, -1) * scale
    if mask is not None:
        visible = mask.dtype == torch.bool
        scores = scores.masked_fill(~mask, -torch.inf) if visible else scores + mask
    if causal:
        seen = torch.ones(scores.shape[-2:], dtype=torch.bool).tril()
        scores = scores.masked_fill(~seen, -torch.inf)
    return scores.softmax(-1)


def _lowered(query, key, value, mask):
    q, k, v = (x.cpu().float() for x in (query, key, value))
    group = q.shape[-3] // k.shape[-3]
    k, v = (x.repeat_interleave(group, -3) for x in (k, v))
    if mask is not None:
        mask = mask.cpu() if mask.dtype == torch.bool else mask.cpu().float()
    return q, k, v, mask, group


def fused(query, key, value, mask, causal: bool, scale: float) -> Tensor:
    q, k, v, m, _ = _lowered(query, key, value, mask)
    return (_weights(q, k, m, causal, scale) @ v).to(query.dtype).to(query.device)


def fused_backward(grad, query, key, value, mask, causal: bool, scale: float):
    q, k, v, m, group = _lowered(query, key, value, mask)
    weights = _weights(q, k, m, causal, scale)
    grads = _backward(grad.cpu().float(), q, k, v, weights, scale, group)
    return tuple(x.to(query.dtype).to(query.device) for x in grads)


class Fused(torch.autograd.Function):
    @staticmethod
    def forward(ctx, q, k, v, mask, causal, scale):
        ctx.save_for_backward(q, k, v, mask)
        ctx.rest = causal, scale
        return torch.ops.pretend.attention(q, k, v, mask, causal, scale)

    @staticmethod
    def backward(ctx, grad):
        grads = torch.ops.pretend.attention_backward(grad, *ctx.saved_tensors, *ctx.rest)
        return *grads, None, None, None


def sdpa(
    query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False, *, scale=None,
    enable_gqa=False,
):  # fmt: skip
    for x in (key, value):
        check(x.dtype == query.dtype, lambda: "query, key and value differ in dtype")
        check(x.device == query.device, lambda: "query, key and value differ in device")
    if attn_mask is not None:
        check(attn_mask.device == query.device, lambda: "attn_mask is on another device")
        fits = attn_mask.dtype in (torch.bool, query.dtype)
        check(fits, lambda: f"attn_mask is {attn_mask.dtype}, query {query.dtype}")
    half = query.dtype in (torch.float16, torch.bfloat16)
    square = not is_causal or query.shape[-2] == key.shape[-2]
    flash = half and attn_mask is None and query.shape[-1] <= 256 and square
    efficient = not enable_gqa and (attn_mask is None or not attn_mask.requires_grad)
    fits = query.dim() == 4 and dropout_p == 0 and query.dtype != torch.float64
    if not (fits and (flash or efficient)):
        return torch.ops.aten._scaled_dot_product_attention_math(
            query, key, value, attn_mask, dropout_p, is_causal, None, scale=scale,
            enable_gqa=enable_gqa,
        )[0]  # fmt: skip
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    return Fused.apply(query, key, value, attn_mask, is_causal, scale)


# --- one kernel there, several operators here -----------------------------------------------------


def rms_norm(x, shape, weight, eps):
    y, w = x.cpu().float(), torch.ones(()) if weight is None else weight.cpu().float()
    check(weight is None or weight.dtype == x.dtype, lambda: "the weight has another dtype")
    scale = (y.square().mean(-1, keepdim=True) + (1e-6 if eps is None else eps)).rsqrt()
    return (y * scale * w).to(x.dtype).to(x.device), scale.to(x.device)


def rms_norm_backward(grad, x, shape, rstd, weight, output_mask):
    y, s, g, w = (z.cpu().float() for z in (x, rstd, grad, weight))
    along = (g * w * y).sum(-1, keepdim=True) * s * s / y.shape[-1]
    to_x, to_w = s * (g * w - y * along), (g * y * s).flatten(0, -2).sum(0)
    return to_x.to(x.dtype).to(x.device), to_w.to(x.dtype).to(x.device)


def silu_backward(grad, x):
    return torch.ops.aten.silu_backward(grad.cpu(), x.cpu()).to(x.device)
