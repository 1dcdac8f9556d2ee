"""Tensor parallelism: every rank of a group holds a part of each large matrix.

The plan, which matrix is cut in which direction, is transformers' own (`base_model_tp_plan` of a
model's config). A layer that is cut along its outputs ("colwise") takes whole states and returns a
part, one that is cut along its inputs ("rowwise") takes a part and returns a sum over the ranks
(Megatron-LM, Shoeybi et al. 2019, arXiv 1909.08053, sec. 3). Embedding and output head are cut
along the vocabulary. Parameters are DTensors, so checkpoints gather and scatter them as they do
shards; the layers compute with their local parts.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed import ProcessGroup
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Shard, distribute_tensor

from posttrain.common.shards import full
from posttrain.model.backbone import backbone_of, unwrapped
from posttrain.model.kernels.linear import Linear, linear
from posttrain.model.kernels.quantized import quantised
from posttrain.model.language_model import LanguageModel
from posttrain.model.parallel.collectives import gathered, own_part, spread, summed
from posttrain.model.parallel.vocabulary import VocabShard

STYLES = {
    "colwise": ("column", False),
    "colwise_gather_output": ("column", True),
    "rowwise": ("row", False),
    "rowwise_split_input": ("row", True),
    "replicated_with_grad_allreduce": ("partial gradient", False),
}
"""transformers' styles that are known here: the direction, and whether the cut side is whole."""


class Shared:
    """The states that neighbours read (queries, keys and values), whose gradients add up here.

    Ranks then sum them once in the backward pass, and not once for each of the neighbours."""

    def __init__(self, group: ProcessGroup) -> None:
        self.group, self.readers, self.left = group, 0, 0
        self.states: tuple[Tensor, Tensor] | None = None

    def spread(self, x: Tensor) -> Tensor:
        """Return x, the same tensor to each of the neighbours that get the same x."""
        if self.states is None or self.states[0] is not x:
            self.states, self.left = (x, spread(x, self.group)), self.readers
        self.left -= 1
        same = self.states[1]
        if self.left == 0:  # nothing is kept between two passes
            self.states = None
        return same


class ColumnLinear(nn.Linear):
    """A linear layer of which each rank holds some outputs."""

    group: ProcessGroup
    shared: Shared
    whole: bool
    """Whether the outputs are gathered."""

    def forward(self, input: Tensor) -> Tensor:
        """Return this rank's outputs, or with `whole` all of them."""
        x = self.shared.spread(input) if torch.is_grad_enabled() else input
        out = linear(x, _local(self.weight), _local(self.bias))
        return gathered(out, self.group) if self.whole else out


class RowLinear(nn.Linear):
    """A linear layer of which each rank holds some inputs. The bias is whole on every rank."""

    group: ProcessGroup
    whole: bool
    """Whether the inputs come whole."""

    def forward(self, input: Tensor) -> Tensor:
        """Return all outputs: the sum of what the ranks make of their inputs."""
        x = own_part(input, self.group) if self.whole else input
        out = summed(linear(x, _local(self.weight)), self.group)
        return out if self.bias is None else out + self.bias.to(out.dtype)


class VocabEmbedding(nn.Embedding):
    """An embedding of which each rank holds the rows of some tokens."""

    shard: VocabShard

    def forward(self, input: Tensor) -> Tensor:
        """Return the embeddings of token ids."""
        places, inside = self.shard.local(input)
        padding = self.padding_idx
        if padding is not None:  # the row that gets no gradient
            own = padding - self.shard.first
            padding = own if 0 <= own < self.shard.size else None
        rows = F.embedding(places, _local(self.weight), padding)
        return self.scaled(summed(rows.masked_fill(~inside[..., None], 0.0), self.shard.group))

    def scaled(self, rows: Tensor) -> Tensor:
        """Return rows of the embedding times its `embed_scale`, if it has one."""
        scale = getattr(self, "embed_scale", None)
        return rows if scale is None else rows * scale.to(rows.dtype)


