"""Adapters in folders: loading one of any kind, and the section of a recipe that describes it."""

from __future__ import annotations

from typing import Any

from posttrain.model.adapters.base import AdapterConfig
from posttrain.model.adapters.lora import LoraConfig
from posttrain.model.adapters.peft import check_kind, load_adapter
from posttrain.model.adapters.peft_kinds import PeftKindConfig, check_keys, fields_of
from posttrain.model.config import ModelConfig
from posttrain.model.folder import adapter_config, is_adapter, is_reft
from posttrain.model.reft.folder import load_reft, read_section

LORA_KEYS = {
    "r": "r",
    "alpha": "lora_alpha",
    "dropout": "lora_dropout",
    "target_modules": "target_modules",
    "exclude_modules": "exclude_modules",
    "layers_to_transform": "layers_to_transform",
    "rank_pattern": "rank_pattern",
    "alpha_pattern": "alpha_pattern",
    "modules_to_save": "modules_to_save",
    "bias": "bias",
}
"""The keys of a LoRA's section, and their names in adapter_config.json."""
NOT_SERVED = (
    "modules_to_save",
    "use_dora",
    "trainable_token_indices",
    "lora_bias",
    "bias",
    "rank_pattern",
    "alpha_pattern",
)
"""Settings of a LoRA that engines refuse, or ignore as vLLM does the patterns' scales."""
OF_TRAINING = ("lr_ratio",)
"""Keys of a section that say how an adapter is trained, and not what it is."""
OF_THE_START = ("init_lora_weights", "init_weights", "init_ia3_weights")
"""Keys of a section about the start, which a trained adapter has behind it."""
FORMS = {"miss": {"init_weights"}}
"""Of these types, keys with such a name that choose how the adapter computes."""
OF_LORA = ("lora", "rslora", "dora")
"""Types of saved adapters that the short keys use_lora and lora are about."""


def load_saved(model: Any, name: str, trainable: bool = False) -> Any:
    """Return the base model with the adapter in a folder, of PEFT or of ReFT."""
    load = load_reft if is_reft(name) else load_adapter
    return load(model, name, trainable)


def check_plain(config: ModelConfig, name: str) -> None:
    """Raise ValueError if an engine that loads plain LoRA adapters could not load this run's."""
    kind = config.adapter.type
    plain = kind in ("none", "lora", "rslora")
    extra = None if plain else f"an adapter of the type {kind}"
    own = config.adapter.model_dump()
    extra = next((f"model.adapter.{key}" for key in NOT_SERVED if _is_set(own, key)), extra)
    if config.resize_embeddings and config.trains_adapter:
        extra = "model.resize_embeddings"
    if is_adapter(name) and not is_reft(name):
        check_kind(name)
        saved = adapter_config(name)
        extra = next((f"the adapter's {key}" for key in NOT_SERVED if _is_set(saved, key)), extra)
        extra = f"an {saved['peft_type']} adapter" if saved["peft_type"] != "LORA" else extra
    if config.quantization is not None and config.quantization.type != "none":
        raise ValueError(
            "rollout.engine: vllm and server would sample from the weights as they are in the "
            f"files, not in {config.quantization.type}: use rollout.engine: native"
        )
    if extra is not None:
        raise ValueError(
            f"rollout.engine: vllm and server load plain LoRA adapters only, not {extra}: use "
            "rollout.engine: native"
        )


def with_adapter(config: ModelConfig, name: str | None) -> ModelConfig:
    """Return the section with the settings of the adapter in the folder `name`, if it holds one.

    Raises ValueError if `model.adapter` contradicts them: a trained adapter keeps its form; and for
    a key that its type does not have.
    """
    if isinstance(config.adapter, PeftKindConfig):
        check_keys(config.adapter)
    if name is None or not is_adapter(name):
        return config
    saved, section = saved_section(name), config.adapter
    written, short = section.model_fields_set, config.short_form
    asked = "type" in written or section.type == "none"
    other = section.type != saved.type if asked else short and saved.type not in OF_LORA
    if other:
        said = f"{short} asks for" if short else "adapter is"
        raise ValueError(
            f"model.{said} {section.type}, but {name} holds an adapter of the type {saved.type}, "
            f"which is trained further: remove model.{short or 'adapter'}, or merge the adapter "
            "into its base first"
        )
    left_out = {"type", *OF_TRAINING, *OF_THE_START} - FORMS.get(saved.type, set())
    for key in sorted(written - left_out):
        ours, theirs = getattr(section, key), getattr(saved, key, None)
        if not _agrees(ours, theirs):
            raise ValueError(
                f"model.adapter.{key} is {ours}, but the adapter {name} has {theirs}, which "
                f"training cannot change: remove model.adapter.{key}, or merge the adapter into "
                "its base first"
            )
    training = {key: getattr(section, key) for key in OF_TRAINING if key in written}
    return config.model_copy(update={"adapter": saved.model_copy(update=training)})


def saved_section(name: str) -> AdapterConfig:
    """Return the section that describes the adapter in a folder."""
    if is_reft(name):
        return read_section(name)
    check_kind(name)
    saved = adapter_config(name)
    if isinstance(saved.get("target_modules"), list):
        saved["target_modules"] = sorted(saved["target_modules"])
    if (kind := str(saved["peft_type"]).lower()) != "lora":
        names = ["target_modules", *fields_of(kind)]
        keys = {key: saved[key] for key in names if saved.get(key) is not None}
        return PeftKindConfig.model_construct(type=kind, **keys)
    own: dict[str, Any] = {
        "type": "dora" if saved.get("use_dora") else "rslora" if saved.get("use_rslora") else "lora"
    }
    own |= {key: saved[name] for key, name in LORA_KEYS.items() if saved.get(name) is not None}
    return LoraConfig.model_construct(**own)


def _is_set(settings: dict[str, Any], key: str) -> bool:
    return settings.get(key) not in (None, False, "none", {}, [])


def _agrees(ours: Any, theirs: Any) -> bool:
    if isinstance(ours, list) and isinstance(theirs, list):
        return sorted(ours) == sorted(theirs)
    # PEFT writes the layers' names for all-linear
    return bool(ours == theirs or (ours == "all-linear" and isinstance(theirs, list)))
