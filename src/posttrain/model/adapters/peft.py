"""Adapters of PEFT: which kinds are read, and what they need of their base model."""

from __future__ import annotations

import logging
import re
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from posttrain.common.files import sha256
from posttrain.common.suggest import did_you_mean
from posttrain.model.adapters import ADAPTERS, PEFT, REFUSED
from posttrain.model.adapters.creation import without_deprecations
from posttrain.model.adapters.names import saved_names
from posttrain.model.adapters.peft_kinds import NOT_OFFERED
from posttrain.model.adapters.starts import own_part
from posttrain.model.folder import (
    ADAPTER_PREFIX,
    adapter_config,
    base_model,
    check_adapter_file,
)
from posttrain.model.integrity import check_tensors, in_one_line
from posttrain.model.kernels.linear import Linear
from posttrain.model.loaded import note_start, refuse_random, warn_of_other_base
from posttrain.model.vocabulary import resize_for

log = logging.getLogger(__name__)

ADAPTER = "adapter_model.safetensors"
KINDS = ("LORA", *(name.upper() for name, entry in ADAPTERS.items() if entry == PEFT))
"""PEFT's kinds that are read: those whose work is done inside the layers."""
NOT_READ = {
    "alora_invocation_tokens": "an activated LoRA, which is off until certain tokens",
    "layer_replication": "layers that the base does not have",
    "use_bdlora": "a block-diagonal LoRA",
    "use_qalora": "a quantised LoRA",
    "monteclora_config": "a LoRA with random weights",
    "arrow_config": "a router over several adapters",
}
"""Keys of a LoRA's adapter_config.json that are refused, and what they make."""
RANDOM_START = "pissa_niter"
"""The PEFT start of a LoRA that takes a random part out of the base's weights at every loading."""


def check_kind(name: str) -> None:
    """Raise ValueError if an adapter is of a kind, or has a setting, that is not read."""
    import peft

    config = adapter_config(name)
    kind = str(config.get("peft_type"))
    if kind not in KINDS:
        reason = REFUSED.get(kind.lower(), did_you_mean(kind, KINDS, "those that are"))
        raise ValueError(
            f"model.name: {name} is an adapter of the kind {kind}, which is not read: {reason}"
        )
    for (refused, key), reason in NOT_OFFERED.items():
        if refused.upper() == kind and config.get(key):
            raise ValueError(f"model.name: {name} has {key}, which is not read: {reason}")
    known = {field.name for field in fields(peft.PEFT_TYPE_TO_CONFIG_MAPPING[peft.PeftType(kind)])}
    if str(config.get("init_lora_weights")).startswith(RANDOM_START):
        raise ValueError(
            f"model.name: {name} has init_lora_weights: {config['init_lora_weights']}, which "
            "changes the base at random at every loading: save it in PEFT with "
            "path_initial_model_for_weight_conversion, as a plain LoRA"
        )
    for key, value in config.items():
        if key in NOT_READ and value:
            raise ValueError(f"model.name: {name} is {NOT_READ[key]} ({key}), which is not read")
        if key not in known and value:
            version = config.get("peft_version", "unknown")
            raise ValueError(
                f"model.name: {name}/adapter_config.json sets {key}, which PEFT {peft.__version__} "
                f"does not know (the file is from PEFT {version}): install that version"
            )


def load_adapter(model: Any, name: str, trainable: bool = False, lenient: bool = False) -> Any:
    """Return the base model with the adapter in a folder, every tensor of which is in the model.

    Raises ValueError if the adapter is damaged, of another base or size, or of a kind that is not
    read. A base with another number of tokens than the adapter's embedding gets its rows. With
    `lenient`, tensors that the file lacks are left in `lacking`.
    """
    from peft import PeftModel
    from peft.utils.error import NoMatchingPeftModuleError

    folder = Path(name)
    check_adapter_file(folder)
    check_kind(name)
    shapes = check_tensors(folder / ADAPTER)
    warn_of_other_base(model, folder)
    resize_for(model, name, base_model(name), shapes)
    with in_one_line(name, "adapter_config.json describes no adapter that PEFT can build"):
        try:
            with without_deprecations():
                model = PeftModel.from_pretrained(model, name, is_trainable=trainable)
        except NoMatchingPeftModuleError as error:
            raise ValueError(
                f"model.name: {name} is not an adapter of {base_model(name)}: the base has not the "
                f"layers that it adapts ({_targets(name)})"
            ) from error
        except (ValueError, NotImplementedError) as error:
            reason = str(error).splitlines()[0].rstrip(".")
            raise ValueError(
                f"model.name: {name}: PEFT cannot build what adapter_config.json says: {reason}"
            ) from error
        except RuntimeError as error:
            raise ValueError(_misfit(name, str(error))) from error
    model.lacking = adapter_lacks(model, folder)
    if not lenient:
        refuse_other_names(model, shapes, name)
        refuse_random(name, model.lacking)
    refuse_not_finite(name)
    model.brought = brought_weights(model, name)
    for parameter in model.parameters():
        if parameter.requires_grad:  # a layer that is trained whole has the base's dtype
            parameter.data = parameter.data.float()
    check_read(model, name)
    note_start(model.get_base_model(), sha256(folder / ADAPTER))
    if (folder / "config.json").is_file() and any(folder.glob("model*.safetensors")):
        base = base_model(name)
        log.warning("%s: read as an adapter of %s, not the weights beside it", name, base)
    return model


