"""Named sets of choices for the policy-gradient methods: defaults of papers and other frameworks.

A preset fills in the keys that the config leaves out. The resolved config that a run saves has
every key, so it shows what the preset stood for. Where frameworks differ under one name, and what
is not a key of the loss (reward shaping, batch sizes), is in docs/methods.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from posttrain.common.suggest import did_you_mean

PRESETS: dict[str, dict[str, Any]] = {
    # papers
    "dapo": {  # Yu et al. 2025, arXiv 2503.14476
        "baseline": "group_mean",
        "scale_rewards": "group",
        "epsilon": 0.2,
        "epsilon_high": 0.28,
        "reduction": "token",
        "beta": 0.0,
    },
    "dr_grpo": {  # Liu et al. 2025, arXiv 2503.20783
        "baseline": "group_mean",
        "scale_rewards": "none",
        "reduction": "constant",
        "beta": 0.0,
    },
    "gspo": {  # Zheng et al. 2025, arXiv 2507.18071; clip range of its section 5.1
        "baseline": "group_mean",
        "scale_rewards": "group",
        "ratio_level": "sequence",
        "reduction": "sequence",
        "epsilon": 3e-4,
        "epsilon_high": 4e-4,
        "beta": 0.0,
    },
    "cispo": {  # MiniMax-M1, arXiv 2506.13585: no lower bound; TRL advises an upper one of 5
        "baseline": "group_mean",
        "scale_rewards": "group",
        "surrogate": "cispo",
        "epsilon": 1.0,
        "epsilon_high": 4.0,
        "reduction": "token",
        "beta": 0.0,
    },
    # frameworks
    "trl": {  # 1.16, GRPOConfig
        "baseline": "group_mean",
        "scale_rewards": "group",
        "scale_ddof": 1,
        "scale_eps": 1e-4,
        "epsilon": 0.2,
        "reduction": "token",
        "beta": 0.0,
        "kl_in": "loss",
        "kl_estimator": "k3",
    },
    "verl": {  # adv_estimator grpo, loss_agg_mode token-mean, clip_ratio_c 3
        "baseline": "group_mean",
        "scale_rewards": "group",
        "scale_ddof": 1,
        "scale_eps": 1e-6,
        "epsilon": 0.2,
        "dual_clip": 3.0,
        "reduction": "token",
        "beta": 0.0,
    },
    "openrlhf": {  # group_norm, KL in the reward of each token
        "baseline": "group_mean",
        "scale_rewards": "group",
        "scale_ddof": 1,
        "scale_eps": 1e-9,
        "epsilon": 0.2,
        "reduction": "token",
        "beta": 0.01,
        "kl_in": "token_reward",
        "kl_estimator": "k1",
        "kl_logprobs": "policy",
    },
    "nemo": {  # leave-one-out baseline and deviation, KL in the loss
        "baseline": "leave_one_out",
        "scale_rewards": "leave_one_out",
        "scale_eps": 1e-6,
        "epsilon": 0.2,
        "reduction": "token",
        "beta": 0.01,
        "kl_in": "loss",
        "kl_estimator": "k3",
    },
}


def expand(section: Mapping[str, Any], keys: Mapping[str, Any]) -> dict[str, Any]:
    """Return a trainer section, completed by the keys of its preset.

    `keys` are all keys of the method. Raises ValueError if the preset is unknown.
    """
    name = section.get("preset")
    if name is None:
        return dict(section)
    if name not in PRESETS:
        raise ValueError(f"no preset {name!r}; {did_you_mean(name, PRESETS)}")
    assert PRESETS[name].keys() <= keys.keys(), f"preset {name} has unknown keys"
    return {**PRESETS[name], **section}
