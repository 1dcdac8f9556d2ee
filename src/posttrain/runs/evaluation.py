"""Evaluation during training: the method's loss, completions, and tasks of `posttrain eval`."""

from __future__ import annotations

from collections.abc import Callable

from posttrain.common import distributed
from posttrain.data.source import Source
from posttrain.evaluation.generation import Asking, Record, evaluate_prompts
from posttrain.evaluation.loss import evaluate_loss
from posttrain.rollout.sampler import Sampler, SamplingParams
from posttrain.runs.plan import Plan
from posttrain.tracking.tracker import Tracker

OF_COMPLETIONS = {
    "eval_accuracy": "accuracy",
    "eval_reward": "mean_score",
    "eval_frac_reward_none": "unscored",
    "eval_completions/mean_length": "mean_length",
    "eval_completions/clipped_ratio": "truncated",
}
"""Metrics of completions, and the figures of an evaluation that they are."""


def build_evaluation(
    plan: Plan, sampler: Sampler | None, source: Source, tracker: Tracker
) -> Callable[[int], dict[str, float]] | None:
    """Return a collective function from step to metrics; None if there is no eval section.

    Raises ValueError if none of these is early_stopping.metric.
    """
    settings = plan.config.eval
    if settings is None:
        return None
    check_early_stopping(plan)

    told: list[str] = []

    def evaluate(step: int) -> dict[str, float]:
        metrics: dict[str, float] = {}
        if plan.data.eval_examples:
            metrics |= evaluate_loss(
                plan.models, plan.config.algorithm, plan.config.trainer, plan.data.eval_examples
            )
        if plan.data.eval_prompts or plan.tasks:
            source.settle()  # the sampler serves one caller at a time
        if plan.data.eval_prompts:
            assert sampler is not None
            assert plan.reward is not None
            params = SamplingParams(
                settings.max_new_tokens, plan.renderer.stop_token_ids, temperature=0
            )
            asking = Asking("eval", plan.renderer, params, plan.reward)
            result, records = evaluate_prompts(plan.data.eval_prompts, asking, sampler)
            record_samples(tracker, records, step, "eval")
            if (note := partial_credit(records)) and not told:
                tracker.say(note)
                told.append(note)
            metrics |= {name: result[figure] for name, figure in OF_COMPLETIONS.items()}
        for name, task in plan.tasks.items():
            assert sampler is not None
            result, records = task.run(sampler, None)
            figures = {k: v for k, v in result.items() if isinstance(v, float)}
            metrics |= {f"eval_{name}/{figure}": value for figure, value in figures.items()}
            record_samples(tracker, records, step, name)
        return metrics

    return evaluate


def check_early_stopping(plan: Plan) -> None:
    """Raise ValueError if early_stopping.metric is no metric of the run's evaluation.

    Which metrics a method has is seen from one example per rank or, in case they need more, from
    all of them. Call it when the reference is ready. A collective.
    """
    early, examples = plan.config.trainer.early_stopping, plan.data.eval_examples
    if early is None or early.metric.startswith(tuple(f"eval_{name}/" for name in plan.tasks)):
        return
    known = list(OF_COMPLETIONS) if plan.data.eval_prompts else []
    for rows in (examples[: distributed.num_ranks()], examples) if examples else ():
        if early.metric in known:
            return
        metrics = evaluate_loss(plan.models, plan.config.algorithm, plan.config.trainer, rows)
        known += [name for name in metrics if name not in known]
    if early.metric not in known:
        known += [f"eval_{name}/..." for name in plan.tasks]
        raise ValueError(
            f"trainer.early_stopping.metric: no metric {early.metric}; there are {', '.join(known)}"
        )


def partial_credit(records: list[Record]) -> str:
    """Return a note if an accuracy would hide how good the scores are; else an empty text.

    It does if a score without a verdict is none of -1, 0 and 1, as any score above 0 is correct.
    """
    scores = {r["reward"] for r in records if r["verdict"] is None and r["reward"] is not None}
    if scores <= {-1.0, 0.0, 1.0}:
        return ""
    return (
        "note: eval_accuracy counts every score above 0 as correct; a reward decides that itself "
        "with posttrain.rewards.score.Score(value, verdict)"
    )


def record_samples(tracker: Tracker, records: list[Record], step: int, kind: str) -> None:
    """Write the records to samples.jsonl on rank 0 only, as each rank holds those of all ranks."""
    for record in records if distributed.rank() == 0 else ():
        tracker.sample({"step": step, **record, "kind": kind})
