"""`posttrain eval`: tasks of both kinds, prepared, and run or continued."""

from __future__ import annotations

import difflib
import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from posttrain import distributed
from posttrain.checkpoint import versions
from posttrain.config import DataConfig
from posttrain.data.load import Row, draw, load_rows, numbered
from posttrain.data.render import Renderer, trained_with
from posttrain.data.templates import fill
from posttrain.evaluation import TASKS, Task
from posttrain.evaluation.answers import reader_of
from posttrain.evaluation.likelihood import (
    LIKELIHOOD_TASKS,
    LikelihoodTask,
    evaluate_likelihood,
    prompt_hash,
    to_sequences,
)
from posttrain.evaluation.loading import as_trained, check_writes, load_for_sampling
from posttrain.evaluation.samples import Asking, Record, ask, count
from posttrain.evaluation.shots import (
    NEXT_QUESTION,
    check_shots,
    problem_ids,
    to_problems,
    with_reply,
)
from posttrain.evaluation.store import (
    begin,
    check_settings,
    contents_hash,
    finish,
    read_results,
    samples_file,
)
from posttrain.evaluation.store import settings_hash as hash_of
from posttrain.evaluation.text_metrics import METRICS, measured
from posttrain.forward import LanguageModel
from posttrain.models import (
    choose_device,
    choose_dtype,
    resolve_model_path,
    weights_hash,
)
from posttrain.rewards import REWARDS, build_reward, check_columns
from posttrain.rewards.reward_model import RewardModel
from posttrain.rollout.sampler import Sampler, SamplingParams
from posttrain.tracking import CONSOLE
from posttrain.tracking.report import finite

SCORED_AT_ONCE = 8192  # tokens in one forward pass of a likelihood task
SAID_BY_FACTS = ("template", "system_prompt", "device", "dtype")


@dataclass(frozen=True)
class Settings:
    """The options of `posttrain eval` that decide the results."""

    max_new_tokens: int = 512
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    num_samples: int = 1
    shots: int = 0
    best_of: str | None = None
    """The folder of a reward model."""
    toxic_words: str | None = None
    """A file with a word or phrase a line, which are looked for in completions."""
    split: str | None = None
    """Instead of the tasks' own."""
    max_samples: int | None = None
    prompt_template: str | None = None
    """As data.prompt_template, for the prompts of all tasks and of their shots."""
    template: str = "auto"
    """As data.template; auto is what the run was trained with."""
    system_prompt: str | None = None
    """None is what the run was trained with, an empty text none."""
    device: str = "auto"
    dtype: str = "auto"
    max_num_seqs: int = 256
    """Completions generated at the same time: bounds the memory, decides nothing."""
    seed: int = 0


@dataclass(frozen=True)
class Loaded:
    """The model, as every kind of task takes it."""

    renderer: Renderer
    policy: LanguageModel
    limit: int
    """Its longest sequence in tokens."""
    facts: dict[str, Any]
    """What of it decides the results."""


@dataclass(frozen=True)
class Prepared:
    """A task that is ready to run, whatever its kind."""

    settings: dict[str, Any]
    """All that decides the result, as JSON: a result is kept or continued where it is the same."""
    run: Callable[[Sampler, Path | None], tuple[dict[str, Any], list[Record]]]
    """The result and its records, which are also kept in the file."""


def find_task(name: str) -> Task | LikelihoodTask:
    """A task of the registries; `name=PATH` reads its files from PATH."""
    task, _, path = name.partition("=")
    known: dict[str, Task | LikelihoodTask] = {**TASKS, **LIKELIHOOD_TASKS}
    if task not in known:
        near = difflib.get_close_matches(task, known, n=1)
        hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(known)}"
        raise ValueError(f"no task {task!r}; {hint}")
    found = known[task]
    if not path and "name" not in found.data:
        raise ValueError(f"the task {task} has no data of its own: write {task}=FILE")
    return replace(found, data=found.data | {"path": path}) if path else found


def find_tasks(names: list[str]) -> dict[str, Task | LikelihoodTask]:
    """The tasks by name; ValueError for one that is given twice."""
    chosen: dict[str, Task | LikelihoodTask] = {}
    for name in names:
        task = name.partition("=")[0]
        if task in chosen:
            raise ValueError(
                f"the task {task} is given twice, and results go by task: evaluate one of the two "
                "on its own"
            )
        chosen[task] = find_task(name)
    return chosen


