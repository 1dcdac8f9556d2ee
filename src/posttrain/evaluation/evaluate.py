"""`posttrain eval`: prepare tasks of both kinds, then run or resume them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from posttrain.common import distributed
from posttrain.common.console import CONSOLE
from posttrain.common.environment import versions
from posttrain.common.files import finite, write_json_lines
from posttrain.evaluation.generation import Record
from posttrain.evaluation.loading import as_trained, check_writes, load_for_sampling, weights_hash
from posttrain.evaluation.ready import Loaded, prepare_task
from posttrain.evaluation.store import (
    begin,
    finish,
    is_finished,
    read_results,
    samples_file,
)
from posttrain.evaluation.store import settings_hash as hash_of
from posttrain.evaluation.tasks import Settings, check_settings, find_tasks, rows_of
from posttrain.model.device import choose_device, choose_dtype
from posttrain.model.folder import resolve_model_path, trained_with
from posttrain.model.kernels.quantized import stored_as
from posttrain.rollout.native.together import split_over_ranks
from posttrain.rollout.sampler import Sampler


def evaluate_tasks(
    model: str,
    tasks: list[str],
    settings: Settings,
    output: Path | None = None,
    samples: Path | None = None,
    check: Callable[[dict[str, Any]], None] = lambda facts: None,
) -> dict[str, dict[str, Any]]:
    """Return results by task; a result holds everything that decided it.

    With `output`, finished tasks are read from there and an unfinished one resumes where it
    stopped. Raises ValueError before anything is sampled if they were made with other settings.

    The work is split over the ranks; rank 0 writes the files and returns the results of all. Before
    anything is sampled, each passes what decides its results to `check`.
    """
    distributed.start(settings.device)
    if distributed.rank() != 0:
        output, samples, CONSOLE.quiet = None, None, True
    check_settings(settings)
    check_writes(model)
    chosen = find_tasks(tasks, settings.refusal)
    rows = {name: rows_of(name, task, settings) for name, task in chosen.items()}
    loaded, sampler = load(model, settings)
    ready = {
        name: prepare_task(name, task, *rows[name], loaded, settings)
        for name, task in chosen.items()
    }
    check({name: task.settings for name, task in ready.items()})
    finished = distributed.from_rank_0(
        {
            name: output is not None and is_finished(output, name, task.settings)
            for name, task in ready.items()
        }
    )
    results: dict[str, dict[str, Any]] = {}
    records: list[Record] = []
    for name, task in ready.items():
        if finished[name]:
            if output is None:  # not rank 0, which alone reads and writes files
                continue
            results[name] = read_results(output)[name]
            lines = [] if samples is None else samples_file(output, name).read_text().splitlines()
            of_task = [json.loads(line) for line in lines]
            CONSOLE.print(f"{name}: already finished, not run again", markup=False)
        else:
            file = None if output is None else begin(output, name, task.settings)
            result, of_task = task.run(sampler, file)
            facts = {"settings_hash": hash_of(task.settings), "versions": versions()}
            # JSON has no NaN: a figure without any value to average is null
            results[name] = finite(result | task.settings | {"model": model} | facts)
            if output is not None:
                finish(output, name, results[name])
        records += [{"task": name, **record} for record in of_task]
    if samples is not None:
        write_json_lines(samples, records)
    return results


def load(model: str, settings: Settings) -> tuple[Loaded, Sampler]:
    """Return the model, with the facts about it that decide results, and its sampler."""
    template, system_prompt = as_trained(model, settings.template, settings.system_prompt)
    renderer, sampler, limit = load_for_sampling(
        model,
        template,
        settings.device,
        settings.dtype,
        system_prompt,
        settings.max_num_seqs,
        settings.quantization,
        settings.tensor_parallel,
    )
    trained = trained_with(resolve_model_path(model))[2]
    if trained is not None and trained != settings.prompt_template:
        CONSOLE.print(
            f"note: the model was trained with data.prompt_template {trained!r}, but is evaluated "
            f"with prompt_template {settings.prompt_template!r}: set prompt_template to the same",
            markup=False,
        )
    device = choose_device(settings.device)
    facts = {
        "weights": weights_hash(sampler.policy),
        "template": "chat" if renderer.chat else "plain",
        "system_prompt": system_prompt,
        "stop_tokens": renderer.tokenizer.convert_ids_to_tokens(list(renderer.stop_token_ids)),
        "device": device.type,
        "dtype": str(choose_dtype(settings.dtype, device)).removeprefix("torch."),
    }
    if (how := stored_as(sampler.policy)) is not None:
        facts["quantization"] = how
    if renderer.template is not None and renderer.template.date is not None:
        facts["date"] = renderer.template.date.isoformat()
    return Loaded(renderer, sampler.policy, limit, facts), split_over_ranks(
        sampler, settings.tensor_parallel
    )
