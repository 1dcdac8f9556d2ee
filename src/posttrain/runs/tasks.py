"""Loading and preparing the tasks of `posttrain eval` that run during training."""

from __future__ import annotations

from posttrain.common.errors import SettingError
from posttrain.data.render import Renderer
from posttrain.data.rows import Row
from posttrain.evaluation import Task
from posttrain.evaluation.likelihood import LikelihoodTask
from posttrain.evaluation.ready import Loaded, ReadyTask, prepare_task
from posttrain.evaluation.tasks import Settings, find_tasks, rows_of
from posttrain.model.models import Models
from posttrain.runs.config import Config

Tasks = dict[str, tuple[Task | LikelihoodTask, list[Row]]]


def load_tasks(config: Config) -> Tasks:
    """Return the tasks of the eval section with their rows."""
    if config.eval is None:
        return {}
    if config.eval.tasks and not config.trainer.writes_text:
        raise ValueError(f"eval.tasks: {config.trainer.type} trains no model that generates text")
    settings = Settings(max_samples=config.eval.max_samples)
    tasks: Tasks = {}
    refusal = config.eval.refusal
    keys = None if refusal is None else refusal.model_dump(exclude_defaults=True)
    try:
        chosen = find_tasks(config.eval.tasks, keys)
    except SettingError as error:
        raise error.renamed(f"eval.{error.field}") from None
    for name, task in chosen.items():
        tasks[name] = task, rows_of(name, task, settings)[0]
    return tasks


def prepare_tasks(
    config: Config, tasks: Tasks, models: Models, renderer: Renderer
) -> dict[str, ReadyTask]:
    """Return the tasks ready to run. Raises ValueError if a task cannot run with this model."""
    if config.eval is None:
        return {}
    limit = getattr(models.policy.causal_lm().config, "max_position_embeddings", 2**31)
    loaded = Loaded(renderer, models.policy, int(limit), facts={})
    settings = Settings(config.eval.max_new_tokens, max_samples=config.eval.max_samples)
    try:
        return {
            name: prepare_task(name, task, rows, [], loaded, settings)
            for name, (task, rows) in tasks.items()
        }
    except SettingError as error:
        raise error.renamed(f"eval.{error.field}") from None
