"""Load a model for sampling, with prompts rendered as in its training."""

from __future__ import annotations

import datetime
import hashlib
import logging
from pathlib import Path

from pydantic import ValidationError
from torch import Tensor, nn

from posttrain.common import distributed, shards
from posttrain.common.errors import SettingError, without_section
from posttrain.common.mesh import arrange
from posttrain.config.errors import explain
from posttrain.data.chat_template import is_dated
from posttrain.data.render import Renderer, make_renderer
from posttrain.model.by_parts import load_split
from posttrain.model.config import ModelConfig
from posttrain.model.device import choose_device
from posttrain.model.folder import (
    generation_stops,
    holds_classifier,
    resolve_model_path,
    saved_labels,
    trained_date,
    trained_with,
)
from posttrain.model.load import load_policy, load_tokenizer
from posttrain.model.parallel.split import check_parts
from posttrain.model.suited import max_positions
from posttrain.model.workers import use_workers
from posttrain.rollout.native.sampler import NativeSampler

log = logging.getLogger(__name__)


def load_for_sampling(
    model: str,
    template: str,
    device: str,
    dtype: str,
    system_prompt: str | None = None,
    max_num_seqs: int = 256,
    quantization: str | None = None,
    tensor_parallel: int = 1,
) -> tuple[Renderer, NativeSampler, int]:
    """Return renderer, sampler, and the longest sequence in tokens that the model takes."""
    renderer, limit = load_renderer(model, template, system_prompt)
    sampler = load_sampler(model, device, dtype, max_num_seqs, quantization, tensor_parallel)
    if sampler.policy.unpacked is None:
        use_workers(sampler.policy, training=False)
    return renderer, sampler, limit


def load_renderer(
    model: str, template: str, system_prompt: str | None, today: datetime.date | None = None
) -> tuple[Renderer, int]:
    """Return the renderer of a model's prompts, and the longest sequence in tokens that it takes.

    No weights are loaded, so that prompts can be checked first. A chat template that writes the day
    of its use writes that of the model's training, or else `today`, by default this day."""
    name = resolve_model_path(model)
    check_writes(model)
    if template not in ("auto", "chat", "plain"):
        raise SettingError("template", f"expected auto, chat or plain, got {template!r}")
    stops, date = generation_stops(name), trained_date(name)
    tokenizer = load_tokenizer(name)
    if template != "plain" and is_dated(tokenizer):
        today = today or datetime.date.today()
        day = f"{date}, as in the model's training" if date else str(today)
        log.warning("the chat template writes a date: %s", day)
        date = date or today
    return make_renderer(tokenizer, template, system_prompt, stops, date), max_positions(name)


def load_sampler(
    model: str,
    device: str,
    dtype: str,
    max_num_seqs: int,
    quantization: str | None = None,
    tensor_parallel: int = 1,
) -> NativeSampler:
    """Return the sampler of a model that `load_renderer` takes.

    `quantization` is that of model.quantization; None is as in training or in the files. With
    `tensor_parallel` ranks each reads its part alone if it can; pass the sampler to
    `split_over_ranks` in either case. Raises SettingError if so many cannot split the model."""
    name = resolve_model_path(model)
    try:
        config = ModelConfig.model_validate(
            {"name": name, "device": device, "dtype": dtype, "adapter": "none"}
            | {"quantization": quantization}
        )
    except ValidationError as error:
        raise ValueError(explain(error, ModelConfig)) from None
    chosen = choose_device(device)
    if tensor_parallel == 1:
        return NativeSampler(load_policy(config, name, chosen, seed=0), max_num_seqs)
    with without_section("distributed"):
        policy = load_split(config, name, chosen, arrange(chosen.type, tensor_parallel))
        if isinstance(policy, str):
            why, policy = policy, load_policy(config, name, chosen, seed=0)
            check_parts(policy, tensor_parallel, 1)
            if distributed.rank() == 0:  # after what may be refused, which is one line
                log.warning("every rank has read the whole model before it is split: %s", why)
    return NativeSampler(policy, max_num_seqs)


def check_writes(model: str) -> None:
    """Raise ValueError for a reward model or classifier, which would generate nonsense."""
    name = resolve_model_path(model)
    if holds_classifier(Path(name)):
        kind, fix = "reward model", "posttrain score reward_model ROWS path=FOLDER"
        if saved_labels(Path(name)) is not None:
            kind, fix = "classifier", f"posttrain classify {model} TEXT"
        raise ValueError(f"{model} is a {kind}, which generates no text: use {fix}")


def as_trained(
    model: str, template: str = "auto", system_prompt: str | None = None
) -> tuple[str, str | None]:
    """Return template and system prompt; if not given, those that `model` was trained with."""
    trained_template, trained_system_prompt, _ = trained_with(resolve_model_path(model))
    if system_prompt is None:
        system_prompt = trained_system_prompt
    return trained_template if template == "auto" else template, system_prompt or None


def weights_hash(policy: nn.Module) -> str:
    """Return the SHA-256 of all weights by name, as fp32. A collective if ranks hold parts."""
    digest = hashlib.sha256()
    for name, tensor in sorted(policy.state_dict().items()):
        digest.update(name.encode())
        # bitsandbytes' tensors have methods of their own
        plain = shards.full(tensor.detach()).as_subclass(Tensor)
        digest.update(plain.float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
