"""Sampling by the model's own code and with its own cache, without the engine.

For architectures whose rows cannot share the engine's cache: state-space models, attention of their
own. Rows share a batch, padded on the left, if that gives the log-probs of a forward pass; if not,
prompts of equal length are read together, and their states are joined (`own_cache`). What cannot
run so is left to transformers' `generate`, at worst one row at a time. Slower than the engine,
since rows that have finished stay until all have.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from posttrain.common.batch import Sequence as TokenSequence
from posttrain.common.batch import pack
from posttrain.model import windows
from posttrain.model.forward import forward
from posttrain.model.language_model import LanguageModel
from posttrain.model.many_adapters import using
from posttrain.model.probe import CODE_FAILS, gap, probe_rows
from posttrain.model.quirks import forget_lengths, forget_rows
from posttrain.model.suited import positions
from posttrain.rollout.native.choose import noise_of, sample
from posttrain.rollout.native.own_cache import decode
from posttrain.rollout.sampler import Finished, Rollout, SamplingParams

PROBED = 6
"""Tokens that `agrees` samples."""


@dataclass(frozen=True)
class Way:
    """How the completions of an architecture are sampled."""

    batches: Literal["padded", "joined", "equal", "alone"]
    """Which share a batch: any, padded; any, once prompts of equal length have been read together;
    those of equally long prompts; or none."""
    cached: bool
    """Whether the model's cache is used; without it, all of a sequence runs again every token."""
    generated: bool = True
    """Whether transformers' `generate` runs the steps, and not `own_cache`."""


WAYS = (
    Way("padded", True, False),
    Way("joined", True, False),
    Way("padded", True),
    Way("equal", True),
    Way("alone", True),
    Way("equal", False),
    Way("alone", False),
)
"""From the fastest to the slowest."""
EQUAL = Way("equal", True)
"""The way of rows that are too long to share a cache, of an architecture whose rows can."""


def way_of(policy: LanguageModel) -> Way:
    """Return the fastest way that gives the log-probs of a forward pass.

    Raises ValueError if none does."""
    ways = WAYS if policy.edited is None else [way for way in WAYS if way.batches == "alone"]
    for way in ways:

        def generate(
            prompts: list[list[int]], params: SamplingParams, way: Way = way
        ) -> list[Rollout]:
            return generate_apart(policy, way, prompts, params, [0] * len(prompts), len(prompts))

        if agrees(policy, generate):
            return way
    raise ValueError(
        f"{type(policy.causal_lm()).__name__} cannot be sampled: transformers' generate gives "
        "other log-probs than a forward pass, with its cache and without it"
    )


def generate_apart(
    policy: LanguageModel,
    way: Way,
    prompts: Sequence[list[int]],
    params: SamplingParams,
    seeds: Sequence[int],
    max_num_seqs: int,
    finished: Finished = lambda place, rollout: None,
    rows: Tensor | None = None,
) -> list[Rollout]:
    """Return one completion per prompt, in batches of at most `max_num_seqs` rows.

    `rows` [N] is the adapter of each prompt (`many_adapters`)."""
    rollouts: dict[int, Rollout] = {}
    for places in _calls(way, [len(prompt) for prompt in prompts], max_num_seqs):
        own = None if rows is None else rows[places]
        chosen = [prompts[i] for i in places], [seeds[i] for i in places]
        for i, rollout in zip(places, _call(policy, way, *chosen, params, own)):
            rollouts[i] = rollout
            finished(i, rollout)
    return [rollouts[i] for i in range(len(prompts))]


def _calls(way: Way, lengths: list[int], max_num_seqs: int) -> list[list[int]]:
    """Return the places of the prompts that share a batch, those of similar length together."""
    size = 1 if way.batches == "alone" else max_num_seqs
    calls: list[list[int]] = []
    for i in sorted(range(len(lengths)), key=lambda i: lengths[i]):
        fits = calls and len(calls[-1]) < size
        equal = way.batches == "equal"
        if fits and (not equal or lengths[calls[-1][0]] == lengths[i]):
            calls[-1].append(i)
        else:
            calls.append([i])
    return calls