def parallelise(policy: LanguageModel, mesh: DeviceMesh) -> None:
    """Cut a policy's matrices over the ranks of a mesh, and keep this rank's parts.

    Build the optimiser after this, and shard the rest over other ranks after this. There must be
    no `obstacle`.
    """
    assert obstacle(policy, mesh.size()) is None
    for network in filter(None, (policy.model, policy.value_network)):
        shared: dict[str, Shared] = {}  # by the name of the module that the readers are in
        for name, module, style in planned(network):
            inputs = shared.setdefault(name.rpartition(".")[0], Shared(mesh.get_group()))
            _cut(module, *STYLES[style], mesh, inputs)
    _cut_vocabulary(policy, mesh)


@contextmanager
def as_whole(policy: LanguageModel) -> Iterator[None]:
    """Let transformers' model compute what it did before it was cut, without gradients.

    Each matrix is gathered while its layer runs, and dropped. Other models stay as they are. A
    collective of the ranks with the parts, as often as a layer runs."""
    modules: list[Any] = []
    if policy.vocab_shard is not None:
        kinds = (ColumnLinear, RowLinear, VocabEmbedding)
        modules = [module for module in policy.model.modules() if isinstance(module, kinds)]
        modules.append(_vocabulary(policy)[0])
    for module in modules:
        module.forward = partial(_with_whole_weight, module)
    try:
        yield
    finally:
        for module in modules:
            del module.forward


@torch.no_grad()
def _with_whole_weight(module: Any, input: Tensor) -> Tensor:
    weight = full(module.weight)
    if isinstance(module, VocabEmbedding):
        return module.scaled(F.embedding(input, weight))
    return F.linear(input, weight, None if module.bias is None else full(module.bias))


def planned(network: nn.Module) -> list[tuple[str, nn.Module, str]]:
    """Return name, module and style of what a network's plan names."""
    backbone = backbone_of(network)
    patterns = {_pattern(name): style for name, style in plan_of(network).items()}
    found = []
    for name, module in backbone.named_modules():
        style = next((s for pattern, s in patterns.items() if pattern.fullmatch(name)), None)
        if style is not None:
            found.append((name, module, style))
    return found


def plan_of(network: nn.Module) -> dict[str, str]:
    """Return transformers' plan of a network's backbone by module name, empty if it has none.

    An entry may have "*" in place of a layer's number. Experts and mixers without a place in the
    model are left out of it there, and here if no module has the name."""
    config: Any = unwrapped(network).config
    return dict(getattr(config, "base_model_tp_plan", None) or {})


def obstacle(policy: LanguageModel, ranks: int) -> str | None:
    """Return why a policy cannot be cut into parts for so many ranks, or None."""
    name = type(policy.causal_lm()).__name__
    if policy.unpacked is not None or policy.rope_limit is not None:
        return f"{name} runs sequences one at a time, which is not cut: set it to 1"
    if policy.vocab_shard is not None:  # is cut already
        return None
    plan = plan_of(policy.model)
    if not plan:
        return f"transformers has no plan for {name}: set it to 1"
    if quantised(policy):
        return "quantised weights cannot be cut: set it to 1"
    found = planned(policy.model)
    for _, module, style in found:
        if style not in STYLES:
            return f"the plan of {name} has a style that is not offered here, {style}: set it to 1"
        if STYLES[style][0] != "partial gradient" and (problem := _unsuited(module)):
            return f"{problem}: set it to 1"
    config = policy.causal_lm().config
    numbers = {
        "attention heads": config.num_attention_heads,
        "heads of keys and values": getattr(config, "num_key_value_heads", None),
        "numbers between the feed-forward layers": getattr(config, "intermediate_size", None),
    }
    for what, number in numbers.items():
        if number is not None and number % ranks:
            return f"{ranks} ranks do not divide the {number} {what} of {name}"
    head, embedding = _vocabulary(policy)
    if type(head) not in (nn.Linear, Linear):
        return "the adapter changes the output head, which is not cut: leave out lm_head"
    if not isinstance(embedding, nn.Embedding) or not _is_plain(embedding):
        return f"the embedding of {name} is not one that is cut here: set it to 1"
    return None


def _pattern(name: str) -> re.Pattern[str]:
    """Return the pattern of an entry's module, and of what PEFT has put into its place."""
    layers = re.escape(name).replace(r"\*", r"\d+")
    return re.compile(layers)


