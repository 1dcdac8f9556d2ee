"""One policy on the ranks of a mesh, checked to compute what it computed before."""

from __future__ import annotations

import torch

from posttrain.common.batch import pack
from posttrain.common.errors import SettingError
from posttrain.common.mesh import Mesh
from posttrain.model import windows
from posttrain.model.forward import forward
from posttrain.model.language_model import LanguageModel
from posttrain.model.parallel.tensor import obstacle as tensor_obstacle
from posttrain.model.parallel.tensor import parallelise
from posttrain.model.probe import gap, probe_rows

TENSOR, SEQUENCE = "distributed.tensor_parallel", "distributed.sequence_parallel"


def split(policy: LanguageModel, mesh: Mesh) -> None:
    """Let the ranks of a share run a policy together, by parts of its matrices and of its rows.

    A policy whose ranks have read their parts alone (`by_parts`) keeps them. Raises SettingError if
    it cannot be split so, or if its log-probs of a few rows are not those of before. A collective.
    """
    if mesh.per_share == 1 or (policy.vocab_shard is not None and mesh.sequence == 1):
        return
    check_parts(policy, mesh.tensor, mesh.sequence)
    before = _probe(policy)
    if mesh.tensor > 1 and policy.vocab_shard is None:
        parallelise(policy, mesh.ranks["tensor"])
    policy.sequence_group = mesh.sequence_group
    apart = gap(policy, _probe(policy), before, [len(before)])
    if not apart <= policy.tolerance:
        both = f" and {SEQUENCE}" if min(mesh.tensor, mesh.sequence) > 1 else ""
        raise SettingError(
            TENSOR if mesh.tensor > 1 else SEQUENCE,
            f"{type(policy.causal_lm()).__name__} gives other log-probs (by {apart:.2g}) on several"
            f" ranks: set it{both} to 1",
        )


def check_parts(policy: LanguageModel, tensor: int, sequence: int) -> None:
    """Raise SettingError if a policy cannot be split over so many ranks. Needs no ranks."""
    if tensor > 1 and (problem := tensor_obstacle(policy, tensor)):
        raise SettingError(TENSOR, problem)
    if sequence > 1 and (problem := obstacle(policy, tensor, sequence)):
        raise SettingError(SEQUENCE, problem)


def obstacle(policy: LanguageModel, tensor: int, ranks: int) -> str | None:
    """Return why `ranks` ranks cannot share the rows of a policy, or None."""
    name = type(policy.causal_lm()).__name__
    if policy.unpacked is not None or policy.rope_limit is not None:
        return f"{name} runs sequences one at a time, which are not shared: set it to 1"
    config = policy.causal_lm().config
    heads = config.num_attention_heads
    if heads % (tensor * ranks):
        return f"{tensor * ranks} ranks do not divide the {heads} attention heads of {name}"
    of_keys = (getattr(config, "num_key_value_heads", None) or heads) // tensor
    if of_keys % ranks and ranks % of_keys:
        return f"{ranks} ranks do not divide the {of_keys} heads of keys and values of {name}"
    return None


@torch.no_grad()
def _probe(policy: LanguageModel) -> torch.Tensor:
    """Return the policy's log-probs of a few rows, on the CPU."""
    was_training = policy.training
    policy.eval()
    batch = pack(probe_rows(policy.causal_lm().config))
    with windows.short(policy):
        found = forward(policy, batch.to(policy.device)).logprobs.cpu()
    policy.train(was_training)
    return found[batch.loss_mask]
