"""Frozen weights in 4 or 8 bits, by bitsandbytes; an adapter on top is trained (QLoRA).

Dettmers et al. 2023, arXiv 2305.14314. Only weights are quantised, never activations, and the
numbers are the same in training, evaluation and sampling (`kernels/quantized`).
"""

from __future__ import annotations

import logging
from importlib.util import find_spec
from typing import Any

import torch
from torch import nn

from posttrain.config.errors import parse
from posttrain.model.adapters.saved import saved_section
from posttrain.model.backbone import backbone_of
from posttrain.model.config import ModelConfig, QuantizationConfig
from posttrain.model.device import cast_parameters
from posttrain.model.folder import (
    QUANTIZATION_FILE,
    base_model,
    is_adapter,
    saved_quantization,
)
from posttrain.model.kernels.quantized import (
    dequantise,
    layer_classes,
    num_parameters,
    num_weights,
    quantised,
    quantised_layers,
    scale_bytes,
    stored_as,
)
from posttrain.model.suited import build_config

log = logging.getLogger(__name__)
# it reports a missing kernel that is not used here
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)

BESIDE = (
    *("lora", "rslora", "dora", "vera", "gralora", "hira", "randlora", "vblora", "fourierft"),
    *("c3a", "shira", "miss", "oft", "boft", "ia3", "beft", "ln_tuning", "road", "waveft"),
    "trainable_tokens",
    *("loreft", "direft", "noreft", "consreft", "lobireft", "direft_orthogonal"),
)
"""Types of adapters that compute the same beside quantised weights as beside these weights whole.

Others of PEFT take the stored numbers for weights, some of them without an error."""
BLOCK = 64
"""Consecutive weights of a row that share a scale in 4 bits."""


def with_quantization(config: ModelConfig, name: str | None) -> ModelConfig:
    """Return the section with the quantisation of the run's frozen weights, as `quantization_of`.

    Raises ValueError if all weights are to be trained."""
    section = None if name is None else quantization_of(config.quantization, name)
    if section is not None and section.type != "none" and not config.trains_adapter:
        raise ValueError(
            f"model.quantization: weights in {section.type} are frozen, but model.adapter is none: "
            "train an adapter, such as model.adapter: lora"
        )
    if section is not None and section.type != "none":
        check_beside(config.adapter.type, section)
    return config.model_copy(update={"quantization": section})


def check_beside(adapter: str, section: QuantizationConfig) -> None:
    """Raise ValueError for a type of adapter that does not work beside quantised weights."""
    if adapter not in BESIDE:
        raise ValueError(
            f"model.quantization: an adapter of the type {adapter} reads the weights below it "
            f"itself, and not as {section.type}: set model.quantization: none, or choose one of "
            f"{', '.join(BESIDE)}"
        )


def quantization_of(section: QuantizationConfig | None, name: str) -> QuantizationConfig | None:
    """Return how a model's weights are to be stored, by the recipe's section or else its files.

    A model that was saved quantised stays so; an adapter is read on weights like those that it was
    trained on. Raises ValueError if the section contradicts the files of the weights."""
    stored, record = _in_file(name), saved_quantization(name)
    if stored is not None:
        if section is not None and section != stored:
            raise ValueError(
                f"model.quantization is {section.type}, but the files of {base_model(name)} are "
                f"quantised already ({stored.type}): remove it, or take the unquantised model"
            )
        section = stored
    elif section is None and record is not None:
        section = parse(QuantizationConfig, record, f"{name}/{QUANTIZATION_FILE}")
    if section is not None and section.type != "none" and is_adapter(name):
        check_beside(saved_section(name).type, section)
    return section


