"""Scores from a trained reward model: a sequence classifier with one output, in a local folder.

The output of a process reward model is read at the end of every step.

Prompt and completion are rendered by the reward model's own tokenizer and chat template, as in the
training of a reward model (`data/render.py`). A sequence longer than the model's limit is an error:
the score of its beginning would not be its score.
"""

from __future__ import annotations

import math
import statistics
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from posttrain.config.paths import LocalPath
from posttrain.model import integrity
from posttrain.model.folder import (
    STEPS_FILE,
    base_model,
    check_adapter_file,
    holds_classifier,
    is_adapter,
    is_reft,
    resolve_model_path,
    saved_separator,
    trained_date,
    trained_with,
)
from posttrain.rewards.base import Reward, RewardConfig, RewardFailure

COMBINE: dict[str, Callable[[list[float]], float]] = {
    "product": math.prod,
    "min": min,
    "mean": statistics.fmean,
    "last": lambda p: p[-1],
}


class RewardModel(RewardConfig):
    """Settings of the reward-model reward."""

    type: Literal["reward_model"] = "reward_model"
    path: LocalPath
    """Folder with config.json, *.safetensors and a tokenizer, or a run directory."""
    template: Literal["auto", "chat", "plain"] = "auto"
    """As data.template, for the reward model's tokenizer. auto: if `path` is a run or one of its
    checkpoints, the template and the system prompt of its training; otherwise the tokenizer's chat
    template if it has one, else plain."""
    steps: Literal["none", "product", "min", "mean", "last"] = "none"
    """How a process reward model's probabilities that a step is right are combined into the score.
    product: the probability that all steps are right (Lightman et al. 2023); min: the least
    probability (Math-Shepherd, arXiv 2312.08935); mean; last: that of the last step. none: for a
    reward model of whole completions."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """As model.device."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """As model.dtype."""
    max_length: int | None = Field(None, ge=1)
    """Longest sequence, in tokens; by default the model's limit."""
    micro_batch_tokens: int = Field(16384, ge=1)
    """Tokens in one forward pass, padding included. Bounds the memory."""


def build(config: RewardModel) -> Callable[..., list[float | None]]:
    """Return the reward function, whose scores have no verdict.

    A score is the model's one logit, in fp32, or the steps' probabilities combined as
    `config.steps` says. The folder is checked here; the weights are loaded on the first call.
    """
    # imported here since they import torch, and settings are read without it
    from posttrain.data.chat import read_by_template
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
        date = trained_date(path)
        renderer = make_renderer(load_tokenizer(path), template, system_prompt, date=date)
    except ValueError as error:
        raise ValueError(f"reward.path {path}: {error}") from None
    longest = config.max_length or int(getattr(model_config, "max_position_embeddings", 2**31))
    device = choose_device(config.device)
    dtype = choose_dtype(config.dtype, device)
    loaded: list[Any] = []
    lock = threading.Lock()

    def rendered(columns: dict[str, Any]) -> tuple[list[int], list[int]]:
        """Return the token ids, and the positions in them at which a step ends."""
        completion = columns["completion"]
        row = {"prompt": columns["prompt"], "completion": completion, **read_by_template(columns)}
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
        columns |= {"prompt": prompts, "completion": completions}
        each = zip(*columns.values(), strict=True)
        rows = [rendered(dict(zip(columns, values, strict=True))) for values in each]
        sequences = [ids for ids, _ in rows]
        for i, ids in enumerate(sequences):
            if len(ids) > longest:
                raise RewardFailure(
                    f"row {i + 1} has {len(ids)} tokens, but the reward model {path} takes at most "
                    f"{longest}: lower rollout.max_new_tokens or length.max_length"
                )
        with lock:
            if not loaded:
                loaded.append(load(path, device, dtype))
            if separator is None:
                return score_ids(loaded[0], sequences, config.micro_batch_tokens)
            probabilities = step_probabilities(loaded[0], rows, config.micro_batch_tokens)
        # a completion without a step must not score more than one with wrong steps
        return [COMBINE[config.steps](p) if p else 0.0 for p in probabilities]

    return reward


def check_folder(path: str) -> Any:
    """Return the model's config; raise ValueError unless it is a reward model in safetensors."""
    from transformers import AutoConfig

    folder = Path(path)
    if is_adapter(folder):
        if not holds_classifier(folder):
            raise ValueError(f"reward.path: {path} holds an adapter, but not of a reward model")
        if not is_reft(folder):
            check_adapter_file(folder)
        base = base_model(path)
        integrity.check_folder(base)
        try:
            return AutoConfig.from_pretrained(base, trust_remote_code=False, local_files_only=True)
        except OSError as error:
            raise ValueError(
                f"reward.path: {path} is an adapter of {base}, which is not a model on this machine"
            ) from error
    if not (folder / "config.json").is_file():
        problem = "has no config.json" if folder.is_dir() else "is not a folder"
        raise ValueError(f"reward.path: {path} {problem}; expected the folder of a reward model")
    kinds = integrity.read_json(folder / "config.json").get("architectures") or ["?"]
    if not kinds[0].endswith("ForSequenceClassification"):
        raise ValueError(
            f"reward.path: {path} is a {kinds[0]}, not a reward model "
            "(...ForSequenceClassification)"
        )
    try:
        config = AutoConfig.from_pretrained(path, trust_remote_code=False, local_files_only=True)
    except (ValueError, OSError) as error:
        raise ValueError(
            f"reward.path: {path} holds a type of model that transformers does not know; code in a "
            "model folder is never run"
        ) from error
    if config.num_labels != 1:
        raise ValueError(
            f"reward.path: the model in {path} has {config.num_labels} outputs; a reward model "
            "has one (num_labels: 1)"
        )
    if not any(folder.glob("*.safetensors")):
        raise ValueError(
            f"reward.path: {path} has no *.safetensors; pickled weights (.bin) can run code and "
            "are never loaded: save the model with save_pretrained"
        )
    return config


def check_steps(path: str, steps: str) -> str | None:
    """Return a process reward model's separator of steps; None for any other reward model.

    Raise ValueError if `steps` does not fit the model.
    """
    separator = saved_separator(Path(path))
    if separator is not None and steps == "none":
        raise ValueError(
            f"reward.path: {path} is a process reward model, with a score for each step: set "
            f"reward.steps to one of {', '.join(COMBINE)}"
        )
    if separator is None and steps != "none":
        raise ValueError(
            f"reward.steps: {path} is not a process reward model (it has no {STEPS_FILE})"
        )
    return separator


REWARD = Reward(RewardModel, build)
