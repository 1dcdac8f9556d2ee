"""A model without its numbers, and the reading of each rank's part of them.

transformers builds the model and matches the names, shapes and dtypes of its files as ever, but
from their headers alone. The parameters stay on the meta device until they are sharded; then each
rank reads its part of every tensor. No rank ever holds the whole model.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor, nn

from posttrain.common import distributed
from posttrain.common.errors import SettingError
from posttrain.model.adapters.base import NoAdapter
from posttrain.model.adapters.lora import LoraConfig
from posttrain.model.config import ModelConfig
from posttrain.model.folder import HEAD, SAVED_HEAD, base_model, is_adapter
from posttrain.model.language_model import LanguageModel
from posttrain.model.load import add_adapter, load_causal_lm, wrap
from posttrain.model.loaded import digest_of, note_start, sampled_places
from posttrain.model.parts import Part, holders, local, part_of, places
from posttrain.model.tensor_files import NAMES, TensorFiles, weights_in

DTYPES = {name: dtype for dtype, name in NAMES.items()}
DRAWN = ("lora", "rslora")
"""Types of new adapters that are drawn without a look at the weights below them."""


@dataclass
class Unread:
    """What is still to be read of a model."""

    files: TensorFiles
    names: dict[int, str]
    """The name in the files of each tensor of the model, by its id."""
    order: dict[str, str]
    """The name in the files of each parameter, by its name, in the model's order."""


def reads_whole(config: ModelConfig, name: str | None) -> str | None:
    """Return why a model cannot be read in parts, by its config; None if it may be."""
    if name is None:
        return "random weights are drawn in one piece"
    adapter = config.adapter
    if is_adapter(name):
        return f"{name} is an adapter"
    if config.quantization is not None and config.quantization.type != "none":
        return "quantised weights are made of whole ones"
    if config.resize_embeddings:
        return "model.resize_embeddings needs the whole embedding"
    if isinstance(adapter, NoAdapter):
        return None
    starts = ("default", "gaussian")
    if not (
        isinstance(adapter, LoraConfig)
        and adapter.type in DRAWN
        and adapter.init_lora_weights in starts
        and not adapter.modules_to_save
    ):
        return f"an adapter of the type {adapter.type} with these settings needs whole weights"
    return None


def load_empty(
    config: ModelConfig,
    name: str,
    compute: torch.dtype,
    dtype: torch.dtype,
    seed: int,
    scores: bool = False,
) -> LanguageModel | str:
    """Return the model in a folder, with a new adapter if the config has one, without its numbers.

    Or return why its files must be read whole. Raises ValueError as `load.load_policy` does for
    weights that do not fit config.json. An adapter's own tensors are drawn."""
    with headers_only():
        model = load_causal_lm(name, dtype, scores)
    unread = match(model, weights_in(_folder(name)))
    if isinstance(unread, str):
        return unread
    if config.trains_adapter:
        with stand_ins(model):
            model = add_adapter(model, config, seed)
    policy: Any = wrap(model, config, torch.device("meta"), compute, seed)
    policy.unread = unread
    return policy  # type: ignore[no-any-return]


def _folder(name: str) -> Path:
    """Return the folder with a model's files, of a model of the hub that in the cache."""
    base = base_model(name)
    if Path(base).is_dir():
        return Path(base)
    from huggingface_hub import snapshot_download

    return Path(snapshot_download(base, local_files_only=True))


@contextmanager
def stand_ins(model: nn.Module) -> Iterator[None]:
    """Let a model's empty parameters be zeros on the CPU that take no memory.

    PEFT puts an adapter where the layer's weight is, and would lose what it has drawn."""
    pairs: dict[int, tuple[nn.Parameter, nn.Parameter]] = {}
    for parameter in model.parameters():
        if parameter.is_meta:
            zeros = torch.zeros((), dtype=parameter.dtype).expand(parameter.shape)
            pairs[id(parameter)] = parameter, nn.Parameter(zeros, parameter.requires_grad)
    _replace(model, {key: stand_in for key, (_, stand_in) in pairs.items()})
    try:
        yield
    finally:
        for empty, stand_in in pairs.values():
            empty.requires_grad_(stand_in.requires_grad)
        _replace(model, {id(stand_in): empty for empty, stand_in in pairs.values()})


