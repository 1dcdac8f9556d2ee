"""lm-eval evaluates a posttrain checkpoint as it is, on a task of our own."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import yaml
from command import command, recipe

CHOICES = [str(n) for n in range(5)]


def test_lm_eval_takes_a_checkpoint(tmp_path: Path) -> None:
    """Its log-likelihoods are those of transformers on the same folder."""
    lm_eval = pytest.importorskip("lm_eval", reason="needs pip install 'posttrain[lm-eval]'")
    from lm_eval.tasks import TaskManager
    from transformers import AutoModelForCausalLM, AutoTokenizer

    assert command("train", recipe(tmp_path)) == 0
    (checkpoint,) = tmp_path.glob("out/sft_*/checkpoint-2")
    rows = [
        {"question": f"{a}+{b} =", "choices": CHOICES, "label": a + b}
        for a in range(3)
        for b in range(3)
    ]
    data, tasks = tmp_path / "sums.jsonl", tmp_path / "tasks"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    tasks.mkdir()
    (tasks / "sums.yaml").write_text(
        yaml.safe_dump(
            {
                "task": "local_sums",
                "dataset_path": "json",
                "dataset_kwargs": {"data_files": {"test": str(data)}},
                "test_split": "test",
                "output_type": "multiple_choice",
                "doc_to_text": "{{question}}",
                "doc_to_choice": "choices",
                "doc_to_target": "label",
                "metric_list": [{"metric": "acc", "aggregation": "mean"}],
            }
        )
    )
    found = lm_eval.simple_evaluate(
        model="hf",
        model_args={"pretrained": str(checkpoint), "dtype": "float32"},
        tasks=["local_sums"],
        task_manager=TaskManager(include_path=str(tasks), include_defaults=False),
        device="cpu",
        batch_size=1,
        bootstrap_iters=0,
    )
    model = AutoModelForCausalLM.from_pretrained(checkpoint).eval()
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)

    def loglikelihood(question: str, choice: str) -> float:
        ids = tokenizer(f"{question} {choice}", return_tensors="pt")["input_ids"]
        start = len(tokenizer(question)["input_ids"])
        with torch.no_grad():
            logprobs = model(ids).logits[0, :-1].log_softmax(-1)
        chosen = logprobs.gather(1, ids[0, 1:, None])[:, 0]
        return float(chosen[start - 1 :].sum())

    right = 0
    samples = {sample["doc_id"]: sample for sample in found["samples"]["local_sums"]}
    for i, row in enumerate(rows):
        ours = [loglikelihood(str(row["question"]), choice) for choice in CHOICES]
        theirs = [response[0] for response in samples[i]["filtered_resps"]]
        assert theirs == pytest.approx(ours, abs=1e-4)
        right += max(range(5), key=ours.__getitem__) == row["label"]
    assert found["results"]["local_sums"]["acc,none"] == pytest.approx(right / len(rows))
