"""Checks that a model computes the right log-probs here, before it is trained.

The measure is transformers' own: each sequence alone, in the attention that the model was loaded
with. The rows of the probe have prompts that three completions of several tokens share, completions
that do not share, and a row that is longer than the windows, which are made short for it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from posttrain.common import distributed
from posttrain.common.batch import Sequence, pack
from posttrain.model import windows
from posttrain.model.attention import NAME, use_attention
from posttrain.model.forward import forward
from posttrain.model.language_model import LanguageModel
from posttrain.model.quirks import rope_limit
from posttrain.model.suited import UNLIMITED, positions

COARSE = 0.3
"""Tolerance in bf16, in nats per token. A logit above 8 is rounded to a multiple of 1/16 there, and
a GPU's products depend on the rest of the batch: single log-probs of the same text then differ by
up to 0.5, their means by 0.13. A completion that does not see its prompt differs by more than 1."""

CODE_FAILS = (
    AttributeError,
    TypeError,
    RuntimeError,
    ValueError,
    KeyError,
    IndexError,
    ZeroDivisionError,
    AssertionError,
)
"""What the code of an architecture raises for a config, or for rows, that it cannot run."""


@dataclass
class Expected:
    """Rows and their log-probs from transformers."""

    rows: list[Sequence]
    logprobs: list[Tensor]  # [T] of each row
    noise: float
    """Largest difference that the number of later tokens makes, and what `rounding` measures."""


def probe_rows(config: Any) -> list[Sequence]:
    """Return the rows of the probe, within the lengths that the model can take."""
    limit = min(positions(config), rope_limit(config) or UNLIMITED)
    prompt = max(1, min(max(12, windows.longest(config) + 3), limit // 3))
    shapes = [(1, 5), *((prompt, n) for n in (4, 7, 3)), (3, 2), (1, min(limit, 3 * prompt) - 1)]
    generator = torch.Generator().manual_seed(0)

    def draw(count: int) -> Tensor:
        return torch.randint(0, config.vocab_size, (max(count, 1),), generator=generator)

    shared, rows = draw(prompt), []
    for start, rest in shapes:
        ids = torch.cat([shared if start == prompt else draw(start), draw(rest)])
        rows.append(Sequence(ids, torch.arange(len(ids)) >= start))
    return rows


@torch.no_grad()
def expected(model: Any, policy: LanguageModel) -> Expected:
    """Return the probe's log-probs from transformers, before anything of the model is replaced.

    Raises ValueError if they depend on later tokens, or if transformers cannot compute them.
    """
    model.eval()

    def logprobs(ids: Tensor) -> Tensor:
        return _logprobs(policy, model, ids)

    rows = probe_rows(model.config)
    cut = 2 * len(rows[-1]) // 3
    try:
        with windows.short(model):
            values = [logprobs(row.input_ids) for row in rows]
            noise = gap(policy, logprobs(rows[-1].input_ids[:cut]), values[-1][:cut], [cut])
    except torch.OutOfMemoryError:
        raise
    except CODE_FAILS as error:
        raise ValueError(
            f"model.name: transformers cannot run {type(model).__name__} as config.json describes "
            f"it ({first_line(error)})"
        ) from error
    if not all(value.isfinite().all() for value in values):
        raise ValueError(
            f"model.name: {type(model).__name__} gives log-probs that are not finite: its weights "
            "hold such numbers, or are too large"
        )
    if not noise <= (1e-2 if policy.autocast is None else COARSE):
        raise ValueError(
            f"{type(model).__name__} gives other log-probs (by {noise:.2g}) if tokens follow: "
            "it is not a causal language model"
        )
    return Expected(rows, values, noise)


def _logprobs(policy: LanguageModel, model: Any, ids: Tensor, copies: int = 1) -> Tensor:
    """Return transformers' log-probs [T] of one row in a batch of copies of it."""
    batch = ids[None].to(next(model.parameters()).device).expand(copies, -1)
    with policy.precision():
        logits = _call(policy, model, batch).logits[0].float()
    picked = logits[:-1].log_softmax(-1).gather(1, batch[0, 1:, None])[:, 0]
    return torch.cat([picked.new_zeros(1), picked]).cpu()


