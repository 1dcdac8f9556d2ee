"""One run: build every object from the config, train, report. The map of the program."""

from __future__ import annotations

import json
import platform
import sys
import time
from contextlib import nullcontext
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from posttrain import distributed
from posttrain.batch import pack, sequences_of
from posttrain.checkpoint import (
    Checkpoints,
    check_resume,
    check_space,
    find_resume,
    read_info,
    versions,
)
from posttrain.config import Config, dump, save_config
from posttrain.data.build import (
    Data,
    build_renderer,
    build_tokenizer,
    check_mixture,
    length_limit,
    other_prompts,
    prepare_data,
    table_lines,
)
from posttrain.data.labelled import label_record
from posttrain.data.load import load_rows
from posttrain.data.render import Renderer
from posttrain.data.source import OfflineSource, Source
from posttrain.evaluation.command import Prepared
from posttrain.evaluation.during import build_evaluation, load_tasks, prepare_tasks
from posttrain.evaluation.gate import GateConfig, lost
from posttrain.models import (
    Models,
    add_value_model,
    choose_device,
    choose_dtype,
    create_from_scratch,
    load_policy,
    load_reference,
    prepare_policy,
    resolve_model_path,
)
from posttrain.reward_head import add_reward_head
from posttrain.rewards import Checked, RewardFn, build_reward, check_columns
from posttrain.rollout.engines import build_engine, check_engine, close_engine, native_sampler
from posttrain.rollout.http_client import EngineError
from posttrain.rollout.sampler import Sampler
from posttrain.rollout.source import RolloutSource
from posttrain.tracking import Tracker
from posttrain.tracking.report import write_report
from posttrain.trainer import Trainer

AT_ONCE = 4096  # sequences that are on the device together before the first step


@dataclass
class Run:
    """Everything that `train` needs, built and checked, with nothing written yet."""

    config: Config
    models: Models
    renderer: Renderer
    data: Data
    num_steps: int
    steps_per_epoch: int
    base_model: str | None
    reward: RewardFn | None
    tasks: dict[str, Prepared]
    """Of `posttrain eval`, to be evaluated during training."""