def _replace(model: nn.Module, new: dict[int, nn.Parameter]) -> None:
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None and id(parameter) in new:
                module._parameters[name] = new[id(parameter)]


def match(model: Any, files: TensorFiles) -> Unread | str:
    """Return where each parameter and saved buffer is in the files, or why that cannot be said."""
    kind = type(model).__name__
    if not any(p.is_meta for p in model.parameters()):
        return "this version of transformers reads more than the headers of files"
    if model._weight_conversions:
        return f"the files of {kind} hold its weights under other names, or in other forms"
    saved = model.state_dict(keep_vars=True)
    names: dict[int, str] = {}
    for name, tensor in saved.items():
        if not tensor.is_meta:
            continue
        if name in files.places:
            if id(tensor) in names:
                return f"{name} is in the files and shared with {names[id(tensor)]}"
            if files.shape(name) != tuple(tensor.shape):
                return f"{name} has another shape in the files"
            names[id(tensor)] = name
    lacking = [name for name, x in saved.items() if x.is_meta and id(x) not in names]
    head = model.get_output_embeddings()
    if lacking and not (head is not None and all(saved[n] is head.weight for n in lacking)):
        return f"the files of {kind} have no tensor named {lacking[0]}"
    if lacking:
        return f"the files of {kind} have no output head"
    if any(b.is_meta for b in model.buffers() if id(b) not in names):
        return f"a buffer of {kind} has no value"
    return Unread(files, names, {name: names[id(p)] for name, p in model.named_parameters()})


def sources(policy: Any) -> dict[str, str]:
    """Return the name in the files of each of a policy's tensors that are to be read, by its name.

    Call it before the policy is sharded, which replaces the tensors."""
    unread: Unread = policy.unread
    of = {}
    for prefix, network in (("model", policy.model), ("value_network", policy.value_network)):
        if network is None:
            continue
        for name, tensor in network.state_dict(keep_vars=True).items():
            if prefix == "model" and id(tensor) in unread.names:
                of[f"model.{name}"] = unread.names[id(tensor)]
            elif prefix != "model" and f"model.{name}" in of:  # a copy
                of[f"{prefix}.{name}"] = of[f"model.{name}"]
    return of


def fill(policy: Any, of: dict[str, str], device: torch.device, whole: tuple[str, str]) -> None:
    """Give a policy its numbers: of the tensors in `of` this rank's part, from the files.

    Afterwards numbers from all over each tensor are read again and compared, and noted as those
    that the run starts from. Raises SettingError if one is not what the file holds: `whole` is the
    setting, with its value, under which files are read whole. A collective."""
    unread: Unread = policy.unread
    empty = [name for name, tensor in policy.state_dict().items() if tensor.is_meta]
    tied = _tied(policy)

    def placed(x: Tensor) -> Tensor:
        offloaded = policy.computes_on is not None and hasattr(x, "to_local")
        where = torch.device("cpu") if offloaded else device
        return torch.empty_like(x, device=where) if x.is_meta else x.to(where)

    policy._apply(placed)
    for first, *others in tied:
        for name in others:
            module, _, own = name.rpartition(".")
            setattr(policy.get_submodule(module), own, policy.get_parameter(first))
    state = policy.state_dict(keep_vars=True)
    for name in empty:
        if name in of:
            unread.files.fill(of[name], state[name])
        else:
            assert name.startswith("head."), f"{name} has no value"
            _start_head(name, state[name], unread.files)
    named = {of[name]: state[name] for name in of if name.startswith("model.")}
    note_start(policy.causal_lm(), _checked_hash(unread, named, whole))
    del policy.unread


def _start_head(name: str, tensor: Tensor, files: TensorFiles) -> None:
    """Write the start of an additional head: that of the files, or 0."""
    if name == HEAD and SAVED_HEAD in files.places:
        files.fill(SAVED_HEAD, tensor)
    else:
        with torch.no_grad():
            local(tensor).zero_()


def _tied(policy: nn.Module) -> list[list[str]]:
    """Return the names of each parameter that has several."""
    by_id: dict[int, list[str]] = {}
    for name, parameter in policy.named_parameters(remove_duplicate=False):
        by_id.setdefault(id(parameter), []).append(name)
    return [names for names in by_id.values() if len(names) > 1]


