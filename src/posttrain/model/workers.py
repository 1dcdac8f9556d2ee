"""Micro-batches side by side on a CPU, each computed by one thread.

OpenMP's threads wait for one another in every operation, so that another program on one of their
cores stops all of them. Threads that take whole micro-batches meet once in an optimiser step. Each
has a twin of the network: modules of its own, which may keep what they like during a pass, with
the same weights and gradients of its own.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import nn

from posttrain.common import distributed
from posttrain.common.batch import Batch, pack
from posttrain.common.batch import Sequence as TokenSequence
from posttrain.model import output_head
from posttrain.model.dropout import noises
from posttrain.model.forward import forward
from posttrain.model.kernels.quantized import quantised_layers
from posttrain.model.language_model import LanguageModel

MOST_BYTES = 4 * 2**30  # that the workers beside the first may take
CHUNKS = 3 * 4 * output_head.CHUNK_ELEMENTS  # bytes of logits and what is made of them

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass
class Workers:
    """What computes micro-batches beside the calling thread, which is a worker itself."""

    twins: list[LanguageModel]
    pool: ThreadPoolExecutor
    threads: int
    """Of all workers together."""

    @property
    def number(self) -> int:
        """Number of micro-batches that run at the same time."""
        return 1 + len(self.twins)


def use_workers(
    policy: LanguageModel, reference: LanguageModel | None = None, training: bool = True
) -> str | None:
    """Let the threads of a CPU take micro-batches; return what was chosen, None on a GPU.

    There is one worker if the order of micro-batches matters (dropout), and if there are several
    ranks, which are workers already. Without `training` there are no gradients to have room for.
    """
    threads = torch.get_num_threads()
    if policy.device.type != "cpu" or distributed.num_ranks() > 1 or threads == 1:
        return None
    size = sum(p.numel() * p.element_size() for p in policy.parameters() if p.requires_grad)
    number = num_workers(threads, size if training else 0)
    networks = [policy] if reference is None else [policy, reference]
    reason = f"gradients of {size / 2**30:.1f} GiB each" if number == 1 else None
    if training and policy.dropout and (drawn := noises(policy)):
        reason = f"dropout is drawn in their order ({', '.join(drawn)})"
    reason = reason or next(filter(None, map(_join(threads, number), networks)), None)
    if reason is not None:
        for network in networks:
            network.workers = None
        return f"1 micro-batch at a time, {threads} threads: {reason}"
    each = threads // number
    return f"{number} micro-batches at a time, {each} thread{'s' * (each > 1)} each"


def _join(threads: int, number: int) -> Callable[[LanguageModel], str | None]:
    """Return what gives a network the same workers, or returns why it cannot have any."""
    pool = ThreadPoolExecutor(number - 1, thread_name_prefix="micro-batch")

    def join(network: LanguageModel) -> str | None:
        try:
            twins = [twin(network) for _ in range(number - 1)]
        except (RuntimeError, TypeError) as error:  # of deepcopy
            return f"{type(network.causal_lm()).__name__} cannot be copied ({error})"
        network.workers = Workers(twins, pool, threads)
        return differs(network, twins[0])

    return join


def num_workers(threads: int, gradients: int) -> int:
    """Return how many workers use most of the threads; each has so many bytes of gradients."""
    most = min(threads, 1 + MOST_BYTES // (gradients + CHUNKS))
    return max(range(1, most + 1), key=lambda number: (threads // number * number, number))


def twin(policy: LanguageModel) -> LanguageModel:
    """Return a copy of the modules with the same weights in memory, but gradients of its own."""
    memo: dict[int, object] = {}
    for parameter in policy.parameters():
        if parameter.requires_grad:
            memo[id(parameter)] = nn.Parameter(parameter.detach())
        else:
            memo[id(parameter)] = parameter
    for layer in quantised_layers(policy):
        memo[id(layer.weight)] = layer.weight
    for buffer in policy.buffers():
        if buffer.numel() > 2**20:
            memo[id(buffer)] = buffer
    workers, policy.workers = policy.workers, None
    copied = copy.deepcopy(policy, memo)
    policy.workers = workers
    return copied


def differs(policy: LanguageModel, other: LanguageModel) -> str | None:
    """Return why a twin cannot stand for the policy, None if it can; by a pass through both."""
    ids = torch.arange(1, 9) % policy.causal_lm().get_input_embeddings().weight.shape[0]
    batch = pack([TokenSequence(ids, ids.bool() & (torch.arange(8) > 0))])
    was_training, found = policy.training, []
    for network in (policy, other):
        network.eval()
        with torch.enable_grad():
            out = forward(network, batch, entropy=True, head=network.head_kind is not None)
        network.train(was_training)
        parts = (out.logprobs, out.entropy, out.values, out.last_values, out.scores, out.logits)
        found.append(torch.cat([x.flatten() for x in parts if x is not None]))
    name = type(policy.causal_lm()).__name__
    if not torch.equal(found[0], found[1]):
        return f"a copy of {name} computes something else"
    own = [p for p in policy.parameters() if p.requires_grad]
    learns = own and found[1].requires_grad
    grads = torch.autograd.grad(found[1].sum(), own, allow_unused=True) if learns else ()
    if any(grad is not None for grad in grads):
        return f"a copy of {name} keeps to the weights of the original"
    return None


def run_parts(
    policy: LanguageModel,
    parts: Iterable[tuple[Batch, float]],
    work: Callable[[LanguageModel, tuple[Batch, float]], Result],
    max_tokens: int,
) -> Iterator[Result]:
    """Yield work(network, micro-batch) of all micro-batches in their order, as `on_workers` does.

    No more run at a time than have `max_tokens` together, unless one alone has more."""
    if policy.workers is None:
        yield from (work(policy, part) for part in parts)
        return
    given = list(parts)
    largest = max((_tokens(part) for part, _ in given), default=1)
    yield from on_workers(policy, given, work, max_tokens // max(largest, 1))


def _tokens(part: Batch) -> int:
    """Return the tokens that run: prompts which neighbours share count once."""
    shared = (len(p) for i, p in enumerate(part.prompts) if part.shares_prompt(i))
    return part.num_tokens - sum(shared)


def on_workers(
    policy: LanguageModel,
    items: Iterable[Item],
    work: Callable[[LanguageModel, Item], Result],
    most: int | None = None,
) -> Iterator[Result]:
    """Yield work(network, item) of all items in their order; the network is the policy or a twin.

    At most `most` of them work, and share the threads. Gradients that the work leaves in twins are
    to be collected by `add_gradients`."""
    workers = policy.workers
    if workers is None:
        yield from (work(policy, item) for item in items)
        return
    given = list(items)
    number = max(1, min(workers.number, len(given), workers.number if most is None else most))
    threads = workers.threads // number
    networks = [policy, *workers.twins[: number - 1]]
    for other in networks[1:]:
        check_same(policy, other)
        if other.training != policy.training:
            other.train(policy.training)
    enabled = torch.is_grad_enabled()

    def share(network: LanguageModel, mine: Sequence[Item]) -> list[Result]:
        torch.set_num_threads(threads)  # of this thread
        with torch.set_grad_enabled(enabled):
            return [work(network, item) for item in mine]

    others: list[Future[list[Result]]] = []
    try:
        for place, network in enumerate(networks[1:], 1):
            others.append(workers.pool.submit(share, network, given[place::number]))
        shares = [share(policy, given[::number])]
    finally:
        wait(others)
        torch.set_num_threads(workers.threads)
    shares += [other.result() for other in others]
    yield from (shares[i % number][i // number] for i in range(len(given)))


def as_here(work: Callable[..., None]) -> Callable[..., None]:
    """Return the work with the calling thread's number of threads, for a new thread.

    A new one would take the number that was set last, which changes while workers compute."""
    threads = torch.get_num_threads()

    def run(*arguments: object) -> None:
        torch.set_num_threads(threads)
        work(*arguments)

    return run


def add_gradients(policy: LanguageModel) -> None:
    """Add the gradients of the twins, in their order, to the policy's."""
    for other in [] if policy.workers is None else policy.workers.twins:
        for parameter, alias in zip(policy.parameters(), other.parameters()):
            if alias is parameter or alias.grad is None:
                continue
            if parameter.grad is None:
                parameter.grad = alias.grad
            else:
                parameter.grad.add_(alias.grad)
            alias.grad = None


def micro_batches(
    policy: LanguageModel, batch: Batch, max_tokens: int, group_size: int = 1
) -> list[Batch]:
    """Return the batch in micro-batches for the policy's workers, which share `max_tokens`."""
    workers = 1 if policy.workers is None else policy.workers.number
    return batch.split(max_tokens, group_size, workers)


def check_same(policy: LanguageModel, other: LanguageModel) -> None:
    """Raise AssertionError if a twin has lost the policy's weights."""
    pairs = zip(policy.parameters(), other.parameters(), strict=True)
    assert all(a.data_ptr() == b.data_ptr() for a, b in pairs), "a twin has other weights"
