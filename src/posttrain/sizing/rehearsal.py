"""A training step of a run, rehearsed on tensors without contents on one of many ranks."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from posttrain.common import distributed, mesh
from posttrain.common.batch import Batch
from posttrain.model import output_head
from posttrain.model.attention import use_attention
from posttrain.model.backbone import decoder_layers
from posttrain.model.heads import add_scoring_head, add_value_head
from posttrain.model.kernels.fused import RMSNorm, use_fused
from posttrain.model.kernels.linear import use_onednn
from posttrain.model.language_model import LanguageModel
from posttrain.model.load import add_adapter
from posttrain.model.models import Models
from posttrain.model.parallel.split import check_parts
from posttrain.model.parallel.tensor import parallelise
from posttrain.rollout.native.copied import CopySampler
from posttrain.rollout.native.sampler import NativeSampler
from posttrain.rollout.sampler import SamplingParams
from posttrain.runs.config import Config
from posttrain.runs.engine import native_sampler
from posttrain.sizing.layout import Layout
from posttrain.sizing.ledger import GRADIENTS, WEIGHTS, Exchange, Ledger
from posttrain.training.sharding import shard
from posttrain.training.trainer import Trainer

ALLOCATOR = "held by the allocator"
LIBRARIES = "kernels of the libraries"
KERNEL = 600 * 2**10  # bytes that oneDNN keeps for each shape of a product, measured
MOST_KERNELS = 1024  # that oneDNN keeps
GLOO = {"reduce-scatter": 8, "all-gather": 2}
"""What gloo's threads hold after a collective, in multiples of its largest tensor, measured."""
DECODED = 64  # tokens of a completion that are sampled here; the others are in the cache already


@dataclass
class Counted:
    """What one rank needs for a training step."""

    phases: dict[str, dict[str, int]] = field(default_factory=dict)
    """Bytes by part at the peak of each phase."""
    kept: dict[str, int] = field(default_factory=dict)
    """Bytes that a CPU's allocator and libraries hold besides, by reason."""
    passes: dict[Exchange, int] = field(default_factory=dict)
    """Bytes of whole tensors in the collectives of forward and backward passes."""
    update: dict[Exchange, int] = field(default_factory=dict)
    """The same of what is exchanged once in an optimiser step."""
    micro_batches: int = 1
    """Number of micro-batches in `passes`."""

    @property
    def phase(self) -> str:
        """The phase with the peak."""
        return max(self.phases, key=lambda name: sum(self.phases[name].values()))

    @property
    def parts(self) -> dict[str, int]:
        """Bytes by part at the peak."""
        return self.phases[self.phase] | self.kept

    @property
    def peak(self) -> int:
        """Bytes at the peak."""
        return sum(self.parts.values())