def _unsuited(module: Any) -> str | None:
    """Return why a planned module, or the adapter around it, cannot be cut."""
    if type(module) in (nn.Linear, Linear):
        return None
    base = getattr(module, "base_layer", None)
    if type(base) not in (nn.Linear, Linear) or not hasattr(module, "lora_A"):
        return f"a layer of type {type(module).__name__} is not cut here"
    if any(module.use_dora.values()):
        return "DoRA's magnitudes belong to whole weights, which are not cut"
    if any(module.lora_bias.values()):
        return "an adapter with a bias of its own is not cut here"
    return None


def _cut(module: Any, direction: str, whole: bool, mesh: DeviceMesh, inputs: Shared) -> None:
    if direction == "partial gradient":
        module.forward = partial(_with_spread_weight, module, mesh.get_group())
        return
    if not hasattr(module, "lora_A"):
        _cut_linear(module, direction, whole, mesh, inputs)
        return
    _cut_linear(module.base_layer, direction, whole, mesh, inputs)
    # A takes what the layer takes, and B returns what it returns
    factors = module.lora_B if direction == "column" else module.lora_A
    for factor in factors.values():
        _cut_linear(factor, direction, whole, mesh, Shared(mesh.get_group()))


def _cut_linear(module: Any, direction: str, whole: bool, mesh: DeviceMesh, inputs: Shared) -> None:
    module.__class__ = ColumnLinear if direction == "column" else RowLinear
    module.group, module.whole = mesh.get_group(), whole
    if direction == "column":
        module.shared = inputs
        inputs.readers += 1
    module.weight = _part(module.weight, 0 if direction == "column" else 1, mesh)
    if module.bias is not None and direction == "column":
        module.bias = _part(module.bias, 0, mesh)


def _cut_vocabulary(policy: LanguageModel, mesh: DeviceMesh) -> None:
    head, embedding = _vocabulary(policy)
    tied = head.weight is embedding.weight
    rows = len(embedding.weight)
    embedding.weight = _part(embedding.weight, 0, mesh)
    head.weight = embedding.weight if tied else _part(head.weight, 0, mesh)
    if head.bias is not None:
        head.bias = _part(head.bias, 0, mesh)
    sizes = [len(x) for x in torch.arange(rows).chunk(mesh.size())]
    sizes += [0] * (mesh.size() - len(sizes))
    embedding.__class__ = VocabEmbedding
    embedding.shard = VocabShard(tuple(sizes), mesh.get_group())
    policy.vocab_shard = embedding.shard


def _vocabulary(policy: LanguageModel) -> tuple[Any, Any]:
    """Return the output head and the embedding."""
    causal_lm = policy.causal_lm()
    return causal_lm.get_output_embeddings(), causal_lm.get_input_embeddings()


def _is_plain(embedding: nn.Embedding) -> bool:
    """Whether an embedding looks rows up, and at most multiplies them by `embed_scale`."""
    scaled = type(embedding).__name__.endswith("ScaledWordEmbedding")
    return type(embedding) is nn.Embedding or (scaled and hasattr(embedding, "embed_scale"))


def _part(parameter: nn.Parameter, dim: int, mesh: DeviceMesh) -> nn.Parameter:
    """Return this rank's part of a parameter, cut along a dimension, in memory of its own."""
    cut = distribute_tensor(parameter.detach(), mesh, [Shard(dim)], src_data_rank=None)
    local = cut.to_local().clone()
    own = DTensor.from_local(
        local, mesh, [Shard(dim)], run_check=False, shape=cut.shape, stride=cut.stride()
    )
    return nn.Parameter(own, requires_grad=parameter.requires_grad)


def _local(parameter: Any) -> Any:
    return parameter.to_local() if isinstance(parameter, DTensor) else parameter


def _with_spread_weight(module: Any, group: ProcessGroup, *args: Any) -> Any:
    """Run a module whose whole weight meets only a part of the states on each rank.

    A hook on the parameter would not do: FSDP2 computes with another one."""
    weight = module.weight
    if not torch.is_grad_enabled() or not weight.requires_grad:
        return type(module).forward(module, *args)
    module._parameters["weight"] = spread(weight, group)
    try:
        return type(module).forward(module, *args)
    finally:
        module._parameters["weight"] = weight