@torch.no_grad()
def _checked_hash(unread: Unread, tensors: dict[str, Tensor], whole: tuple[str, str]) -> str:
    """Return `loaded.weights_hash` of sharded parameters, whose numbers are those of the files.

    Each rank reads the numbers of some tensors again. A collective."""
    rank, ranks = distributed.rank(), distributed.num_ranks()
    where = places(tensors)
    found = [_sampled(tensors[own], where[own]) for own in unread.order.values()]
    flat = torch.cat(found)
    if ranks > 1:
        torch.distributed.all_reduce(flat)
    bits = dict(zip(unread.order.values(), flat.cpu().split([len(x) for x in found])))
    wrong = [
        own
        for own in [*bits][rank::ranks]
        if not torch.equal(bits[own], _sampled_of_file(unread.files, own, tensors[own]))
    ]
    for own in (name for names in distributed.all_gather(wrong) for name in names):
        setting, value = whole
        raise SettingError(
            setting,
            f"{own} is not in the model as it is in {unread.files.places[own]}: set it to {value}",
        )
    return digest_of((name, bits[own].to(torch.int16)) for name, own in unread.order.items())


def _sampled(tensor: Tensor, parts: list[Part]) -> Tensor:
    """Return the bits in bf16 of some numbers of a tensor, as int32; 0 for other ranks' numbers."""
    chosen = sampled_places(tensor.numel())
    bits = torch.zeros(len(chosen), dtype=torch.int32, device=local(tensor).device)
    if distributed.rank() in holders(parts):
        mine, values = part_of(tensor), local(tensor)
        index = np.stack(np.unravel_index(chosen, tuple(tensor.shape) or (1,)), axis=1)
        if mine.shape:
            index = index - np.array(mine.offset)
            inside = ((index >= 0) & (index < np.array(mine.shape))).all(axis=1)
        else:
            inside = np.ones(len(chosen), dtype=bool)
        own = [torch.from_numpy(column.copy()) for column in index[inside].T]
        picked = values[tuple(own)] if mine.shape else values.reshape(1)
        bits[torch.from_numpy(inside.nonzero()[0])] = _bits(picked)
    return bits


def _sampled_of_file(files: TensorFiles, name: str, tensor: Tensor) -> Tensor:
    """Return the bits of the same numbers, each read from the file by itself."""
    shape = tuple(tensor.shape)
    picked = []
    for place in sampled_places(tensor.numel()):
        index = np.unravel_index(place, shape or (1,))
        offset = tuple(int(i) for i in index) if shape else ()
        one = files.read(name, Part(offset, (1,) * len(shape)))
        picked.append(one.reshape(1).to(tensor.dtype))
    return _bits(torch.cat(picked))


def _bits(values: Tensor) -> Tensor:
    return values.to(torch.bfloat16).view(torch.int16).to(torch.int32)


@contextmanager
def headers_only() -> Iterator[None]:
    """Let transformers see of each file of safetensors names, shapes and dtypes, and no number."""
    import transformers

    module: Any = transformers.modeling_utils
    before = module.safe_open
    module.safe_open = _Headers
    try:
        yield
    finally:
        module.safe_open = before


class _Headers:
    """What transformers asks of an opened file."""

    def __init__(self, file: Any, *_: Any, **__: Any) -> None:
        self.file: Any = safe_open(file, "pt")

    def __enter__(self) -> _Headers:
        return self

    def __exit__(self, *_: object) -> None:
        del self.file

    def keys(self) -> list[str]:
        return list(self.file.keys())

    def metadata(self) -> dict[str, str] | None:
        return self.file.metadata()  # type: ignore[no-any-return]

    def get_slice(self, name: str) -> _Described:
        content = self.file.get_slice(name)
        return _Described(content.get_shape(), content.get_dtype())


class _Described:
    """A tensor of which shape and dtype are known."""

    def __init__(self, shape: list[int], dtype: str) -> None:
        self.shape, self.dtype = shape, dtype

    def get_shape(self) -> list[int]:
        return self.shape

    def get_dtype(self) -> str:
        return self.dtype

    def __getitem__(self, _: Any) -> _Described:
        return self

    def to(self, device: Any = None, dtype: torch.dtype | None = None) -> Tensor:
        """Return it on the meta device, whatever the device."""
        own = DTYPES.get(self.dtype, torch.uint8)
        return torch.empty(self.shape, dtype=own if dtype is None else dtype, device="meta")
