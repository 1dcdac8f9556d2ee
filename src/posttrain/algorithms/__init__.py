"""The registry of algorithms. To add one: a file here and a line below."""

from posttrain.algorithms.actor_critic import ppo
from posttrain.algorithms.base import Algorithm
from posttrain.algorithms.language_modeling import pretrain, sft
from posttrain.algorithms.policy_gradient import grpo, reinforce, rloo

ALGORITHMS: dict[str, Algorithm] = {
    "pretrain": pretrain,
    "sft": sft,
    "grpo": grpo,
    "rloo": rloo,
    "reinforce": reinforce,
    "ppo": ppo,
}
