"""The registry of rewards. To add one, write a module with a `Reward` and add a line below."""

REWARDS: dict[str, object] = {
    "math_correctness": "posttrain.rewards.rules.math:REWARD",
    "code_execution": "posttrain.rewards.code:REWARD",
    "exact_match": "posttrain.rewards.rules.exact_match:REWARD",
    "classification": "posttrain.rewards.rules.classification:REWARD",
    "format": "posttrain.rewards.rules.format:REWARD",
    "length": "posttrain.rewards.rules.length:REWARD",
    "refusal": "posttrain.rewards.refusal:REWARD",
    "repetition": "posttrain.rewards.rules.repetition:REWARD",
    "reward_model": "posttrain.rewards.reward_model:REWARD",
    "http": "posttrain.rewards.remote.http:REWARD",
    "judge": "posttrain.rewards.remote.judge:REWARD",
    "weighted": "posttrain.rewards.weighted:REWARD",
    "custom": "posttrain.rewards.custom:REWARD",
}
