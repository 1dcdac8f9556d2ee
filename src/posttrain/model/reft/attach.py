"""Edits in a model: modules in its decoder layers, applied by hooks where the layout says.

A forward pass over packed rows carries the edited positions in its layout (`Packed.edited`). A
hook in front of each decoder layer hands them to the layer's edits, so that recomputation for
gradient checkpointing sees the same. Without them nothing is edited: in decoding, as a completion's
tokens never are, and in a model that transformers runs.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from posttrain.model.backbone import backbone_of, decoder_layers
from posttrain.model.reft.forms import Edit
from posttrain.model.reft.positions import parse_positions

PLACES = {
    "block_input": ("",),
    "block_output": ("",),
    "mlp_output": ("mlp", "feed_forward", "block_sparse_moe"),
    "attention_output": ("self_attn", "attn", "attention"),
    "query": ("self_attn.q_proj", "attention.q_proj"),
    "key": ("self_attn.k_proj", "attention.k_proj"),
    "value": ("self_attn.v_proj", "attention.v_proj"),
}
"""Where in a decoder layer a component is, by architecture; the layer itself is ''."""


class Edits(nn.Module):
    """The edits of one component of one layer: one, or one for each end of the prompt."""

    def __init__(self, edits: list[Edit]) -> None:
        super().__init__()
        self.edits = nn.ModuleList(edits)
        self.rows: tuple[Tensor, Tensor] | None = None
        """Indices of the edited states at the start and at the end of prompts."""

    def forward(self, hidden: Tensor) -> Tensor:
        """Return hidden states [1, U, d] with those at `rows` edited."""
        if self.rows is None:
            return hidden
        groups = self.rows if len(self.edits) == 2 else (torch.cat(self.rows),)
        for edit, index in zip(self.edits, groups):
            states = hidden[0].index_select(0, index)
            edited = states + edit(states).to(states.dtype)
            hidden = hidden.index_copy(1, index, edited[None])
        return hidden


def hand_over(layer: Any, args: Any, kwargs: dict[str, Any]) -> None:
    """Give a decoder layer's edits the positions in the layout of this call."""
    holder = layer.get_submodule(layer.edited_component)
    holder.reft.rows = getattr(kwargs.get("layout"), "edited", None)


def edit_output(module: Any, args: Any, output: Any) -> Any:
    """Return a module's output with its states edited."""
    if isinstance(output, tuple):
        return (module.reft(output[0]), *output[1:])
    return module.reft(output)


def edit_input(module: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """Return a module's inputs with its states edited."""
    if args:
        return (module.reft(args[0]), *args[1:]), kwargs
    return args, kwargs | {"hidden_states": module.reft(kwargs["hidden_states"])}


for _hook in (hand_over, edit_output, edit_input):
    # they do nothing in decoding, which may be written out without the modules
    _hook.decode_safe = True  # type: ignore[union-attr]


def add_edits(model: Any, section: Any, seed: int) -> Any:
    """Return the model, frozen, with the edits of a ReftConfig, drawn with the seed.

    torch's own random state is kept. Raises ValueError for layers, a component or a rank that the
    model does not have."""
    layers = decoder_layers(backbone_of(model))
    _check_states(model, layers, section.component)
    model.requires_grad_(False)
    name = type(model).__name__
    chosen = range(len(layers)) if section.layers == "all" else section.layers
    if max(chosen) >= len(layers):
        raise ValueError(
            f"model.adapter.layers: {name} has layers 0 to {len(layers) - 1}, not {max(chosen)}"
        )
    state = torch.get_rng_state()
    torch.manual_seed(seed)
    try:
        for number in chosen:
            _edit_layer(layers[number], model, section)
    finally:
        torch.set_rng_state(state)
    model.reft_config = section
    return model


def edit_prompts(policy: Any) -> None:
    """Make a LanguageModel edit its prompts, if its model has edits.

    Raises ValueError if its sequences cannot run as packed rows."""
    model = policy.causal_lm()
    if (section := getattr(model, "reft_config", None)) is None:
        return
    if policy.unpacked is not None or policy.rope_limit is not None:
        raise ValueError(
            f"model.adapter: {type(model).__name__} runs sequences one at a time, where edits of "
            f"prompts are not supported ({policy.unpacked or 'its rotation depends on the length'})"
            "; use model.adapter: {type: lora}"
        )
    policy.edited = parse_positions(section.positions)


def _check_states(model: Any, layers: nn.ModuleList, component: str) -> None:
    """Raise ValueError unless a token has one state after each layer, in a single row of layers."""
    name, kinds = type(model).__name__, {type(layer) for layer in layers}
    for module in backbone_of(model).modules():
        other = isinstance(module, nn.ModuleList) and module is not layers
        if other and kinds & {type(part) for part in module.children()}:  # HRM-Text
            raise ValueError(
                f"model.adapter: {name} has several stacks of layers, which run in turns, where "
                "edits of prompts are not supported; use model.adapter: {type: lora}"
            )
    states = getattr(model.config.get_text_config(), "altup_num_inputs", 1)  # Gemma 3n
    if states > 1 and component in ("block_input", "block_output"):
        raise ValueError(
            f"model.adapter.component: {name} hands {states} states of a token from layer to "
            "layer, which are not edited; use mlp_output or attention_output"
        )


def _edit_layer(layer: Any, model: Any, section: Any) -> None:
    name, component = type(model).__name__, section.component
    modules = dict(layer.named_modules())
    place = next((place for place in PLACES[component] if place in modules), None)
    if place is None:
        raise ValueError(
            f"model.adapter.component: {name} has no {component} that can be edited; use "
            "block_output"
        )
    holder = modules[place]
    # an embedding can be narrower than the states (OPT)
    width = getattr(holder, "out_features", model.config.get_text_config().hidden_size)
    if section.rank > width:
        raise ValueError(
            f"model.adapter.rank: {section.rank} is more than the {width} numbers of a state of "
            f"{name}"
        )
    settings = section.type, section.activation, section.dropout, section.identity_start
    ends = 1 if section.share_weights or "+" not in section.positions else 2
    holder.reft = Edits([Edit(width, section.rank, *settings) for _ in range(ends)])
    holder.reft.to(model.device)
    layer.edited_component = place
    layer.register_forward_pre_hook(hand_over, with_kwargs=True)
    if component == "block_input":
        layer.register_forward_pre_hook(edit_input, with_kwargs=True)
    else:
        holder.register_forward_hook(edit_output)
