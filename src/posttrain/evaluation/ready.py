"""Tasks ready to run: rows rendered, rewards built, and everything that decides a result known.

Errors of the input are raised here, before anything is sampled.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from posttrain.common.batch import Sequence
from posttrain.common.errors import SettingError
from posttrain.common.files import short_hash
from posttrain.config.base import Free, marks
from posttrain.data.render import Renderer
from posttrain.data.rows import Row, numbered
from posttrain.data.templates import fill
from posttrain.evaluation import Task
from posttrain.evaluation.answers import reader_of
from posttrain.evaluation.generation import Asking, Record, ask, count
from posttrain.evaluation.likelihood import (
    LikelihoodTask,
    evaluate_likelihood,
    prompt_hash,
    to_sequences,
)
from posttrain.evaluation.problems import NEXT_QUESTION, Problem, problem_ids, to_problems
from posttrain.evaluation.scores.safety import advbench_by_class, xstest_by_class
from posttrain.evaluation.scores.text import METRICS, Metric, measured
from posttrain.evaluation.store import contents_hash
from posttrain.evaluation.store import settings_hash as hash_of
from posttrain.evaluation.tasks import Settings
from posttrain.model.language_model import LanguageModel
from posttrain.rewards.build import build_reward, check_columns, config_of
from posttrain.rewards.refusal import Refusal, class_of
from posttrain.rewards.refusal_judge import PROMPT_VERSION
from posttrain.rewards.reward_model import RewardModel
from posttrain.rollout.sampler import Sampler, SamplingParams

BY_CLASS: dict[str, Metric] = {"xstest": xstest_by_class, "advbench": advbench_by_class}
MICRO_BATCH_TOKENS = 8192  # tokens in one forward pass of a likelihood task
# settings of which Loaded.facts has the resolved values
RESOLVED_IN_FACTS = ("template", "system_prompt", "device", "dtype", "quantization")


@dataclass(frozen=True)
class Loaded:
    """A model loaded for evaluation, as every kind of task needs it."""

    renderer: Renderer
    policy: LanguageModel
    limit: int
    """The longest sequence in tokens that it takes."""
    facts: dict[str, Any]
    """Facts about the model that decide results: hash of the weights, template, stop tokens, ..."""


class ReadyTask(Protocol):
    """A task that is ready to run, whatever its kind."""

    @property
    def settings(self) -> dict[str, Any]:
        """All that decides the result, as JSON; a stored result is used only if it is equal."""
        ...

    def run(self, sampler: Sampler, file: Path | None) -> tuple[dict[str, Any], list[Record]]:
        """Return the result and its records, which are also written to `file`. A collective."""
        ...


def prepare_task(
    name: str,
    task: Task | LikelihoodTask,
    rows: list[Row],
    shots: list[Row],
    loaded: Loaded,
    settings: Settings,
) -> ReadyTask:
    """Return the task, ready to run; raise ValueError if the rows or settings do not suit it."""
    if isinstance(task, LikelihoodTask):
        return _ready_likelihood(name, task, rows, loaded, settings)
    return _ready_generation(name, task, rows, shots, loaded, settings)


@dataclass(frozen=True)
class ReadyLikelihood:
    """A task that compares the likelihoods of given texts."""

    settings: dict[str, Any]
    task: LikelihoodTask
    rows: list[Row]
    sequences: dict[int, list[Sequence]]
    policy: LanguageModel

    def run(self, sampler: Sampler, file: Path | None) -> tuple[dict[str, Any], list[Record]]:
        """Return the result, with outcomes by row, and the records; `sampler` is not used."""
        result, records = evaluate_likelihood(
            self.policy, self.task, self.rows, self.sequences, MICRO_BATCH_TOKENS
        )
        if file is not None:
            file.write_text("".join(json.dumps(record, default=str) + "\n" for record in records))
        # keyed by content, so that two results are compared only on the same rows
        ids = problem_ids(self.rows)
        right = {ids[r["row"] - 1]: r.get("correct", r.get("mc1")) for r in records}
        outcomes = {key: str(int(value)) for key, value in right.items() if value is not None}
        return result | ({"outcomes": outcomes} if outcomes else {}), records


def _ready_likelihood(
    name: str, task: LikelihoodTask, rows: list[Row], loaded: Loaded, settings: Settings
) -> ReadyLikelihood:
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
    return ReadyLikelihood(decides, task, rows, sequences, loaded.policy)


@dataclass(frozen=True)
class ReadyGeneration:
    """A task whose completions are checked by a reward, or measured."""

    settings: dict[str, Any]
    problems: list[Problem]
    asking: Asking
    metrics: list[Metric]
    references: list[str]
    """What metrics compare completions with: one text per problem, or none at all."""
    by_class: list[Metric]
    """Metrics of the classes that a judge of refusals named, of which "" is none."""

    def run(self, sampler: Sampler, file: Path | None) -> tuple[dict[str, Any], list[Record]]:
        """Return the result and the records of the completions; an incomplete `file` is resumed."""
        records = ask(self.problems, self.asking, sampler, file)
        result = count(records, self.asking)
        texts, n = [record["completion"] for record in records], self.asking.num_samples
        references = [text for text in self.references for _ in range(n)]
        for metric in self.metrics:
            result |= measured(metric, texts, references, n)
        for metric in self.by_class:
            classes = [class_of(record["rewards"]) or "" for record in records]
            result |= measured(metric, classes, references, n)
        return result, records


def _ready_generation(
    name: str, task: Task, rows: list[Row], shots: list[Row], loaded: Loaded, settings: Settings
) -> ReadyGeneration:
    renderer, limit = loaded.renderer, loaded.limit - settings.max_new_tokens
    if limit < 1:
        raise SettingError(
            "max_new_tokens",
            f"{settings.max_new_tokens} leaves no room for a prompt: the model takes "
            f"{loaded.limit} tokens",
        )
    problems, dropped = to_problems(rows, shots, renderer, name, limit, settings.prompt_template)
    reward, reader = None, None
    if task.reward is not None:
        reward = build_reward(config_of(task.reward["type"]).model_validate(task.reward))
        check_columns(reward, rows, name)
        reader = reader_of(task.reward)
    elif settings.best_of is not None:
        raise SettingError(
            "best_of", f"{name} has no reward that decides which completions are right"
        )
    stops_at_question = bool(shots) and not renderer.chat
    column = [p.row[task.reference] for p in problems if p.row.get(task.reference) is not None]
    if task.metrics and 0 < len(column) < len(problems):
        lacking = len(problems) - len(column)
        raise ValueError(f"{name}: {lacking} of {len(problems)} rows have no {task.reference}")
    judge = judge_in(task)
    by_class: list[Metric] = []
    metrics = [METRICS[metric] for metric in task.metrics]
    if judge is not None:
        judged = [metric for metric in task.metrics if metric in BY_CLASS]
        by_class = [partial(BY_CLASS[metric], partial=judge.partial) for metric in judged]
        metrics = [METRICS[metric] for metric in task.metrics if metric not in judged]
    if settings.toxic_words is not None:
        metrics.append(partial(METRICS["toxicity"], words=settings.toxic_words))
    for metric in metrics:  # fails now if its library is not installed
        metric(["a"], column[:1])
    params = SamplingParams(
        settings.max_new_tokens,
        renderer.stop_token_ids,
        settings.temperature,
        settings.top_p,
        settings.top_k,
    )
    best_of = settings.best_of
    asking = Asking(
        name,
        renderer,
        params,
        reward,
        settings.num_samples,
        settings.seed,
        stops_at_question,
        reader,
        None if best_of is None else build_reward(RewardModel(path=best_of)),
    )
    unresolved = {
        k: v
        for k, v in asdict(settings).items()
        if k not in (*RESOLVED_IN_FACTS, "max_num_seqs", "tensor_parallel", "refusal")
    }
    decides = {
        "task": name,
        **unresolved,
        **loaded.facts,
        "split": settings.split or task.data["split"],
        "stop_texts": [NEXT_QUESTION] if stops_at_question else [],
        "shots_split": task.shots if shots else None,
        **reward_facts(task, judge),
        "problems_hash": hash_of({"ids": [problem.id for problem in problems]}),
        "prompt_hash": short_hash([problem.input_ids for problem in problems]),
        "dropped_prompts": dropped,
        "best_of_hash": contents_hash(settings.best_of),
        "toxic_words_hash": contents_hash(settings.toxic_words),
    }
    return ReadyGeneration(decides, problems, asking, metrics, column, by_class)


def judge_in(task: Task) -> Refusal | None:
    """Return the settings of the task's reward if it is a judge of refusals."""
    if task.reward is None or task.reward["type"] != "refusal":
        return None
    config = Refusal.model_validate(task.reward)
    return config if config.rule == "judge" else None


def reward_facts(task: Task, judge: Refusal | None) -> dict[str, Any]:
    """Return what the reward decides of a result; of a judge, not where and how it is reached."""
    if judge is None:
        return {"reward": task.reward}
    free = {key for key, info in Refusal.model_fields.items() if marks(info, Free)}
    keys = judge.model_dump(exclude_defaults=True, exclude=free | {"path"})
    return {
        "reward": {"type": judge.type, **keys},
        "judge_prompt": PROMPT_VERSION,
        "judge_hash": contents_hash(judge.path),
    }
