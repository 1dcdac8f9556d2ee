"""Several LoRA adapters of one base in one batch, computed with one base pass.

    adapters = load_adapters(policy, {"a": "runs/a/final", "b": "runs/b/final"})
    rows = adapters.rows(["a", None, "b"])  # [B], one number per row; None is the base alone

- a forward pass of the modules (scoring, and sampling whose layers are not written out):
  `with using(policy, rows, lengths): policy.hidden_states(...)`, where `lengths` are the numbers
  of tokens of the packed rows;
- a decoding step: `step(tokens, positions, cache, mask, rows)`.

Keys and values depend on the adapter: a prompt is prefilled once for each pair of prompt and
adapter, never once for all rows with the same text. `adapters.add` and `adapters.remove` change the
set between two passes, never during one; a decoding step that was built before is stale (`version`
has changed).

The low-rank matrices of all adapters of a layer are stacked. Of a row's narrow product x A^T, the
numbers of other adapters are set to 0 before it is multiplied by B, so that what a row gets does
not depend on its neighbours' adapters.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from posttrain.common.batch import pack
from posttrain.model.adapters.base import is_adapted
from posttrain.model.adapters.peft import check_kind, load_adapter
from posttrain.model.attention import Packed
from posttrain.model.backbone import last_hidden, one_by_one, run_rows
from posttrain.model.folder import ADAPTER_PREFIX, adapter_config, is_adapter, is_reft
from posttrain.model.language_model import LanguageModel
from posttrain.model.probe import gap, probe_rows
from posttrain.model.quantized import warn_if_stored_otherwise

log = logging.getLogger(__name__)

BASE = -1
"""The number of rows without an adapter."""
NOT_MIXED = ("use_dora", "modules_to_save", "trainable_token_indices", "lora_bias", "bias")
"""Keys of adapter_config.json that change more than low-rank products can."""
NONE: tuple[Any, ...] = (None, False, "none", [], {})
PLAIN = ("Linear", "Linear4bit", "Linear8bitLt")
"""PEFT's layers of a LoRA whose output is the base's and a low-rank product."""


@dataclass
class Stack:
    """The matrices of all adapters of one linear layer; R is the sum of their ranks."""

    low: Tensor  # [R, in]
    high: Tensor  # [out, R], scaled
    owner: Tensor  # [R], the adapter's number


class ManyAdapters:
    """The LoRA adapters that are loaded beside a policy's base."""

    def __init__(self, policy: LanguageModel) -> None:
        """Start without any. Raises ValueError if the policy has an adapter of its own."""
        if policy.vocab_shard is not None:
            raise ValueError("a model that ranks split takes no adapters beside it: merge one")
        if is_adapted(policy.model):
            raise ValueError(
                "several adapters need a base without an adapter: start from the base model, or "
                "merge the adapter into it first"
            )
        self.policy = policy
        self.numbers: dict[str, int] = {}
        """The number of each adapter by its name; numbers are not used twice."""
        self.folders: dict[str, str] = {}
        """The folder that each adapter was read from."""
        self.version = 0
        """Number of changes of the set; a decoding step is built for one of them."""
        self.parts: dict[nn.Module, dict[int, tuple[Tensor, Tensor]]] = {}
        """A [r, in] and scaled B [out, r] of each linear layer, by the adapter's number."""
        self.stacks: dict[nn.Module, Stack] = {}
        self.hooks: dict[nn.Module, Any] = {}
        self.local = threading.local()

    @property
    def current(self) -> Tensor | None:
        """The adapter of each row, or token, of the pass that this thread runs."""
        return getattr(self.local, "rows", None)

    def stack_of(self, module: nn.Module) -> Stack | None:
        """Return the stack of a linear layer, None if no adapter changes it."""
        return self.stacks.get(module)

    def rows(self, names: Sequence[str | None]) -> Tensor:
        """Return the numbers [B] of the adapters with these names, BASE for None.

        Raises ValueError for a name that is not loaded."""
        for name in names:
            if name is not None and name not in self.numbers:
                known = ", ".join(sorted(self.numbers)) or "none"
                raise ValueError(f"no adapter is loaded as {name!r}; loaded: {known}")
        numbers = [BASE if name is None else self.numbers[name] for name in names]
        device = self.policy.device
        return torch.tensor(numbers, dtype=torch.int64, device=device)

    def add(self, name: str, folder: str) -> None:
        """Load the adapter in a folder under a name.

        Raises ValueError if the name is taken, or if the adapter is none of this base, is damaged,
        or does more than a LoRA of linear layers does; nothing is loaded then."""
        if name in self.numbers:
            raise ValueError(f"an adapter is loaded as {name!r} already: unload it first")
        check_adapter(folder)
        _warn_of_other_base(self.policy, folder)
        warn_if_stored_otherwise(self.policy, folder)
        number = self.version  # which only grows
        with _quiet(self.policy):
            before = _logprobs(self.policy)
            with _injected(self.policy, folder) as model:
                found = _matrices(model, self.policy, folder)
                expected = _logprobs(self.policy)
            for module, pair in found.items():
                self.parts.setdefault(module, {})[number] = pair
                self._stack(module)
            self.numbers[name], self.folders[name] = number, folder
            self.version += 1
            self.policy.adapters = self
            mixed = [number, BASE]
            try:
                _check_same(self.policy, mixed, (expected, before), folder)
            except ValueError:
                self.remove(name)
                raise

    def remove(self, name: str) -> None:
        """Unload an adapter; raise ValueError if none is loaded under the name."""
        self.rows([name])
        number = self.numbers.pop(name)
        del self.folders[name]
        self.version += 1
        for module, parts in list(self.parts.items()):
            if parts.pop(number, None) is not None:
                self._stack(module)

    def _stack(self, module: nn.Module) -> None:
        """Make the stack of a layer from its parts, and the hook that adds it."""
        parts = self.parts[module]
        if not parts:
            self.hooks.pop(module).remove()
            del self.parts[module], self.stacks[module]
            return
        low = torch.cat([a for a, _ in parts.values()])
        high = torch.cat([b for _, b in parts.values()], dim=1)
        ranks = torch.tensor([len(a) for a, _ in parts.values()], device=low.device)
        owner = torch.tensor(list(parts), device=low.device).repeat_interleave(ranks)
        self.stacks[module] = Stack(low, high, owner)
        if module not in self.hooks:
            self.hooks[module] = module.register_forward_hook(_adding(self))