def refuse_other_names(model: Any, shapes: dict[str, list[int]], name: str) -> None:
    """Raise ValueError if the file holds the tensors that the adapter lacks under other names."""
    unknown = sorted(set(shapes) - set(saved_names(model)))
    others = [key for key in unknown if "lora_" in key or "ia3_" in key]
    if model.lacking and len(others) >= len(model.lacking):
        raise ValueError(
            f"model.name: {name} names its weights otherwise than PEFT does for this base: "
            f"expected {model.lacking[0]}, got {others[0]}; save it again with PEFT"
        )


def refuse_not_finite(name: str) -> None:
    """Raise ValueError if a tensor of an adapter's file holds NaN or an infinite number."""
    from safetensors import safe_open

    with safe_open(Path(name) / ADAPTER, "pt") as file:
        for key in file.keys():  # noqa: SIM118
            if not file.get_tensor(key).isfinite().all():
                raise ValueError(
                    f"model.name: {name} holds numbers that are not finite, in "
                    f"{key.removeprefix(ADAPTER_PREFIX)}: the run that saved it had diverged"
                )


def check_read(model: Any, name: str) -> None:
    """Raise ValueError for a tensor of an adapter's file that PEFT does not read into the model.

    It renames tensors as transformers renames the weights of old checkpoints, and leaves out what
    it then has no place for."""
    import peft
    from safetensors.torch import load_file

    names = saved_names(model)
    saved = own_part(model, load_file(Path(name) / ADAPTER), name)
    tensors = {key: x for key, x in saved.items() if key in names}
    with without_deprecations():
        result: Any = peft.set_peft_model_state_dict(model, tensors)
    missing = set(result.missing_keys)
    if lost := [key for key in tensors if names[key] in missing]:
        tensor = lost[0].removeprefix(ADAPTER_PREFIX)
        raise ValueError(
            f"model.adapter: PEFT {peft.__version__} does not read {tensor} of an adapter of "
            f"{type(model.get_base_model()).__name__}: leave this layer out of "
            "model.adapter.target_modules"
        )


def _targets(name: str) -> str:
    targets = adapter_config(name).get("target_modules") or "none"
    return targets if isinstance(targets, str) else ", ".join(sorted(targets)[:4])


def _misfit(name: str, message: str) -> str:
    """Return what does not fit, from torch's message about the sizes."""
    size = re.search(r"size mismatch for (\S+): .*?Size\((\[.*?\])\).*?Size\((\[.*?\])\)", message)
    base = base_model(name)
    if size is None:
        return f"model.name: {name} is not an adapter of {base}: its weights cannot be read into it"
    tensor = size[1].removeprefix(ADAPTER_PREFIX).replace(".default", "")
    return (
        f"model.name: {name} does not fit its base {base}: {tensor} is {size[2]} in the adapter "
        f"and {size[3]} in the base"
    )


def adapter_lacks(model: Any, folder: Path) -> list[str]:
    """Return the names of tensors that a PEFT model's adapter has but its file lacks."""
    return sorted(set(saved_names(model)) - set(check_tensors(folder / ADAPTER)))


def brought_weights(model: Any, name: str) -> list[str]:
    """Return the names of the base's own weights that an adapter's file brings along.

    PEFT writes the embedding of a model whose vocabulary was changed. Raises ValueError for a
    tensor that is in the file and not in the model: PEFT leaves it out without a word.
    """
    from safetensors import safe_open

    known, state, brought = saved_names(model), model.state_dict(), []
    with safe_open(Path(name) / ADAPTER, "pt") as file:
        extra = [key for key in file.keys() if key not in known]  # noqa: SIM118
        for key in extra:
            if key.endswith("score.weight"):  # the head of a reward model, read by `heads`
                continue
            copied = key.replace(".modules_to_save.weight", ".weight")
            tensor = file.get_tensor(key)
            value = state.get(known.get(copied, key))
            if key.endswith(".original_module.weight"):  # replaced by the adapter's own copy
                continue
            if value is None or not torch.equal(value.cpu(), tensor.to(value.dtype)):
                raise ValueError(
                    f"model.name: {name} holds weights that its base {base_model(name)} has no "
                    f"place for: {key.removeprefix(ADAPTER_PREFIX)}"
                )
            if copied not in known:
                brought.append(key)
    return brought


def head_weight(head: Any) -> tuple[Tensor, Tensor | None]:
    """Return weight [vocab, width] and bias of an output head that an adapter has changed.

    Raises ValueError for a change that is not one of the weight.
    """
    if hasattr(head, "token_adapter"):  # rows of single tokens, in a head that is the embedding
        tokens = head.token_adapter
        weight = tokens.get_merged_weights(tokens.active_adapters)
        return weight, getattr(tokens.get_base_layer(), "bias", None)
    if hasattr(head, "modules_to_save"):
        return head_weight(head.modules_to_save[head.active_adapters[0]])
    if hasattr(head, "trainable_tokens_delta"):
        weight = head.get_merged_weights(head.active_adapters)
        return weight, getattr(head.get_base_layer(), "bias", None)
    if type(head) in (nn.Linear, Linear):
        return head.weight, head.bias
    if not hasattr(head, "lora_A"):
        raise ValueError(f"an output head of type {type(head).__name__} is not supported")
    base, (adapter,) = head.get_base_layer(), head.active_adapters
    dropout = isinstance(head.lora_dropout[adapter], nn.Dropout)
    if dropout or head.use_dora.get(adapter) or head.lora_bias.get(adapter):
        raise ValueError(
            "the adapter's change of the output head (dropout, DoRA or a bias of the LoRA) is not "
            "supported: use an adapter without lm_head in target_modules"
        )
    low, high = head.lora_A[adapter].weight, head.lora_B[adapter].weight
    return base.weight + (high @ low).mul(head.scaling[adapter]).to(base.weight.dtype), base.bias