def _in_file(name: str) -> QuantizationConfig | None:
    """Return how bitsandbytes quantised the files of a model, or of an adapter's base."""
    record = getattr(build_config(name), "quantization_config", None)
    record = record if isinstance(record, dict) else getattr(record, "to_dict", dict)()
    if record.get("quant_method") != "bitsandbytes":
        return None
    if record.get("load_in_8bit"):
        return QuantizationConfig(type="int8")
    kind = record.get("bnb_4bit_quant_type") or "fp4"  # transformers' default
    double = bool(record.get("bnb_4bit_use_double_quant"))
    source = f"{base_model(name)}/config.json, quantization_config"
    return parse(QuantizationConfig, {"type": kind, "double_quant": double}, source)


def load_dtype(section: QuantizationConfig | None, dtype: torch.dtype) -> torch.dtype | str:
    """Return the dtype in which weights are read: `dtype`, or auto if they are to be quantised.

    auto is that of the files, which are then mapped into memory and not copied."""
    return dtype if section is None or section.type == "none" else "auto"


def quantise(
    model: Any, section: QuantizationConfig | None, device: torch.device, dtype: torch.dtype
) -> None:
    """Quantise the linear layers of a model's backbone on the device, one at a time; freeze it.

    The rest gets the compute dtype. Whole stay the embedding, the output head, layers whose weight
    the model's code reads itself, and in 4 bits those whose width is not a multiple of BLOCK.
    Raises ValueError if the library is missing or gives wrong numbers here, or if no layer is left.
    A model whose file is quantised already keeps its own layers."""
    kind = "none" if section is None else section.type
    if kind != "none" and not quantised(model):
        assert section is not None
        check_available(device)
        backbone = backbone_of(model)
        for name in _names(model, kind):  # no list of the layers, which would keep the old weights
            new = _stored(backbone.get_submodule(name), section, device, dtype)
            backbone.set_submodule(name, new)
    if quantised(model):
        _settle(model, dtype)


def round_weights(model: Any, section: QuantizationConfig) -> None:
    """Give the layers that `quantise` stores the numbers that their stored form stands for."""
    device = torch.device("cpu")
    check_available(device)
    backbone = backbone_of(model)
    for name in _names(model, section.type):
        layer: Any = backbone.get_submodule(name)
        stored: Any = _stored(layer, section, device, torch.float32)
        rounded = dequantise(stored.weight, torch.float32)
        layer.weight.data.copy_(rounded if isinstance(layer, nn.Linear) else rounded.T)


def _names(model: Any, kind: str) -> list[str]:
    """Return the layers of a model's backbone to store; raise ValueError if there is none."""
    backbone = backbone_of(model)
    whole = read_elsewhere(model, backbone)
    names = [
        name
        for name, layer in backbone.named_modules()
        if is_linear(layer) and name not in whole and _fits(kind, layer)
    ]
    if not names:
        plain = any(is_linear(layer) for layer in backbone.modules())
        raise ValueError(
            f"model.quantization: no layer of {type(model).__name__} can be stored as {kind}: "
            + (f"no width is a multiple of {BLOCK}" if plain else "none is plainly linear")
        )
    return names


def _fits(kind: str, layer: Any) -> bool:
    # bitsandbytes' kernels for CPUs scale rows that end inside a block wrongly, without a word
    return kind == "int8" or _orientation(layer)[1] % BLOCK == 0


def is_linear(module: nn.Module) -> bool:
    """Whether a module is exactly torch's linear layer, or transformers' transposed one (GPT-2)."""
    from transformers.pytorch_utils import Conv1D

    return type(module) in (nn.Linear, Conv1D)


def _orientation(layer: Any) -> tuple[int, int]:
    """Return the numbers of outputs and inputs of a linear layer."""
    rows, columns = layer.weight.shape
    return (rows, columns) if isinstance(layer, nn.Linear) else (columns, rows)


