"""Predicted against measured peak memory of the ranks of a run, on a CPU.

    python benchmarks/memory.py [--check] [--repeats N] [CASE...]

Each case is a recipe on 1, 2 or 4 ranks. The prediction is that of `posttrain plan`, the
measurement the largest peak of resident memory of a rank (see memory_worker.py). Both depend on
where the allocator finds room, so the medians of several runs are compared.
Results of other cases are kept. With --check nothing is written.
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from common import RESULTS, machine, run_worker, today, versions, write_results

SHAPES: dict[str, dict[str, int]] = {
    "tiny": {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2},
    "9m": {"hidden_size": 256, "intermediate_size": 704, "num_hidden_layers": 8},
    "33m": {"hidden_size": 512, "intermediate_size": 1408, "num_hidden_layers": 8},
    "100m": {"hidden_size": 768, "intermediate_size": 2048, "num_hidden_layers": 12},
}
VOCAB, ROWS, STEPS = 4096, 256, 3


def cases() -> Iterator[tuple[str, str, str, str, int, dict[str, Any]]]:
    """Yield name, architecture, shape, method, ranks and the changes to the recipe."""
    for shape in list(SHAPES)[1:]:
        for kind in ("qwen2", "llama"):
            yield f"{kind} {shape} sft", kind, shape, "sft", 1, {}
    for shape in ("33m", "100m"):
        yield f"qwen2 {shape} lora", "qwen2", shape, "sft", 1, {"model.adapter": {"type": "lora"}}
        yield f"qwen2 {shape} dpo", "qwen2", shape, "dpo", 1, {}
        yield f"qwen2 {shape} grpo", "qwen2", shape, "grpo", 1, {}
    checkpointing = {"model.gradient_checkpointing": True}
    yield "llama 33m checkpointing", "llama", "33m", "sft", 1, checkpointing
    for ranks in (2, 4):
        for strategy in ("ddp", "fsdp"):
            for method in ("sft", "dpo", "grpo"):
                change = {"distributed.strategy": strategy}
                yield (
                    f"qwen2 33m {method} {strategy} {ranks}",
                    "qwen2",
                    "33m",
                    method,
                    ranks,
                    change,
                )
        for way in ("tensor_parallel", "sequence_parallel"):
            change = {"distributed.strategy": "ddp", f"distributed.{way}": 2}
            yield f"qwen2 33m sft {way} 2 of {ranks}", "qwen2", "33m", "sft", ranks, change
    for ranks in (2, 4):
        change = {"distributed.strategy": "fsdp"}
        yield f"llama 100m sft fsdp {ranks}", "llama", "100m", "sft", ranks, change
        change = {"distributed.strategy": "ddp", "distributed.tensor_parallel": ranks}
        yield f"llama 100m sft tensor {ranks}", "llama", "100m", "sft", ranks, change


def make_model(folder: Path, kind: str, shape: str) -> None:
    """Write a model with random weights and a tokenizer of the rows' words."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

    from posttrain.model.scratch import train_tokenizer

    torch.manual_seed(0)
    tokenizer = train_tokenizer(words(), VOCAB, 1024)
    make = {"qwen2": (Qwen2Config, Qwen2ForCausalLM), "llama": (LlamaConfig, LlamaForCausalLM)}
    config_class, model_class = make[kind]
    config = config_class(
        **SHAPES[shape],
        vocab_size=VOCAB,
        num_attention_heads=8,
        num_key_value_heads=4,
        max_position_embeddings=1024,
        tie_word_embeddings=kind == "qwen2",
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model_class(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def words() -> list[str]:
    """Return 2,000 different words of letters."""
    draw = random.Random(0)
    letters = "abcdefghijklmnopqrstuvwxyz"
    return ["".join(draw.choices(letters, k=draw.randint(2, 8))) + " " for _ in range(2000)]


def make_rows(file: Path, method: str) -> None:
    """Write rows whose texts have 16 to 160 words."""
    draw, known = random.Random(1), words()

    def text() -> str:
        return "".join(draw.choices(known, k=draw.randint(16, 100)))

    rows = []
    for _ in range(ROWS):
        row = {"prompt": "".join(draw.choices(known, k=20))}
        if method == "sft":
            row["completion"] = text()
        elif method == "dpo":
            row |= {"chosen": text(), "rejected": text()}
        rows.append(row)
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))