def rehearse(
    config: Config,
    network: Callable[[int | None], Any],
    batches: Sequence[Batch],
    layout: Layout,
    compute: torch.dtype,
    layers: int | None = None,
    device: str = "cpu",
) -> Counted:
    """Return what a rank of a layout needs for steps on `batches`, its shares of them.

    `network` returns the causal LM with so many layers."""
    with ExitStack() as stack:
        stack.enter_context(_ranks(layout.ranks))
        ranks = mesh.arrange("cpu", layout.tensor, layout.sequence, layout.replicate)
        ledger = Ledger(layout.gpus)
        stack.enter_context(_watching_resizes(ledger))
        if device == "cuda":
            stack.enter_context(_as_on_gpu())
        stack.enter_context(ledger)
        counted = Counted()

        def summing(*args: Any) -> None:
            counted.passes = dict(ledger.traffic)
            ledger.traffic.clear()
            ledger.enter("update")
            sum_gradients(*args)

        sum_gradients = distributed.sum_gradients
        stack.enter_context(mock.patch.object(distributed, "sum_gradients", summing))
        ledger.enter("loading")
        sampler: Any = None
        sharded = layout.strategy != "ddp" and layout.ranks > 1
        _check_offload(config.distributed.offload, sharded)
        with ledger.counting(WEIGHTS):
            policy = build_policy(config, network(layers), compute)
        check_parts(policy, layout.tensor, layout.sequence)
        if config.rollout is not None and config.rollout.engine == "native":
            with ledger.counting("sampler's copy"):
                sampler = native_sampler(config, policy, sharded)
                if isinstance(sampler, CopySampler) and not config.rollout.one_step_off:
                    _cut(sampler.native.policy, ranks)
        with ledger.counting(WEIGHTS):
            _cut(policy, ranks)
            policy.sequence_group = ranks.sequence_group
            ledger.vocab = len(_local(policy.output_head()[0]))
            if sharded:
                shard(policy)
        if (sharded or layout.tensor > 1) and not isinstance(sampler, CopySampler):
            ledger.peaks.clear()  # by_shards: no rank reads the whole model
        ledger.enter("preparation")
        models = Models(policy, None, [])
        if config.trainer.needs_reference:
            with ledger.counting("reference"):
                models.keep_reference()
        trainer: Any = Trainer(models, None, config.algorithm, config.trainer, None, None, 1)  # type: ignore[arg-type]
        _label_gradients(models, ledger)
        _follow_layers(policy, ledger)
        policy.train()
        for batch in batches:
            ledger.traffic.clear()
            if sampler is not None:
                ledger.enter("rollouts")
                with ledger.counting("rollouts"):
                    _sample(sampler, config, batch)
            ledger.enter("preparation")
            prepared = config.algorithm.prepare(batch, models, config.trainer)
            ledger.enter("training: before the layers")
            with _optimiser_state(trainer, ledger):
                trainer.update(prepared)
            parts = batch.split(config.trainer.token_budget, config.algorithm.group_size)
            counted.micro_batches = len(parts)
            del prepared
        counted.update = dict(ledger.traffic)
        counted.phases = {phase: parts for phase, (_, parts) in ledger.peaks.items()}
        if device == "cuda":
            _leave_out(counted.phases, policy, config.distributed.offload)
        if device == "cpu":
            counted.kept[ALLOCATOR] = max(0, ledger.touched.total - counted.peak)
            gloo = sum(times * ledger.largest[kind] for kind, times in GLOO.items())
            counted.kept["held by gloo's threads"] = gloo
            counted.kept[LIBRARIES] = KERNEL * min(len(ledger.products), MOST_KERNELS)
        return counted


def _check_offload(offload: str, sharded: bool) -> None:
    """Raise ValueError if there are no sharded parameters to offload."""
    if offload == "parameters" and not sharded:
        raise ValueError(
            "distributed.offload: parameters is for sharded ones, on several ranks; optimizer "
            "is for one GPU and ddp too"
        )


def _leave_out(phases: dict[str, dict[str, int]], policy: LanguageModel, offload: str) -> None:
    """Take what is in the CPU's memory from the bytes of each phase."""
    held = [_local(p) for p in policy.parameters()]
    largest = max(_local(p).numel() for p in policy.parameters() if p.requires_grad)
    for phase, parts in phases.items():
        if offload != "none":
            one = offload == "optimizer" and phase == "update"
            parts["optimiser"] = 8 * largest if one else 0
        if offload == "parameters":
            parts[WEIGHTS] -= sum(p.numel() * p.element_size() for p in held)
            parts[GRADIENTS] = 0


def _cut(policy: LanguageModel, ranks: mesh.Mesh) -> None:
    if ranks.tensor > 1:
        parallelise(policy, ranks.ranks["tensor"])


def _sample(sampler: Any, config: Config, batch: Batch) -> None:
    """Sample the last tokens of the completions of a batch, after a cache of all others."""
    assert config.rollout is not None
    new = min(config.rollout.max_new_tokens, DECODED)
    native = sampler if isinstance(sampler, NativeSampler) else sampler.native
    native.batched = True  # found out by sampling, with weights
    prompts = [
        [0] * (length - new) if len(prompt) < length - new else list(prompt)
        for prompt, length in zip(batch.prompts, batch.lengths)
    ]
    sampler.update_weights()
    sampler.generate(prompts, SamplingParams(new, (), 1.0), [0] * len(prompts))
    gc.collect()  # engine and rows refer to each other


