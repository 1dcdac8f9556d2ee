"""The method's own loss on held-out rows."""

from __future__ import annotations

import math

import torch

from posttrain.algorithms.base import Algorithm
from posttrain.algorithms.config import TrainerConfig
from posttrain.algorithms.language_modeling import negative_log_likelihood
from posttrain.common import mesh
from posttrain.common.batch import Batch, Example, pack_share
from posttrain.common.metrics import Metrics, add_metrics, combine
from posttrain.model.forward import forward, in_lockstep
from posttrain.model.language_model import LanguageModel
from posttrain.model.models import Models
from posttrain.model.workers import micro_batches, run_parts
from posttrain.training.trainer import global_counts, total_of


@torch.no_grad()
def evaluate_loss(
    models: Models, algorithm: Algorithm, config: TrainerConfig, examples: list[Example]
) -> dict[str, float]:
    """Return the method's loss and metrics on held-out examples, as eval_NAME.

    They are those of one optimiser step without the update. Methods whose loss is the negative
    log-likelihood also have eval_perplexity. A collective.
    """
    mine = examples[mesh.share() :: mesh.num_shares()]
    policy = models.policy
    policy.eval()
    batch = pack_share(mine, examples).to(policy.device)
    batch = algorithm.prepare(batch, models, config)
    policy.eval()
    counts = global_counts(batch)
    totals: Metrics = {"loss": (0.0, 1.0 / mesh.num_shares())}
    parts = micro_batches(policy, batch, config.token_budget, algorithm.group_size)

    def measure(network: LanguageModel, micro_batch: tuple[Batch, float]) -> Metrics:
        part, weight = micro_batch
        head = config.head is not None
        out = forward(network, part, head=head, temperature=models.temperature)
        loss = algorithm.loss(out, part, config)
        metrics = {"loss": (total_of(loss, counts), 0.0), **loss.metrics} if weight else {}
        return {k: (float(v), float(n)) for k, (v, n) in metrics.items()}

    lockstep = in_lockstep(policy, parts, parts[-1] if parts else None)
    for found in run_parts(policy, lockstep, measure, config.token_budget):
        add_metrics(totals, found)
    metrics = combine(mesh.gather_shares(totals))
    algorithm.after_step(metrics, config)
    if algorithm.loss is negative_log_likelihood:
        metrics["perplexity"] = math.exp(min(metrics["loss"], 700.0))
    return {f"eval_{name}": value for name, value in metrics.items()}
