"""What a run does with an architecture that others would not expect: dropout, packing, experts."""

from __future__ import annotations

from typing import Any

from posttrain.data.kinds.prompt import Prompt
from posttrain.model.adapters.reft import ReftConfig
from posttrain.model.classifiers import has_own_classifier
from posttrain.model.dropout import noises, turn_off
from posttrain.model.language_model import LanguageModel
from posttrain.model.quirks import changes_with_every_length, handed_on
from posttrain.runs.config import Config


def dropout_applies(config: Config) -> bool:
    """Whether dropout applies while training: `model.dropout`, or the method's default."""
    if config.model.dropout is not None:
        return config.model.dropout
    pairs = config.algorithm.rows in ("pair", "unpaired") and config.trainer.writes_text
    return not (config.algorithm.online or pairs)


def settle_dropout(policy: LanguageModel, config: Config) -> None:
    """Turn off what a policy draws at random in training, unless it is to apply."""
    if noises(policy) and not dropout_applies(config):
        turn_off(policy)


def check_prompts(config: Config) -> None:
    """Raise ValueError if ReFT is to edit prompts of rows that have none."""
    kind, rows = config.model.adapter.type, config.algorithm.rows
    if isinstance(config.model.adapter, ReftConfig) and rows in ("text", "steps"):
        raise ValueError(
            f"model.adapter: {kind} edits prompts, and the rows of {config.trainer.type} have none "
            "that stays the same when a text goes on: use model.adapter: lora"
        )


def check_rotation(policy: LanguageModel, config: Config, prompts: list[Prompt]) -> None:
    """Raise ValueError if completions of RL could cross a length at which the rotation changes.

    Their tokens would be sampled under one rotation and trained under another."""
    limit = policy.rope_limit
    if limit is None or config.rollout is None or not config.algorithm.online:
        return
    model: Any = policy.causal_lm()
    new, once = config.rollout.max_new_tokens, not changes_with_every_length(model.config)
    lengths = [len(prompt.input_ids) for prompt in prompts]
    crossing = sum(n + new > limit and not (once and n > limit) for n in lengths)
    if crossing:
        raise ValueError(
            f"{type(model).__name__} rotates sequences of more than {limit:,} tokens in another "
            f"way, and {crossing:,} of {len(lengths):,} prompts have completions that could cross "
            "this length while they are sampled: set length.max_length (of prompts) and "
            f"rollout.max_new_tokens to at most {limit:,} tokens together"
        )


def network_notes(policy: LanguageModel, config: Config) -> list[str]:
    """Return notes on dropout, packing, losses of routers, and layers without LoRA."""
    model: Any = policy.causal_lm()
    name, lines = type(model).__name__, []
    if rates := ", ".join(noises(policy)):
        method = f"{config.trainer.type} compares log-probs; model.dropout: true turns it on"
        off = method if config.model.dropout is None else "by model.dropout"
        on = "on while training (model.dropout: false turns it off)"
        lines.append(f"note: {rates}: {on if policy.dropout else f'off ({off})'}")
    if policy.unpacked is not None:
        lines.append(
            f"note: {name} cannot be packed: sequences run one at a time while it trains, which is "
            f"slower ({policy.unpacked})"
        )
    elif policy.rope_limit is not None:
        lines.append(
            f"note: {name} rotates by the length of the sequence: micro-batches with one of more "
            f"than {policy.rope_limit:,} tokens run one sequence at a time, which is slower"
        )
    if not config.trainer.writes_text and not has_own_classifier(model.config):
        lines.append(
            f"note: transformers has no sequence classifier for {name}: only posttrain will load "
            "this one"
        )
    coefficient = getattr(model.config, "router_aux_loss_coef", None)
    if getattr(model.config, "output_router_logits", False) and coefficient:
        lines.append(
            f"note: config.json asks for a loss that balances the experts (router_aux_loss_coef "
            f"{coefficient:g}), which is not added here"
        )
    everything = getattr(config.model.adapter, "target_modules", None) == "all-linear"
    if everything and (left_out := handed_on(model)):
        ends = " and ".join(sorted({name.rpartition(".")[2] for name in left_out}))
        lines.append(
            f"note: the adapter leaves out {ends} of the state-space layers of {name}, whose "
            "kernels would not apply it"
        )
    if everything and (experts := expert_parameters(policy)):
        lines.append(
            f"note: the adapter leaves out the experts of {name} ({experts:,} parameters), which "
            "are not linear layers"
        )
    return lines


def expert_parameters(policy: LanguageModel) -> int:
    """Return the number of frozen parameters in stacks of experts, [experts, ...]."""
    return sum(
        p.numel()
        for name, p in policy.named_parameters()
        if not p.requires_grad and p.dim() == 3 and "experts" in name
    )