def build_policy(config: Config, model: Any, compute: torch.dtype) -> LanguageModel:
    """Return a causal LM as `prepare_policy` would, without the checks that need its weights."""
    section, trainer = config.model, config.trainer
    if section.trains_adapter:
        model = add_adapter(model, section, trainer.seed)
    for parameter in model.parameters():
        dtype = torch.float32 if parameter.requires_grad else compute
        parameter.data = parameter.data.to(dtype)
    if section.gradient_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
        model.enable_input_require_grads()
    policy = LanguageModel(model, autocast=None if compute == torch.float32 else compute)
    use_onednn(model)
    use_fused(model)
    use_attention(policy.causal_lm())
    if trainer.head == "value":
        add_value_head(policy, trainer.own_value_network)
    elif trainer.head == "score":
        add_scoring_head(policy, None)
    return policy


@contextmanager
def _ranks(ranks: int) -> Iterator[None]:
    """Make this process rank 0 of ranks that agree on all small values."""
    assert not torch.distributed.is_initialized(), "a rank of a run cannot rehearse another"
    from torch.testing._internal.distributed.fake_pg import FakeStore

    alike = mock.patch.object(distributed, "all_gather", lambda value: [value] * ranks)
    with alike, mock.patch.object(mesh, "_mesh", mesh.Mesh()):
        torch.distributed.init_process_group("fake", store=FakeStore(), rank=0, world_size=ranks)
        try:
            yield
        finally:
            torch.distributed.destroy_process_group()


@contextmanager
def _watching_resizes(ledger: Ledger) -> Iterator[None]:
    resize = torch.UntypedStorage.resize_

    def watched(storage: torch.UntypedStorage, size: int) -> Any:
        out = resize(storage, size)
        ledger.resized(storage)
        return out

    with mock.patch.object(torch.UntypedStorage, "resize_", watched):
        yield


def _follow_layers(policy: LanguageModel, ledger: Ledger) -> None:
    """Let phases of training be those of the first, second, second last and last layer."""
    layers = list(decoder_layers(policy.model))
    ends = {0: "first", 1: "second", len(layers) - 2: "second last", len(layers) - 1: "last"}
    for place, layer in enumerate(layers):
        name = f"{ends.get(place, 'another')} layer"

        def before(module: Any, inputs: Any, name: str = name) -> None:
            if torch.is_grad_enabled():
                ledger.enter(f"training: {name} forward")

        def after(module: Any, inputs: Any, out: Any, place: int = place, name: str = name) -> None:
            if not torch.is_grad_enabled():
                return
            states = out[0] if isinstance(out, tuple) else out
            states.register_hook(lambda grad: ledger.enter(f"training: {name} backward"))
            if place == len(layers) - 1:
                ledger.enter("training: the output head")

        layer.register_forward_pre_hook(before)
        layer.register_forward_hook(after)


@contextmanager
def _as_on_gpu() -> Iterator[None]:
    """Take a GPU's ways that decide memory: the norm's kernel, and larger chunks of logits."""

    def norm(module: Any, x: Tensor) -> Any:
        weight = module.weight.to(x.dtype)
        return torch.ops.aten._fused_rms_norm(x, x.shape[-1:], weight, module.variance_epsilon)[0]

    chunk = output_head.chunk_elements(torch.device("cuda"))
    larger = mock.patch.object(output_head, "CHUNK_ELEMENTS", chunk)
    with larger, mock.patch.object(RMSNorm, "forward", norm):
        yield


def _label_gradients(models: Models, ledger: Ledger) -> None:
    for parameter in models.trainable().values():
        parameter.register_post_accumulate_grad_hook(
            lambda p: None if p.grad is None else ledger.belongs(_local(p.grad), GRADIENTS)
        )


def _local(tensor: Any) -> Any:
    return getattr(tensor, "_local_tensor", tensor)


@contextmanager
def _optimiser_state(trainer: Trainer, ledger: Ledger) -> Iterator[None]:
    step = trainer.optimizer.step

    def counted(*args: Any, **kwargs: Any) -> Any:
        with ledger.counting("optimiser"):
            return step(*args, **kwargs)

    with mock.patch.object(trainer.optimizer, "step", counted):
        yield
