"""The language model behind one entry point: a packed batch in, log-probs per token out.

`LanguageModel` wraps a transformers causal LM, so that FSDP2 has a single root. The network runs
only through it, except in `probe` and in the native sampler's written-out layers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from posttrain.common.batch import Batch
from posttrain.model.adapters.peft import head_weight
from posttrain.model.attention import Decode, Packed
from posttrain.model.backbone import backbone_of, last_hidden, one_by_one, run_rows, unwrapped
from posttrain.model.config import HeadKind
from posttrain.model.kernels.linear import reusable
from posttrain.model.output_head import HeadLogprobs, cap
from posttrain.model.parallel.sequence import part_of
from posttrain.model.parallel.vocabulary import VocabShard, on_this_rank, rows_of_vocabulary, whole
from posttrain.model.quirks import logit_cap, logit_scale, silence
from posttrain.model.reft.positions import Positions
from posttrain.model.reft.rows import edited_prompts, edited_rows
from posttrain.model.shared_prompts import Rows, padding_rows, share_prompts


class LanguageModel(nn.Module):
    """A causal LM, optionally with an additional head."""

    def __init__(self, model: nn.Module, autocast: torch.dtype | None = None) -> None:
        super().__init__()
        self.model = model
        self.autocast = autocast
        """Compute dtype; None is the parameters' own."""
        self.version = 0
        """Number of optimiser steps taken; recorded in every rollout."""
        self.head_kind: HeadKind | None = None
        self.head: nn.Linear | None = None
        self.value_network: nn.Module | None = None
        """The value head's own network; None if the head is on the policy's states."""
        self.label_tokens: list[int] | None = None
        """For head_kind label_tokens: the token of each label."""
        self.unpacked: str | None = None
        """Why sequences run one at a time in transformers' own attention; None if packed."""
        self.own_attention: str | None = None
        """Name of the attention that the model was loaded with."""
        self.probe: Any = None
        """Rows and their log-probs as transformers gives them for the start model (`probe`)."""
        self.tolerance = 1e-3
        """Difference of two log-probs that rounding can make here (`probe`)."""
        self.rope_limit: int | None = None
        """Length beyond which the rotation depends on the sequence's length, so that a batch with
        a longer sequence is not packed."""
        self.edited: Positions | None = None
        """Positions of the prompt whose states ReFT edits; None without ReFT."""
        self.adapters: Any = None
        """LoRA adapters that rows of a batch may use (`many_adapters`); None if there are none."""
        self.vocab_shard: VocabShard | None = None
        """Rows of embedding and output head that this rank holds (tensor parallelism)."""
        self.sequence_group: Any = None
        """Ranks that each run a part of a batch's tokens (sequence parallelism)."""
        self.computes_on: torch.device | None = None
        """Where parameters that lie in the CPU's memory are computed with (`training.sharding`)."""
        self.workers: Any = None
        """Threads that each compute a micro-batch (`workers`); None on a GPU and by default."""
        self.dropout = True
        """Whether train() turns on the dropout of the model and its adapter."""

    def train(self, mode: bool = True) -> LanguageModel:
        """Set training mode, without dropout if `dropout` is off."""
        super().train(mode)
        if mode and not self.dropout:
            silence(network for network in (self.model, self.value_network) if network is not None)
        return self

    def forward(
        self, batch: Batch, *, entropy: bool = False, head: bool = False, temperature: float = 1.0
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Return log-probs [M] of the M tokens under the loss mask, entropy [M] and head outputs.

        The head's are those of the state after each token, [T] or [T, labels]; entropy and head
        outputs are None if not requested."""
        with self.precision():
            rows = self.rows_of(batch)
            hidden = run_rows(self.backbone(), rows, self.unpacked is None)
            head_outputs = self._head_outputs(hidden, rows) if head else None
            positions = batch.loss_mask.nonzero()[:, 0]
            num_trained = len(positions)
            if num_trained:
                padding = positions[:1].expand(padding_rows(positions))
                positions = torch.cat([positions, padding])
            # token t is predicted from the state of token t - 1 of the same sequence
            places, targets = rows.places[positions - 1], batch.input_ids[positions]

            def logprobs_at(places: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
                states = hidden[0].index_select(0, places)
                states = states.to(self.autocast or states.dtype)  # else the head's backward: fp32
                weight, bias, softcap, scale = self.output_head()
                scale, shard = scale / temperature, self.vocab_shard
                return HeadLogprobs.apply(  # type: ignore[no-any-return, no-untyped-call]
                    states, weight, bias, targets, scale, softcap, entropy, shard
                )

            part = rows.layout.part
            each = logprobs_at if part is None else partial(part.each, logprobs_at)
            logprobs, ent = each(places, targets)
        return logprobs[:num_trained], ent[:num_trained] if entropy else None, head_outputs

    def _head_outputs(self, hidden: Tensor, rows: Rows) -> Tensor:
        if self.head_kind == "label_tokens":
            weight, bias, softcap, scale = self.output_head()
            of_labels = partial(
                rows_of_vocabulary, self.label_tokens, self.vocab_shard, hidden.dtype
            )
            logits = F.linear(hidden[0], of_labels(weight), of_labels(bias)).float() * scale
            return rows.at_places(cap(logits, softcap))
        head = self.head
        assert head is not None, "no head was added (model.heads)"
        if self.value_network is not None:
            network = backbone_of(self.value_network)
            hidden = run_rows(network, rows, self.unpacked is None)
        bias = None if head.bias is None else head.bias.float()
        # explicitly in fp32, since FSDP casts the head's weights to the compute dtype
        with torch.autocast(hidden.device.type, enabled=False):
            outputs = F.linear(hidden[0].float(), head.weight.float(), bias)
        outputs = rows.at_places(outputs)
        return outputs if self.head_kind == "labels" else outputs[:, 0]

    def rows_of(self, batch: Batch) -> Rows:
        """Return the rows that run for a batch, on this rank."""
        if self.edited is not None:
            rows = edited_rows(batch, self.edited, whole=self.head_kind not in (None, "value"))
        else:
            rows = share_prompts(batch) if self.packs(batch.lengths) else one_by_one(batch)
        return rows if self.sequence_group is None else part_of(rows, self.sequence_group)

    def packs(self, lengths: Sequence[int]) -> bool:
        """Return whether sequences of these lengths may run end to end."""
        limit = self.rope_limit
        return self.unpacked is None and (limit is None or max(lengths, default=0) <= limit)

    def hidden_states(
        self, input_ids: Tensor, position_ids: Tensor, layout: Packed | Decode, cache: Any = None
    ) -> Tensor:
        """Return the last hidden states [B, S, width] of inputs [B, S]; B is 1 for packed rows.

        Packed rows are whole prompts."""
        if self.edited is not None and isinstance(layout, Packed):
            layout.edited = edited_prompts(layout.lengths, self.edited, input_ids.device)
        return last_hidden(self.backbone(), input_ids, position_ids, layout, cache)

    def sampling_head(self) -> Callable[[Tensor], Tensor]:
        """Return a function from hidden [M, width] to fp32 logits [M, vocab], for these weights."""
        weight, bias, softcap, scale = self.output_head()
        if self.autocast is not None:
            weight = weight.to(self.autocast)
        project, shard = reusable(weight, bias), self.vocab_shard

        def logits_of(hidden: Tensor) -> Tensor:
            logits = cap(project(hidden.to(weight.dtype)).float().mul_(scale), softcap)
            return logits if shard is None else whole(logits, shard)

        return logits_of

    def precision(self) -> AbstractContextManager[Any]:
        """Return the autocast context of the compute dtype."""
        if self.autocast is None:
            return nullcontext()
        return torch.autocast(self.device.type, self.autocast)

    @property
    def device(self) -> torch.device:
        """The device that computes; offloaded parameters are elsewhere."""
        return self.computes_on or next(self.parameters()).device

    def causal_lm(self) -> Any:
        """Return the transformers model, without PEFT's wrapper."""
        return unwrapped(self.model)

    def backbone(self) -> nn.Module:
        """Return the transformers model without its output head."""
        return backbone_of(self.model)

    def output_head(self) -> tuple[Tensor, Tensor | None, float | None, float]:
        """Return weight [vocab, width], bias, soft cap and scale of the output head.

        With a vocab_shard, this rank's rows of the weight and of the bias."""
        causal_lm = self.causal_lm()
        weight, bias = map(on_this_rank, head_weight(causal_lm.get_output_embeddings()))
        return weight, bias, logit_cap(causal_lm.config), logit_scale(causal_lm.config)