def load_adapters(policy: LanguageModel, folders: Mapping[str, str]) -> ManyAdapters:
    """Load LoRA adapters, by name, beside the base that is the policy, and return them.

    Their ranks and layers may differ. They are `policy.adapters` from then on. Raises ValueError
    as `ManyAdapters.add` does."""
    adapters = ManyAdapters(policy)
    policy.adapters = adapters
    for name, folder in folders.items():
        adapters.add(name, folder)
    return adapters


@contextmanager
def using(
    policy: LanguageModel, rows: Tensor | None, lengths: Sequence[int] | None = None
) -> Iterator[None]:
    """Run forward passes of the policy's modules with the adapter of each row, in a with block.

    `rows` [B] are numbers of `ManyAdapters.rows`, None if no row has an adapter. Rows that are
    packed end to end have `lengths` [B]."""
    adapters: ManyAdapters | None = policy.adapters
    if adapters is None or rows is None:
        assert rows is None or bool((rows == BASE).all()), "adapters without any being loaded"
        yield
        return
    if lengths is not None:
        rows = rows.repeat_interleave(torch.tensor(lengths, device=rows.device))
    before = adapters.current
    adapters.local.rows = rows
    try:
        yield
    finally:
        adapters.local.rows = before


def _adding(adapters: ManyAdapters) -> Any:
    """Return the hook that adds a linear layer's low-rank products to its output."""

    def hook(module: nn.Module, args: Any, output: Tensor) -> Tensor:
        rows = adapters.current
        if rows is None:
            return output
        stack, x = adapters.stacks[module], args[0]
        shape = x.shape[:-1]
        if rows.numel() == shape[0] and len(shape) == 2:  # [B, S, in], padded
            rows = rows[:, None].expand(shape)
        elif rows.numel() == 1:
            rows = rows.expand(shape)
        assert rows.numel() == shape.numel(), "a layer that reads other tokens than those of rows"
        rows = rows.reshape(shape)
        narrow = F.linear(x.to(output.dtype), stack.low.to(output.dtype))
        narrow = narrow.masked_fill(stack.owner != rows[..., None], 0.0)
        return output + F.linear(narrow, stack.high.to(output.dtype))

    hook.decode_safe = True  # type: ignore[attr-defined]  # the written-out step reads the stacks
    return hook


def check_adapter(folder: str) -> None:
    """Raise ValueError if a folder holds no adapter that can share a batch with others."""
    if is_reft(folder):
        raise ValueError(
            f"{folder} edits states (ReFT), which cannot share a batch with adapters: load it as "
            "the model itself"
        )
    if not is_adapter(folder):
        raise ValueError(f"{folder} holds no adapter (adapter_config.json)")
    check_kind(folder)
    saved = adapter_config(folder)
    what = None if saved["peft_type"] == "LORA" else f"is of the kind {saved['peft_type']}"
    what = next((f"has {key}" for key in NOT_MIXED if saved.get(key) not in NONE), what)
    if what is not None:
        raise ValueError(
            f"{folder} {what}, which cannot share a batch with other adapters: load it as the "
            "model itself, or merge it into its base"
        )


