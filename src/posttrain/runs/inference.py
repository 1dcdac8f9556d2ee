"""The settings of `posttrain generate`: how completions are sampled, and what is written of them.

An inference.yaml holds these keys at its top level; arguments and options win over the file.
"""

from __future__ import annotations

import os
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, field_validator

from posttrain.common import distributed
from posttrain.common.errors import SettingError
from posttrain.config.base import AlsoCalled, StrictConfig
from posttrain.config.errors import explain, parse
from posttrain.config.recipe import read_yaml
from posttrain.rewards.build import RewardSection
from posttrain.rollout.check import drawable
from posttrain.runs.launch import LONGEST_TIMEOUT

OF_FILES = (
    "split",
    "prompt_template",
    "columns",
    "reward",
    "logprobs",
    "rank_timeout",
    "tensor_parallel",
)
"""Keys that are read for the rows of a file only."""


class InferenceConfig(StrictConfig):
    """How a trained model is asked, for prompts or for the rows of a file."""

    max_new_tokens: Annotated[
        int, AlsoCalled("max_tokens", "max_completion_length", "max_length")
    ] = Field(256, ge=1)
    """Maximum completion length in tokens, including the stop token."""
    temperature: float = Field(1.0, ge=0)
    """Logits are divided by it; 0 is greedy."""
    top_p: float = Field(1.0, gt=0, le=1)
    """Sample from the most likely tokens that together have this probability."""
    top_k: int = Field(0, ge=0)
    """Sample from the k most likely tokens; 0 is no limit."""
    num_samples: Annotated[int, AlsoCalled("n", "num_return_sequences", "num_generations")] = Field(
        1, ge=1
    )
    """Completions of each prompt or row."""
    seed: int = 0
    """Seed of the sampling noise."""
    template: Literal["auto", "chat", "plain"] = "auto"
    """chat: the tokenizer's chat template; plain: the bare text; auto: as in the run's training."""
    system_prompt: str | None = None
    """The system message of every prompt that has none; by default the run's, and '' is none."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto, cpu or cuda."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """The dtype of the weights that compute; auto: bfloat16 on a GPU that has it."""
    quantization: Literal["none", "nf4", "fp4", "int8"] | None = None
    """How the weights are stored, as model.quantization; by default as in the adapter's training,
    else as in the model's files."""
    max_num_seqs: int = Field(256, ge=1)
    """Maximum number of concurrent completions; bounds memory."""
    tensor_parallel: int = Field(1, ge=1)
    """Ranks that split the model's matrices, for one that is too large for a rank."""
    split: str = "train"
    """The part to read of a folder, or of a file that holds several."""
    prompt_template: str | None = None
    """The prompt of a row: a template's name (see `posttrain data templates`), or a text with
    {columns}."""
    columns: dict[str, str] = Field(default_factory=dict)
    """posttrain's column -> the file's, for example {prompt: question}."""
    reward: RewardSection | None = None
    """A reward that scores each completion, as in a recipe."""
    logprobs: bool = False
    """Write the token ids of each completion and their log-probs."""
    rank_timeout: float = Field(distributed.TIMEOUT, ge=1, le=LONGEST_TIMEOUT)
    """Seconds that a rank waits for the others, of several."""

    @field_validator("temperature")
    @classmethod
    def _drawable(cls, temperature: float) -> float:
        try:
            return drawable(temperature)
        except ValueError as error:
            raise ValueError(f"temperature: {error}") from None


def inference_config(
    config: str | os.PathLike[str] | None, settings: dict[str, Any]
) -> InferenceConfig:
    """Return the settings of a YAML file, if one is given, with `settings` in place of the file's.

    A reward in `settings` without a type changes keys of the file's reward. Raises ValueError that
    names the file, or SettingError if a value of `settings` is wrong.
    """
    tree: dict[str, Any] = {}
    if config is not None:
        content = "keys of posttrain generate (temperature, num_samples, ...)"
        tree = read_yaml(os.fspath(config), "settings file", content)
        parse(InferenceConfig, tree, os.fspath(config))
    reward = settings.get("reward")
    if isinstance(reward, dict) and "type" not in reward:
        if not isinstance(tree.get("reward"), dict):
            raise SettingError("reward", "no reward has been named whose keys these could be")
        settings = settings | {"reward": tree["reward"] | reward}
    try:
        return InferenceConfig.model_validate(tree | settings)
    except ValidationError as error:
        problem = explain(error, InferenceConfig)
        field, colon, rest = problem.partition(": ")
        if colon and field in settings:
            raise SettingError(field, rest) from None
        raise ValueError(problem) from None


def settings_of_prompts(
    config: str | os.PathLike[str] | None, settings: dict[str, Any]
) -> dict[str, Any]:
    """Return the arguments of `generate` for prompts; raise SettingError for a key of files."""
    chosen = inference_config(config, settings).model_dump()
    for name in OF_FILES:
        default = InferenceConfig.model_fields[name].get_default(call_default_factory=True)
        if chosen.pop(name) != default:
            raise SettingError(name, "is for the rows of a file: give file instead of prompts")
    return chosen
