"""One run from start to end: plan, assemble, execute. The place to start reading."""

from __future__ import annotations

import json
import math
import time
from contextlib import nullcontext
from pathlib import Path

import torch

from posttrain.common import distributed, mesh
from posttrain.common.batch import pack, sequences_of
from posttrain.common.disk import check_space
from posttrain.common.environment import return_free_memory
from posttrain.common.interrupt import Interrupted, listening
from posttrain.data.source import OfflineSource, Source
from posttrain.evaluation.gate import refuse_loss
from posttrain.model.folder import checkpoints_in, read_info
from posttrain.model.models import Models
from posttrain.model.parallel.split import split
from posttrain.model.workers import use_workers
from posttrain.rollout.native.copied import CopySampler
from posttrain.rollout.native.sampler import NativeSampler
from posttrain.rollout.native.together import on_ranks
from posttrain.rollout.sampler import EngineError, Sampler
from posttrain.rollout.source import RolloutSource
from posttrain.runs.config import Config, dump, save_config
from posttrain.runs.data import Data
from posttrain.runs.describe import describe
from posttrain.runs.engine import build_engine, close_engine, native_sampler
from posttrain.runs.evaluation import build_evaluation
from posttrain.runs.lost import naming_lost_ranks
from posttrain.runs.plan import Plan, plan
from posttrain.runs.preflight import preflight
from posttrain.runs.record import write_run_info
from posttrain.runs.resume import create_run_dir, guarding
from posttrain.runs.strategy import settle_strategy
from posttrain.tracking.report import write_report
from posttrain.tracking.tracker import Tracker
from posttrain.training.checkpoint import Checkpoints
from posttrain.training.sharding import arrange_ranks, shard
from posttrain.training.trainer import Trainer

AT_ONCE = 4096  # sequences on the device together while the reference's log-probs are computed


@naming_lost_ranks()
def train(config: Config, run_dir: Path | None = None) -> Path:
    """Train and return the run directory, a new one by default.

    Nothing is written before everything is built. Raises ValueError with one actionable line for
    whatever is wrong with the config, the files or the data.
    """
    distributed.start(config.model.device, config.distributed.timeout)
    mesh.check(config.distributed.tensor_parallel, config.distributed.sequence_parallel)
    ranks = preflight(config)
    planned, strategy = settle_strategy(plan(config))
    run_dir = choose_run_dir(planned, run_dir)
    with guarding(run_dir):
        sampler = prepare_models(planned, run_dir)
        tracker = open_run(planned, run_dir)
        models = planned.models
        for line in filter(None, (ranks, strategy, use_workers(models.policy, models.other))):
            tracker.say(line)
        started = time.time()
        write_run_info(planned, run_dir, started, {"state": "running"})
        end = {"state": "finished"}
        try:
            execute(planned, assemble(planned, sampler, tracker))
        except BaseException as error:
            asked = isinstance(error, (Interrupted, KeyboardInterrupt))
            end = {"state": "interrupted" if asked else "failed", "error": str(error)}
            raise
        finally:
            close_engine(sampler)
            tracker.close(end["state"])
            write_run_info(planned, run_dir, started, end)
    if distributed.rank() == 0:
        write_report([run_dir])
    return run_dir


def choose_run_dir(plan: Plan, run_dir: Path | None) -> Path:
    """Return the run directory, the same on all ranks: resumed, given as `run_dir`, or created.

    Raises ValueError if `run_dir` holds the checkpoints of another run.
    """
    if plan.resume is not None:
        run_dir = plan.resume.parent
    elif run_dir is not None and checkpoints_in(run_dir):
        raise ValueError(f"run_dir: {run_dir} holds checkpoints of an earlier run: name another")
    if run_dir is None and distributed.rank() == 0:
        run_dir = create_run_dir(plan.config.trainer)
    return Path(distributed.from_rank_0(str(run_dir)))


