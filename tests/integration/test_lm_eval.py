"""lm-eval evaluates a posttrain checkpoint as it is, on a task of our own."""

from __future__ import annotations

from pathlib import Path

import pytest
from command import command, recipe
from lm_tasks import loglikelihood, sums_task

CHOICES = [str(n) for n in range(5)]


@pytest.mark.slow
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
    tasks = sums_task(tmp_path, "local_sums", rows)
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
    right = 0
    samples = {sample["doc_id"]: sample for sample in found["samples"]["local_sums"]}
    for i, row in enumerate(rows):
        question = str(row["question"])
        ours = [loglikelihood(model, tokenizer, question, choice)[0] for choice in CHOICES]
        theirs = [response[0] for response in samples[i]["filtered_resps"]]
        assert theirs == pytest.approx(ours, abs=1e-4)
        right += max(range(5), key=ours.__getitem__) == row["label"]
    assert found["results"]["local_sums"]["acc,none"] == pytest.approx(right / len(rows))
