"""TRL's GRPO and RLOO: completions of a step, clip range, engine and reward."""

from __future__ import annotations

from posttrain.imports.draft import Draft
from posttrain.imports.parts import (
    integer,
    listed,
    real,
    reward_to_set,
    truth,
)
from posttrain.imports.trl_parts import following

REDUCTIONS = {
    "grpo": "sequence",
    "dapo": "token",
    "bnpo": "token",
    "dr_grpo": "constant",
    "cispo": "token",
    "sapo": "sequence",
    "vespo": "token",
}


KL = "the KL itself; TRL multiplies it by the ratio unless use_bias_correction_kl is false"


def online(draft: Draft) -> None:
    """Write the choices of GRPO and RLOO."""
    grpo = draft.program.lower() == "grpo"
    group = integer(draft.get("num_generations", default=8 if grpo else 2))
    draft.put("rollout.group_size", group, "num_generations")
    draft.copy("rollout.max_new_tokens", "max_completion_length", default=512, convert=int)
    draft.copy("rollout.temperature", "temperature", default=1.0, convert=float)
    completions(draft, group)
    if grpo:
        surrogate(draft)
        beta = draft.copy("trainer.beta", "beta", default=0.0, convert=float)
        if beta and draft.get("use_bias_correction_kl", default=True):
            draft.comments.setdefault("trainer.beta", []).append(KL)
        draft.copy("trainer.entropy_coef", "entropy_coef", convert=float)
        scale = str(draft.get("scale_rewards", default="group")).lower()
        named = {"true": "group", "false": "none"}.get(scale, scale)
        draft.put("trainer.scale_rewards", named, "scale_rewards")
        draft.put("trainer.scale_eps", 1e-4)
    elif truth(draft.get("normalize_advantages", default=False)):
        draft.put("trainer.scale_rewards", "batch", "normalize_advantages")
    draft.skip("off, as here", "normalize_advantages")
    if not grpo:
        draft.copy("trainer.epsilon", "epsilon", default=0.2, convert=float)
        draft.copy("trainer.epsilon_high", "epsilon_high", convert=float)
    draft.copy("trainer.num_inner_epochs", "num_iterations", default=1, convert=int)
    draft.copy("trainer.mask_truncated_completions", "mask_truncated_completions", convert=truth)
    engine(draft)
    rewards(draft)
    following(draft)


def completions(draft: Draft, group: int) -> None:
    """Write batch_size and num_minibatches: TRL counts completions, posttrain prompts."""
    device = integer(draft.get("per_device_train_batch_size", default=8))
    accumulation = integer(draft.get("gradient_accumulation_steps", default=1))
    total = device * accumulation * draft.processes
    prompts = max(1, round(total / group))
    exact = prompts * group == total
    what = (
        f"{device} x {accumulation} x {draft.processes} = {total} completions / {group} of a prompt"
    )
    keys = ("per_device_train_batch_size", "gradient_accumulation_steps")
    draft.put(
        "trainer.batch_size",
        prompts,
        *keys,
        note=what,
        why="" if exact else f"{what} is no whole number of prompts",
    )
    generated = draft.get("generation_batch_size")
    steps = draft.get("steps_per_generation")
    if generated is not None or steps is not None:
        whole = int(generated) if generated is not None else int(steps) * device * draft.processes
        draft.put(
            "trainer.num_minibatches",
            max(1, round(whole / total)),
            "generation_batch_size",
            "steps_per_generation",
        )


