"""Evaluation during training: the method's loss, completions, and tasks of `posttrain eval`."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from posttrain import distributed
from posttrain.config import Config
from posttrain.data.load import Row
from posttrain.data.render import Renderer
from posttrain.evaluation import Task
from posttrain.evaluation.command import Loaded, Prepared, Settings, find_tasks, prepare, rows_of
from posttrain.evaluation.likelihood import LikelihoodTask
from posttrain.evaluation.run import evaluate_generation, evaluate_loss
from posttrain.models import Models
from posttrain.rewards import RewardFn
from posttrain.rollout.sampler import Sampler, SamplingParams

if TYPE_CHECKING:
    from posttrain.data.source import Source
    from posttrain.tracking import Tracker
    from posttrain.train import Run

Tasks = dict[str, tuple[Task | LikelihoodTask, list[Row]]]


def load_tasks(config: Config) -> Tasks:
    """The tasks of the eval section with their rows."""
    if config.eval is None:
        return {}
    if config.eval.tasks and config.algorithm.scores(config.trainer):
        raise ValueError(f"eval.tasks: {config.trainer.type} trains no model that writes")
    settings = Settings(max_samples=config.eval.max_samples)
    found: Tasks = {}
    for name, task in find_tasks(config.eval.tasks).items():
        found[name] = task, rows_of(name, task, settings)[0]
    return found


def prepare_tasks(
    config: Config, tasks: Tasks, models: Models, renderer: Renderer
) -> dict[str, Prepared]:
    """The tasks ready to run; ValueError for what they lack."""
    if config.eval is None:
        return {}
    policy: Any = models.policy
    limit = getattr(policy.causal_lm().config, "max_position_embeddings", 2**31)
    loaded = Loaded(renderer, policy, int(limit), facts={})
    settings = Settings(config.eval.max_new_tokens, max_samples=config.eval.max_samples)
    try:
        return {
            name: prepare(name, task, rows, [], loaded, settings)
            for name, (task, rows) in tasks.items()
        }
    except ValueError as error:
        raise ValueError(str(error).replace("--max-new-tokens", "eval.max_new_tokens")) from None


def build_evaluation(
    run: Run, sampler: Sampler | None, source: Source, reward: RewardFn | None, tracker: Tracker
) -> Callable[[int], dict[str, float]] | None:
    """What is called after a step, with its number; a collective."""
    settings = run.config.eval
    if settings is None:
        return None

    def evaluate(step: int) -> dict[str, float]:
        metrics: dict[str, float] = {}
        if run.data.eval_examples:
            metrics |= evaluate_loss(
                run.models, run.config.algorithm, run.config.trainer, run.data.eval_examples
            )
        if run.data.eval_prompts or run.tasks:
            source.settle()
        if run.data.eval_prompts:
            assert sampler is not None
            assert reward is not None
            params = SamplingParams(
                settings.max_new_tokens, run.renderer.stop_token_ids, temperature=0
            )
            result = evaluate_generation(
                sampler,
                run.renderer,
                run.data.eval_prompts,
                reward,
                params,
                record=lambda row: tracker.sample({"step": step, **row}),
            )
            metrics["eval_accuracy"] = result["accuracy"]
            metrics["eval_reward"] = result["mean_score"]
            metrics["eval_frac_reward_none"] = result["unscored"]
            metrics["eval_completions/mean_length"] = result["mean_length"]
            metrics["eval_completions/clipped_ratio"] = result["truncated"]
        for name, task in run.tasks.items():
            assert sampler is not None
            found, records = task.run(sampler, None)
            figures = {k: v for k, v in found.items() if isinstance(v, float)}
            metrics |= {f"eval_{name}/{figure}": value for figure, value in figures.items()}
            for record in records if distributed.rank() == 0 else ():
                tracker.sample({"step": step, **record, "kind": name})
        return metrics

    return evaluate
