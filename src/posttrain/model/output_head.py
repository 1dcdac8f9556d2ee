"""Log-probs of given tokens from hidden states, without ever holding [M, vocab] logits.

The head runs in chunks that the backward pass recomputes, so at most one chunk of the logits exists
at a time.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from posttrain.model.kernels.linear import product
from posttrain.model.parallel import vocabulary

CHUNK_ELEMENTS = 2**24  # logits in a chunk: 64 MiB in fp32
VOCAB_ROWS = 8192  # rows of the head's gradient that are added to in one product


def cap(logits: Tensor, softcap: float | None) -> Tensor:
    """Return softcap * tanh(logits / softcap), or the logits if there is no cap."""
    return logits if softcap is None else softcap * torch.tanh(logits / softcap)


class HeadLogprobs(torch.autograd.Function):
    """Output head, log-softmax and gather in chunks.

    The backward pass begins with the last chunk, which is kept, and recomputes the others' logits.

    logits = cap(scale * (hidden @ weight.T + bias)). With z the logits, p = softmax(z) and H the
    entropy: d logp_y / dz = onehot(y) - p and dH / dz = -p * (log p + H).
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,  # [M, width]
        weight: Tensor,  # [vocab, width]
        bias: Tensor | None,
        targets: Tensor,  # [M]
        scale: float,
        softcap: float | None,
        want_entropy: bool,
        shard: vocabulary.VocabShard | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Return log-probs [M] of the targets and entropies [M], 0 if not requested.

        With a `shard`, weight and bias are this rank's rows of them."""
        compute_weight = weight.to(hidden.dtype)
        logprobs = torch.empty(len(hidden), dtype=torch.float32, device=hidden.device)
        lse = torch.empty_like(logprobs)
        entropy = torch.zeros_like(logprobs)
        kept = None
        for rows in _chunks(hidden, len(weight)):
            kept = None  # freed before the next chunk is computed
            logits, slope = _logits(hidden[rows], compute_weight, bias, scale, softcap)
            lse[rows] = vocabulary.logsumexp(logits, shard)
            logp = logits.sub_(lse[rows, None])
            logprobs[rows] = vocabulary.at_targets(logp, targets[rows], shard)
            if want_entropy:
                entropy[rows] = -vocabulary.summed_over((logp.exp() * logp).sum(-1), shard)
            kept = logp, slope
            del logits, logp, slope
        ctx.kept = kept
        ctx.save_for_backward(hidden, weight, bias, targets, lse, entropy)
        ctx.scale, ctx.softcap, ctx.shard = scale, softcap, shard
        ctx.set_materialize_grads(False)
        return logprobs, entropy

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        """Return the gradients of hidden, weight and bias."""
        grad_logprobs, grad_entropy = grads  # None if the loss does not read it
        if grad_logprobs is None:
            assert grad_entropy is not None
            grad_logprobs = torch.zeros_like(grad_entropy)
        hidden, weight, bias, targets, lse, entropy = ctx.saved_tensors
        compute_weight = weight.to(hidden.dtype)
        grad_hidden = torch.empty_like(hidden)
        grad_weight: Tensor | None = None
        grad_bias = torch.zeros_like(bias) if ctx.needs_input_grad[2] else None
        for rows in reversed(_chunks(hidden, len(weight))):
            if ctx.kept is None:
                logits, slope = _logits(hidden[rows], compute_weight, bias, ctx.scale, ctx.softcap)
                logp = logits.sub_(lse[rows, None])
            else:
                (logp, slope), ctx.kept = ctx.kept, None
            if grad_entropy is not None:
                p = logp.exp()
                by_entropy = (logp + entropy[rows, None]).mul_(grad_entropy[rows, None])
                grad = p.mul_(by_entropy.add_(grad_logprobs[rows, None])).neg_()
            else:
                grad = logp.exp_().mul_(-grad_logprobs[rows, None])
            vocabulary.add_at_targets(grad, targets[rows], grad_logprobs[rows], ctx.shard)
            if slope is not None:
                grad.mul_(slope)
            grad = grad.mul_(ctx.scale).to(hidden.dtype)
            grad_hidden[rows] = product(grad, compute_weight.T)
            if ctx.needs_input_grad[1]:
                grad_weight = _plus_product(grad_weight, grad, hidden[rows], weight.dtype)
            if grad_bias is not None:
                grad_bias.add_(grad.sum(0))
            del logp, grad  # freed before the next chunk is computed
        if ctx.needs_input_grad[1] and grad_weight is None:
            grad_weight = torch.zeros_like(weight)  # there were no rows
        grad_hidden = vocabulary.summed_over(grad_hidden, ctx.shard)
        return grad_hidden, grad_weight, grad_bias, None, None, None, None, None


def _plus_product(total: Tensor | None, grad: Tensor, hidden: Tensor, dtype: torch.dtype) -> Tensor:
    """Return total + grad^T hidden [vocab, width], on a CPU without a second one of that size."""
    if total is None:
        return product(grad.T, hidden.T).to(dtype)
    if total.is_cuda:
        return total.add_(product(grad.T, hidden.T))
    for part in torch.arange(len(total)).split(VOCAB_ROWS):
        rows = slice(int(part[0]), int(part[-1]) + 1)
        total[rows] += product(grad[:, rows].T, hidden.T)
    return total


def chunk_elements(device: torch.device) -> int:
    """Return the number of logits in a chunk; few rows would leave a GPU idle."""
    return CHUNK_ELEMENTS * (1 if device.type == "cpu" else 4)


def _chunks(hidden: Tensor, vocab: int) -> list[slice]:
    """Return the rows of each chunk; the first is the short one, since the last one is kept."""
    size = max(1, chunk_elements(hidden.device) // vocab)
    ends = range(len(hidden), 0, -size)
    return [slice(max(0, end - size), end) for end in reversed(ends)]


def _logits(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, scale: float, softcap: float | None
) -> tuple[Tensor, Tensor | None]:
    """Return fp32 logits of a chunk and, if they are capped, d capped / d uncapped."""
    logits = product(hidden, weight, bias).float().mul_(scale)
    if softcap is None:
        return logits, None
    squashed = torch.tanh(logits / softcap)
    return squashed * softcap, 1 - squashed.square()
