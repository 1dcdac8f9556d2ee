"""The training loop, which knows nothing of the algorithm.

A step takes one batch from the source, lets the algorithm prepare it without grad, and makes one
or more optimiser steps on it. A loss returns sums; they are divided here, once, by counts over
every micro-batch and every rank, so that neither changes the gradient.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from posttrain.algorithms.base import UNITS, Algorithm, Loss, Unit
from posttrain.algorithms.config import TrainerConfig
from posttrain.common import distributed, mesh, shards
from posttrain.common.batch import Batch
from posttrain.common.interrupt import Interrupted
from posttrain.common.metrics import Metrics, add_metrics, combine
from posttrain.common.share_batch import share_batch
from posttrain.common.telling import tell
from posttrain.data.source import Source
from posttrain.model.config import ReferenceConfig
from posttrain.model.forward import forward, in_lockstep
from posttrain.model.language_model import LanguageModel
from posttrain.model.models import Models
from posttrain.model.workers import add_gradients, micro_batches, run_parts
from posttrain.tracking.tracker import Tracker
from posttrain.training.checkpoint import Checkpoints
from posttrain.training.early_stopping import is_better
from posttrain.training.optim import build_optimizer, learning_rate


@dataclass
class Trainer:
    """The loop of one run, and its state."""

    models: Models
    source: Source
    algorithm: Algorithm
    config: TrainerConfig
    tracker: Tracker
    checkpoints: Checkpoints
    num_steps: int
    evaluate: Callable[[int], dict[str, float]] | None = None
    reference: ReferenceConfig | None = None
    offload: bool = False
    """Whether the optimiser's state is in the CPU's memory."""
    step: int = 0
    num_tokens: int = 0
    best: float | None = None
    best_step: int | None = None
    evaluations_without_gain: int = 0
    evaluation_due: bool = False
    """Whether the evaluation of this step is still to come: an interrupted run saves before it."""
    signal: Callable[[], int] = lambda: 0
    """Returns the number of a signal that asked this process to stop, or 0."""
    adapted: dict[str, float] = field(default_factory=dict)
    """Keys of the config that the algorithm changes during the run, with their current values."""
    optimizer: torch.optim.AdamW = field(init=False)
    filler: Batch | None = None
    """What a rank runs to stay in lockstep while others have more micro-batches."""

    def __post_init__(self) -> None:
        trainable, ratio = self.models.trainable(), self.models.lr_ratio
        self.optimizer = build_optimizer(trainable, self.config, ratio, self.offload)

    @property
    def sync_steps(self) -> int | None:
        """Steps after which the reference moves to the policy; None if it never does."""
        return None if self.reference is None else self.reference.sync_steps

    def method_config(self) -> TrainerConfig:
        """Return the config with the current values of the keys that the algorithm adapts."""
        return self.config.model_copy(update=self.adapted)

    def fit(self) -> None:
        """Train to the last step, or until early stopping.

        Raises Interrupted, with a checkpoint saved, after a step in which a signal came.
        """
        self.models.policy.train()
        while self.evaluation_due or self.step < self.num_steps:
            if not self.evaluation_due:
                started = time.perf_counter()
                metrics = self.train_step()
                metrics["step_time"] = time.perf_counter() - started
                self.tracker.train(self.step, metrics)
                tell("finished", {"step": self.step})
                self.evaluation_due = self._is_evaluation_due()
            self._leave_if_asked()
            last = self.step == self.num_steps
            stop = self.evaluation_due and self._evaluate()
            every = self.config.save_steps
            if last or stop or (every is not None and self.step % every == 0):
                self.checkpoints.save(self)
            if stop:
                best = "nan" if self.best is None else f"{self.best:.4g} at step {self.best_step}"
                self.tracker.say(f"stopped early at step {self.step}: the best value was {best}")
                break

    def train_step(self) -> dict[str, float]:
        """Train on one batch of the source and return the step's metrics. A collective."""
        batch, source_metrics = self.source.next_batch()
        batch = share_batch(batch)
        started = time.perf_counter()
        config = self.method_config()
        batch = batch.to(self.models.policy.device)
        batch = self.algorithm.prepare(batch, self.models, config)
        self.source.prepared(batch)
        rate = learning_rate(config, self.step, self.num_steps)
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["lr_scale"]
        self.step += 1
        totals: Metrics = dict(source_metrics)
        for minibatch in self._minibatches(batch):
            add_metrics(totals, self.update(minibatch))
        add_metrics(totals, {"num_tokens": (float(batch.num_tokens * mesh.leads()), None)})
        if self.sync_steps and self.step % self.sync_steps == 0:
            assert self.reference is not None
            self.models.move_reference(self.reference.sync_alpha)
        metrics = combine(distributed.all_gather(totals))
        self.num_tokens += int(metrics["num_tokens"])
        metrics.update(learning_rate=rate, num_tokens=float(self.num_tokens))
        metrics["time/train"] = time.perf_counter() - started
        metrics.update(self.adapted)
        self.algorithm.after_step(metrics, config)
        self.adapted |= self.algorithm.adapt(metrics, config)
        return metrics

    def update(self, batch: Batch) -> Metrics:
        """Make one optimiser step on this rank's part of a global batch. A collective."""
        policy, config = self.models.policy, self.method_config()
        counts = global_counts(batch)
        sharded = distributed.is_sharded(policy)
        # FSDP averages gradients over the ranks, but the shares of the loss have to be added up
        scale = distributed.num_ranks() // mesh.current().tensor if sharded else 1
        # each share has a part of the global loss: counts of 1 / shares turn the mean into a sum
        totals: Metrics = {"loss": (0.0, 1.0 / mesh.num_shares())}

        def backward(network: LanguageModel, micro_batch: tuple[Batch, float]) -> Metrics:
            part, weight = micro_batch
            wanted = {"entropy": self.algorithm.needs_entropy, "head": config.head is not None}
            out = forward(network, part, temperature=self.models.temperature, **wanted)
            loss = self.algorithm.loss(out, part, config)
            value = weight * total_of(loss, counts)
            (scale * value).backward()
            self._check_finite(value, loss)
            metrics = {"loss": (value.detach(), 0.0), **loss.metrics} if weight else {}
            return {k: (float(v), float(n)) for k, (v, n) in metrics.items()}

        for metrics in run_parts(policy, self._micro_batches(batch), backward, config.token_budget):
            add_metrics(totals, metrics)
        add_gradients(policy)
        parameters = list(self.models.trainable().values())
        distributed.sum_gradients(parameters, sharded, mesh.current().replicas)
        shards.agree(parameters, mesh.current().tensor_group)
        norm = self._clip(parameters)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        policy.version += 1
        totals["grad_norm"] = (norm, 1.0)
        return totals if mesh.leads() else {}

    def _minibatches(self, batch: Batch) -> Iterator[Batch]:
        """Yield the batch itself, or passes over parts of it if the method asks for them.

        A part is `batch_size` neighbouring prompts of the step, whichever ranks hold them.
        """
        epochs, parts = self.config.updates
        for _ in range(epochs):
            for k in range(parts):
                if parts == 1:
                    yield batch
                    continue
                chosen = batch.per_seq["group"] // self.config.batch_size == k
                yield batch.select(chosen.nonzero()[:, 0].tolist())

    def _micro_batches(self, batch: Batch) -> Iterator[tuple[Batch, float]]:
        """Yield micro-batches with their weight: 1, or 0 if it only keeps ranks in lockstep."""
        active = batch
        if "active" in batch.per_seq:
            active = batch.select(batch.per_seq["active"].nonzero()[:, 0].tolist())
        size = self.algorithm.group_size
        parts = micro_batches(self.models.policy, active, self.config.token_budget, size)
        if batch.num_sequences:
            self.filler = batch.select(range(size))
        yield from in_lockstep(self.models.policy, parts, self.filler)

    def _clip(self, parameters: list[torch.nn.Parameter]) -> float:
        """Scale the gradients down to max_grad_norm, and return their norm before that."""
        grads = [p.grad for p in parameters if p.grad is not None]
        if not grads:
            return 0.0
        norm = shards.total_norm(grads)
        if not math.isfinite(norm):
            names = [
                name
                for name, p in self.models.trainable().items()
                if p.grad is not None and not shards.full(p.grad).isfinite().all()
            ]
            raise ValueError(
                f"step {self.step}: the gradient is not finite, first in {[*names, '?'][0]}"
                f"{self._last_checkpoint()}"
            )
        limit = self.config.max_grad_norm
        if limit is not None and norm > limit:
            for alike in shards.by_mesh(grads):
                torch._foreach_mul_(alike, limit / (norm + 1e-6))
        return norm

    def _check_finite(self, value: Tensor, loss: Loss) -> None:
        if not torch.isfinite(value):
            units = [unit for unit, term in loss.terms.items() if not torch.isfinite(term)]
            raise ValueError(
                f"step {self.step}: the loss is not finite ({', '.join(units) or 'total'} term)"
                f"{self._last_checkpoint()}; lower trainer.learning_rate or look at the data"
            )

    def _last_checkpoint(self) -> str:
        last = self.checkpoints.newest()
        return f"; the last checkpoint is {last}" if last else "; there is no checkpoint yet"

    def _is_evaluation_due(self) -> bool:
        every = self.config.eval_steps
        if self.evaluate is None or every is None:
            return False
        return self.step == self.num_steps or self.step % every == 0

    def _leave_if_asked(self) -> None:
        """Save and raise Interrupted if a signal came, to any rank, and there is work left."""
        signum = max(distributed.all_gather(self.signal()))
        if signum == 0 or not (self.evaluation_due or self.step < self.num_steps):
            return
        self.checkpoints.save(self)
        raise Interrupted(
            f"stopped after step {self.step} of {self.num_steps}, which is saved: resume with "
            f"trainer.resume_from_checkpoint={self.tracker.run_dir}",
            signum,
        )

    def _evaluate(self) -> bool:
        """Evaluate, and return whether training should stop early."""
        assert self.evaluate is not None
        self.evaluation_due = False
        metrics = self.evaluate(self.step)
        self.models.policy.train()
        self.tracker.evaluation(self.step, metrics)
        early = self.config.early_stopping
        if early is None:
            return False
        if is_better(early, metrics, self.best):
            self.best, self.best_step = metrics[early.metric], self.step
            self.evaluations_without_gain = 0
            self.checkpoints.save(self)
            return False
        self.evaluations_without_gain += 1
        return self.evaluations_without_gain >= early.patience

    def state_dict(self) -> dict[str, Any]:
        """Return the state of the loop and of its source. A collective."""
        return {
            "step": self.step,
            "num_tokens": self.num_tokens,
            "best": self.best,
            "best_step": self.best_step,
            "evaluations_without_gain": self.evaluations_without_gain,
            "evaluation_due": self.evaluation_due,
            "adapted": self.adapted,
            "source": self.source.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what state_dict() returned."""
        self.step, self.num_tokens = state["step"], state["num_tokens"]
        self.best, self.best_step = state["best"], state["best_step"]
        self.evaluations_without_gain = state["evaluations_without_gain"]
        self.evaluation_due = state.get("evaluation_due", False)  # since version 0.2
        self.adapted = state["adapted"]
        self.source.load_state_dict(state["source"])


def global_counts(batch: Batch) -> dict[Unit, float]:
    """Return the number of each unit in a batch, over all ranks. A collective."""
    local = {unit: count(batch) for unit, count in UNITS.items()}
    shares = mesh.gather_shares(local)
    return {unit: sum(counts[unit] for counts in shares) for unit in local}


def total_of(loss: Loss, counts: dict[Unit, float]) -> Tensor:
    """Return the micro-batch's share of the loss. A count is 0 only if its sum is 0 as well."""
    if unknown := loss.terms.keys() - counts.keys():
        raise ValueError(f"a loss has sums per {', '.join(counts)}, not per {', '.join(unknown)}")
    return torch.stack([term / max(counts[unit], 1.0) for unit, term in loss.terms.items()]).sum()