def _call(policy: Any, model: Any, batch: Tensor) -> Any:
    """Return what transformers' model gives; of a sharded policy, inside a call of the policy.

    The root of the shards gathers those of the embedding and the head for the call. A collective
    then, for which all ranks have the same rows."""
    if not distributed.is_sharded(policy):
        return model(input_ids=batch, use_cache=False)
    policy.forward = lambda: model(input_ids=batch, use_cache=False)
    try:
        return policy()
    finally:
        del policy.forward


@torch.no_grad()
def rounding(policy: LanguageModel, probe: Expected) -> float:
    """Return how far the log-probs move by oneDNN's products and by copies in the same batch.

    Neither changes what is computed. Trained models round more than fresh ones: 3e-4 nats in one
    of 135M parameters with an adapter, of which later tokens alone show 1e-5.
    """
    model = policy.causal_lm()
    with windows.short(model):
        found = [_logprobs(policy, model, row.input_ids, copies=3) for row in probe.rows]
    lengths = [len(row) for row in probe.rows]
    return gap(policy, torch.cat(found), torch.cat(probe.logprobs), lengths)


@torch.no_grad()
def choose_packing(policy: LanguageModel, probe: Expected) -> None:
    """Make the policy pack its rows, or run them one at a time if packing changes its log-probs.

    Raises ValueError if the log-probs are not transformers' in either way.
    """
    causal_lm = policy.causal_lm()
    policy.rope_limit, policy.probe = rope_limit(causal_lm.config), probe
    policy.own_attention = own = causal_lm.config._attn_implementation
    # in fp32 ten times the rounding that was seen, but not what only another computation explains
    policy.tolerance = min(max(1e-3, 10 * probe.noise), 1e-2) if policy.autocast is None else COARSE
    try:
        if not causal_lm._can_set_attn_implementation():
            raise ValueError(f"{type(causal_lm).__name__} calls no attention function")
        use_attention(causal_lm)
        packed = difference(policy, probe)
        reason = f"packed, its log-probs would differ by {packed:.2g}"
    except torch.OutOfMemoryError:  # says nothing about the architecture
        raise
    except CODE_FAILS as error:  # of an architecture that expects masks or a past of its own
        packed, reason = float("inf"), "its layers do not take packed rows"
        if isinstance(error, (ValueError, RuntimeError)):  # the others' words say less
            reason = first_line(error)
    if packed <= policy.tolerance and causal_lm.config._attn_implementation == NAME:
        return
    if causal_lm.config._attn_implementation != own:
        causal_lm.set_attn_implementation(own)
    policy.unpacked = reason
    try:
        alone = difference(policy, probe)
        reason = f"log-probs differ by {alone:.2g} from the model's own"
    except (torch.OutOfMemoryError, ValueError):
        raise
    except CODE_FAILS as error:  # of a head that takes other states than the last ones
        alone, reason = float("inf"), first_line(error)
    if not alone <= policy.tolerance:
        raise ValueError(
            f"{type(causal_lm).__name__} has an output head that is not supported ({reason})"
        )


def first_line(error: Exception) -> str:
    """Return the first line of an error's text, or the name of its kind if it has none."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def difference(policy: LanguageModel, probe: Expected) -> float:
    """Return how far the policy's log-probs are from the expected ones."""
    was_training = policy.training
    policy.eval()
    batch = pack(probe.rows).to(policy.device)
    with windows.short(policy):
        logprobs = forward(policy, batch).logprobs.cpu()
    policy.train(was_training)
    trained = [row.loss_mask for row in probe.rows]
    wanted = torch.cat([x[mask] for x, mask in zip(probe.logprobs, trained)])
    return gap(policy, logprobs[torch.cat(trained)], wanted, [int(mask.sum()) for mask in trained])


def gap(policy: LanguageModel, found: Tensor, wanted: Tensor, lengths: list[int]) -> float:
    """Return how far log-probs [T] of rows are from the wanted ones: the largest difference.

    In bf16 the largest mean over a row (see COARSE)."""
    apart = (found - wanted).abs()
    if policy.autocast is not None:
        apart = torch.stack([row.mean() for row in apart.split(lengths)])
    return float(apart.max())
