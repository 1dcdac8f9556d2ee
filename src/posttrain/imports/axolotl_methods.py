"""Axolotl's preference methods and GRPO, whose choices are TRL's."""

from __future__ import annotations

from posttrain.imports.draft import Draft
from posttrain.imports.parts import (
    listed,
    number,
    reward_to_set,
    truth,
)


def pairs(draft: Draft) -> None:
    """Write the choices of preference methods, which are TRL's."""
    method = draft.recipe["trainer.type"]
    beta = "orpo_alpha" if method == "orpo" and draft.has("orpo_alpha") else "rl_beta"
    draft.copy("trainer.beta", beta, "dpo_beta", default=0.1, convert=float)
    if method == "simpo":
        draft.copy("trainer.gamma", "simpo_gamma", default=0.5, convert=float)
        draft.copy(
            "trainer.sft_coef",
            "cpo_alpha",
            default=1.0,
            convert=float,
            note="TRL adds the likelihood to SimPO",
        )
    draft.copy("trainer.precompute_reference", "precompute_ref_log_probs", convert=truth)
    if method == "dpo":
        losses = draft.get("dpo_loss_type")
        if losses is not None:
            draft.put("trainer.loss_type", losses, "dpo_loss_type")
        if draft.has("dpo_loss_weights"):
            draft.put("trainer.loss_weights", draft.get("dpo_loss_weights"), "dpo_loss_weights")
        if number(draft.get("dpo_label_smoothing", default=0)) > 0:
            draft.refuse("TRL's sigmoid does not read it either", "dpo_label_smoothing")
    draft.skip(
        "speed or memory", "dpo_use_liger_kernel", "dpo_padding_free", "dpo_use_logits_to_keep"
    )


def kto(draft: Draft) -> None:
    """Write the choices of KTO."""
    draft.copy("trainer.beta", "rl_beta", default=0.1, convert=float)
    draft.copy("trainer.desirable_weight", "kto_desirable_weight", default=1.0, convert=float)
    draft.copy("trainer.undesirable_weight", "kto_undesirable_weight", default=1.0, convert=float)


def grpo(draft: Draft) -> None:
    """Write the choices of GRPO, which are TRL's below `trl`."""
    from_trl = {
        "trl.beta": ("trainer.beta", 0.0),
        "trl.num_iterations": ("trainer.num_inner_epochs", 1),
        "trl.num_generations": ("rollout.group_size", 8),
        "trl.max_completion_length": ("rollout.max_new_tokens", 512),
        "trl.temperature": ("rollout.temperature", 1.0),
    }
    for key, (target, default) in from_trl.items():
        draft.copy(target, key, default=default, convert=number)
    draft.copy("trainer.epsilon", "trl.epsilon", default=0.2, convert=float)
    draft.copy("trainer.epsilon_high", "trl.epsilon_high", convert=float)
    loss = str(draft.get("trl.loss_type", default="dapo"))
    reductions = {"grpo": "sequence", "dapo": "token", "bnpo": "token", "dr_grpo": "constant"}
    draft.put(
        "trainer.reduction",
        reductions.get(loss, "token"),
        "trl.loss_type",
        why="" if loss in reductions else f"{loss} has no counterpart",
    )
    scaled = truth(draft.get("trl.scale_rewards", default=True))
    draft.put("trainer.scale_rewards", "group" if scaled else "none", "trl.scale_rewards")
    draft.copy(
        "trainer.mask_truncated_completions", "trl.mask_truncated_completions", convert=truth
    )
    if truth(draft.get("trl.sync_ref_model", default=False)):
        draft.copy("reference.sync_steps", "trl.ref_model_sync_steps", default=64, convert=int)
        draft.copy("reference.sync_alpha", "trl.ref_model_mixup_alpha", default=0.9, convert=float)
        draft.put(
            "reference.sync_steps", draft.recipe["reference.sync_steps"], "trl.sync_ref_model"
        )
    names = listed(draft.get("trl.reward_funcs", default=[]))
    reward_to_set(draft, ", ".join(map(str, names)) or "the reward", "trl.reward_funcs")
    draft.refuse("several rewards: write reward.type: weighted", "trl.reward_weights")
    draft.skip(
        "how completions are computed",
        "trl.use_vllm",
        "trl.vllm_*",
        "trl.log_completions",
        "trl.num_completions_to_print",
        "trl.generation_batch_size",
        "trl.async_*",
    )
    draft.refuse("no counterpart", "trl.*")