def surrogate(draft: Draft) -> None:
    """Write loss_type, the clip range and the level of the ratio."""
    loss = str(draft.get("loss_type", default="dapo"))
    if loss not in REDUCTIONS:
        draft.decide("loss_type", "refused", "", f"{loss} has no counterpart: dapo's is written")
    why = "a mean over the step's tokens; there over a micro-batch's" if loss == "bnpo" else ""
    draft.put("trainer.reduction", REDUCTIONS.get(loss, "token"), "loss_type", why=why)
    low = real(draft.get("epsilon", default=0.2))
    high = draft.get("epsilon_high")
    if loss in ("cispo", "sapo", "vespo"):
        draft.put("trainer.surrogate", loss, "loss_type")
    if loss == "cispo":
        bound = float(high if high is not None else low)
        draft.put("trainer.epsilon", 1.0, note="no lower bound")
        if bound > 1:
            draft.put(
                "trainer.epsilon_high",
                bound - 1,
                "epsilon_high",
                "epsilon",
                note="TRL's is the bound itself, here it is added to 1",
            )
        draft.refuse("TRL's bound below 1 has no counterpart", "epsilon", "epsilon_high")
    else:
        draft.put("trainer.epsilon", low, "epsilon")
        draft.copy("trainer.epsilon_high", "epsilon_high", convert=float)
    if draft.has("delta"):
        draft.put(
            "trainer.dual_clip",
            real(draft.get("delta")),
            "delta",
            note="the same for a bound above 1 + epsilon",
        )
    level = str(draft.get("importance_sampling_level", default="token"))
    draft.put("trainer.ratio_level", level, "importance_sampling_level")
    tau = {
        "sapo_temperature_neg": 1.05,
        "sapo_temperature_pos": 1.0,
        "vespo_k_pos": 2.0,
        "vespo_lambda_pos": 3.0,
        "vespo_k_neg": 3.0,
        "vespo_lambda_neg": 2.0,
    }
    draft.skip("as here", *(key for key, value in tau.items() if draft.get(key) == value))
    draft.refuse("constants of SAPO and VESPO are fixed", *tau)


def engine(draft: Draft) -> None:
    """Write which engine samples, and the correction for it."""
    if not truth(draft.get("use_vllm", default=False)):
        draft.skip("sampling in this process", "use_vllm", "vllm_*")
        return
    server = draft.get("vllm_mode", default="colocate") == "server"
    draft.put("rollout.engine", "server" if server else "vllm", "use_vllm", "vllm_mode")
    if server:
        url = draft.get("vllm_server_base_url")
        host = draft.get("vllm_server_host", default="127.0.0.1")
        address = url or f"http://{host}:{draft.get('vllm_server_port', default=8000)}"
        draft.put(
            "rollout.servers",
            [address.replace("0.0.0.0", "127.0.0.1")],
            "vllm_server_base_url",
            "vllm_server_host",
            "vllm_server_port",
        )
    else:
        draft.copy("rollout.gpu_memory_utilization", "vllm_gpu_memory_utilization", default=0.3)
    if draft.program == "grpo" and draft.get("vllm_importance_sampling_correction", default=True):
        mode = str(draft.get("vllm_importance_sampling_mode", default="sequence_mask"))
        level = "sequence_sum" if mode.startswith("sequence") else "token"
        draft.put(
            "trainer.sampler_correction",
            level,
            "vllm_importance_sampling_correction",
            "vllm_importance_sampling_mode",
        )
        draft.put(
            "trainer.sampler_correction_mode",
            "mask" if "mask" in mode else "truncate",
            "vllm_importance_sampling_mode",
        )
        draft.copy(
            "trainer.sampler_correction_max",
            "vllm_importance_sampling_clip_max",
            "vllm_importance_sampling_cap",
            default=3.0,
            convert=float,
        )
        draft.copy(
            "trainer.sampler_correction_min", "vllm_importance_sampling_clip_min", convert=float
        )


def rewards(draft: Draft) -> None:
    """Write the reward: TRL's own functions, a reward model, or a function of the user's."""
    known = {"accuracy_reward": "math_correctness"}
    names = listed(draft.get("reward_funcs", default=[]))
    path = draft.get("reward_model_name_or_path")
    if path is not None:
        draft.put("reward.type", "reward_model", "reward_model_name_or_path")
        draft.put("reward.path", path, "reward_model_name_or_path")
    elif len(names) == 1 and names[0] in known:
        draft.put("reward.type", known[names[0]], "reward_funcs")
    else:
        reward_to_set(draft, f"{', '.join(map(str, names)) or 'the reward'}", "reward_funcs")
    draft.refuse("several rewards: write reward.type: weighted", "reward_weights", "reward_funcs")