def evaluate_tasks(
    model: str,
    tasks: list[str],
    settings: Settings,
    output: Path | None = None,
    samples: Path | None = None,
) -> dict[str, dict[str, Any]]:
    """Results by task; everything that decides a result stands in it.

    With `output` what was finished before is taken from there and what was begun is continued;
    ValueError where it was made with other settings, before anything is sampled.

    The work is shared out over the ranks; rank 0 writes the files and returns the results of all.
    """
    distributed.start(settings.device)
    if distributed.rank() != 0:
        output, samples, CONSOLE.quiet = None, None, True
    check(settings)
    check_writes(model)
    chosen = find_tasks(tasks)
    rows = {name: rows_of(name, task, settings) for name, task in chosen.items()}
    loaded, sampler = load(model, settings)
    prepared = {
        name: prepare(name, task, *rows[name], loaded, settings) for name, task in chosen.items()
    }
    finished = distributed.from_rank_0(
        {
            name: output is not None and check_settings(output, name, one.settings)
            for name, one in prepared.items()
        }
    )
    results: dict[str, dict[str, Any]] = {}
    records: list[Record] = []
    for name, one in prepared.items():
        if finished[name]:
            if output is None:  # of another rank
                continue
            results[name] = read_results(output)[name]
            kept = [] if samples is None else samples_file(output, name).read_text().splitlines()
            found = [json.loads(line) for line in kept]
            CONSOLE.print(f"{name}: finished before, not run again", markup=False)
        else:
            file = None if output is None else begin(output, name, one.settings)
            result, found = one.run(sampler, file)
            facts = {"settings_hash": hash_of(one.settings), "versions": versions()}
            # JSON has no NaN: a figure that nothing counts in is null
            results[name] = finite(result | one.settings | {"model": model} | facts)
            if output is not None:
                finish(output, name, results[name])
        records += [{"task": name, **record} for record in found]
    if samples is not None:
        samples.parent.mkdir(parents=True, exist_ok=True)
        samples.write_text("".join(json.dumps(r, default=str) + "\n" for r in records))
    return results


def check(settings: Settings) -> None:
    if settings.num_samples > 1 and settings.temperature == 0:
        raise ValueError(
            f"--num-samples {settings.num_samples} needs a --temperature above 0: greedy "
            "completions of a problem are all alike"
        )
    if settings.best_of is not None and settings.num_samples == 1:
        raise ValueError("--best-of needs --num-samples above 1: there is nothing to choose from")


def rows_of(
    name: str, task: Task | LikelihoodTask, settings: Settings
) -> tuple[list[Row], list[Row]]:
    """The rows to evaluate, and those to show before them."""
    section = DataConfig.model_validate(task.data)
    split = settings.split or section.split
    rows = load_rows(section.model_copy(update={"split": split}))
    rows = draw(rows, settings.max_samples)
    if isinstance(task, Task) and task.reward is None:
        rows = [with_reply(row, where) for where, row in numbered(rows, name)]
    if settings.shots == 0:
        return rows, []
    if isinstance(task, LikelihoodTask) or task.shots is None:
        raise ValueError(f"{name} has no split to take --shots from")
    shown = load_rows(section.model_copy(update={"split": task.shots}))
    return rows, check_shots(shown, settings.shots, name)


