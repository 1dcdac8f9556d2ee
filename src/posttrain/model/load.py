"""Load the policy and the reference: complete weights, adapter, dtypes, kernels, checks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from posttrain.model.adapters import add_lora, load_adapter, with_adapter
from posttrain.model.classifiers import classifier_class
from posttrain.model.config import ModelConfig
from posttrain.model.device import choose_dtype
from posttrain.model.folder import SAVED_HEAD, base_model, is_adapter, not_found, saved_head
from posttrain.model.integrity import OURS, check_folder, has_tokenizer, in_one_line
from posttrain.model.kernels.fused import use_fused
from posttrain.model.kernels.linear import use_onednn
from posttrain.model.language_model import LanguageModel
from posttrain.model.loaded import check_loaded
from posttrain.model.probe import choose_packing, expected, rounding
from posttrain.model.suited import build_config, read_config, refuse_classifier
from posttrain.model.vocabulary import check_rows_of_adapter, resize, vocabulary_names


def load_policy(
    config: ModelConfig,
    name: str,
    device: torch.device,
    seed: int,
    scores: bool = False,
    tokenizer: Any = None,
) -> LanguageModel:
    """Return a pre-trained model or adapter, with or without a new LoRA adapter, ready to train.

    Trainable tensors are fp32; frozen ones have the compute dtype. With `scores`, for a reward
    model, the output head may be missing. The `tokenizer` is read with model.resize_embeddings."""
    config = with_adapter(config, name)
    if not scores:
        refuse_classifier(name)
    compute = choose_dtype(config.dtype, device)
    frozen_base = is_adapter(name) or config.use_lora
    model = load_causal_lm(name, compute if frozen_base else torch.float32, scores)
    if is_adapter(name):
        model = load_adapter(model, name, trainable=True)
        check_rows_of_adapter(model, config, name, tokenizer)
    elif resize(model, config, tokenizer, seed) and config.use_lora:
        model = add_lora(model, config, seed, vocabulary_names(model))
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
    policy = LanguageModel(model, autocast=None if compute == torch.float32 else compute)
    probe = expected(policy.causal_lm(), policy)
    use_onednn(model)
    probe.noise = max(probe.noise, rounding(policy, probe))
    use_fused(model)
    choose_packing(policy, probe)
    if not any(p.requires_grad for p in policy.parameters()):
        raise ValueError("the model has no trainable parameter")
    return policy


def load_causal_lm(name: str, dtype: torch.dtype, scores: bool = False) -> Any:
    """Return the causal LM in a folder, or the base of the adapter in it.

    Raises ValueError for missing weights, with `scores` except the head's, and for weights of
    layers that config.json does not describe."""
    import transformers

    transformers.logging.disable_progress_bar()
    base = base_model(name)
    options: dict[str, Any] = {"dtype": dtype, "use_safetensors": True, "output_loading_info": True}
    options |= {"ignore_mismatched_sizes": True, "trust_remote_code": False}
    options["config"] = read_config(name)
    auto: Any = transformers.AutoModelForCausalLM
    with in_one_line(base, "config.json describes no model that transformers can build"):
        try:
            model, info = auto.from_pretrained(base, **options)
        except OSError as error:
            raise ValueError(not_found(base, name)) from error
    head = model.get_output_embeddings() if scores else None
    unread = {n for n, p in model.named_parameters() if head is not None and p is head.weight}
    check_loaded(base, model, info, unread)
    return model


def load_tokenizer(name: str, adapter: str | None = None) -> Any:
    """Return the tokenizer of a model, or for an adapter without one, of its base.

    With `adapter`, errors name it as the reason why the model is read. Raises ValueError if there
    is no such model, or if the folder holds no tokenizer."""
    from transformers import AutoTokenizer

    folder = Path(name)
    check_folder(name)
    configs = ("config.json", "adapter_config.json")
    if folder.is_dir() and not any((folder / config).is_file() for config in configs):
        raise ValueError(not_found(name, adapter))
    if folder.is_dir() and not has_tokenizer(name):
        if is_adapter(name):
            return load_tokenizer(base_model(name), name)
        raise ValueError(
            f"model.name: {name} has no tokenizer (tokenizer.json or tokenizer.model): copy the "
            "tokenizer's files from the model that it comes from"
        )
    if (folder / "config.json").is_file():  # else its faults would be taken for the tokenizer's
        build_config(name)
    problem = "its tokenizer's files are damaged, or newer than this version of transformers"
    with in_one_line(name, problem, quote=False):
        try:
            return AutoTokenizer.from_pretrained(name, trust_remote_code=False)
        except OSError as error:
            if not folder.is_dir():
                raise ValueError(not_found(name, adapter)) from error
            raise ValueError(
                f"{OURS}{name}: its tokenizer's files are damaged or not complete"
            ) from error


def load_classifier(folder: str, dtype: torch.dtype) -> tuple[Any, list[str]]:
    """Return the classifier in a folder and the names of weights that the folder lacks.

    An adapter is merged into its base model. Neither pickled weights nor code are loaded."""
    import transformers

    transformers.logging.disable_progress_bar()
    auto: Any = transformers.AutoModelForSequenceClassification
    options: dict[str, Any] = {"dtype": dtype, "use_safetensors": True, "trust_remote_code": False}
    options |= {"local_files_only": True, "output_loading_info": True}
    base, options["config"] = base_model(folder), build_config(folder)
    if is_adapter(folder):
        options["config"].num_labels = 1
    with in_one_line(base, "config.json describes no classifier that transformers can build"):
        classifier_class(options["config"])
        model, info = auto.from_pretrained(base, **options)
    if not is_adapter(folder):
        return model, sorted(info["missing_keys"])
    if saved_head(Path(folder)) is None:
        return model, [SAVED_HEAD]
    model = load_adapter(model, folder, lenient=True)
    lacking = {*model.lacking, *info["missing_keys"]} - {SAVED_HEAD}
    return model.merge_and_unload(), sorted(lacking)
