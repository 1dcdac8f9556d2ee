"""Memory, traffic and time of a run under each parallel strategy, on ranks that are not there."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch

from posttrain.common import mesh
from posttrain.common.batch import Batch
from posttrain.model.workers import CHUNKS, num_workers
from posttrain.sizing.asked import Asked
from posttrain.sizing.forked import forked
from posttrain.sizing.layout import Layout
from posttrain.sizing.ledger import WEIGHTS, Exchange, Ledger
from posttrain.sizing.rehearsal import Counted, build_policy, rehearse

SHALLOW, DEEP = 4, 7
"""Layers that are rehearsed; a deeper network is continued linearly from the two."""
MODEL_RANKS = (2, 4, 8)
CPU_STEPS = 3  # steps that are rehearsed on a CPU, whose allocator fills up with their shapes
TO_HOST = 25e9  # bytes/s between a GPU and the CPU's memory, of PCIe 4.0 with 16 lanes
SHARE_OF_MEMORY = 0.9  # of a GPU's; the rest is for the context, NCCL and fragments


@dataclass(frozen=True)
class Hardware:
    """What the ranks run on."""

    memory: float
    """Bytes of a rank."""
    flops: float
    """Peak FLOP/s of a rank in the compute dtype."""
    utilisation: float
    """Share of the peak that training reaches without waiting for other ranks."""
    within: float
    """Bytes/s that a rank sends to ranks of its machine."""
    between: float
    """Bytes/s that a rank sends to ranks of other machines."""


@dataclass(frozen=True)
class Network:
    """The numbers of a network that FLOPs and a CPU's workers follow from."""

    parameters: int
    trainable: int
    multiplied: int
    """Parameters that every token is multiplied by: all but an embedding that is no head."""
    layers: int
    attention_width: int
    """Heads times their size."""
    vocabulary: int


@dataclass
class Forecast:
    """What a run needs under one layout."""

    layout: Layout
    problem: str | None = None
    """Why the layout is not possible; the rest is empty then."""
    counted: Counted = field(default_factory=Counted)
    micro_batches: float = 1.0
    """Of a share in a step, mean."""
    compute: float = 0.0
    """Seconds of arithmetic in a step."""
    waiting: float = 0.0
    """Seconds of a step in which ranks wait for exchanges."""

    @property
    def peak(self) -> int:
        """Bytes of a rank at the peak."""
        return self.counted.peak

    @property
    def seconds(self) -> float:
        """Seconds of a step."""
        return self.compute + self.waiting

    def traffic(self) -> dict[Exchange, float]:
        """Return the bytes that a rank sends in a step, by collective."""
        times = self.micro_batches / self.counted.micro_batches
        total: dict[Exchange, float] = {}
        for found, factor in ((self.counted.passes, times), (self.counted.update, 1.0)):
            for exchange, size in found.items():
                total[exchange] = total.get(exchange, 0.0) + factor * sent(exchange, size)
        return {exchange: size for exchange, size in total.items() if size >= 1.0}


def sent(exchange: Exchange, size: float) -> float:
    """Return the bytes that a rank sends for a collective over `size` bytes, by rings.

    An all-reduce is a reduce-scatter and an all-gather (Patarasuk and Yuan 2009)."""
    passed = size * (exchange.ranks - 1) / exchange.ranks
    return 2 * passed if exchange.kind == "all-reduce" else passed