@dataclass
class Draw:
    """Chooses the tokens of every step, and keeps them.

    `generate` calls it with the scores. An object, not a function, whose signature it would take
    milliseconds to find every step."""

    params: SamplingParams
    noise: Tensor  # [B, max_new_tokens]
    alive: Tensor  # [B] bool, False once a row has a stop token
    tokens: list[Tensor] = field(default_factory=list)  # [B] of each step
    logprobs: list[Tensor] = field(default_factory=list)  # [B] of each step

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Choose the next tokens, and leave `generate` no other choice."""
        tokens = self.tokens_from(scores.float())
        return torch.full_like(scores, -torch.inf).scatter_(1, tokens[:, None], 0.0)

    def tokens_from(self, logits: Tensor) -> Tensor:
        """Return the next tokens [B] from logits [B, vocab]."""
        drawn = sample(logits, self.params, self.noise[:, len(self.tokens)])
        self.tokens.append(drawn.tokens)
        self.logprobs.append(drawn.logprobs)
        return drawn.tokens

    def tokens_until_ended(self, logits: Tensor) -> Tensor | None:
        """Return the next tokens [B] from logits [B, vocab], None if all rows have ended."""
        tokens = self.tokens_from(logits)
        for stop in self.params.stop_token_ids:
            self.alive &= tokens != stop
        return tokens if bool(self.alive.any()) else None


def _call(
    policy: LanguageModel,
    way: Way,
    prompts: list[list[int]],
    seeds: list[int],
    params: SamplingParams,
    rows: Tensor | None,
) -> list[Rollout]:
    """Return the completions of one batch."""
    device, count = policy.device, params.max_new_tokens
    alive = torch.ones(len(prompts), dtype=torch.bool, device=device)
    draw = Draw(params, noise_of(seeds, [params] * len(seeds), device), alive)
    with _as_loaded(policy):
        if way.generated:
            _generate(policy, prompts, draw, way.cached, rows)
        else:
            together = _calls(EQUAL, list(map(len, prompts)), len(prompts))
            parts = together if way.batches == "joined" else [range(len(prompts))]
            decode(policy, prompts, parts, count, draw.tokens_until_ended, rows)
    ids, values = torch.stack(draw.tokens, 1).tolist(), torch.stack(draw.logprobs, 1).tolist()
    return [_ended(policy, prompts[i], ids[i], values[i], params) for i in range(len(prompts))]


def _generate(
    policy: LanguageModel, prompts: list[list[int]], draw: Draw, cached: bool, rows: Tensor | None
) -> None:
    """Run transformers' `generate`, prompts padded on the left, with the tokens that are drawn."""
    import transformers

    model: Any = policy.causal_lm()
    device = draw.noise.device
    width = max(map(len, prompts))
    inputs = torch.tensor([[0] * (width - len(p)) + p for p in prompts], device=device)
    lengths = torch.tensor([len(p) for p in prompts], device=device)
    mask = torch.arange(width, device=device) >= width - lengths[:, None]
    config = transformers.GenerationConfig(
        do_sample=False,
        max_new_tokens=draw.params.max_new_tokens,
        eos_token_id=list(draw.params.stop_token_ids) or None,
        pad_token_id=0,
        use_cache=cached,
    )
    with using(policy, rows):
        forget_lengths(policy.backbone(), inputs[:1])
        forget_rows(model, len(prompts))
        model.generate(
            inputs,
            attention_mask=mask.long(),
            generation_config=config,
            logits_processor=transformers.LogitsProcessorList([draw]),
        )


def _ended(
    policy: LanguageModel,
    prompt: list[int],
    ids: list[int],
    logprobs: list[float],
    params: SamplingParams,
) -> Rollout:
    """Return the rollout of a row up to its first stop token."""
    stops = set(params.stop_token_ids)
    end = next((n for n, token in enumerate(ids, 1) if token in stops), None)
    reason: Literal["stop", "length"] = "length" if end is None else "stop"
    return Rollout(prompt, ids[:end], logprobs[:end], reason, policy.version)


@contextmanager
def _as_loaded(policy: LanguageModel) -> Iterator[None]:
    """Give the model its own attention back, and no settings of generation, inside a with block."""
    import transformers

    model: Any = policy.causal_lm()
    settings, attention = model.generation_config, model.config._attn_implementation
    model.generation_config = transformers.GenerationConfig()
    if policy.own_attention is not None:
        model.set_attn_implementation(policy.own_attention)
    try:
        yield
    finally:
        model.generation_config = settings
        model.set_attn_implementation(attention)


def agrees(policy: LanguageModel, generate: Any) -> bool:
    """Return whether `generate`, a way to sample, has the log-probs of a forward pass.

    Greedy completions of the probe's rows, two of which are equal, so that some are copied and
    some cross a short window."""
    config = policy.causal_lm().config
    room = positions(config) - PROBED - 1
    rows = [row.input_ids[: max(1, room)].tolist() for row in probe_rows(config)]
    prompts = [*rows[:2], rows[1], rows[-1]]
    if policy.rope_limit is not None:
        prompts = [row for row in prompts if len(row) + PROBED <= policy.rope_limit]
    params = SamplingParams(max_new_tokens=PROBED, temperature=0.0, stop_token_ids=())
    try:
        with windows.short(policy):
            rollouts = generate(prompts, params)
    except torch.OutOfMemoryError:  # says nothing about the architecture
        raise
    except CODE_FAILS:
        return False  # it reads something of a cache that ours does not have
    texts = [torch.tensor(p + r.response_ids) for p, r in zip(prompts, rollouts)]
    batch = pack([TokenSequence(t, torch.arange(len(t)) >= len(t) - PROBED) for t in texts])
    with windows.short(policy):
        wanted = forward(policy, batch.to(policy.device)).logprobs.cpu()
    values = [value for rollout in rollouts for value in rollout.logprobs]
    sampled = torch.tensor(values, dtype=torch.float32)  # the default may differ meanwhile
    lengths = [PROBED] * len(texts)
    return gap(policy, sampled, wanted[batch.loss_mask], lengths) <= policy.tolerance
