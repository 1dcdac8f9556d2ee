"""Scores from a trained reward model: a sequence classifier with one output, in a local folder.
That of a process reward model is read at the end of every step.

Prompt and completion are rendered by the reward model's own tokenizer and chat template, the way
that a reward model is trained on them here (`data/render.py`). A sequence that is longer than the
model takes is an error, for a score of its beginning would not be a score of it.
"""

from __future__ import annotations

import math
import statistics
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from posttrain.model.folder import (
    STEPS_FILE,
    adapter_config,
    check_adapter_file,
    holds_classifier,
    is_adapter,
    read_json,
    resolve_model_path,
    saved_separator,
    trained_with,
)
from posttrain.rewards.base import Reward, RewardConfig, RewardFailure

COMBINE: dict[str, Callable[[list[float]], float]] = {
    "product": math.prod, "min": min, "mean": statistics.fmean, "last": lambda p: p[-1],
}  # fmt: skip


class RewardModel(RewardConfig):
    """Settings of the reward-model reward."""

    type: Literal["reward_model"] = "reward_model"
    path: str
    """A folder with config.json, *.safetensors and a tokenizer, or a run directory."""
    template: Literal["auto", "chat", "plain"] = "auto"
    """As data.template, for the reward model's tokenizer. auto is what it was trained with (and so
    is the system prompt) where `path` is a run or its checkpoint; else chat where it has one."""
    steps: Literal["none", "product", "min", "mean", "last"] = "none"
    """Of a process reward model: what the score is made of, which is one for each step, its
    probability of being right. product: that all are (Lightman et al. 2023); min: the least
    (Math-Shepherd, arXiv 2312.08935)."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """As model.device."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """As model.dtype."""
    max_length: int | None = Field(None, ge=1)
    """Longest sequence in tokens; by default what the model can take."""
    micro_batch_tokens: int = Field(16384, ge=1)
    """Tokens in one forward pass, padding included: bounds the memory."""


def build(config: RewardModel) -> Callable[..., list[float | None]]:
    """The reward function for `config`: the model's one logit, in fp32, or what `config.steps`
    makes of the probabilities of the steps; no verdict.

    The folder is checked here, the weights are loaded when the first scores are asked for.
    """
    # here, not above: they import torch, and settings are read without it
    from posttrain.data.kinds.steps import steps_of
    from posttrain.data.render import make_renderer
    from posttrain.model.device import choose_device, choose_dtype
    from posttrain.model.load import load_tokenizer
    from posttrain.rewards.classifier_scores import load, score_ids, step_probabilities

    path = resolve_model_path(config.path)
    model_config = check_folder(path)
    separator = check_steps(path, config.steps)
    template, system_prompt = config.template, None
    if template == "auto":
        template, system_prompt, _ = trained_with(path)
    try:
        renderer = make_renderer(load_tokenizer(path), template, system_prompt)
    except ValueError as error:
        raise ValueError(f"reward.path {path}: {error}") from None
    longest = config.max_length or int(getattr(model_config, "max_position_embeddings", 2**31))
    device = choose_device(config.device)
    dtype = choose_dtype(config.dtype, device)
    loaded: list[Any] = []
    lock = threading.Lock()

    def rendered(prompt: Any, completion: str) -> tuple[list[int], list[int]]:
        """The ids, and where in them a step ends."""
        row = {"prompt": prompt, "completion": completion}
        if separator is None:
            return renderer.training_sequence(row).input_ids.tolist(), []
        row["completions"] = steps_of(completion, separator)
        if not row["completions"]:
            return renderer.prompt_ids(row), []
        sequence = renderer.step_sequence(row, separator)
        return sequence.input_ids.tolist(), sequence.loss_mask.nonzero()[:, 0].tolist()

    def reward(
        prompts: Sequence[Any], completions: Sequence[str], completion_ids: Any, **columns: Any
    ) -> list[float | None]:
        rows = [rendered(*row) for row in zip(prompts, completions, strict=True)]
        sequences = [ids for ids, _ in rows]
        for i, ids in enumerate(sequences):
            if len(ids) > longest:
                raise RewardFailure(
                    f"row {i + 1} has {len(ids)} tokens, but the reward model {path} takes "
                    f"{longest}: lower rollout.max_new_tokens or length.max_length"
                )
        with lock:
            if not loaded:
                loaded.append(load(path, device, dtype))
            if separator is None:
                return score_ids(loaded[0], sequences, config.micro_batch_tokens)
            found = step_probabilities(loaded[0], rows, config.micro_batch_tokens)
        # a completion without a step must not be worth more than one with wrong steps
        return [COMBINE[config.steps](p) if p else 0.0 for p in found]

    return reward


def check_folder(path: str) -> Any:
    """The model's config; ValueError for anything but a reward model in safetensors."""
    from transformers import AutoConfig

    folder = Path(path)
    if is_adapter(folder):
        if not holds_classifier(folder):
            raise ValueError(f"reward.path: {path} holds an adapter, but not of a reward model")
        check_adapter_file(folder)
        base = adapter_config(folder)["base_model_name_or_path"]
        try:
            return AutoConfig.from_pretrained(base, trust_remote_code=False, local_files_only=True)
        except OSError as error:
            raise ValueError(
                f"reward.path: {path} is an adapter of {base}, which is no model here"
            ) from error
    if not (folder / "config.json").is_file():
        what = "holds no config.json" if folder.is_dir() else "is no folder"
        raise ValueError(f"reward.path: {path} {what}; a local reward-model folder is needed")
    kinds = read_json(folder / "config.json").get("architectures") or ["?"]
    if not kinds[0].endswith("ForSequenceClassification"):
        raise ValueError(
            f"reward.path: {path} is a {kinds[0]}, not a reward model "
            "(...ForSequenceClassification)"
        )
    try:
        config = AutoConfig.from_pretrained(path, trust_remote_code=False, local_files_only=True)
    except (ValueError, OSError) as error:
        raise ValueError(
            f"reward.path: {path} holds a kind of model that transformers does not know; code in a "
            "model folder is never run"
        ) from error
    if config.num_labels != 1:
        raise ValueError(
            f"reward.path: the model in {path} has {config.num_labels} outputs; a reward model "
            "has one (num_labels: 1)"
        )
    if not any(folder.glob("*.safetensors")):
        raise ValueError(
            f"reward.path: {path} holds no *.safetensors; pickled weights (.bin) can run code and "
            "are never loaded: save the model with save_pretrained"
        )
    return config


def check_steps(path: str, steps: str) -> str | None:
    """What separates the steps, of a process reward model; ValueError where `steps` does not fit
    the folder."""
    separator = saved_separator(Path(path))
    if separator is not None and steps == "none":
        raise ValueError(
            f"reward.path: {path} is a process reward model, with a score for each step: set "
            f"reward.steps to {', '.join(COMBINE)}"
        )
    if separator is None and steps != "none":
        raise ValueError(
            f"reward.steps: {path} is no process reward model (it holds no {STEPS_FILE})"
        )
    return separator


REWARD = Reward(RewardModel, build)