def layouts(asked: Asked, gpus: int, nodes: int) -> Iterator[Layout]:
    """Yield the strategies to compare; those of a recipe that names a model split are of that.

    Raises ValueError if the ranks cannot be divided as the recipe says."""
    section, ranks = asked.config.distributed, gpus * nodes
    tensor, sequence = section.tensor_parallel, section.sequence_parallel
    mesh.check(tensor, sequence, ranks)
    if tensor * sequence > 1:
        for strategy in ("ddp", "fsdp"):
            yield Layout(gpus, nodes, strategy, tensor, sequence)
        return
    yield Layout(gpus, nodes)
    if ranks == 1:
        return
    yield Layout(gpus, nodes, "fsdp")
    if nodes > 1 and gpus > 1:
        yield Layout(gpus, nodes, "hsdp")
    for split in (n for n in MODEL_RANKS if gpus % n == 0):
        yield Layout(gpus, nodes, "fsdp" if ranks > split else "ddp", tensor=split)
    for split in (n for n in MODEL_RANKS if gpus % n == 0):
        yield Layout(gpus, nodes, "fsdp", sequence=split)


def load_code(asked: Asked) -> None:
    """Load what every rehearsal needs, so that their copies of this process need not."""
    import torch._dynamo
    import torch.distributed.fsdp
    import torch.distributed.tensor
    import torch.testing._internal.distributed.fake_pg

    with torch.device("meta"):
        build_policy(asked.config, asked.network(1), asked.compute)


def network_of(asked: Asked) -> Network:
    """Return the numbers of the network, built without contents."""
    with Ledger() as ledger, ledger.counting(WEIGHTS):
        policy = build_policy(asked.config, asked.network(None), asked.compute)
        causal_lm = policy.causal_lm()
        shape: Any = causal_lm.config.get_text_config(decoder=True)
        numbers = {id(p): p.numel() for p in policy.parameters()}
        embedding = causal_lm.get_input_embeddings().weight
        tied = embedding is causal_lm.get_output_embeddings().weight
        total = sum(numbers.values())
        head_size = getattr(shape, "head_dim", None) or (
            shape.hidden_size // shape.num_attention_heads
        )
        return Network(
            total,
            sum(p.numel() for p in policy.parameters() if p.requires_grad),
            total - (0 if tied else embedding.numel()),
            shape.num_hidden_layers,
            head_size * shape.num_attention_heads,
            len(embedding),
        )


def flops_per_token(asked: Asked, network: Network) -> float:
    """Return the FLOPs of training on a token.

    2 N forward and 4 N backward for N parameters (Kaplan et al. 2020, arXiv 2001.08361, table 1),
    and 2 L d T forward, 4 L d T backward for causal attention over T tokens in L layers of width d
    (half of what PaLM's appendix B counts, arXiv 2204.02311, which has no causal mask). Frozen
    weights have no gradient of their own: 2 N less. The reference runs forward.
    """
    config = asked.config
    sequences = [len(s) for row in range(min(len(asked.lengths), 256)) for s in asked.example(row)]
    length = sum(sequences) / len(sequences)
    weights = 2.0 * network.multiplied
    attention = 2.0 * network.layers * network.attention_width * length
    passes = 2 if config.model.trains_adapter else 3
    total = passes * weights + 3 * attention
    if config.model.gradient_checkpointing:
        total += weights + attention
    if config.trainer.needs_reference:
        total += weights + attention
    return total


def forecast(
    asked: Asked, network: Network, layout: Layout, hardware: Hardware, device: str
) -> Forecast:
    """Return what a run needs under a layout. Takes seconds."""
    batch, micro_batches = asked.fullest(layout.shares)
    try:
        counted = forked(partial(count, asked, network, layout, batch, device))
    except ValueError as error:
        return Forecast(layout, str(error))
    if device == "cpu" and layout.ranks == 1:
        counted.kept |= of_other_workers(network, asked.config.trainer.token_budget)
    found = Forecast(layout, None, counted, micro_batches)
    tokens = asked.tokens_per_step
    rate = hardware.flops * hardware.utilisation * min(layout.ranks, busy_ranks(asked, layout))
    found.compute = tokens * flops_per_token(asked, network) / rate
    found.waiting = waiting(found, hardware)
    if device == "cuda":
        found.waiting += to_host(asked, network, found) / TO_HOST
    return found