def build(config: Config) -> Run:
    """Config, files, columns, template, masks and lengths are checked here, before any training."""
    mixture = [(section, load_rows(section)) for section in config.mixture]
    tasks = load_tasks(config)
    device = choose_device(config.model.device)
    config = check_mixture(config, mixture)
    tokenizer, name = build_tokenizer(config, mixture)
    limit = length_limit(config, name)
    renderer = build_renderer(config, tokenizer, name)
    data = prepare_data(config, mixture, renderer, limit)
    reward = None
    if config.reward is not None:
        reward = build_reward(config.reward)
        for where, prompts in (("data", data.prompts), ("eval.data", data.eval_prompts)):
            check_columns(reward, [prompt.row for prompt in prompts], where)
    check_engine(config, name, data.prompts + data.eval_prompts, renderer.stop_token_ids)
    models = build_models(config, name, tokenizer, renderer, device)
    items = len(data.prompts) if config.algorithm.online else len(data.examples)
    steps_per_epoch = -(-items // items_per_step(config))
    trainer = config.trainer
    num_steps = trainer.max_steps or max(1, round(trainer.num_epochs * steps_per_epoch))
    prepared = prepare_tasks(config, tasks, models, renderer)
    return Run(config, models, renderer, data, num_steps, steps_per_epoch, name, reward, prepared)


def items_per_step(config: Config) -> int:
    return config.trainer.batch_size * config.algorithm.updates(config.trainer)[1]


def build_models(
    config: Config, name: str | None, tokenizer: Any, renderer: Renderer, device: torch.device
) -> Models:
    seed, scores = config.trainer.seed, config.algorithm.scores(config.trainer)
    if name is None:
        assert config.model.scratch is not None
        model = create_from_scratch(config.model.scratch, tokenizer, seed)
        compute = choose_dtype(config.model.dtype, device)
        policy = prepare_policy(model, config.model, device, compute, seed)
    else:
        policy = load_policy(config.model, name, device, seed, scores)
    value_model = config.algorithm.value_model(config.trainer)
    labels = None
    if config.algorithm.rows == "labelled":
        labels = label_record(config.trainer, renderer)
        policy.label_tokens = labels.get("tokens")
    if scores:
        add_reward_head(policy, name, 1 if labels is None else len(labels["labels"]))
    elif value_model is not None and labels is None:
        add_value_model(policy, own_network=value_model == "own")
    temperature = config.rollout.temperature if config.rollout is not None else 1.0
    stops = list(renderer.stop_token_ids)
    separator = config.algorithm.step_separator(config.trainer)
    models = Models(policy, tokenizer, stops, temperature, scores, separator, labels)
    if config.reference is not None and config.reference.name is not None:
        other = resolve_model_path(config.reference.name)
        models.other = load_reference(config.model, other, policy, tokenizer)
    return models


def train(config: Config, run_dir: Path | None = None) -> Path:
    """Train as the config says; returns the run directory.

    Nothing is written before everything could be built. Raises ValueError with one actionable
    line for whatever is wrong with the config, the files or the data.
    """
    distributed.start(config.model.device)
    resume = find_resume(config.trainer, run_name(config))
    if resume is not None:
        run_dir = resume.parent
    if config.trainer.batch_size < distributed.num_ranks():
        raise ValueError(
            f"trainer.batch_size={config.trainer.batch_size} is less than the "
            f"{distributed.num_ranks()} ranks: each needs an example in every step"
        )
    run = build(config)
    config, reward = run.config, run.reward
    algorithm = config.algorithm
    prepares = algorithm.online or algorithm.rows in ("pair", "unpaired")
    kind, items = ("prompts", run.data.prompts) if algorithm.online else ("rows", run.data.examples)
    left = len(items) % items_per_step(config)
    reached = prepares and run.num_steps >= run.steps_per_epoch
    if reached and 0 < left < distributed.num_ranks():
        raise ValueError(
            f"the last step of an epoch has {left} of the {len(items)} {kind}, fewer "
            f"than the {distributed.num_ranks()} ranks: set data.max_samples to a multiple of "
            f"{items_per_step(config)}"
        )
    if 0 < len(run.data.eval_examples) < distributed.num_ranks():
        raise ValueError("eval.data has fewer rows than there are ranks")
    if resume is not None:
        check_resume(resume, dump(config), run.data.hash())
    if run_dir is None:
        stamp = datetime.now().strftime("%Y%m%d-%H%M%S")
        run_dir = Path(config.trainer.output_dir) / f"{run_name(config)}_{stamp}"
    run_dir = Path(distributed.from_rank_0(str(run_dir)))
    policy: Any = run.models.policy
    torch.manual_seed(config.trainer.seed + distributed.rank())  # dropout
    sampler: Sampler | None = None
    sharded = distributed.num_ranks() > 1 and config.distributed.strategy == "fsdp"
    native = config.rollout is None or config.rollout.engine == "native"
    if native and (reward is not None or run.tasks):
        sampler = native_sampler(config, policy, sharded)
    if sharded:
        distributed.shard(policy)
        if run.models.other is not None:
            distributed.shard(run.models.other)
    if not native:
        assert run.base_model is not None
        prompts = run.data.prompts + run.data.eval_prompts
        sampler = build_engine(config, policy, run.base_model, prompts, run_dir)
    if algorithm.needs_reference(config.trainer) and run.models.other is None:
        run.models.keep_reference()  # after sharding, as shards
    if algorithm.precomputes_reference(config.trainer):
        add_reference_logprobs(run.models, run.data, config.trainer.micro_batch_tokens)
        run.models.other = None
    if distributed.rank() == 0:
        run_dir.mkdir(parents=True, exist_ok=True)
        weights = sum(p.numel() for p in run.models.trainable().values())
        check_space(run_dir, 2 * 12 * weights)
        save_config(config, run_dir / "config.yaml")
        tables = [table.as_row() for table in run.data.tables]
        (run_dir / "data.json").write_text(json.dumps(tables, indent=1))
    distributed.barrier()
    first_step = 0 if resume is None else read_info(resume)["step"]
    tracker = Tracker(
        run_dir,
        run.num_steps,
        config.trainer.logging_steps,
        "tensorboard" in config.trainer.logger,
        distributed.rank(),
        first_step,
        config.trainer.type,
    )
    started = time.time()
    try:
        _train(run, sampler, reward, run_dir, resume, tracker)
    finally:
        close_engine(sampler)
        tracker.close()
        if distributed.rank() == 0:
            write_run_info(run, run_dir, started)
    if distributed.rank() == 0:
        write_report([run_dir])
    return run_dir


def _train(
    run: Run,
    sampler: Sampler | None,
    reward: RewardFn | None,
    run_dir: Path,
    resume: Path | None,
    tracker: Tracker,
) -> None:
    config = run.config
    source = build_source(run, sampler, reward, tracker)
    trainer = Trainer(
        models=run.models,
        source=source,
        algorithm=config.algorithm,
        config=config.trainer,
        tracker=tracker,
        checkpoints=Checkpoints(
            run_dir, config.trainer.keep_checkpoints, dump(config), run.data.hash()
        ),
        num_steps=run.num_steps,
        evaluate=build_evaluation(run, sampler, source, reward, tracker),
        reference=config.reference,
    )
    tracker.say(describe(run))
    if resume is not None:
        trainer.checkpoints.load(resume, trainer)
        left = run.num_steps - trainer.step
        tracker.say(f"resumed from {resume}: {left or 'no'} steps left")
    gates = [] if config.eval is None else config.eval.gate
    try:
        if gates and trainer.step == 0:
            assert trainer.evaluate is not None
            tracker.evaluation(0, trainer.evaluate(0))
            refuse_loss(gates, run_dir)  # a metric that is not there is known now
        trainer.fit()
    except EngineError as error:  # met by all ranks, between two steps
        if trainer.step == 0:
            raise
        trainer.checkpoints.save(trainer)
        raise EngineError(
            f"{error}; the {trainer.step} finished steps are saved: continue with "
            f"trainer.resume_from_checkpoint={run_dir}"
        ) from error
    finally:
        source.close()
    refuse_loss(gates, run_dir, trainer.best_step)


def refuse_loss(gates: list[GateConfig], run_dir: Path, step: int | None = None) -> None:
    """A ValueError on every rank for what the evaluation at `step`, or the last, has lost."""
    found = None
    if gates and distributed.rank() == 0:
        found = lost(gates, run_dir / "metrics.jsonl", step)
    if (problem := distributed.from_rank_0(found or "")) != "":
        raise ValueError(problem)


def add_reference_logprobs(models: Models, data: Data, max_tokens: int) -> None:
    """per_token["ref_logprobs"] of every sequence, each rank its share. Without a reference of its
    own it is the weights that the run starts from, also where it is resumed."""
    everything = sequences_of(data.examples + data.eval_examples)
    ranks, rank = distributed.num_ranks(), distributed.rank()
    device = next(models.policy.parameters()).device
    for start in range(0, len(everything), AT_ONCE):
        sequences = everything[start : start + AT_ONCE]
        mine = sequences[rank::ranks] or sequences[:1]
        with nullcontext() if models.other is None else models.reference():
            logprobs = models.logprobs(pack(mine).to(device), max_tokens).cpu()
        own = logprobs.split([len(sequence) for sequence in mine])
        for place, share in enumerate(distributed.all_gather([x.clone() for x in own])):
            for sequence, values in zip(sequences[place::ranks], share):
                sequence.per_token["ref_logprobs"] = values


def build_source(
    run: Run, sampler: Sampler | None, reward: RewardFn | None, tracker: Tracker
) -> Source:
    config, trainer = run.config, run.config.trainer
    if not config.algorithm.online:
        return OfflineSource(
            run.data.examples,
            trainer.batch_size,
            trainer.seed,
            distributed.rank(),
            distributed.num_ranks(),
        )
    assert sampler is not None
    assert reward is not None
    assert config.rollout is not None
    device = next(run.models.policy.parameters()).device
    return RolloutSource(
        run.data.prompts,
        run.renderer,
        sampler,
        reward,
        config.rollout,
        items_per_step(config),
        run.num_steps,
        trainer.seed,
        tracker.sample,
        # two teams of threads on the same cores: sampling takes half as long again
        beside=config.rollout.engine != "native" or device.type != "cpu",
    )


def run_name(config: Config) -> str:
    return config.trainer.run_name or config.trainer.type


def describe(run: Run) -> str:
    """What is about to happen, in a few lines."""
    policy: Any = run.models.policy
    total = sum(p.numel() for p in policy.parameters())
    trainable = sum(p.numel() for p in run.models.trainable().values())
    parameter = next(policy.parameters())
    compute = policy.autocast or torch.float32
    lines = [
        f"{run.config.trainer.type}: {run.base_model or 'random weights'}, {total:,} parameters, "
        f"{trainable:,} trained (fp32), compute {str(compute).removeprefix('torch.')} on "
        f"{parameter.device.type}, {distributed.num_ranks()} rank(s)",
        f"{run.num_steps:,} steps of {items_per_step(run.config)} examples, "
        f"{run.steps_per_epoch:,} steps an epoch",
    ]
    if isinstance(run.reward, Checked):
        facts = ", ".join(f"{name} {fact}" for name, fact in run.reward.about().items())
        lines.append(f"reward {run.config.reward.type}: {facts}")
    return "\n".join([*lines, *table_lines(run.data.tables), *other_prompts(run.config)])


def write_run_info(run: Run, run_dir: Path, started: float) -> None:
    info = {
        "command": " ".join(sys.argv),
        "started": datetime.fromtimestamp(started, UTC).isoformat(timespec="seconds"),
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        "seconds": round(time.time() - started, 1),
        "versions": versions(),
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads",
        "num_parameters": sum(p.numel() for p in run.models.policy.parameters()),
        "num_trainable": sum(p.numel() for p in run.models.trainable().values()),
    }
    if isinstance(run.reward, Checked):
        info["reward"] = run.reward.about()
    (run_dir / "run.json").write_text(json.dumps(info, indent=1))
