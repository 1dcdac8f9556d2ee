"""Scores of token ids by a transformers sequence classifier, for the reward `reward_model`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from posttrain.common.batch import Sequence, pack
from posttrain.model.config import ModelConfig
from posttrain.model.folder import is_reft
from posttrain.model.forward import forward
from posttrain.model.heads import add_scoring_head
from posttrain.model.language_model import LanguageModel
from posttrain.model.load import load_classifier, load_policy
from posttrain.rewards.base import RewardFailure


def load(path: str, device: torch.device, dtype: torch.dtype) -> Any:
    """Return the model in eval mode; raise RewardFailure if the folder lacks some weights.

    It is a sequence classifier of transformers, or with edits of ReFT a LanguageModel."""
    if is_reft(path):
        return _with_edits(path, device, dtype)
    model, lacking = load_classifier(path, dtype)
    if lacking:
        missing = ", ".join(lacking[:3])
        raise RewardFailure(
            f"reward.path: {path} lacks weights ({missing}): with random weights in their place "
            "the scores would mean nothing"
        )
    if model.config.num_labels != 1:
        raise RewardFailure(
            f"reward.path: {path} has {model.config.num_labels} outputs; a reward model has one"
        )
    model.requires_grad_(False)
    return model.eval().to(device)


def _with_edits(path: str, device: torch.device, dtype: torch.dtype) -> LanguageModel:
    keys = {"name": path, "dtype": str(dtype).removeprefix("torch."), "adapter": "none"}
    policy = load_policy(ModelConfig.model_validate(keys), path, device, seed=0, scores=True)
    add_scoring_head(policy, path)
    return policy.requires_grad_(False).eval()


def _scores_of(policy: LanguageModel, sequences: list[list[int]]) -> list[float]:
    rows = [
        Sequence(torch.tensor(ids), torch.zeros(len(ids), dtype=torch.bool)) for ids in sequences
    ]
    batch = pack(rows).to(policy.device)
    scores = forward(policy, batch, head=True).scores
    assert scores is not None
    return scores[batch.last_tokens()].float().tolist()


@torch.inference_mode()
def score_ids(model: Any, sequences: list[list[int]], max_tokens: int) -> list[float | None]:
    """Return the logit of every sequence, which except for rounding does not depend on the others.

    A batch holds at most `max_tokens` tokens, padding included.
    """
    scores: list[float | None] = [None] * len(sequences)
    if isinstance(model, LanguageModel):
        for part in token_batches([len(ids) for ids in sequences], max_tokens):
            for i, score in zip(part, _scores_of(model, [sequences[i] for i in part])):
                scores[i] = score
        return scores
    for batch in token_batches([len(ids) for ids in sequences], max_tokens):
        rows = [sequences[i] for i in batch]
        # transformers reads the score at the last token that is not the pad token. A pad token that
        # ends none of the rows makes that the last token of each row, even if the tokenizer's pad
        # token is its eos token.
        last = {ids[-1] for ids in rows}
        text_config = model.config.get_text_config()
        candidates = (text_config.pad_token_id, *range(text_config.vocab_size))
        pad = next(i for i in candidates if i is not None and i not in last)
        before, text_config.pad_token_id = text_config.pad_token_id, pad
        try:
            logits = model(**padded(rows, pad, next(model.parameters()).device)).logits
        finally:
            text_config.pad_token_id = before
        for i, logit in zip(batch, logits[:, 0].float().tolist()):
            scores[i] = logit
    return scores


@torch.inference_mode()
def step_probabilities(
    model: Any, rows: list[tuple[list[int], list[int]]], max_tokens: int
) -> list[list[float]]:
    """Return for every row the probability that each of its steps is right.

    A row is its token ids and the positions at which its steps end.
    """
    results: list[list[float]] = [[] for _ in rows]
    backbone, device = getattr(model, model.base_model_prefix), next(model.parameters()).device
    for batch in token_batches([len(ids) for ids, _ in rows], max_tokens):
        inputs = padded([rows[i][0] for i in batch], 0, device)
        states = backbone(**inputs, use_cache=False).last_hidden_state
        probabilities = model.score(states)[..., 0].float().sigmoid().tolist()
        for i, row_probabilities in zip(batch, probabilities):
            results[i] = [row_probabilities[position] for position in rows[i][1]]
    return results


def padded(rows: list[list[int]], pad: int, device: torch.device) -> dict[str, Tensor]:
    """Return the ids [N, W], padded on the right, and their attention mask [N, W]."""
    width = max(map(len, rows))
    ids = torch.tensor([[*row, *[pad] * (width - len(row))] for row in rows])
    mask = torch.arange(width) < torch.tensor([[len(row)] for row in rows])
    return {"input_ids": ids.to(device), "attention_mask": mask.long().to(device)}


def token_batches(lengths: list[int], max_tokens: int) -> Iterator[list[int]]:
    """Yield batches of indices, the shortest sequences first.

    A batch has at most `max_tokens` tokens, padding included, or is one longer sequence.
    """
    batch: list[int] = []
    for i in sorted(range(len(lengths)), key=lengths.__getitem__):
        if batch and (len(batch) + 1) * lengths[i] > max_tokens:
            yield batch
            batch = []
        batch.append(i)
    if batch:
        yield batch