def recipe_of(folder: Path, method: str, changes: dict[str, Any]) -> dict[str, Any]:
    """Return the recipe of a case as a tree."""
    tree: dict[str, Any] = {
        "model": {"name": str(folder / "model"), "adapter": {"type": "none"}, "device": "cpu"},
        "data": {"path": str(folder / "rows.jsonl")},
        "trainer": {
            "type": method,
            "max_steps": 3,
            "batch_size": 8,
            "micro_batch_tokens": 1024,
            "logger": [],
            "output_dir": str(folder / "results"),
        },
    }
    if method == "grpo":
        tree["trainer"] |= {"batch_size": 4}
        tree["rollout"] = {"group_size": 4, "max_new_tokens": 64}
        # differs within a group, else nothing would be trained
        (folder / "letters.py").write_text(
            "def reward(prompts, completions, **columns):\n"
            "    return [sum(map(ord, text)) % 7 / 7 for text in completions]\n"
        )
        tree["reward"] = {"type": "custom", "path": str(folder / "letters.py")}
    for key, value in changes.items():
        section, _, name = key.partition(".")
        tree.setdefault(section, {})[name] = value
    return tree


def middle(found: list[dict[str, Any]], peak: Callable[[dict[str, Any]], float]) -> dict[str, Any]:
    """Return the one of an odd number of results that has the median peak."""
    return sorted(found, key=peak)[len(found) // 2]


def fullest(measured: dict[str, Any]) -> float:
    """Return the largest peak of a rank."""
    return max(float(rank["peak"]) for rank in measured["ranks"])


def main(chosen: list[str], write: bool, repeats: int) -> None:
    """Measure and predict the chosen cases, or all, in turn."""
    from posttrain.sizing.forked import forked

    results = []
    for name, kind, shape, method, ranks, changes in cases():
        if chosen and name not in chosen:
            continue
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary)
            for where, size in (("model", shape), ("tiny", "tiny")):
                forked(partial(make_model, folder / where, kind, size))
            make_rows(folder / "rows.jsonl", method)
            recipe = recipe_of(folder, method, changes)
            settings = {"recipe": recipe, "ranks": ranks, "steps": STEPS, "tuned": True}
            settings["tiny"] = str(folder / "tiny")
            forecasts, measurements = [], []
            for _ in range(repeats):
                ask = partial(run_worker, "memory_worker.py", allocator="default", threads=1)
                measurements.append(ask(settings))
                forecasts.append(ask(settings | {"predict": True}))
        measured = middle(measurements, fullest)
        predicted = middle(forecasts, lambda forecast: float(forecast["peak"]))
        peak = fullest(measured)
        off = predicted["peak"] / peak - 1
        print(f"{name:<36}{predicted['peak']:>9,.0f}{peak:>9,.0f}{off:>+8.1%}", flush=True)
        results.append(
            {"case": name, "ranks": ranks, "predicted_mib": predicted}
            | {
                "measured_mib": measured["ranks"],
                "predicted_peaks": [forecast["peak"] for forecast in forecasts],
                "measured_peaks": [fullest(each) for each in measurements],
            }
        )
    if not write:
        return
    before = RESULTS / "memory.json"
    if chosen and before.is_file():
        kept = json.loads(before.read_text())["cases"]
        names = {result["case"] for result in results}
        results = [result for result in kept if result["case"] not in names] + results
    facts = {"date": today(), "machine": machine(1)}
    facts["versions"] = versions("posttrain", "torch", "transformers", "peft")
    write_results("memory", {**facts, "cases": results})


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("cases", nargs="*")
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--repeats", type=int, default=3)
    given = parser.parse_args()
    main(given.cases, not given.check, given.repeats)