def _warn_of_other_base(policy: LanguageModel, folder: str) -> None:
    """Warn if an adapter names another base than the policy's; its shapes may fit all the same."""
    own = str(policy.causal_lm().config._name_or_path)
    trained_on = str(adapter_config(folder)["base_model_name_or_path"])
    if own and Path(own).name != Path(trained_on).name:
        log.warning("%s was trained on %s, not on %s", folder, trained_on, own)


@contextmanager
def _quiet(policy: LanguageModel) -> Iterator[None]:
    """Run without gradients, without dropout and in the compute dtype inside a with block."""
    training = policy.training
    policy.eval()
    try:
        with torch.no_grad(), policy.precision():
            yield
    finally:
        policy.train(training)


@contextmanager
def _injected(policy: LanguageModel, folder: str) -> Iterator[Any]:
    """Have PEFT put the adapter into the policy's network inside a with block."""
    network = policy.causal_lm()
    trainable = [p for p in network.parameters() if p.requires_grad]
    start, vocabulary = getattr(network, "start_hash", None), network.config.vocab_size
    try:
        model = load_adapter(network, folder)
        if network.config.vocab_size != vocabulary:
            raise ValueError(f"{folder} has an embedding of its own: load it as the model itself")
        yield model.eval()
    finally:
        for name, module in list(network.named_modules()):
            if hasattr(module, "lora_A") and hasattr(module, "get_base_layer"):
                parent, _, child = name.rpartition(".")
                setattr(network.get_submodule(parent), child, module.get_base_layer())
        for parameter in trainable:
            parameter.requires_grad_(True)
        if start is not None:
            network.start_hash = start
        if hasattr(network, "peft_config"):
            del network.peft_config


def _matrices(
    model: Any, policy: LanguageModel, folder: str
) -> dict[nn.Module, tuple[Tensor, Tensor]]:
    """Return A [r, in] and scaled B [out, r] of the linear layers that PEFT has adapted."""
    backbone = policy.backbone()
    inside, found = {id(module) for module in backbone.modules()}, {}
    dtype = policy.autocast or backbone.get_input_embeddings().weight.dtype  # type: ignore[operator]
    for layer_name, layer in model.named_modules():
        if not hasattr(layer, "lora_A"):
            continue
        name, base = "default", layer.get_base_layer()
        plain = type(layer).__name__ in PLAIN and name in layer.lora_A and not layer.lora_variant
        if id(layer) not in inside or not plain:
            shown = layer_name.removeprefix(ADAPTER_PREFIX)
            raise ValueError(
                f"{folder} adapts {shown}, which cannot be done for single rows: load it as the "
                "model itself, or merge it into its base"
            )
        low = layer.lora_A[name].weight.detach().clone().to(dtype)
        high = (layer.lora_B[name].weight.detach() * layer.scaling[name]).to(dtype)
        found[base] = low, high
    return found


def _logprobs(policy: LanguageModel, rows: list[int] | None = None) -> list[Tensor]:
    """Return the log-probs of the probe's rows, each with the next of the adapters `rows`."""
    device = policy.device
    batch = pack(probe_rows(policy.causal_lm().config)).to(device)
    numbers = None
    if rows is not None:
        count = batch.num_sequences
        numbers = torch.tensor((rows * count)[:count], device=device)
    if policy.unpacked is None:
        layout = Packed(batch.lengths, batch.cu_seqlens)
        ids, positions = batch.input_ids[None], batch.position_ids[None]
        with using(policy, numbers, batch.lengths):
            hidden = last_hidden(policy.backbone(), ids, positions, layout)
    else:
        parts = []
        for i, single in enumerate(batch.split(1)):
            with using(policy, None if numbers is None else numbers[i : i + 1]):
                parts.append(run_rows(policy.backbone(), one_by_one(single), False))
        hidden = torch.cat(parts, dim=1)
    logprobs = policy.sampling_head()(hidden[0]).log_softmax(-1)
    following = batch.input_ids.roll(-1)[:, None]
    return list(logprobs.gather(1, following)[:, 0].split(batch.lengths))


def _check_same(
    policy: LanguageModel, rows: list[int], expected: tuple[list[Tensor], ...], folder: str
) -> None:
    """Raise ValueError unless the probe's rows, with these adapters in turn, are as expected."""
    got = _logprobs(policy, rows)
    wanted = [expected[place % len(rows)][place] for place in range(len(got))]
    apart = gap(policy, torch.cat(got), torch.cat(wanted), [len(part) for part in got])
    if not apart <= policy.tolerance:
        raise ValueError(
            f"{folder}: beside rows of the base, rows with this adapter have other log-probs than "
            f"alone (by {apart:.2g}): load it as the model itself, or merge it into its base"
        )
