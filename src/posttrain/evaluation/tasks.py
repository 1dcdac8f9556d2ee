"""Tasks by name, the settings of an evaluation, and the rows of a task."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from pydantic import ValidationError

from posttrain.common.errors import SettingError
from posttrain.common.files import expanded
from posttrain.common.registry import look_up
from posttrain.config.errors import explain
from posttrain.data.config import DataConfig
from posttrain.data.load import load_rows
from posttrain.data.rows import Row, draw, numbered
from posttrain.evaluation import TASKS, Task
from posttrain.evaluation.likelihood import LIKELIHOOD_TASKS, LikelihoodTask
from posttrain.evaluation.problems import check_shots, with_reply
from posttrain.rewards.refusal import Refusal
from posttrain.rollout.check import check_at_least, check_sampling


@dataclass(frozen=True)
class Settings:
    """Settings of an evaluation, which decide its results."""

    max_new_tokens: int = 512
    """Maximum completion length in tokens, including the stop token."""
    temperature: float = 0.0
    """0 is greedy."""
    top_p: float = 1.0
    """Keep the likeliest tokens that together have this probability; 1 keeps all."""
    top_k: int = 0
    """Keep the k likeliest tokens; 0 keeps all."""
    num_samples: int = 1
    """Completions of each problem, for pass@k and maj@N."""
    shots: int = 0
    """Number of solved examples in front of each problem."""
    best_of: str | None = None
    """Folder of a reward model that chooses the best of a problem's completions."""
    toxic_words: str | None = None
    """File with one word or phrase per line to look for in completions."""
    refusal: Mapping[str, Any] | None = None
    """Keys of the refusal reward for tasks of refusals (xstest, advbench): `rule: judge` with url
    and model, or path."""
    split: str | None = None
    """Split to evaluate; None is each task's own."""
    max_samples: int | None = None
    """Number of problems of each task, drawn at random; None takes all."""
    prompt_template: str | None = None
    """Like data.prompt_template, for the prompts of all tasks and of their shots."""
    template: str = "auto"
    """Like data.template; auto is what the run was trained with."""
    system_prompt: str | None = None
    """None is what the run was trained with; an empty text is no system prompt."""
    device: str = "auto"
    """Like model.device."""
    dtype: str = "auto"
    """Like model.dtype."""
    quantization: str | None = None
    """Like model.quantization, by name; None is as in training, or as in the model's files."""
    max_num_seqs: int = 256
    """Maximum number of concurrent completions; bounds the memory, does not change results."""
    tensor_parallel: int = 1
    """Ranks that split the model's matrices; does not change results."""
    seed: int = 0
    """Seed of the sampling noise."""


def check_settings(settings: Settings) -> None:
    """Raise SettingError for values out of range, and for settings that contradict one another."""
    check_sampling(settings.max_new_tokens, settings.temperature, settings.top_p, settings.top_k)
    num_samples, max_samples = settings.num_samples, settings.max_samples
    check_at_least(
        1,
        num_samples=num_samples,
        max_samples=max_samples,
        max_num_seqs=settings.max_num_seqs,
        tensor_parallel=settings.tensor_parallel,
    )
    check_at_least(0, shots=settings.shots)
    if settings.num_samples > 1 and settings.temperature == 0:
        raise SettingError(
            "num_samples",
            f"{settings.num_samples} samples need a temperature above 0: greedy completions of a "
            "problem are all equal",
        )
    if settings.best_of is not None and settings.num_samples == 1:
        raise SettingError("best_of", "needs several samples of a problem to choose from")


def find_task(name: str) -> Task | LikelihoodTask:
    """Return a task of the registries; `name=PATH` reads its files from PATH."""
    task, _, path = name.partition("=")
    known: dict[str, Task | LikelihoodTask] = {**TASKS, **LIKELIHOOD_TASKS}
    entry: Task | LikelihoodTask = look_up(known, task, f"no task {task!r}")
    if not path and "name" not in entry.data:
        raise ValueError(f"the task {task} has no data of its own: write {task}=FILE")
    return replace(entry, data=entry.data | {"path": expanded(path)}) if path else entry


def find_tasks(
    names: list[str], refusal: Mapping[str, Any] | None = None
) -> dict[str, Task | LikelihoodTask]:
    """Return the tasks by name, those of refusals with the keys of `refusal`.

    Raise ValueError for a task that is given twice, and for keys that no task reads.
    """
    chosen: dict[str, Task | LikelihoodTask] = {}
    for name in names:
        task = name.partition("=")[0]
        if task in chosen:
            raise ValueError(
                f"the task {task} is given twice, but results are stored by task: evaluate one of "
                "the two separately"
            )
        chosen[task] = find_task(name)
    if not refusal:
        return chosen
    for key in ("type", "column"):
        if key in refusal:
            raise SettingError("refusal", f"{key} is the task's own: leave it out")
    changed = {
        name: _with_refusal(task, refusal)
        for name, task in chosen.items()
        if isinstance(task, Task) and (task.reward or {}).get("type") == "refusal"
    }
    if not changed:
        raise SettingError("refusal", "no task of refusals is evaluated, such as xstest")
    return chosen | changed


def _with_refusal(task: Task, keys: Mapping[str, Any]) -> Task:
    section = {**(task.reward or {}), **keys}
    try:
        Refusal.model_validate(section)
    except ValidationError as error:
        raise SettingError("refusal", explain(error, Refusal)) from None
    return replace(task, reward=section)


def rows_of(
    name: str, task: Task | LikelihoodTask, settings: Settings
) -> tuple[list[Row], list[Row]]:
    """Return the rows to evaluate, and the rows of the few-shot examples."""
    section = DataConfig.model_validate(task.data)
    split = settings.split or section.split
    rows = load_rows(section.model_copy(update={"split": split}))
    rows = draw(rows, settings.max_samples)
    if isinstance(task, Task) and task.reward is None:
        rows = [with_reply(row, where) for where, row in numbered(rows, name)]
    if settings.shots == 0:
        return rows, []
    if isinstance(task, LikelihoodTask) or task.shots is None:
        raise SettingError("shots", f"{name} has no split to take them from")
    examples = load_rows(section.model_copy(update={"split": task.shots}))
    return rows, check_shots(examples, settings.shots, name)