def load(model: str, settings: Settings) -> tuple[Loaded, Sampler]:
    template, system_prompt = as_trained(model, settings.template, settings.system_prompt)
    renderer, sampler, limit = load_for_sampling(
        model, template, settings.device, settings.dtype, system_prompt, settings.max_num_seqs
    )
    trained = trained_with(resolve_model_path(model))[2]
    if trained is not None and trained != settings.prompt_template:
        CONSOLE.print(
            f"note: the model was trained with data.prompt_template {trained!r}, and is asked with "
            f"{settings.prompt_template!r}: see --prompt-template",
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
    return Loaded(renderer, sampler.policy, limit, facts), sampler


def prepare(
    name: str,
    task: Task | LikelihoodTask,
    rows: list[Row],
    shots: list[Row],
    loaded: Loaded,
    settings: Settings,
) -> Prepared:
    if isinstance(task, LikelihoodTask):
        return prepare_likelihood(name, task, rows, loaded, settings)
    return prepare_generation(name, task, rows, shots, loaded, settings)


def prepare_likelihood(
    name: str, task: LikelihoodTask, rows: list[Row], loaded: Loaded, settings: Settings
) -> Prepared:
    """A task that asks how likely given texts are."""
    asked = rows
    if (template := settings.prompt_template) is not None:
        asked = [fill(template, row, where) for where, row in numbered(rows, name)]
    sequences = to_sequences(loaded.renderer, asked, loaded.limit)
    decides = {
        "task": name,
        "prompt_template": template,
        "split": settings.split or task.data["split"],
        "max_samples": settings.max_samples,
        **loaded.facts,
        "rows_hash": hash_of({"rows": rows}),
        "prompt_hash": prompt_hash(sequences.values()),
    }

    def run(sampler: Sampler, file: Path | None) -> tuple[dict[str, Any], list[Record]]:
        records: list[Record] = []
        result = evaluate_likelihood(
            loaded.policy, task, rows, sequences, SCORED_AT_ONCE, records.append
        )
        if file is not None:
            file.write_text("".join(json.dumps(record, default=str) + "\n" for record in records))
        # by content, so that two results are compared on the same rows alone
        ids = problem_ids(rows)
        right = {ids[r["row"] - 1]: r.get("correct", r.get("mc1")) for r in records}
        outcomes = {key: str(int(value)) for key, value in right.items() if value is not None}
        return result | ({"outcomes": outcomes} if outcomes else {}), records

    return Prepared(decides, run)


def prepare_generation(
    name: str, task: Task, rows: list[Row], shots: list[Row], loaded: Loaded, settings: Settings
) -> Prepared:
    """A task whose completions are checked by a reward, or measured."""
    renderer, limit = loaded.renderer, loaded.limit - settings.max_new_tokens
    if limit < 1:
        raise ValueError(
            f"--max-new-tokens {settings.max_new_tokens} leaves no room for a prompt: the model "
            f"takes {loaded.limit} tokens"
        )
    problems, dropped = to_problems(rows, shots, renderer, name, limit, settings.prompt_template)
    reward, reader = None, None
    if task.reward is not None:
        reward = build_reward(REWARDS[task.reward["type"]][0].model_validate(task.reward))
        check_columns(reward, rows, name)
        reader = reader_of(task.reward)
    elif settings.best_of is not None:
        raise ValueError(f"--best-of: the completions of {name} are not right or wrong")
    stops_at_question = bool(shots) and not renderer.chat
    column = [p.row[task.reference] for p in problems if p.row.get(task.reference) is not None]
    if task.metrics and 0 < len(column) < len(problems):
        lacking = len(problems) - len(column)
        raise ValueError(f"{name}: {lacking} of {len(problems)} rows have no {task.reference}")
    metrics = [METRICS[metric] for metric in task.metrics]
    if settings.toxic_words is not None:
        metrics.append(partial(METRICS["toxicity"], words=settings.toxic_words))
    for metric in metrics:  # what is not installed is said before anything is sampled
        metric(["a"], column[:1])
    asking = Asking(
        name,
        renderer,
        SamplingParams(
            settings.max_new_tokens,
            renderer.stop_token_ids,
            settings.temperature,
            top_p=settings.top_p,
            top_k=settings.top_k,
        ),
        settings.num_samples,
        settings.seed,
        stops_at_question,
        reward,
        reader,
        None if settings.best_of is None else build_reward(RewardModel(path=settings.best_of)),
    )
    ids = repr([problem.input_ids for problem in problems])
    own = {k: v for k, v in asdict(settings).items() if k not in (*SAID_BY_FACTS, "max_num_seqs")}
    decides = {
        "task": name,
        **own,
        **loaded.facts,
        "split": settings.split or task.data["split"],
        "stop_texts": [NEXT_QUESTION] if stops_at_question else [],
        "shots_split": task.shots if shots else None,
        "reward": task.reward,
        "problems_hash": hash_of({"ids": [problem.id for problem in problems]}),
        "prompt_hash": hashlib.sha256(ids.encode()).hexdigest()[:16],
        "dropped_prompts": dropped,
        "best_of_hash": contents_hash(settings.best_of),
        "toxic_words_hash": contents_hash(settings.toxic_words),
    }

    def run(sampler: Sampler, file: Path | None) -> tuple[dict[str, Any], list[Record]]:
        records = ask(problems, asking, sampler, file)
        found = count(records, asking)
        texts = [record["completion"] for record in records]
        references = [text for text in column for _ in range(settings.num_samples)]
        for metric in metrics:
            found |= measured(metric, texts, references, settings.num_samples)
        return found, records

    return Prepared(decides, run)
