"""Saving is tried before the first step: what would be lost after the last one is found now.

The start model is written as a checkpoint would be, into a temporary folder, and read back by
transformers or PEFT. Every tensor must return bit for bit and, if the model writes text, so must
every log-prob of the probe.
"""

from __future__ import annotations

import tempfile
from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from posttrain.common import distributed
from posttrain.common.batch import Sequence, pack
from posttrain.common.disk import temporary_is_full
from posttrain.model.adapters.base import is_adapted
from posttrain.model.adapters.peft import check_read
from posttrain.model.folder import REFT_CONFIG
from posttrain.model.forward import forward
from posttrain.model.load import load_causal_lm, load_classifier
from posttrain.model.models import Models
from posttrain.model.probe import CODE_FAILS, expected, first_line
from posttrain.model.reft.folder import read_section
from posttrain.model.save import (
    buffers,
    gather_weights,
    is_whole,
    load_named,
    save_model,
    saved_tensors,
    saved_weights,
)
from posttrain.model.suited import read_config

WHOLE = 2**31
"""Bytes of trained weights up to which all are written."""
SMALL = 2**16
"""Number of elements up to which a tensor of a larger or sharded model is written."""
EVERYTHING = 2**63


def check_saving(models: Models) -> None:
    """Raise ValueError on all ranks if the start model, saved and read back, is another one.

    Of a policy in parts without an adapter the small tensors are written, and the names of all
    compared. A collective."""
    tensors = saved_tensors(models)
    whole = is_adapted(models.policy.model) or is_whole(models.policy)
    large = not whole or sum(x.numel() * x.element_size() for x in tensors.values()) > WHOLE
    weights = gather_weights(models, largest=SMALL if large else EVERYTHING)
    problem = ""
    if distributed.rank() == 0:
        with tempfile.TemporaryDirectory(prefix="posttrain-") as folder:
            try:
                if large:
                    _try_large(models, Path(folder), weights, tensors.keys())
                else:
                    _try(models, Path(folder), weights)
            except Exception as error:
                full = temporary_is_full(error)
                if not (full or isinstance(error, (OSError, *CODE_FAILS))):
                    raise
                problem = (
                    full
                    or f"a checkpoint of this model could not be read back: {first_line(error)}"
                )
    if (problem := distributed.from_rank_0(problem)) != "":
        raise ValueError(problem)


def _try(models: Models, folder: Path, weights: dict[str, Tensor]) -> None:
    policy = models.policy
    save_model(folder, models, weights)
    saved = saved_weights(models, folder)
    for name, tensor in weights.items():
        if name not in saved or not torch.equal(saved[name], tensor):
            raise ValueError(f"{name} is not what was saved")
    if hasattr(policy.model, "peft_config"):
        if is_whole(policy):  # else one rank alone cannot read anything
            check_read(policy.model, str(folder))
        return
    if is_adapted(policy.model):
        if read_section(str(folder)) != policy.model.reft_config:
            raise ValueError(f"{REFT_CONFIG} does not describe the edits that are trained")
        return
    if policy.head_kind in ("score", "labels"):
        model, missing = load_classifier(str(folder), torch.float32)
        if missing:
            raise ValueError(f"{type(model).__name__} has weights that it lacks: {missing[0]}")
        _check_buffers(models, model)
        _check_scores(models, model)
        return
    model = load_causal_lm(str(folder), torch.float32)
    _check_buffers(models, model)
    if policy.probe is None:
        return
    now = expected(model.to(policy.device), policy).logprobs
    for before, after in zip(policy.probe.logprobs, now):
        exact = policy.device.type == "cpu"
        if (before - after).abs().max() > (0 if exact else policy.tolerance):
            raise ValueError("its log-probs are not those of the start model")


def _try_large(
    models: Models, folder: Path, small: dict[str, Tensor], names: Collection[str]
) -> None:
    """Write all but the largest tensors, which would take minutes, and compare the names of all.

    Raises ValueError if a tensor of the architecture is not among what a checkpoint saves."""
    causal_lm: Any = models.policy.causal_lm()
    saved = {name.removeprefix("model.") for name in names} | buffers(causal_lm).keys()
    tied = {id(p) for name, p in causal_lm.named_parameters() if name in saved}
    scores = models.policy.head_kind in ("score", "labels")  # such a checkpoint has no output head
    tied |= {id(causal_lm.get_output_embeddings().weight)} if scores else set()
    for name, p in causal_lm.named_parameters(remove_duplicate=False):
        if name not in saved and id(p) not in tied:
            raise ValueError(f"a checkpoint would lack {name}")
    save_model(folder, models, small)
    for name, tensor in load_named(folder).items():
        if name in small and not torch.equal(small[name], tensor):
            raise ValueError(f"{name} is not what was saved")
    read_config(str(folder))


@torch.no_grad()
def _check_scores(models: Models, model: Any) -> None:
    policy = models.policy
    if policy.probe is None:
        return
    device, was_training = policy.device, policy.training
    ids, pad = policy.probe.rows[-1].input_ids, model.config.pad_token_id
    if pad is not None:  # at the end of a text it would not count there
        ids = torch.where(ids == pad, (pad + 1) % model.config.vocab_size, ids)
    batch = pack([Sequence(ids, policy.probe.rows[-1].loss_mask)]).to(device)
    out = forward(policy.eval(), batch, head=True)
    policy.train(was_training)
    ours = out.logits if out.scores is None else out.scores[-1:, None]
    try:
        with policy.precision():
            theirs = model.to(device).eval()(input_ids=batch.input_ids[None]).logits
    except AttributeError as error:
        raise ValueError(f"transformers cannot run {type(model).__name__}") from error
    assert ours is not None
    if not (ours.float() - theirs.float()).abs().max() <= policy.tolerance:
        raise ValueError("transformers gives it other scores")


def _check_buffers(models: Models, model: torch.nn.Module) -> None:
    read = model.state_dict()
    for name, tensor in models.policy.causal_lm().named_buffers():
        if name in read and not torch.equal(read[name].cpu(), tensor.cpu()):
            raise ValueError(f"the buffer {name} is not what was saved")