def _stored(
    layer: Any, section: QuantizationConfig, device: torch.device, dtype: torch.dtype
) -> nn.Module:
    """Return the layer with its weight quantised on the device."""
    import bitsandbytes

    bnb: Any = bitsandbytes
    weight = layer.weight.data if isinstance(layer, nn.Linear) else layer.weight.data.T
    weight = weight.to(device, dtype).contiguous()
    rows, columns = weight.shape
    with torch.device("meta"):
        if section.type == "int8":
            new = bnb.nn.Linear8bitLt(columns, rows, bias=False, has_fp16_weights=False)
        else:
            new = bnb.nn.Linear4bit(columns, rows, bias=False)
    if section.type == "int8":
        new.weight = bnb.nn.Int8Params(weight, requires_grad=False).to(device)
    else:
        keys = {"quant_type": section.type, "compress_statistics": section.double_quant}
        new.weight = bnb.nn.Params4bit(weight, requires_grad=False, **keys).to(device)
    bias = layer.bias
    new.bias = None if bias is None else nn.Parameter(bias.data.to(device, dtype), False)
    return use_own_product(new)


def use_own_product(layer: Any) -> nn.Module:
    """Make a layer of bitsandbytes compute its products here."""
    four_bits, eight_bits = layer_classes()
    layer.__class__ = four_bits if hasattr(layer, "quant_state") else eight_bits
    layer.dense, layer.weight.module = None, None
    if hasattr(layer.weight, "CB"):
        layer.weight.CB = None  # a second copy as soon as it is copied
    check_exact(layer)
    return layer  # type: ignore[no-any-return]


def _settle(model: Any, dtype: torch.dtype) -> None:
    """Freeze a model, and give what is not quantised the compute dtype."""
    for module in model.modules():
        if type(module).__module__.startswith("bitsandbytes."):  # of a folder that was quantised
            use_own_product(module)
    model.requires_grad_(False)
    cast_parameters(model, dtype, copy=True)  # so that no tensor keeps the files in memory
    # PEFT chooses its layers by these
    kinds = {type(m.weight).__name__ for m in quantised_layers(model)}
    model.is_loaded_in_4bit = "Params4bit" in kinds
    model.is_loaded_in_8bit = "Int8Params" in kinds


def describe_quantised(network: nn.Module) -> list[str]:
    """Return a line about a network's quantised layers; none if it has none."""
    layers, how = quantised_layers(network), stored_as(network)
    if how is None:
        return []
    kind = "int8, one scale per row"
    if how["type"] != "int8":
        kind = f"{how['type']} in blocks of {layers[0].weight.quant_state.blocksize}"
        kind += ", its scales quantised to 8 bits" if how["double_quant"] else ""
    stored = sum(m.weight.numel() * m.weight.element_size() for m in layers)
    stored += sum(scale_bytes(m.weight) for m in layers)
    count = sum(num_weights(m.weight) for m in layers)
    return [
        f"quantised: {len(layers):,} linear layers, {kind}: {count:,} of "
        f"{num_parameters(network):,} parameters in {stored / 2**20:,.1f} MiB "
        f"({8 * stored / count:.2f} bits each)"
    ]


def warn_if_stored_otherwise(policy: nn.Module, folder: str) -> None:
    """Warn if an adapter is read on weights that are stored otherwise than in its training."""
    trained, now = saved_quantization(folder), stored_as(policy)
    if trained != now:
        names = [how["type"] if how else "weights as in the files" for how in (trained, now)]
        log.warning("%s was trained on %s and is read on %s: it fits less well", folder, *names)


def with_adapter_applied(model: Any) -> Any:
    """Return the transformers model of a PEFT model, with the adapter merged into its weights.

    In quantised weights it stays beside them: merging would quantise the sum again."""
    return model.get_base_model() if quantised(model) else model.merge_and_unload()


