"""Scores of token ids from a transformers sequence classifier: what `reward_model` runs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from posttrain.model.load import load_classifier
from posttrain.rewards.base import RewardFailure


def load(path: str, device: torch.device, dtype: torch.dtype) -> Any:
    """The model in eval mode; ValueError where the folder lacks some of its weights."""
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
