"""The plan of a run: all it needs, built and checked, nothing written. A dry run stops here."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from posttrain.algorithms.classification import ClassificationConfig
from posttrain.algorithms.config import DEFAULT_MICRO_BATCH_TOKENS
from posttrain.algorithms.policy_gradient import MAX_LOGPROB_DIFFERENCE, PolicyGradientConfig
from posttrain.algorithms.process_reward_model import ProcessRewardModelConfig
from posttrain.data.labels import label_record
from posttrain.data.render import Renderer
from posttrain.evaluation.ready import ReadyTask
from posttrain.model.adapters.saved import with_adapter
from posttrain.model.device import choose_device, choose_dtype, use_deterministic
from posttrain.model.folder import resolve_model_path
from posttrain.model.heads import add_scoring_head, add_value_head, score_label_tokens
from posttrain.model.load import load_policy, load_reference, prepare_policy
from posttrain.model.loaded import starts
from posttrain.model.models import Models
from posttrain.model.quantized import with_quantization
from posttrain.model.scratch import create_from_scratch
from posttrain.model.trial import check_saving
from posttrain.rewards.base import RewardFn
from posttrain.rewards.build import build_reward, check_columns
from posttrain.runs import by_shards
from posttrain.runs.config import Config
from posttrain.runs.data import (
    Data,
    build_renderer,
    build_tokenizer,
    length_limit,
    load_mixture,
    prepare_data,
    split_off,
    with_label_set,
)
from posttrain.runs.dates import with_date
from posttrain.runs.engine import check_engine
from posttrain.runs.fit import check_rows
from posttrain.runs.network import check_prompts, check_rotation, settle_dropout
from posttrain.runs.resume import check_resume, find_resume
from posttrain.runs.tasks import load_tasks, prepare_tasks
from posttrain.tracking.views import check_trackers


@dataclass
class Plan:
    """Everything that a run needs, built and checked."""

    config: Config
    """Resolved, with the labels of a classification and the token budget of the device."""
    models: Models
    renderer: Renderer
    data: Data
    num_steps: int
    steps_per_epoch: int
    base_model: str | None
    """The folder or hub name that the run starts from; None for random weights."""
    reward: RewardFn | None
    tasks: dict[str, ReadyTask]
    """Tasks of `posttrain eval` to run during training."""
    resume: Path | None
    """The checkpoint to resume from; None for a new run."""


def plan(config: Config) -> Plan:
    """Build and check everything that a run needs.

    Raises ValueError with one actionable line for whatever is wrong with the config, the files,
    columns, template, masks or lengths.
    """
    resume = find_resume(config.trainer)
    check_trackers(config.trainer.logger, config.tracking)
    mixture, eval_rows = split_off(config, load_mixture(config))
    tasks = load_tasks(config)
    device = choose_device(config.model.device)
    if config.model.deterministic and device.type == "cuda":
        use_deterministic()
    config = with_label_set(with_device_defaults(config, device), mixture)
    tokenizer, name = build_tokenizer(config, mixture)
    model = with_quantization(with_adapter(config.model, name), name)
    config = config.model_copy(update={"model": model})
    check_prompts(config)
    config = with_date(config, tokenizer, resume)
    limit = length_limit(config, name)
    renderer = build_renderer(config, tokenizer, name)
    data = prepare_data(config, mixture, eval_rows, renderer, limit)
    reward = None
    if config.reward is not None:
        reward = build_reward(config.reward)
        for where, prompts in (("data", data.prompts), ("eval.data", data.eval_prompts)):
            check_columns(reward, [prompt.row for prompt in prompts], where)
    check_engine(config, name, data.prompts + data.eval_prompts, renderer.stop_token_ids)
    models = build_models(config, name, tokenizer, renderer, device)
    check_rows(models, data)
    check_rotation(models.policy, config, data.prompts)
    items = data.prompts if config.algorithm.online else data.examples
    steps_per_epoch = -(-len(items) // config.trainer.examples_per_step)
    trainer = config.trainer
    num_steps = trainer.max_steps or max(1, round((trainer.num_epochs or 0) * steps_per_epoch))
    ready = prepare_tasks(config, tasks, models, renderer)
    result = Plan(
        config, models, renderer, data, num_steps, steps_per_epoch, name, reward, ready, resume
    )
    if resume is not None:
        check_resume(resume, config, data.hash(), starts(models))
    else:
        check_saving(models)
    return result


def with_device_defaults(config: Config, device: torch.device) -> Config:
    """Return the config with the trainer's keys whose defaults depend on the device."""
    default = DEFAULT_MICRO_BATCH_TOKENS[device.type]
    update: dict[str, Any] = {"micro_batch_tokens": config.trainer.micro_batch_tokens or default}
    if isinstance(config.trainer, PolicyGradientConfig):
        dtype = str(choose_dtype(config.model.dtype, device)).removeprefix("torch.")
        given = config.trainer.max_logprob_difference
        update["max_logprob_difference"] = given or MAX_LOGPROB_DIFFERENCE[dtype]
    return config.model_copy(update={"trainer": config.trainer.model_copy(update=update)})


def build_models(
    config: Config, name: str | None, tokenizer: Any, renderer: Renderer, device: torch.device
) -> Models:
    """Return the policy with its head, the tokenizer, and the reference if it is another model."""
    trainer, scores = config.trainer, not config.trainer.writes_text
    empty, whole = by_shards.begin(config, name, device, scores)
    if name is None:
        assert config.model.scratch is not None
        model = create_from_scratch(config.model.scratch, tokenizer, trainer.seed)
        compute = choose_dtype(config.model.dtype, device)
        policy = prepare_policy(model, config.model, device, compute, trainer.seed)
    else:
        policy = empty or load_policy(config.model, name, device, trainer.seed, scores, tokenizer)
    settle_dropout(policy, config)
    labels = None
    if isinstance(trainer, ClassificationConfig):
        labels = label_record(trainer.label_set, renderer)
    if trainer.head == "value":
        add_value_head(policy, trainer.own_value_network)
    elif trainer.head == "score":
        add_scoring_head(policy, name)
    elif trainer.head == "labels":
        assert labels is not None
        add_scoring_head(policy, name, "labels", len(labels["labels"]))
    elif trainer.head == "label_tokens":
        assert labels is not None
        score_label_tokens(policy, labels["tokens"])
    if empty is not None:
        by_shards.complete(policy, config, device)
    separator = trainer.step_separator if isinstance(trainer, ProcessRewardModelConfig) else None
    temperature = config.rollout.temperature if config.rollout is not None else 1.0
    models = Models(
        policy, tokenizer, list(renderer.stop_token_ids), temperature, separator, labels
    )
    models.read_whole = whole
    models.lr_ratio = getattr(config.model.adapter, "lr_ratio", 1.0)
    if config.reference is not None and config.reference.name is not None:
        reference = resolve_model_path(config.reference.name)
        models.other = by_shards.reference(config, reference, policy, tokenizer, device)
        if models.other is None:
            models.other = load_reference(config.model, reference, policy, tokenizer)
    return models
