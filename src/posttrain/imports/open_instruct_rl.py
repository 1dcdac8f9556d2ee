"""open-instruct's GRPO, and the names and amounts of its mixtures."""

from __future__ import annotations

from posttrain.imports.draft import Draft
from posttrain.imports.parts import (
    listed,
    number,
    real,
    reward_to_set,
    truth,
)


def mixture(draft: Draft) -> list[tuple[str, float]]:
    """Return names and amounts: shares of the rows up to 1.0, numbers of rows above."""
    listed_rows = draft.get("dataset_mixer_list", "mixer_list")
    if listed_rows is not None:
        flat = listed(listed_rows)
        return [(str(name), number(amount)) for name, amount in zip(flat[::2], flat[1::2])]
    return [(name, number(amount)) for name, amount in draft.under("dataset_mixer").items()]


def online(draft: Draft) -> None:
    """Write the choices of GRPO."""
    draft.copy("rollout.group_size", "num_samples_per_prompt_rollout", default=4, convert=int)
    draft.copy("rollout.max_new_tokens", "response_length", default=256, convert=int)
    draft.copy("rollout.temperature", "temperature", default=1.0, convert=float)
    kind = str(draft.get("advantage_normalization_type", default="centered"))
    draft.put(
        "trainer.scale_rewards",
        "none" if kind == "centered" else "group",
        "advantage_normalization_type",
    )
    if kind != "centered":
        draft.put("trainer.scale_ddof", 0, "advantage_normalization_type")
        draft.put("trainer.scale_eps", 1e-8)
    draft.copy("trainer.epsilon", "clip_lower", default=0.2, convert=float)
    draft.copy("trainer.epsilon_high", "clip_higher", default=0.272, convert=float)
    loss = str(draft.get("loss_fn", default="dapo"))
    if loss == "cispo":
        draft.put("trainer.surrogate", "cispo", "loss_fn")
        draft.put("trainer.epsilon", 1.0, "clip_lower", note="no lower bound")
    elif loss not in ("dapo", "grpo"):
        draft.decide("loss_fn", "refused", "", f"{loss} has no counterpart: dapo is written")
    draft.skip("the clip, as here", "loss_fn")
    beta = real(draft.get("beta", default=0.05))
    if not truth(draft.get("load_ref_policy", default=True)):
        beta = 0.0
    draft.put("trainer.beta", beta, "beta", "load_ref_policy")
    place = int(number(draft.get("kl_estimator", default=2)))
    draft.put(
        "trainer.kl_estimator",
        ["k1", "k2", "k3", "k1"][place],
        "kl_estimator",
        note="counted from 0 there",
        why="" if place < 3 else "the ratio times k1: k1",
    )
    divisor = str(draft.get("loss_denominator", "masked_mean_denominator", default="token"))
    names = ("loss_denominator", "masked_mean_denominator")
    if divisor == "token":
        draft.put("trainer.reduction", "token", *names)
    else:
        exact = number(divisor) == draft.recipe["rollout.max_new_tokens"]
        draft.put(
            "trainer.reduction",
            "constant",
            *names,
            why="" if exact else "divided by rollout.max_new_tokens",
        )
    if truth(draft.get("use_rho_correction", default=True)):
        draft.put("trainer.sampler_correction", "token", "use_rho_correction")
        draft.copy(
            "trainer.sampler_correction_max",
            "rho_clamp_upper_bound",
            "truncated_importance_sampling_ratio_cap",
            default=2.0,
            convert=float,
        )
        draft.copy("trainer.sampler_correction_min", "rho_clamp_lower_bound", convert=float)
    draft.skip("off", "use_rho_correction", "rho_*", "truncated_importance_*")
    draft.copy("trainer.mask_truncated_completions", "mask_truncated_completions", convert=truth)
    if number(draft.get("ref_policy_update_freq", default=0)) > 0:
        draft.copy("reference.sync_steps", "ref_policy_update_freq", convert=int)
        draft.copy("reference.sync_alpha", "alpha", default=0.6, convert=float)
    names_of = " ".join(name for name, _ in mixture(draft)).lower()
    if "gsm8k" in names_of or "math" in names_of:
        draft.put("reward.type", "math_correctness")
        draft.comments["reward.type"] = ["there chosen by each row's verifier"]
        if truth(draft.get("apply_verifiable_reward", default=True)):
            draft.skip("the reward, as here", "apply_verifiable_reward")
        draft.copy("reward.positive", "verification_reward", default=10.0, convert=float)
    else:
        reward_to_set(draft, "the rows' verifier")
    if truth(draft.get("non_stop_penalty", default=False)) and draft.has("non_stop_penalty_value"):
        draft.put(
            "trainer.missing_eos_penalty",
            abs(real(draft.get("non_stop_penalty_value"))),
            "non_stop_penalty",
            "non_stop_penalty_value",
            why="subtracted from the reward; there it replaces the reward",
        )
