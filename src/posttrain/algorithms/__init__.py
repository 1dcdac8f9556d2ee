"""The registry of algorithms; to add one, write a file with an `Algorithm` and a line below."""

ALGORITHMS: dict[str, object] = {
    "pretrain": "posttrain.algorithms.language_modeling:pretrain",
    "sft": "posttrain.algorithms.language_modeling:sft",
    "dpo": "posttrain.algorithms.preference:dpo",
    "ipo": "posttrain.algorithms.preference:ipo",
    "kto_pair": "posttrain.algorithms.preference:kto_pair",
    "kto": "posttrain.algorithms.kto:kto",
    "simpo": "posttrain.algorithms.preference:simpo",
    "cpo": "posttrain.algorithms.preference:cpo",
    "orpo": "posttrain.algorithms.preference:orpo",
    "reward_model": "posttrain.algorithms.reward_model:reward_model",
    "process_reward_model": "posttrain.algorithms.process_reward_model:process_reward_model",
    "classification": "posttrain.algorithms.classification:classification",
    "grpo": "posttrain.algorithms.policy_gradient:grpo",
    "rloo": "posttrain.algorithms.policy_gradient:rloo",
    "reinforce": "posttrain.algorithms.policy_gradient:reinforce",
    "ppo": "posttrain.algorithms.ppo:ppo",
}