def prepare_models(plan: Plan, run_dir: Path) -> Sampler | None:
    """Shard the models, keep the reference, and return the sampler if the run samples.

    The order matters. The native sampler takes the policy, or a copy, before it is sharded. The
    reference is copied after that, as shards. Its log-probs come from the initial weights.
    """
    config, models = plan.config, plan.models
    ranks = arrange_ranks(config.distributed, models.policy.device)
    # dropout: of ranks that hold parts of the same matrices, the same
    torch.manual_seed(config.trainer.seed + distributed.rank() // ranks.tensor)
    sampler: Sampler | None = None
    inner: NativeSampler | CopySampler | None = None
    sharded = distributed.num_ranks() > 1 and config.distributed.strategy in ("fsdp", "hsdp")
    native = config.rollout is None or config.rollout.engine == "native"
    if native and (plan.reward is not None or plan.tasks):
        inner = native_sampler(config, models.policy, sharded)
    for network in filter(None, (models.policy, models.other)):
        split(network, ranks)
        if sharded and not distributed.is_sharded(network):
            shard(network, config.distributed)
    if inner is not None:
        ahead = config.rollout is not None and config.rollout.one_step_off
        sampler = on_ranks(inner, ranks, ahead)
    if not native:
        assert plan.base_model is not None
        prompts = plan.data.prompts + plan.data.eval_prompts
        stops = plan.renderer.stop_token_ids
        sampler = build_engine(config, models.policy, plan.base_model, prompts, stops, run_dir)
    if config.trainer.needs_reference and models.other is None:
        models.keep_reference()
    if config.trainer.precomputes_reference:
        add_reference_logprobs(models, plan.data, config.trainer.token_budget)
        models.other = None
    return_free_memory()
    return sampler


def open_run(plan: Plan, run_dir: Path) -> Tracker:
    """Write the run directory's first files and return its tracker."""
    config = plan.config
    checkpoint_bytes = 12 * sum(p.numel() for p in plan.models.trainable().values())
    if distributed.rank() == 0:
        run_dir.mkdir(parents=True, exist_ok=True)
        check_space(run_dir, 2 * checkpoint_bytes)
        save_config(config, run_dir / "config.yaml")
        tables = [table.as_row() for table in plan.data.tables]
        (run_dir / "data.json").write_text(json.dumps(tables, indent=1))
    distributed.barrier()
    return Tracker(
        run_dir,
        plan.num_steps,
        config.trainer.logging_steps,
        config.trainer.logger,
        distributed.rank(),
        first_step=0 if plan.resume is None else read_info(plan.resume)["step"],
        description=config.trainer.type,
        tracking=config.tracking,
        checkpoint_bytes=checkpoint_bytes,
    )


def assemble(plan: Plan, sampler: Sampler | None, tracker: Tracker) -> Trainer:
    """Return the trainer with its source, checkpoints and evaluation, at the step to resume from.

    Call it after `prepare_models`: the optimiser that it builds must hold the shards.
    """
    config, run_dir = plan.config, tracker.run_dir
    source = build_source(plan, sampler, tracker)
    keep = config.trainer.keep_checkpoints
    trainer = Trainer(
        models=plan.models,
        source=source,
        algorithm=config.algorithm,
        config=config.trainer,
        tracker=tracker,
        checkpoints=Checkpoints(run_dir, keep, dump(config), plan.data.hash()),
        num_steps=plan.num_steps,
        evaluate=build_evaluation(plan, sampler, source, tracker),
        reference=config.reference,
        offload=config.distributed.offload == "optimizer",
    )
    tracker.disk.settle = trainer.checkpoints.newest
    tracker.say(describe(plan))
    if plan.resume is not None:
        trainer.checkpoints.load(plan.resume, trainer)
        left = plan.num_steps - trainer.step
        tracker.say(f"resumed from {plan.resume}: {left or 'no'} steps left")
    return trainer


def execute(plan: Plan, trainer: Trainer) -> None:
    """Train to the end; check the gates before the first step and after the last."""
    tracker = trainer.tracker
    run_dir = tracker.run_dir
    gates = [] if plan.config.eval is None else plan.config.eval.gate
    try:
        if gates and trainer.step == 0:
            assert trainer.evaluate is not None
            tracker.evaluation(0, trainer.evaluate(0))
            refuse_loss(gates, run_dir)  # a gate on an unknown metric fails here, not at the end
        with listening() as trainer.signal, trainer.checkpoints.settling():
            trainer.fit()
    except EngineError as error:  # raised on all ranks, between two steps
        if trainer.step == 0:
            raise
        trainer.checkpoints.save(trainer)
        trainer.checkpoints.wait()
        raise EngineError(
            f"{error}; the {trainer.step} finished steps are saved: resume with "
            f"trainer.resume_from_checkpoint={run_dir}"
        ) from error
    finally:
        trainer.source.close()
    refuse_loss(gates, run_dir, trainer.best_step)


def add_reference_logprobs(models: Models, data: Data, max_tokens: int) -> None:
    """Set per_token["ref_logprobs"] of every sequence; the ranks share the work.

    Without a separate reference model they are the policy's with the run's initial weights, also
    in a run that is resumed.
    """
    everything = sequences_of(data.examples + data.eval_examples)
    shares, share = mesh.num_shares(), mesh.share()
    for start in range(0, len(everything), AT_ONCE):
        sequences = everything[start : start + AT_ONCE]
        mine = sequences[share::shares] or sequences[:1]
        with nullcontext() if models.other is None else models.reference():
            logprobs = models.logprobs(pack(mine).to(models.policy.device), max_tokens).cpu()
        by_sequence = logprobs.split([len(sequence) for sequence in mine])
        for owner, found in enumerate(mesh.gather_shares([x.clone() for x in by_sequence])):
            for sequence, values in zip(sequences[owner::shares], found):
                sequence.per_token["ref_logprobs"] = values


def build_source(plan: Plan, sampler: Sampler | None, tracker: Tracker) -> Source:
    """Return the source of batches: the rows, or rollouts of the prompts."""
    config, trainer = plan.config, plan.config.trainer
    rank, num_ranks = distributed.rank(), distributed.num_ranks()
    if not config.algorithm.online:
        return OfflineSource(plan.data.examples, trainer.batch_size, trainer.seed, rank, num_ranks)
    assert sampler is not None
    assert plan.reward is not None
    assert config.rollout is not None
    return RolloutSource(
        plan.data.prompts,
        plan.renderer,
        sampler,
        plan.reward,
        config.rollout,
        trainer.examples_per_step,
        plan.num_steps,
        trainer.seed,
        tracker.sample,
        # on a CPU both would compete for the same cores: sampling takes 1.5 times as long
        beside=config.rollout.engine != "native" or plan.models.policy.device.type != "cpu",
        updates=math.prod(trainer.updates),
    )
