"""Scores from a trained reward model: a sequence classifier with one output, in a local folder.
That of a process reward model is read at the end of every step.

Prompt and completion are rendered by the reward model's own tokenizer and chat template, the way
that a reward model is trained on them here (`data/render.py`). A sequence that is longer than the
model takes is an error, for a score of its beginning would not be a score of it.
"""

from __future__ import annotations

import json
import math
import statistics
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import BaseModel, Field
from torch import Tensor

from posttrain.rewards.call import RewardFailure

COMBINE: dict[str, Callable[[list[float]], float]] = {
    "product": math.prod, "min": min, "mean": statistics.fmean, "last": lambda p: p[-1],
}  # fmt: skip


class RewardModel(BaseModel, extra="forbid"):
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
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    max_length: int | None = Field(None, ge=1)
    """Longest sequence in tokens; by default what the model can take."""
    micro_batch_tokens: int = Field(16384, ge=1)
    """Tokens in one forward pass, padding included: bounds the memory."""


def build(config: RewardModel) -> Callable[..., list[float | None]]:
    """The reward function for `config`: the model's one logit, in fp32, or what `config.steps`
    makes of the probabilities of the steps; no verdict.

    The folder is checked here, the weights are loaded when the first scores are asked for.
    """
    from posttrain.data.render import make_renderer, trained_with  # they import the config, it this
    from posttrain.data.steps import steps_of
    from posttrain.models import choose_device, choose_dtype, load_tokenizer, resolve_model_path

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

    from posttrain.models import check_adapter_file

    folder = Path(path)
    adapter = folder / "adapter_config.json"
    if adapter.is_file():
        settings = json.loads(adapter.read_text())
        if settings.get("task_type") != "SEQ_CLS":
            raise ValueError(f"reward.path: {path} holds an adapter, but not of a reward model")
        check_adapter_file(folder)
        base = settings["base_model_name_or_path"]
        try:
            return AutoConfig.from_pretrained(base, trust_remote_code=False, local_files_only=True)
        except OSError as error:
            raise ValueError(
                f"reward.path: {path} is an adapter of {base}, which is no model here"
            ) from error
    if not (folder / "config.json").is_file():
        what = "holds no config.json" if folder.is_dir() else "is no folder"
        raise ValueError(f"reward.path: {path} {what}; a local reward-model folder is needed")
    kinds = json.loads((folder / "config.json").read_text()).get("architectures") or ["?"]
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
    from posttrain.reward_head import STEPS_FILE, saved_separator

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


def load(path: str, device: torch.device, dtype: torch.dtype) -> Any:
    """The model in eval mode; ValueError where the folder lacks some of its weights."""
    from posttrain.reward_head import load_classifier

    model, lacking = load_classifier(path, dtype)
    if lacking:
        missing = ", ".join(lacking[:3])
        raise RewardFailure(
            f"reward.path: {path} lacks weights ({missing}): they would be random, and so the score"
        )
    model.requires_grad_(False)
    return model.eval().to(device)


@torch.inference_mode()
def score_ids(model: Any, sequences: list[list[int]], max_tokens: int) -> list[float | None]:
    """The logit of every sequence. Rounding aside, it does not depend on the others."""
    scores: list[float | None] = [None] * len(sequences)
    for chosen in token_batches([len(ids) for ids in sequences], max_tokens):
        rows = [sequences[i] for i in chosen]
        # transformers reads the score at the last token that is not the pad token: padding with
        # none of the last tokens makes that each row's own last one, also where pad equals eos
        last = {ids[-1] for ids in rows}
        text_config = model.config.get_text_config()
        candidates = (text_config.pad_token_id, *range(text_config.vocab_size))
        pad = next(i for i in candidates if i is not None and i not in last)
        before, text_config.pad_token_id = text_config.pad_token_id, pad
        try:
            logits = model(**padded(rows, pad, next(model.parameters()).device)).logits
        finally:
            text_config.pad_token_id = before
        for i, value in zip(chosen, logits[:, 0].float().tolist()):
            scores[i] = value
    return scores


@torch.inference_mode()
def step_probabilities(
    model: Any, rows: list[tuple[list[int], list[int]]], max_tokens: int
) -> list[list[float]]:
    """The probability of being right of every step, of rows of ids and the places where their
    steps end."""
    found: list[list[float]] = [[] for _ in rows]
    backbone, device = getattr(model, model.base_model_prefix), next(model.parameters()).device
    for chosen in token_batches([len(ids) for ids, _ in rows], max_tokens):
        inputs = padded([rows[i][0] for i in chosen], 0, device)
        states = backbone(**inputs, use_cache=False).last_hidden_state
        probabilities = model.score(states)[..., 0].float().sigmoid().tolist()
        for i, values in zip(chosen, probabilities):
            found[i] = [values[place] for place in rows[i][1]]
    return found


def padded(rows: list[list[int]], pad: int, device: torch.device) -> dict[str, Tensor]:
    """Ids [N, W], padded on the right, and their mask."""
    width = max(map(len, rows))
    ids = torch.tensor([[*row, *[pad] * (width - len(row))] for row in rows])
    mask = torch.arange(width) < torch.tensor([[len(row)] for row in rows])
    return {"input_ids": ids.to(device), "attention_mask": mask.long().to(device)}


def token_batches(lengths: list[int], max_tokens: int) -> Iterator[list[int]]:
    """Indices in batches of at most `max_tokens` with padding, or of one; the shortest first."""
    batch: list[int] = []
    for i in sorted(range(len(lengths)), key=lengths.__getitem__):
        if batch and (len(batch) + 1) * lengths[i] > max_tokens:
            yield batch
            batch = []
        batch.append(i)
    if batch:
        yield batch
