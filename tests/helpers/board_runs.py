"""Folders of made runs, as `posttrain train` and `posttrain eval` write them, without training.

Everything follows from the arguments: the same call writes the same bytes.
"""

from __future__ import annotations

import json
import math
import random
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml

from posttrain.common.lock import writing

BEGUN = 1_796_000_000.0  # 2026-11-29, in seconds since 1970
METHODS = ("grpo", "sft", "dpo", "classification")
STATES = ("finished", "running", "failed", "interrupted", "killed")
ERROR = "model.name: the folder /models/none does not exist: name a folder that holds a model"
LABELS = ("SUPPORTS", "REFUTES", "NOT ENOUGH INFO")
INJECTION = "</script><img src=x onerror=\"document.title='injected'\"><b>bold</b>{{data}}"
ARABIC = "ثلاث قطط لها اثنتا عشرة رجلاً."
WORDS = ("Carl", " pays", " six", " dollars", " for", " each", ",", " so", " 24", "\n", " 猫", " ")
PROMPT = (
    "<|user|>Carl buys {} buttons for 6 dollars each. How much does he pay?<|end|><|assistant|>"
)


def make_run(
    folder: Path,
    method: str = "sft",
    *,
    num_steps: int = 40,
    steps: int | None = None,
    state: str = "finished",
    seed: int = 0,
    settings: dict[str, Any] | None = None,
    seconds_per_step: float = 2.0,
    begun: float = BEGUN,
    prompts: int = 3,
    group_size: int = 2,
    recorded: int = 1,
    checkpoints: Sequence[int] = (),
    checkpoint_bytes: int = 10_000,
) -> Path:
    """Write a run that has made `steps` of its `num_steps` steps, all of them by default.

    `settings` are of the section trainer. `recorded` of the prompts of each step have tokens. A run
    whose state is "running" is shown as killed unless its folder is held (see `held`).
    """
    folder.mkdir(parents=True)
    done = num_steps if steps is None else steps
    trainer = {"type": method, "learning_rate": 1e-3, "max_steps": num_steps, "seed": seed}
    config: dict[str, Any] = {
        "model": {"name": "models/tiny" if seed % 2 else "models/smollm2-135m-instruct"},
        "data": {"name": "word_problems", "options": {"num_rows": 40}},
        "trainer": trainer | (settings or {}),
    }
    if method == "grpo":
        config["rollout"] = {"group_size": group_size, "record_prompts": recorded}
        config["reward"] = {"type": "math", "pattern": INJECTION}
    (folder / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    seconds = done * seconds_per_step
    info: dict[str, Any] = {
        "state": state,
        "num_steps": num_steps,
        "command": f"posttrain train {method}.yaml",
        "started": datetime.fromtimestamp(begun, UTC).isoformat(),
        "seconds": seconds,
        "versions": {"python": "3.11.7", "posttrain": "0.2.0"},
        "machine": "x86_64, 1 threads",
        "num_parameters": 28_838,
    }
    if state == "failed":
        info["error"] = ERROR
    write_json(folder / "run.json", info)
    data = [{"name": "word_problems (train)", "read": 40, "rows": 40, "kept": 40, "dropped": 0}]
    write_json(folder / "data.json", data)
    metrics = metric_lines(method, done, num_steps, seed, begun, seconds_per_step)
    write_lines(folder / "metrics.jsonl", metrics)
    samples = sample_lines(done, num_steps, seed, prompts, group_size, recorded)
    write_lines(folder / "samples.jsonl", samples if method == "grpo" else [])
    for step in checkpoints:
        checkpoint = folder / f"checkpoint-{step}"
        checkpoint.mkdir()
        (checkpoint / "model.safetensors").write_bytes(bytes(checkpoint_bytes))
        write_json(checkpoint / "config.json", {})
    return folder


def make_runs(root: Path, count: int, num_steps: int = 20, samples: bool = True) -> list[Path]:
    """Write runs of every method and every state, a third of them in a folder of their own.

    Runs whose state is to be "running" are not held.
    """
    folders = []
    for i in range(count):
        method = METHODS[i % len(METHODS)]
        state = "finished" if i < len(METHODS) else STATES[i % len(STATES)]
        name = f"{method}-seed{i}_20261129-{i // 60 % 24:02d}{i % 60:02d}00"
        rate = 10.0 ** -(3 + i % 3)
        folders.append(
            make_run(
                root / name if i % 3 else root / f"sweep-{i % 2}" / name,
                method,
                num_steps=num_steps,
                steps=num_steps if state == "finished" else num_steps // 2,
                state=state,
                seed=i,
                settings={"learning_rate": rate},
                begun=BEGUN + 600 * i,
                prompts=3 if samples else 0,
                checkpoints=(num_steps,) if i < len(METHODS) else (),
            )
        )
    return folders


def held(folder: Path) -> AbstractContextManager[None]:
    """Hold a run's folder as its own process does, so that it counts as running."""
    return writing(folder)


def metric_lines(
    method: str, steps: int, num_steps: int, seed: int, begun: float, seconds_per_step: float
) -> Iterator[dict[str, Any]]:
    """Yield the lines of metrics.jsonl, with an evaluation at every tenth step."""
    chance = random.Random(f"metrics {seed}")
    for step in range(1, steps + 1):
        moment = round(begun + step * seconds_per_step, 3)
        part = step / num_steps
        line: dict[str, Any] = {"step": step, "time": moment}
        line["loss"] = 2.5 * math.exp(-3 * part) + 0.4 + chance.gauss(0, 0.05)
        line["grad_norm"] = 1 + chance.random()
        line["learning_rate"] = 1e-3 * (1 - part)
        line["num_tokens"] = 1000.0 * step
        if method == "grpo":
            line["reward"] = min(1.0, max(0.0, 0.8 * part + chance.gauss(0, 0.05)))
            line["kl"] = 10 ** (-3 + 2 * part)
            line["completions/mean_length"] = 20 + 10 * part
            line[f"rewards/{INJECTION}"] = chance.random()
        elif method == "dpo":
            line["rewards/margins"] = part + chance.gauss(0, 0.05)
            line["rewards/accuracies"] = 0.5 + part / 2
        yield line
        if step % 10 == 0:
            evaluated = {"step": step, "time": moment + 1, "eval_loss": line["loss"] + 0.1}
            if method in ("grpo", "classification"):
                evaluated["eval_accuracy"] = round(0.2 + 0.6 * part, 4)
            if method == "classification":
                evaluated |= label_metrics(part)
            yield evaluated


def label_metrics(part: float) -> dict[str, float]:
    """Return the scores of each label and the shares of the confusion matrix at a part of a run."""
    right = 0.2 + 0.1 * part
    wrong = (1 - 3 * right) / 6
    metrics = {}
    for i, a in enumerate(LABELS):
        for score in ("precision", "recall", "f1"):
            metrics[f"eval_{score}/{a}"] = 3 * right
        for j, b in enumerate(LABELS):
            share = right if i == j else wrong * (1.5 if i < j else 0.5)
            metrics[f"eval_confusion/{a}/{b}"] = share
    return metrics


def sample_lines(
    steps: int, num_steps: int, seed: int, prompts: int, group_size: int, recorded: int
) -> Iterator[dict[str, Any]]:
    """Yield the rollouts of every step, and at every tenth step evaluated completions.

    The first prompt of a step is the same at every third step, in every run.
    """
    for step in range(1, steps + 1):
        chance = random.Random(f"samples {seed} {step}")
        for kind in ("rollout", "eval") if step % 10 == 0 else ("rollout",):
            for place in range(prompts):
                number = 2 + step % 3 if place == 0 else 100 * step + place
                for member in range(group_size):
                    texts = completion(chance, with_markup=step % 5 == 0)
                    right = chance.random() < step / num_steps
                    record = {
                        "step": step,
                        "kind": kind,
                        "prompt": PROMPT.format(number),
                        "completion": "".join(texts),
                        "reward": 1.0 if right else 0.25,
                        "verdict": "correct" if right else "wrong",
                        "rewards": {"answer": float(right), "format": 0.25},
                        "finish_reason": "stop" if chance.random() < 0.8 else "length",
                        "answer": "24",
                    }
                    if kind == "rollout":
                        advantage = 1.0 - 2 * (member % 2)
                        record |= {"advantage": advantage, "trained": True}
                        record["num_tokens"] = len(texts) + 1
                        if place < recorded:
                            record["tokens"] = tokens(chance, [*texts, "<|end|>"], advantage)
                    yield record


def completion(chance: random.Random, with_markup: bool) -> list[str]:
    """Return the texts of a completion's tokens, without that of the stop token."""
    texts = [chance.choice(WORDS) for _ in range(chance.randint(4, 20))]
    return [*texts[:1], INJECTION, ARABIC, *texts[3:]] if with_markup else texts


def tokens(chance: random.Random, texts: list[str], advantage: float) -> dict[str, Any]:
    """Return the record of every token of a completion; the third one is not trained on."""
    sampled = [round(-chance.expovariate(1), 4) for _ in texts]
    return {
        "ids": list(range(10, 10 + len(texts))),
        "texts": texts,
        "sampler_logprobs": sampled,
        "old_logprobs": [round(x + chance.gauss(0, 0.01), 4) for x in sampled],
        "ref_logprobs": [round(x + chance.gauss(0, 0.3), 4) for x in sampled],
        "advantages": [advantage] * len(texts),
        "mask": [int(i != 2) for i in range(len(texts))],
    }


def make_evaluation(
    folder: Path,
    accuracy: float,
    tasks: Sequence[str] = ("word_problems",),
    *,
    num_problems: int = 100,
    seed: int = 0,
    settings: dict[str, Any] | None = None,
) -> Path:
    """Write the results.json of `posttrain eval` with an outcome for every problem."""
    folder.mkdir(parents=True, exist_ok=True)
    results = {}
    for task in tasks:
        chance = random.Random(f"outcomes {task} {seed}")
        right = set(chance.sample(range(num_problems), round(accuracy * num_problems)))
        share = len(right) / num_problems
        spread = 1.96 * math.sqrt(max(share * (1 - share), 1e-4) / num_problems)
        results[task] = {
            "accuracy": share,
            "ci95": [max(0.0, share - spread), min(1.0, share + spread)],
            "num_problems": num_problems,
            "num_correct": len(right),
            "truncated": 0.1,
            "mean_length": 60 + 10 * share,
            "outcomes": {f"{i:016x}": str(int(i in right)) for i in range(num_problems)},
            "temperature": 0.0,
            "max_new_tokens": 128,
            "model": str(folder.name),
            **(settings or {}),
        }
    write_json(folder / "results.json", results)
    return folder


def write_json(file: Path, content: Any) -> None:
    """Write JSON as run.json has it."""
    file.write_text(json.dumps(content, indent=1))


def write_lines(file: Path, lines: Iterable[dict[str, Any]], mode: str = "w") -> None:
    """Write a line of JSON for each, or with mode "a" append them."""
    with file.open(mode) as handle:
        handle.writelines(json.dumps(line) + "\n" for line in lines)
