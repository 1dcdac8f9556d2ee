"""Load the policy and the reference: complete weights, adapter, dtypes, kernels, checks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from posttrain.model.adapters.base import NoAdapter, adapter_named, is_adapted
from posttrain.model.adapters.peft import load_adapter
from posttrain.model.adapters.saved import load_saved
from posttrain.model.classifiers import classifier_class
from posttrain.model.config import ModelConfig, QuantizationConfig
from posttrain.model.device import cast_parameters, choose_dtype
from posttrain.model.folder import (
    SAVED_HEAD,
    base_model,
    is_adapter,
    not_found,
    refuse_reft,
    saved_head,
)
from posttrain.model.gguf.cache import name_file
from posttrain.model.integrity import OURS, check_folder, has_tokenizer, in_one_line
from posttrain.model.kernels.fused import use_fused
from posttrain.model.kernels.linear import use_onednn
from posttrain.model.kernels.quantized import quantised
from posttrain.model.language_model import LanguageModel
from posttrain.model.loaded import check_loaded
from posttrain.model.parallel.tensor import as_whole
from posttrain.model.probe import choose_packing, expected, rounding
from posttrain.model.quantized import (
    load_dtype,
    quantise,
    quantization_of,
    with_adapter_applied,
)
from posttrain.model.reft.attach import edit_prompts
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
    """Return a pre-trained model or adapter, with or without a new adapter, ready to train.

    Trainable tensors are fp32; frozen ones have the compute dtype. With `scores`, for a reward
    model, the output head may be missing. The `tokenizer` is read with model.resize_embeddings."""
    if not scores:
        refuse_classifier(name)
    compute = choose_dtype(config.dtype, device)
    frozen_base = is_adapter(name) or config.trains_adapter
    dtype = compute if frozen_base else torch.float32
    model = load_stored(name, config.quantization, device, dtype, compute, scores)
    if is_adapter(name):
        model = load_saved(model, name, trainable=True)
        check_rows_of_adapter(model, config, name, tokenizer)
    elif resize(model, config, tokenizer, seed) and config.trains_adapter:
        model = add_adapter(model, config, seed, vocabulary_names(model))
    return prepare_policy(model, config, device, compute, seed)


def load_reference(config: ModelConfig, name: str, policy: LanguageModel, tokenizer: Any) -> Any:
    """Return a separate reference model, frozen, in the compute dtype."""
    check_tokenizer(name, tokenizer)
    plain = config.model_copy(update={"adapter": NoAdapter(), "gradient_checkpointing": False})
    reference = load_policy(plain, name, policy.device, seed=0).requires_grad_(False).eval()
    cast_parameters(reference, reference.autocast or torch.float32)
    return reference


def check_tokenizer(name: str, tokenizer: Any) -> None:
    """Raise ValueError if a reference model has another tokenizer than the policy."""
    if load_tokenizer(name).get_vocab() != tokenizer.get_vocab():
        raise ValueError(f"reference.name: {name} has a different tokenizer from the policy")


def add_adapter(model: Any, config: ModelConfig, seed: int, whole: list[str] | None = None) -> Any:
    """Return the model with the new adapter that `model.adapter` describes, drawn with the seed.

    The layers named in `whole` are trained and saved as they are, beside the adapter."""
    return adapter_named(config.adapter.type).add(model, config.adapter, seed, whole)


def prepare_policy(
    model: Any, config: ModelConfig, device: torch.device, compute: torch.dtype, seed: int
) -> LanguageModel:
    """Return a transformers or PEFT model as a policy: adapter, dtypes, kernels and checks."""
    policy = check_policy(wrap(model, config, device, compute, seed))
    if not (quantised(policy) or any(p.requires_grad for p in policy.parameters())):
        raise ValueError("the model has no trainable parameter")
    return policy


def wrap(
    model: Any, config: ModelConfig, device: torch.device, compute: torch.dtype, seed: int
) -> LanguageModel:
    """Return a transformers or PEFT model as a policy, with its adapter and dtypes; not checked."""
    if config.trains_adapter and not is_adapted(model):
        model = add_adapter(model, config, seed)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    model = model if device.type == "meta" else model.to(device)
    if config.gradient_checkpointing:
        # transformers 5.23 renamed it and warns about the old name
        enable = getattr(
            model, "activation_checkpointing_enable", model.gradient_checkpointing_enable
        )
        enable({"use_reentrant": False})
        if hasattr(model, "enable_input_require_grads"):
            model.enable_input_require_grads()
    return LanguageModel(model, autocast=None if compute == torch.float32 else compute)


def check_policy(policy: LanguageModel) -> LanguageModel:
    """Return a policy that computes what transformers does, by its kernels; else ValueError."""
    with as_whole(policy):
        probe = expected(policy.causal_lm(), policy)
        use_onednn(policy.model)
        probe.noise = max(probe.noise, rounding(policy, probe))
    use_fused(policy.model)
    choose_packing(policy, probe)
    edit_prompts(policy)
    return policy


def load_stored(
    name: str,
    section: QuantizationConfig | None,
    device: torch.device,
    dtype: torch.dtype,
    compute: torch.dtype,
    scores: bool = False,
) -> Any:
    """Return the causal LM in a folder in the dtype, or quantised if `quantization_of` says so."""
    how = quantization_of(section, name)
    model = load_causal_lm(name, load_dtype(how, dtype), scores)
    quantise(model, how, device, compute)
    return model


def load_causal_lm(name: str, dtype: torch.dtype | str, scores: bool = False) -> Any:
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
    name_file(model, base)
    return model


def load_tokenizer(name: str, adapter: str | None = None) -> Any:
    """Return the tokenizer of a model, or for an adapter without one, of its base.

    With `adapter`, errors name it as the reason why the model is read. Raises ValueError if there
    is no such model, or if the folder holds no tokenizer."""
    from transformers import AutoTokenizer

    folder = Path(name)
    check_folder(name)
    if folder.is_dir() and not ((folder / "config.json").is_file() or is_adapter(name)):
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


def load_classifier(
    folder: str, dtype: torch.dtype, section: QuantizationConfig | None = None, merge: bool = True
) -> tuple[Any, list[str]]:
    """Return the classifier in a folder and the names of weights that the folder lacks.

    With `merge` an adapter goes into its base's weights, unless they are quantised. Neither
    pickled weights nor code are loaded."""
    import transformers

    transformers.logging.disable_progress_bar()
    auto: Any = transformers.AutoModelForSequenceClassification
    refuse_reft(folder, "loaded as a classifier of transformers")
    how = quantization_of(section, folder)
    options: dict[str, Any] = {"use_safetensors": True, "trust_remote_code": False}
    options |= {"dtype": load_dtype(how, dtype)}
    options |= {"local_files_only": True, "output_loading_info": True}
    base, options["config"] = base_model(folder), build_config(folder)
    head = saved_head(Path(folder)) if is_adapter(folder) else None
    if head is not None:
        options["config"].num_labels = len(head)
    with in_one_line(base, "config.json describes no classifier that transformers can build"):
        classifier_class(options["config"])
        model, info = auto.from_pretrained(base, **options)
    quantise(model, how, torch.device("cpu"), dtype)
    if not is_adapter(folder):
        return model, sorted(info["missing_keys"])
    if head is None:
        return model, [SAVED_HEAD]
    model = load_adapter(model, folder, lenient=True)
    lacking = {*model.lacking, *info["missing_keys"]} - {SAVED_HEAD}
    return with_adapter_applied(model) if merge else model, sorted(lacking)
