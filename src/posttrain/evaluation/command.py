"""`posttrain eval` and the loading that it shares with `posttrain generate`."""

from __future__ import annotations

import difflib
import json
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from posttrain.config import DataConfig, ModelConfig
from posttrain.config_errors import explain
from posttrain.data.build import generation_stops, max_positions
from posttrain.data.load import load_rows
from posttrain.data.prepare import to_prompts
from posttrain.data.render import Renderer, make_renderer
from posttrain.evaluation import TASKS, Task
from posttrain.evaluation.run import evaluate_generation
from posttrain.models import choose_device, load_policy, load_tokenizer, resolve_model_path
from posttrain.rewards import REWARDS, build_reward
from posttrain.rollout.sampler import NativeSampler, SamplingParams


def load_for_sampling(
    model: str, template: str, device: str, dtype: str, system_prompt: str | None = None
) -> tuple[Renderer, NativeSampler, int]:
    """Renderer, sampler and the model's longest sequence, as in training."""
    name = resolve_model_path(model)
    try:
        config = ModelConfig.model_validate({"name": name, "device": device, "dtype": dtype})
    except ValidationError as error:
        raise ValueError(explain(error, ModelConfig)) from None
    if template not in ("auto", "chat", "plain"):
        raise ValueError(f"--template is one of auto, chat, plain; got {template!r}")
    renderer = make_renderer(load_tokenizer(name), template, system_prompt, generation_stops(name))
    policy = load_policy(config, name, choose_device(device), seed=0)
    return renderer, NativeSampler(policy, max_num_seqs=256), max_positions(name)


def find_task(name: str) -> Task:
    """A task of the registry; `name=PATH` reads its files from PATH."""
    task, _, path = name.partition("=")
    if task not in TASKS:
        near = difflib.get_close_matches(task, TASKS, n=1)
        hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(TASKS)}"
        raise ValueError(f"no task {task!r}; {hint}")
    found = TASKS[task]
    return Task(found.data | {"path": path}, found.reward) if path else found


def evaluate_tasks(
    model: str,
    tasks: list[str],
    *,
    split: str | None,
    max_samples: int | None,
    max_new_tokens: int,
    temperature: float,
    template: str,
    device: str,
    dtype: str,
    seed: int,
    samples: Path | None,
) -> dict[str, dict[str, Any]]:
    """Results by task; everything that decides a result stands in it."""
    chosen = {name.partition("=")[0]: find_task(name) for name in tasks}
    data = {}
    for name, task in chosen.items():
        section = DataConfig.model_validate(task.data)
        update = {"max_samples": max_samples, "split": split or section.split}
        data[name] = load_rows(section.model_copy(update=update))
    renderer, sampler, limit = load_for_sampling(model, template, device, dtype)
    params = SamplingParams(max_new_tokens, renderer.stop_token_ids, temperature)
    results: dict[str, dict[str, Any]] = {}
    records: list[dict[str, Any]] = []
    for name, task in chosen.items():
        prompts, table = to_prompts(data[name], renderer, name, limit - max_new_tokens, "drop")
        reward = build_reward(REWARDS[task.reward["type"]][0].model_validate(task.reward))
        found: list[dict[str, Any]] = []
        result = evaluate_generation(sampler, renderer, prompts, reward, params, seed, found.append)
        records += [{"task": name, **row} for row in found]
        results[name] = result | {
            "model": model,
            "temperature": temperature,
            "max_new_tokens": max_new_tokens,
            "stop_tokens": renderer.tokenizer.convert_ids_to_tokens(list(renderer.stop_token_ids)),
            "template": "chat" if renderer.chat else "plain",
            "shots": 0,
            "reward": task.reward,
            "dropped_prompts": table.dropped,
            "seed": seed,
        }
    if samples is not None:
        samples.parent.mkdir(parents=True, exist_ok=True)
        samples.write_text("".join(json.dumps(r, default=str) + "\n" for r in records))
    return results
