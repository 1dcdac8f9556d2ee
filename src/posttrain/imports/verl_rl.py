"""verl's main_ppo: advantages, clip range, KL penalty and reward."""

from __future__ import annotations

from posttrain.imports.draft import Draft
from posttrain.imports.parts import (
    integer,
    number,
    real,
    reward_to_set,
    to_set,
    truth,
)
from posttrain.imports.verl_parts import (
    ACTOR,
    MODEL,
    ROLLOUT,
    model,
    schedule,
    trainer,
    training_rows,
)

ESTIMATORS = {
    "gae": "ppo",
    "grpo": "grpo",
    "rloo": "rloo",
    "reinforce_plus_plus": "reinforce",
    "reinforce_plus_plus_baseline": "reinforce",
    "grpo_passk": "grpo",
}


REDUCTIONS = {
    "token-mean": "token",
    "seq-mean-token-mean": "sequence",
    "seq-mean-token-sum": "sequence_sum",
    "seq-mean-token-sum-norm": "constant",
}


KL = {"kl": "k1", "k1": "k1", "mse": "k2", "k2": "k2", "low_var_kl": "k3", "k3": "k3"}


def reinforcement(draft: Draft) -> None:
    """Write the recipe of main_ppo."""
    model(draft, MODEL, f"{MODEL}.path")
    name = str(draft.get("data.prompt_key", default="prompt"))
    training_rows(draft, {"prompt": name} if name != "prompt" else {}, "data.prompt_key")
    draft.copy(
        "length.max_length",
        "data.max_prompt_length",
        default=512,
        convert=int,
        note="of the prompt",
    )
    dropped = truth(draft.get("data.filter_overlong_prompts", default=False))
    cut = str(draft.get("data.truncation", default="error"))
    draft.put(
        "length.on_overlong",
        "drop" if dropped else "error",
        "data.filter_overlong_prompts",
        "data.truncation",
        why="" if dropped or cut == "error" else "prompts are never cut",
    )
    asked = str(draft.get("algorithm.adv_estimator", default="gae"))
    asked = asked.rpartition(".")[2].lower()
    method = ESTIMATORS.get(asked, "grpo")
    draft.put(
        "trainer.type",
        method,
        "algorithm.adv_estimator",
        why="" if asked in ESTIMATORS else f"{asked} has no counterpart: grpo",
    )
    if asked not in ESTIMATORS or asked == "grpo_passk":
        draft.decide("algorithm.adv_estimator", "refused", "", f"{asked} has no counterpart: grpo")
    advantages(draft, asked, method)
    surrogate(draft, method)
    penalty(draft, method)
    schedule(draft, f"{ACTOR}.optim", 1e-6, 0.0, "constant", 0.01)
    small = integer(draft.get(f"{ACTOR}.ppo_mini_batch_size", default=256))
    whole = integer(draft.get("data.train_batch_size", default=1024))
    draft.put("trainer.batch_size", small, f"{ACTOR}.ppo_mini_batch_size", note="prompts")
    exact = whole % small == 0
    draft.put(
        "trainer.num_minibatches",
        max(1, whole // small),
        "data.train_batch_size",
        note=f"{whole} prompts of a rollout / {small}",
        why="" if exact else f"{whole} is not a multiple of {small}",
    )
    draft.copy("trainer.num_inner_epochs", f"{ACTOR}.ppo_epochs", default=1, convert=int)
    draft.copy("rollout.group_size", f"{ROLLOUT}.n", default=1, convert=int)
    draft.copy("rollout.max_new_tokens", "data.max_response_length", default=512, convert=int)
    draft.copy("rollout.temperature", f"{ROLLOUT}.temperature", default=1.0, convert=float)
    whole_range = {f"{ROLLOUT}.top_p": 1.0, f"{ROLLOUT}.top_k": -1, f"{ROLLOUT}.do_sample": True}
    draft.skip(
        "the whole distribution, as here", *(k for k, v in whole_range.items() if draft.get(k) == v)
    )
    draft.refuse("training samples from the whole distribution", *whole_range)
    if truth(draft.get("algorithm.filter_groups.enable", default=False)):
        most = int(number(draft.get("algorithm.filter_groups.max_num_gen_batches", default=10)))
        draft.put(
            "rollout.max_resamples",
            most if most > 0 else 10,
            "algorithm.filter_groups.enable",
            "algorithm.filter_groups.max_num_gen_batches",
            "algorithm.filter_groups.metric",
        )
    draft.copy("trainer.seed", "data.seed", f"{ACTOR}.data_loader_seed", default=42, convert=int)
    reward(draft)
    draft.skip("rows come in random order", "data.shuffle", f"{ACTOR}.shuffle")
    trainer(draft, 30)
    if "eval.data" in draft.recipe:
        draft.put("eval.max_new_tokens", draft.recipe["rollout.max_new_tokens"])


def advantages(draft: Draft, asked: str, method: str) -> None:
    """Write how advantages are computed."""
    if method in ("grpo", "rloo") and integer(draft.get(f"{ROLLOUT}.n", default=1)) == 1:
        note = "a group of one has the advantage R there"
        draft.put("trainer.baseline", "none", f"{ROLLOUT}.n", note=note)
        draft.put("trainer.scale_rewards", "none", f"{ROLLOUT}.n", note=note)
    elif method == "grpo":
        scaled = truth(draft.get("algorithm.norm_adv_by_std_in_grpo", default=True))
        draft.put(
            "trainer.scale_rewards",
            "group" if scaled else "none",
            "algorithm.norm_adv_by_std_in_grpo",
        )
        draft.put("trainer.scale_eps", 1e-6)
    elif method == "rloo":
        draft.put("trainer.ratio_level", "token")
    elif (
        asked == "reinforce_plus_plus_baseline"
        and integer(draft.get(f"{ROLLOUT}.n", default=1)) > 1
    ):
        draft.put("trainer.baseline", "group_mean", "algorithm.adv_estimator")
    elif method == "ppo":
        draft.copy("trainer.gae_lambda", "algorithm.lam", default=1.0, convert=float)
        draft.copy("trainer.gamma", "algorithm.gamma", default=1.0, convert=float)
        draft.copy("trainer.value_clip", "critic.cliprange_value", default=0.5, convert=float)
        draft.put("trainer.value_coef", 1.0)
        draft.comments["trainer.value_coef"] = ["the value model has its own gradient"]
        draft.copy("trainer.value_learning_rate", "critic.optim.lr", default=1e-5, convert=float)
    draft.skip(
        "not read by this estimator",
        "algorithm.gamma",
        "algorithm.lam",
        "algorithm.norm_adv_by_std_in_grpo",
        "critic.enable",
    )
    if method != "ppo":
        draft.skip("no value model", "critic.*", "trainer.critic_warmup")


def surrogate(draft: Draft, method: str) -> None:
    """Write the clip range, the reduction and the level of the ratio."""
    low, high = f"{ACTOR}.clip_ratio_low", f"{ACTOR}.clip_ratio_high"
    both = real(draft.get(f"{ACTOR}.clip_ratio", default=0.2))
    draft.put(
        "trainer.epsilon", min(1.0, real(draft.get(low, default=both))), low, f"{ACTOR}.clip_ratio"
    )
    draft.put(
        "trainer.epsilon_high", real(draft.get(high, default=both)), high, f"{ACTOR}.clip_ratio"
    )
    draft.copy("trainer.dual_clip", f"{ACTOR}.clip_ratio_c", default=3.0, convert=float)
    mode = str(draft.get(f"{ACTOR}.policy_loss.loss_mode", default="vanilla"))
    reduction = str(draft.get(f"{ACTOR}.loss_agg_mode", default="token-mean"))
    key = f"{ACTOR}.policy_loss.loss_mode"
    if mode == "gspo":
        draft.put("trainer.ratio_level", "sequence", key)
        reduction = "seq-mean-token-mean"
        draft.recipe.pop("trainer.dual_clip")
        draft.comments.pop("trainer.dual_clip", None)
    elif mode in ("cispo", "sapo"):
        draft.put("trainer.surrogate", mode, key)
        draft.recipe.pop("trainer.dual_clip")
        draft.comments.pop("trainer.dual_clip", None)
    elif mode == "vanilla":
        draft.skip("the clip, as here", key)
    draft.refuse("no surrogate of that name: clip is written", key)
    draft.put(
        "trainer.reduction",
        REDUCTIONS.get(reduction, "token"),
        f"{ACTOR}.loss_agg_mode",
        why="" if reduction in REDUCTIONS else f"{reduction} has no counterpart: token-mean",
    )
    draft.copy("trainer.entropy_coef", f"{ACTOR}.entropy_coeff", convert=float)
    if draft.get(f"{ACTOR}.tau_pos", default=1.0) == 1.0:
        draft.skip("as here", f"{ACTOR}.tau_pos")
    if draft.get(f"{ACTOR}.tau_neg", default=1.05) == 1.05:
        draft.skip("as here", f"{ACTOR}.tau_neg")
    draft.refuse("no counterpart", f"{ACTOR}.loss_scale_factor", f"{ACTOR}.tau_*")
    level = draft.get("algorithm.rollout_correction.rollout_is")
    if level in ("token", "sequence"):
        draft.put(
            "trainer.sampler_correction",
            "token" if level == "token" else "sequence_sum",
            "algorithm.rollout_correction.rollout_is",
        )
        draft.copy(
            "trainer.sampler_correction_max",
            "algorithm.rollout_correction.rollout_is_threshold",
            default=2.0,
            convert=float,
        )


def penalty(draft: Draft, method: str) -> None:
    """Write the KL penalty: in the loss, or in the reward of each token."""
    in_loss = truth(draft.get(f"{ACTOR}.use_kl_loss", default=False))
    in_reward = truth(draft.get("algorithm.use_kl_in_reward", default=False))
    loss_keys = (f"{ACTOR}.use_kl_loss", f"{ACTOR}.kl_loss_coef", f"{ACTOR}.kl_loss_type")
    reward_keys = (
        "algorithm.use_kl_in_reward",
        "algorithm.kl_ctrl.kl_coef",
        "algorithm.kl_penalty",
    )
    if in_loss:
        draft.put("trainer.beta", real(draft.get(loss_keys[1], default=0.001)), *loss_keys[:2])
        draft.put("trainer.kl_in", "loss", loss_keys[0])
        kind = str(draft.get(loss_keys[2], default="low_var_kl"))
        draft.put(
            "trainer.kl_estimator",
            KL.get(kind.rstrip("+"), "k3"),
            loss_keys[2],
            why="" if kind in KL else f"the gradient of {kind} has no counterpart",
        )
        draft.skip("no KL in the reward", *reward_keys)
        if in_reward:
            draft.decide(
                reward_keys[0],
                "refused",
                "",
                "KL in the loss and in the reward: the loss's is written",
            )
    elif in_reward:
        draft.put("trainer.beta", real(draft.get(reward_keys[1], default=0.001)), *reward_keys[:2])
        kind = str(draft.get(reward_keys[2], default="kl"))
        draft.put("trainer.kl_estimator", KL.get(kind, "k1"), reward_keys[2])
        draft.put(
            "trainer.kl_in",
            "token_reward" if method in ("ppo", "reinforce") else "reward",
            reward_keys[0],
        )
    else:
        draft.put("trainer.beta", 0.0, loss_keys[0], reward_keys[0])
    draft.skip("no KL of that kind", *loss_keys, *reward_keys, "algorithm.kl_ctrl.*")


def reward(draft: Draft) -> None:
    """Write the reward: a reward model, a function, or verl's rule by the rows' data_source."""
    if truth(draft.get("reward_model.enable", default=False)):
        draft.put("reward.type", "reward_model", "reward_model.enable")
        draft.copy(
            "reward.path", "reward_model.model.path", default=to_set("reward_model.model.path")
        )
        return
    path = draft.get("custom_reward_function.path")
    if path is not None:
        draft.put("reward.type", "custom", "custom_reward_function.path")
        draft.put(
            "reward.path",
            path,
            "custom_reward_function.path",
            why="its function has another signature: see docs/rewards.md",
        )
        draft.copy("reward.function", "custom_reward_function.name", default="compute_score")
        return
    text = str(draft.get("data.train_files", default="")).lower()
    if any(word in text for word in ("gsm8k", "math", "dapo", "aime")):
        draft.put("reward.type", "math_correctness")
        draft.comments["reward.type"] = ["there chosen by each row's data_source"]
    else:
        reward_to_set(draft, "the reward of the rows' data_source")
    draft.skip("no reward model", "reward_model.*")
