"""The language model behind one entry point: a packed batch in, log-probs per token out.

`LanguageModel` wraps a transformers causal LM, so that FSDP2 has a single root. The network runs
only through it, except in `probe` and in the native sampler's written-out decoding step.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from posttrain.common.batch import Batch
from posttrain.model.attention import Decode, Packed
from posttrain.model.config import HeadKind
from posttrain.model.kernels.linear import Linear, reusable
from posttrain.model.output_head import HeadLogprobs, cap
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

    def forward(
        self, batch: Batch, *, entropy: bool = False, head: bool = False, temperature: float = 1.0
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Return log-probs [M] of the M tokens under the loss mask, entropy [M] and head outputs.

        The head's are those of the state after each token, [T] or [T, labels]; entropy and head
        outputs are None if not requested."""
        with self.precision():
            rows = share_prompts(batch)
            hidden = self.hidden_states(rows.input_ids[None], rows.position_ids[None], rows.layout)
            head_outputs = self._head_outputs(hidden, rows) if head else None
            positions = batch.loss_mask.nonzero()[:, 0]
            num_trained = len(positions)
            if num_trained:
                padding = positions[:1].expand(padding_rows(positions))
                positions = torch.cat([positions, padding])
            # token t is predicted from the state of token t - 1 of the same sequence
            states = hidden[0].index_select(0, rows.places[positions - 1])
            weight, bias, softcap, scale = self.output_head()
            targets = batch.input_ids[positions]
            logprobs, ent = HeadLogprobs.apply(  # type: ignore[no-untyped-call]
                states, weight, bias, targets, scale / temperature, softcap, entropy
            )
        return logprobs[:num_trained], ent[:num_trained] if entropy else None, head_outputs

    def _head_outputs(self, hidden: Tensor, rows: Rows) -> Tensor:
        if self.head_kind == "label_tokens":
            weight, bias, softcap, scale = self.output_head()
            chosen = weight[self.label_tokens].to(hidden.dtype)
            bias = None if bias is None else bias[self.label_tokens].to(hidden.dtype)
            logits = F.linear(hidden[0], chosen, bias).float() * scale
            return cap(logits, softcap).index_select(0, rows.places)
        head = self.head
        assert head is not None, "no head was added (model.heads)"
        if self.value_network is not None:
            ids, positions = rows.input_ids[None], rows.position_ids[None]
            hidden = _last_hidden(_backbone(self.value_network), ids, positions, rows.layout)
        bias = None if head.bias is None else head.bias.float()
        # explicitly in fp32, since FSDP casts the head's weights to the compute dtype
        with torch.autocast(hidden.device.type, enabled=False):
            outputs = F.linear(hidden[0].float(), head.weight.float(), bias)
        outputs = outputs.index_select(0, rows.places)
        return outputs if self.head_kind == "labels" else outputs[:, 0]

    def hidden_states(
        self, input_ids: Tensor, position_ids: Tensor, layout: Packed | Decode, cache: Any = None
    ) -> Tensor:
        """Return the last hidden states [B, S, width] of inputs [B, S]; B is 1 for packed rows."""
        return _last_hidden(self.backbone(), input_ids, position_ids, layout, cache)

    def sampling_head(self) -> Callable[[Tensor], Tensor]:
        """Return a function from hidden [M, width] to fp32 logits [M, vocab], for these weights."""
        weight, bias, softcap, scale = self.output_head()
        if self.autocast is not None:
            weight = weight.to(self.autocast)
        project = reusable(weight, bias)
        return lambda hidden: cap(project(hidden.to(weight.dtype)).float().mul_(scale), softcap)

    def precision(self) -> AbstractContextManager[Any]:
        """Return the autocast context of the compute dtype."""
        if self.autocast is None:
            return nullcontext()
        return torch.autocast(next(self.parameters()).device.type, self.autocast)

    def causal_lm(self) -> Any:
        """Return the transformers model, without PEFT's wrapper."""
        return unwrapped(self.model)

    def backbone(self) -> nn.Module:
        """Return the transformers model without its output head."""
        return _backbone(self.model)

    def output_head(self) -> tuple[Tensor, Tensor | None, float | None, float]:
        """Return weight [vocab, width], bias, soft cap and scale of the output head."""
        causal_lm = self.causal_lm()
        head = causal_lm.get_output_embeddings()
        if type(head) not in (nn.Linear, Linear):
            raise ValueError(
                f"an output head of type {type(head).__name__} is not supported: "
                "leave lm_head out of model.lora.target_modules"
            )
        config = causal_lm.config
        softcap = getattr(config, "final_logit_softcapping", None)
        scale = 1.0 / getattr(config, "logits_scaling", 1.0)
        return head.weight, head.bias, softcap, scale


def unwrapped(model: Any) -> Any:
    """Return the transformers model, without PEFT's wrapper if it has one."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def _backbone(model: Any) -> nn.Module:
    causal_lm = unwrapped(model)
    backbone: nn.Module = getattr(causal_lm, causal_lm.base_model_prefix)
    return backbone


def _last_hidden(
    backbone: nn.Module,
    input_ids: Tensor,
    position_ids: Tensor,
    layout: Packed | Decode,
    cache: Any = None,
) -> Tensor:
    states: Tensor = backbone(
        input_ids=input_ids,
        position_ids=position_ids,
        past_key_values=cache,
        # the default would create a cache, through which packed rows would see each other
        use_cache=cache is not None,
        layout=layout,
    ).last_hidden_state
    return states
