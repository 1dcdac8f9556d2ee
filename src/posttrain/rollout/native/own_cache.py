"""Decoding with the cache that a model of transformers makes for itself.

What a model has read of a row is in its cache, or in its modules: keys and values, or states of
fixed size. Prompts padded on the left are read in one pass. If a state would count the padding,
those of equal length are read together, and their states are joined: all rows decode in one batch.
Keys and values of shorter prompts are padded on the left then, where a mask hides them.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from posttrain.model.language_model import LanguageModel
from posttrain.model.many_adapters import using
from posttrain.model.quirks import forget_lengths, forget_rows

CACHES = ("past_key_values", "cache_params", "state")
"""Names under which models return their cache, and take it."""


@dataclass
class State:
    """What a model has read of B rows."""

    logits: Tensor  # [B, vocab] of the next token
    cache: dict[str, Any]
    """What the model returned, by the name under which it takes it."""
    kept: dict[tuple[nn.Module, str], Tensor] = field(default_factory=dict)
    """What the model keeps in its modules, after a prompt."""


def decode(
    policy: LanguageModel,
    prompts: Sequence[list[int]],
    parts: Sequence[Sequence[int]],
    count: int,
    choose: Callable[[Tensor], Tensor | None],
    rows: Tensor | None = None,
) -> None:
    """Give each prompt up to `count` tokens, which `choose` takes from logits [N, vocab].

    `parts` are the places of the prompts that are read together. All have ended when `choose`
    returns None. `rows` [N] is the adapter of each prompt (`many_adapters`)."""
    model = policy.causal_lm()
    device = policy.device
    taken = frozenset(inspect.signature(model.forward).parameters)
    order = torch.tensor([i for part in parts for i in part], device=device)
    lengths = torch.tensor([len(p) for p in prompts], device=device)[order]
    width = int(lengths.max())
    mask = (torch.arange(width + count, device=device) >= width - lengths[:, None]).long()
    with _modules_restored(model):
        states = []
        for part in parts:
            with using(policy, None if rows is None else rows[list(part)]):
                states.append(_read(policy, taken, [prompts[i] for i in part]))
        state = _joined_states(states)
        for step in range(count):
            tokens = choose(state.logits[order.argsort()])
            if tokens is None or step == count - 1:
                return
            inputs = {"input_ids": tokens[order, None], "position_ids": (lengths + step)[:, None]}
            if (past := state.cache.get("past_key_values")) is not None:
                columns = mask[:, : width + step + 1]
                # MiniMax makes its mask for the length of its first layer, which has no keys
                missing = past.get_seq_length() != width + step
                inputs["attention_mask"] = _additive(columns) if missing else columns
            with using(policy, None if rows is None else rows[order]):
                state = _run(model, taken, inputs | state.cache)


class OneToken:
    """A state [B, width, layers] of RWKV whose columns are [B, 1, width].

    transformers mixes a token [B, 1, width] with a column [B, width], right for one row only."""

    def __init__(self, state: Tensor) -> None:
        self.state = state

    def __getitem__(self, at: Any) -> Tensor:
        """Return the column of a layer."""
        return self.state[at][:, None]

    def __setitem__(self, at: Any, value: Tensor) -> None:
        """Write the column of a layer."""
        self.state[at] = value


def _additive(mask: Tensor) -> Tensor:
    """Return a mask [B, L] as what is added to scores, [B, 1, 1, L]."""
    zeros = torch.zeros(mask.shape, dtype=torch.float32, device=mask.device)
    return zeros.masked_fill_(mask == 0, -torch.inf)[:, None, None]


def _read(policy: LanguageModel, taken: frozenset[str], prompts: list[list[int]]) -> State:
    """Return the state after prompts, padded on the left to the longest."""
    from transformers import DynamicCache

    model, device = policy.causal_lm(), policy.device
    width = max(map(len, prompts))
    ids = torch.tensor([[0] * (width - len(p)) + p for p in prompts], device=device)
    lengths = torch.tensor([len(p) for p in prompts], device=device)
    positions = torch.arange(width, device=device) - (width - lengths[:, None])
    inputs = {
        "input_ids": ids,
        "attention_mask": (positions >= 0).long(),
        "position_ids": positions.clamp(min=0),
        "logits_to_keep": 1,
    }
    if getattr(model, "_is_stateful", False) and "past_key_values" in taken:
        inputs["past_key_values"] = DynamicCache(config=model.config)  # some do not return theirs
    forget_lengths(policy.backbone(), ids[:1])
    forget_rows(model, len(prompts))
    state = _run(model, taken, inputs)
    state.kept = dict(_kept(model))
    return state


def _run(model: Any, taken: frozenset[str], inputs: dict[str, Any]) -> State:
    inputs = {name: value for name, value in inputs.items() if name in taken}
    out = model(**inputs, use_cache=True, return_dict=True)
    cache = {name: inputs[name] for name in CACHES if name in inputs}
    cache |= {name: out[name] for name in CACHES if out.get(name) is not None}
    return State(out.logits[:, -1].float(), cache)


def _kept(model: Any) -> Iterator[tuple[tuple[nn.Module, str], Tensor]]:
    """Yield the tensors that modules keep between passes (RecurrentGemma)."""
    if getattr(model, "_is_stateful", False):
        for module in model.modules():
            for name, value in vars(module).items():
                if isinstance(value, Tensor):
                    yield (module, name), value


@contextmanager
def _modules_restored(model: Any) -> Iterator[None]:
    """Let modules keep what they kept before, after a with block."""
    before = dict(_kept(model))
    try:
        yield
    finally:
        for module, name in list(dict(_kept(model))):
            setattr(module, name, before.get((module, name)))


def _joined_states(states: list[State]) -> State:
    """Return the state of all rows, which the modules keep too."""
    state = states[0]
    if len(states) > 1:
        sizes = [len(part.logits) for part in states]
        kept = _joined([part.kept for part in states], sizes)
        for (module, name), value in kept.items():
            setattr(module, name, value)
        logits = torch.cat([part.logits for part in states])
        state = State(logits, _joined([part.cache for part in states], sizes))
    if "state" in state.cache:
        state.cache["state"][:2] = map(OneToken, state.cache["state"][:2])
    return state


def _joined(parts: list[Any], sizes: list[int]) -> Any:
    """Return parts of caches as one: tensors one below the other, of numbers the largest."""
    first = parts[0]
    if all(part is first for part in parts):
        return first
    if isinstance(first, Tensor):
        return _below(parts, sizes)
    if isinstance(first, dict):
        return {key: _joined([part[key] for part in parts], sizes) for key in first}
    if isinstance(first, (list, tuple)):
        return type(first)(_joined(list(items), sizes) for items in zip(*parts, strict=True))
    if type(first).__module__.startswith("transformers."):
        for name in vars(first):
            setattr(first, name, _joined([vars(part)[name] for part in parts], sizes))
        return first
    return max(parts) if isinstance(first, int) else first


def _below(parts: list[Tensor], sizes: list[int]) -> Tensor:
    """Return tensors [B_i, ...] one below the other, narrower ones padded on the left with 0."""
    if parts[0].numel() == 0:
        return parts[0]
    if parts[0].dim() == 0 or [len(part) for part in parts] != sizes:
        assert all(part.numel() == 1 for part in parts), "rows are not a cache's first dimension"
        return torch.stack(parts).amax(0)  # a count of tokens
    shape = [max(sides) for sides in zip(*(part.shape[1:] for part in parts))]
    out = parts[0].new_zeros(sum(sizes), *shape)
    for part, into in zip(parts, out.split(sizes)):
        last = tuple(slice(whole - own, whole) for whole, own in zip(shape, part.shape[1:]))
        into[(slice(None), *last)] = part
    return out
