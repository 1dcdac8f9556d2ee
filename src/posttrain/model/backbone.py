"""The transformers model without its output head, and one call of it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from posttrain.common.batch import Batch
from posttrain.model.attention import Decode, Packed
from posttrain.model.quirks import forget_lengths
from posttrain.model.shared_prompts import Rows


def unwrapped(model: Any) -> Any:
    """Return the transformers model, without PEFT's wrapper if it has one."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def backbone_of(model: Any) -> nn.Module:
    """Return a transformers or PEFT model without its output head."""
    from transformers import PreTrainedModel

    causal_lm = unwrapped(model)
    backbone = getattr(causal_lm, causal_lm.base_model_prefix, None)
    if not isinstance(backbone, nn.Module):  # Llama 4's text model has the prefix of the whole one
        backbone = next(m for m in causal_lm.children() if isinstance(m, PreTrainedModel))
    return backbone


def decoder_layers(network: nn.Module) -> nn.ModuleList:
    """Return a network's decoder layers: the longest list of modules in it, in no other list."""
    lists = {name: m for name, m in network.named_modules() if isinstance(m, nn.ModuleList)}
    inside = [name for name in lists if any(name.startswith(f"{other}.") for other in lists)]
    return max((m for name, m in lists.items() if name not in inside), key=len)


def last_hidden(
    backbone: nn.Module,
    input_ids: Tensor,
    position_ids: Tensor,
    layout: Packed | Decode,
    cache: Any = None,
) -> Tensor:
    """Return the last hidden states [B, S, width] of inputs [B, S]; B is 1 for packed rows."""
    states: Tensor = backbone(
        input_ids=input_ids,
        position_ids=position_ids,
        past_key_values=cache,
        # the default would create a cache, through which packed rows would see each other
        use_cache=cache is not None,
        layout=layout,
    ).last_hidden_state
    return states


def _alone(backbone: nn.Module, ids: Tensor, ours: bool) -> Tensor:
    """Return the states [1, S, width] of one sequence, in our attention or in the model's own."""
    if not ours:
        states: Tensor = backbone(input_ids=ids[None], use_cache=False).last_hidden_state
        return states
    forget_lengths(backbone, ids)
    ends = torch.tensor([0, len(ids)], dtype=torch.int32, device=ids.device)
    positions = torch.arange(len(ids), device=ids.device)
    return last_hidden(backbone, ids[None], positions[None], Packed([len(ids)], ends))


def one_by_one(batch: Batch) -> Rows:
    """Return the rows of a batch whose sequences run one at a time, prompts and all."""
    layout = Packed(batch.lengths, batch.cu_seqlens)
    places = torch.arange(batch.num_tokens, device=batch.input_ids.device)
    return Rows(batch.input_ids, batch.position_ids, layout, places, apart=True)


def run_rows(backbone: nn.Module, rows: Rows, ours: bool) -> Tensor:
    """Return the last hidden states [1, U, width] of rows, end to end or one segment at a time.

    One at a time they run in our attention or in the model's own."""
    if not rows.apart:
        return last_hidden(backbone, rows.input_ids[None], rows.position_ids[None], rows.layout)
    states = [_alone(backbone, ids, ours) for ids in rows.segments()]
    if not states:  # a rank's first batch may be empty
        embeddings: Any = backbone.get_input_embeddings()  # type: ignore[operator]
        states = [embeddings.weight[:0][None]]
    return torch.cat(states, dim=1)
