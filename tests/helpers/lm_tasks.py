"""A multiple-choice task for lm-eval in files, and the log-likelihoods it must find."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import yaml


def sums_task(folder: Path, name: str, rows: list[dict[str, Any]]) -> Path:
    """Write rows of question, choices and label as a task; return the folder of tasks."""
    data, tasks = folder / "sums.jsonl", folder / "tasks"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    tasks.mkdir()
    task = {
        "task": name,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(data)}},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "{{question}}",
        "doc_to_choice": "choices",
        "doc_to_target": "label",
        "metric_list": [{"metric": "acc", "aggregation": "mean"}],
    }
    (tasks / "sums.yaml").write_text(yaml.safe_dump(task))
    return tasks


@torch.no_grad()
def loglikelihood(model: Any, tokenizer: Any, question: str, choice: str) -> tuple[float, bool]:
    """Log-prob of a choice after its question, by transformers' model, and whether it is greedy."""
    ids = tokenizer(f"{question} {choice}", return_tensors="pt")["input_ids"]
    start = len(tokenizer(question)["input_ids"])
    logprobs = model(ids).logits[0, :-1].log_softmax(-1)
    chosen = logprobs.gather(1, ids[0, 1:, None])[start - 1 :, 0]
    greedy = logprobs.argmax(-1)[start - 1 :].tolist() == ids[0, start:].tolist()
    return float(chosen.sum()), greedy