def check_available(device: torch.device) -> None:
    """Raise ValueError if weights cannot be quantised on this machine."""
    if find_spec("bitsandbytes") is None:
        raise ValueError("model.quantization needs pip install 'posttrain[quantization]'")
    try:
        import bitsandbytes as bnb
        from bitsandbytes.cextension import ErrorHandlerMockBNBNativeLibrary, lib
    except (ImportError, OSError, RuntimeError) as error:
        reason = (str(error).splitlines() or [""])[0]
        raise ValueError(
            f"model.quantization: bitsandbytes is installed but cannot be imported ({reason})"
        ) from error
    if device.type not in bnb.supported_torch_devices or isinstance(
        lib, ErrorHandlerMockBNBNativeLibrary
    ):
        raise ValueError(
            f"model.quantization: bitsandbytes {bnb.__version__} has no kernels for this machine's "
            f"{device.type}: set model.quantization: none, or install a build that has them"
        )


@torch.no_grad()
def check_exact(layer: Any) -> None:
    """Raise ValueError if the library de-quantises a layer's weight otherwise than defined.

    The definition: each half byte is an index into 16 numbers, times the scale of its block. int8
    is made from the weight in fp16, which may be too narrow for it."""
    weight: Any = layer.weight
    state = getattr(weight, "quant_state", None)
    if state is None:
        if not weight.SCB.isfinite().all():
            rows, columns = weight.shape
            raise ValueError(
                f"model.quantization: a layer of {rows} x {columns} has a weight that is not "
                "finite in fp16, from which int8 is made: set model.quantization: nf4 or none"
            )
        return
    import bitsandbytes.functional as bnb

    rows = max(1, min(state.shape[0], 2**16 // state.shape[1]))
    count = rows * state.shape[1]
    packed = weight.data.view(torch.uint8).reshape(-1)[: -(-count // 2)]
    indices = torch.stack([packed >> 4, packed & 15], dim=1).reshape(-1)[:count].long()
    scales = state.absmax
    if state.nested:
        scales = bnb.dequantize_blockwise(scales, state.state2) + state.offset
    blocks = torch.arange(count, device=packed.device) // state.blocksize
    expected = state.code[indices] * scales[blocks]
    found = dequantise(weight, torch.float32).reshape(-1)[:count]
    if not torch.allclose(found, expected, rtol=1e-5, atol=1e-6, equal_nan=True):
        raise ValueError(
            f"model.quantization: bitsandbytes de-quantises a layer of {state.shape[0]} x "
            f"{state.shape[1]} wrongly here (by {(found - expected).abs().max():.2g}): set "
            "model.quantization: int8 or none"
        )


def read_elsewhere(model: Any, backbone: nn.Module) -> set[str]:
    """Return the names of linear layers whose weight the model's own code reads, past the layer.

    State-space layers hand it to a kernel, others read its dtype. Found by a pass over two tokens.
    """
    watched = {name: module for name, module in backbone.named_modules() if is_linear(module)}
    kinds = {name: type(module) for name, module in watched.items()}
    read: set[str] = set()
    inside: list[bool] = []

    def watch(kind: type[nn.Module]) -> type[nn.Module]:
        def forward(self: Any, *args: Any, **keys: Any) -> Any:
            inside.append(True)
            try:
                return kind.forward(self, *args, **keys)
            finally:
                inside.pop()

        def attribute(self: Any, name: str) -> Any:
            if name == "weight" and not inside:
                read.add(names[id(self)])
            return kind.__getattr__(self, name)

        return type(kind.__name__, (kind,), {"forward": forward, "__getattr__": attribute})

    names = {id(module): name for name, module in watched.items()}
    classes = {kind: watch(kind) for kind in set(kinds.values())}
    was_training = model.training
    model.eval()
    try:
        for name, module in watched.items():
            module.__class__ = classes[kinds[name]]
        with torch.no_grad():
            backbone(torch.zeros(1, 2, dtype=torch.int64), use_cache=False)
    except (AttributeError, TypeError, RuntimeError, ValueError, KeyError, IndexError):
        pass  # the probe says in words that the model cannot run
    finally:
        for name, module in watched.items():
            module.__class__ = kinds[name]
        model.train(was_training)
    return read