def of_other_workers(network: Network, tokens: int) -> dict[str, int]:
    """Return the bytes of a CPU's workers beside the first, with so many tokens together.

    Their logits are of the same tokens, so that they add chunks only if one did not hold all."""
    gradients = 4 * network.trainable
    others = num_workers(torch.get_num_threads(), gradients) - 1
    if others == 0:
        return {}
    logits = 12 * network.vocabulary * tokens
    chunks = max(0, min(others * CHUNKS, logits - CHUNKS))
    return {"of the other workers": others * gradients + chunks}


def to_host(asked: Asked, network: Network, found: Forecast) -> float:
    """Return the bytes that a rank moves between the GPU's and the CPU's memory in a step."""
    offload, holders = asked.config.distributed.offload, found.layout.holders
    if offload == "optimizer":
        return 16 * network.trainable / holders
    if offload == "parameters":  # gathered twice a micro-batch; gradients are added up by the CPU
        return found.micro_batches * (8 * network.parameters + 4 * network.trainable) / holders
    return 0.0


def busy_ranks(asked: Asked, layout: Layout) -> int:
    """Return the ranks that have rows in a step: of a small batch not all."""
    rows = min(asked.config.trainer.examples_per_step, len(asked.lengths))
    return min(rows, layout.shares) * layout.tensor * layout.sequence


def count(asked: Asked, network: Network, layout: Layout, batch: Batch, device: str) -> Counted:
    """Return what a rank needs; of a deep network on GPUs from rehearsals of shallow ones."""
    run = partial(rehearse, asked.config, asked.network, layout=layout, compute=asked.compute)
    if device == "cpu":
        steps = min(CPU_STEPS, asked.num_steps)
        number = asked.fullest_share(layout.shares, steps)
        return run([asked.share(step, layout.shares, number) for step in range(steps)])
    if network.layers <= DEEP:
        return run([batch, batch], device=device)
    low, high = (run([batch, batch], layers=n, device=device) for n in (SHALLOW, DEEP))
    return continued(low, high, network.layers)


def continued(low: Counted, high: Counted, layers: int) -> Counted:
    """Return what a network of so many layers needs, linearly from those of SHALLOW and DEEP."""

    def line(a: Mapping[Any, int], b: Mapping[Any, int]) -> dict[Any, int]:
        steps = (layers - SHALLOW) / (DEEP - SHALLOW)
        sizes = {key: a.get(key, 0) + (b.get(key, 0) - a.get(key, 0)) * steps for key in {**a, **b}}
        return {key: max(0, round(size)) for key, size in sizes.items()}

    both = low.phases.keys() & high.phases.keys()
    phases = {name: line(low.phases[name], high.phases[name]) for name in both}
    passes, update = line(low.passes, high.passes), line(low.update, high.update)
    return Counted(phases, {}, passes, update, high.micro_batches)


def waiting(found: Forecast, hardware: Hardware) -> float:
    """Return the seconds in which ranks wait for each other in a step.

    Gathers and scatters of sharded layers run beside the arithmetic and wait only for what exceeds
    it; all-reduces and all-to-alls stand between two operations."""
    beside = between = 0.0
    for exchange, size in found.traffic().items():
        seconds = size / (hardware.between if exchange.apart else hardware.within)
        if exchange.kind in ("all-gather", "reduce-scatter"):
            beside += seconds
        else:
            between += seconds
    return max(0.0, beside - found.compute) + between


def fitting(found: list[Forecast], hardware: Hardware) -> list[Forecast]:
    """Return the forecasts that fit, the fastest first; equal ones in the order of `layouts`."""
    room = SHARE_OF_MEMORY * hardware.memory
    fit = [f for f in found if f.problem is None and f.peak <= room]
    return sorted(fit, key=lambda f: f.seconds)


def dtype_name(dtype: torch.dtype) -> str:
    """Return a dtype's name without its module."""
    return str(dtype).removeprefix("torch.")
