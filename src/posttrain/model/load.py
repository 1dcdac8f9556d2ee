"""Load the policy and the reference: complete weights, adapter, dtypes, kernels, checks."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from posttrain.model.attention import use_attention
from posttrain.model.config import ModelConfig
from posttrain.model.device import choose_dtype
from posttrain.model.folder import (
    SAVED_HEAD,
    base_model,
    check_adapter_file,
    is_adapter,
    not_found,
    saved_head,
)
from posttrain.model.kernels.fused import use_fused
from posttrain.model.kernels.linear import use_onednn
from posttrain.model.language_model import LanguageModel
from posttrain.model.probe import check_packing


def load_policy(
    config: ModelConfig, name: str, device: torch.device, seed: int, scores: bool = False
) -> LanguageModel:
    """Return a pre-trained model or adapter, with or without a new LoRA adapter, ready to train.

    Trainable tensors are fp32; frozen ones have the compute dtype. With `scores`, for a reward
    model, the output head may be missing."""
    compute = choose_dtype(config.dtype, device)
    frozen_base = is_adapter(name) or config.use_lora
    model = load_causal_lm(base_model(name), compute if frozen_base else torch.float32, scores)
    if is_adapter(name):
        from peft import PeftModel

        check_adapter_file(Path(name))
        with without_deprecations():
            model = PeftModel.from_pretrained(model, name, is_trainable=True)
        refuse_random(name, adapter_lacks(model, Path(name)))
    return prepare_policy(model, config, device, compute, seed)


def load_reference(config: ModelConfig, name: str, policy: LanguageModel, tokenizer: Any) -> Any:
    """Return a separate reference model, frozen, in the compute dtype."""
    if load_tokenizer(name).get_vocab() != tokenizer.get_vocab():
        raise ValueError(f"reference.name: {name} has a different tokenizer from the policy")
    device = next(policy.parameters()).device
    plain = config.model_copy(update={"use_lora": False, "gradient_checkpointing": False})
    reference = load_policy(plain, name, device, seed=0).requires_grad_(False).eval()
    return reference.to(reference.autocast or torch.float32)


def prepare_policy(
    model: Any, config: ModelConfig, device: torch.device, compute: torch.dtype, seed: int
) -> LanguageModel:
    """Return a transformers or PEFT model as a policy: adapter, dtypes, kernels and checks."""
    if config.use_lora and not hasattr(model, "peft_config"):
        model = add_lora(model, config, seed)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    model = model.to(device)
    if config.gradient_checkpointing:
        # transformers 5.23 renamed it and warns about the old name
        enable = getattr(
            model, "activation_checkpointing_enable", model.gradient_checkpointing_enable
        )
        enable({"use_reentrant": False})
        if hasattr(model, "enable_input_require_grads"):
            model.enable_input_require_grads()
    use_onednn(model)
    use_fused(model)
    policy = LanguageModel(model, autocast=None if compute == torch.float32 else compute)
    use_attention(policy.causal_lm())
    check_packing(policy)
    if not any(p.requires_grad for p in policy.parameters()):
        raise ValueError("the model has no trainable parameter")
    return policy


@contextmanager
def without_deprecations() -> Iterator[None]:
    """Silence the warning about a deprecated name of transformers that PEFT uses."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing`", FutureWarning)
        yield


def load_causal_lm(name: str, dtype: torch.dtype, scores: bool = False) -> Any:
    """Return a causal LM; raise ValueError for missing weights, with `scores` except the head's."""
    import transformers

    transformers.logging.disable_progress_bar()
    options: dict[str, Any] = {"dtype": dtype, "use_safetensors": True, "output_loading_info": True}
    auto: Any = transformers.AutoModelForCausalLM
    try:
        model, info = auto.from_pretrained(name, **options)
    except OSError as error:
        raise ValueError(not_found(name)) from error
    head = model.get_output_embeddings() if scores else None
    unread = {n for n, p in model.named_parameters() if head is not None and p is head.weight}
    refuse_random(name, sorted(set(info["missing_keys"]) - unread))
    return model


def refuse_random(name: str, missing: list[str]) -> None:
    """Raise ValueError for missing weights, which transformers and PEFT would draw at random."""
    if missing:
        raise ValueError(
            f"model.name: {name} lacks weights of the model, which would be random: "
            f"{', '.join(missing[:3])}"
        )


def adapter_lacks(model: Any, folder: Path) -> list[str]:
    """Return the names of tensors that a PEFT model's adapter has but its file lacks."""
    from peft import get_peft_model_state_dict
    from safetensors import safe_open

    with safe_open(folder / "adapter_model.safetensors", "pt") as file:
        saved = set(file.keys())
    return sorted(set(get_peft_model_state_dict(model, save_embedding_layers=False)) - saved)


def load_tokenizer(name: str) -> Any:
    """Return the tokenizer of a model; raise ValueError if there is no such model."""
    from transformers import AutoTokenizer

    folder = Path(name)
    configs = ("config.json", "adapter_config.json")
    if folder.is_dir() and not any((folder / config).is_file() for config in configs):
        raise ValueError(not_found(name))
    try:
        return AutoTokenizer.from_pretrained(name)
    except OSError as error:
        raise ValueError(not_found(name)) from error


def add_lora(model: Any, config: ModelConfig, seed: int) -> Any:
    """Return the model with a new adapter, drawn with the seed; torch's own state is kept."""
    from peft import LoraConfig, get_peft_model

    lora = LoraConfig(
        r=config.lora.r,
        lora_alpha=config.lora.alpha,  # type: ignore[arg-type]  # PEFT takes any number
        lora_dropout=config.lora.dropout,
        target_modules=config.lora.target_modules,
        task_type="CAUSAL_LM",
    )
    state = torch.get_rng_state()
    torch.manual_seed(seed)
    try:
        with without_deprecations():
            model = get_peft_model(model, lora)
    except ValueError as error:
        raise ValueError(f"model.lora: {error}".splitlines()[0]) from error
    torch.set_rng_state(state)
    return model


def load_classifier(folder: str, dtype: torch.dtype) -> tuple[Any, list[str]]:
    """Return the classifier in a folder and the names of weights that the folder lacks.

    An adapter is merged into its base model. Neither pickled weights nor code are loaded."""
    import transformers

    transformers.logging.disable_progress_bar()
    auto: Any = transformers.AutoModelForSequenceClassification
    options: dict[str, Any] = {"dtype": dtype, "use_safetensors": True, "trust_remote_code": False}
    options |= {"local_files_only": True, "output_loading_info": True}
    if not is_adapter(folder):
        model, info = auto.from_pretrained(folder, **options)
        return model, sorted(info["missing_keys"])
    from peft import PeftModel

    model, info = auto.from_pretrained(base_model(folder), num_labels=1, **options)
    if saved_head(Path(folder)) is None:
        return model, [SAVED_HEAD]
    with without_deprecations():
        model = PeftModel.from_pretrained(model, folder)
    lacking = {*adapter_lacks(model, Path(folder)), *info["missing_keys"]} - {SAVED_HEAD}
    return model.merge_and_unload(), sorted(lacking)
