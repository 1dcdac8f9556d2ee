"""Write the folders that transformers, PEFT and vLLM load, and read them back into a policy."""

from __future__ import annotations

import copy
import json
import logging
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from posttrain.common import distributed
from posttrain.model.adapters.base import is_adapted
from posttrain.model.adapters.names import first_names, saved_names
from posttrain.model.adapters.starts import as_plain_lora, own_part
from posttrain.model.classifiers import classifier_class, describe_classifier
from posttrain.model.config import HEAD_PREFIXES
from posttrain.model.folder import (
    ADAPTER_PREFIX,
    HEAD,
    LABELS_FILE,
    QUANTIZATION_FILE,
    SAVED_HEAD,
    STEPS_FILE,
)
from posttrain.model.kernels.quantized import stored_as
from posttrain.model.load import load_causal_lm
from posttrain.model.models import Models
from posttrain.model.reft.folder import save_reft, saved_edits

log = logging.getLogger(__name__)

SAMPLING = (
    "temperature",
    "top_p",
    "top_k",
    "top_h",
    "min_p",
    "typical_p",
    "epsilon_cutoff",
    "eta_cutoff",
    "penalty_alpha",
)
"""Settings of a generation config that act only if it samples."""
VALUE_FILE = "value_model.safetensors"
"""Value head and value network of `ppo`, by parameter name."""


def save_model(folder: Path, models: Models, weights: dict[str, Tensor]) -> None:
    """Write a folder that transformers or PEFT load: weights, config, tokenizer, stop tokens."""
    import transformers

    transformers.logging.disable_progress_bar()  # it would have a single step
    model: Any = models.policy.model
    causal_lm = models.policy.causal_lm()
    generation, config = without_idle_flags(causal_lm.generation_config), causal_lm.config
    stops = models.stop_token_ids
    pad = models.tokenizer.pad_token_id
    config.eos_token_id = generation.eos_token_id = stops[0] if len(stops) == 1 else stops
    config.pad_token_id = generation.pad_token_id = stops[0] if pad is None else pad
    scores = models.policy.head_kind in ("score", "labels")
    if models.step_separator is not None:
        save_separator(folder, models.step_separator)
    if models.labels is not None:
        save_labels(folder, models.labels)
    if scores and not is_adapted(model):
        save_classifier(folder, causal_lm, weights, models.labels)
        models.tokenizer.save_pretrained(folder)
        return
    heads = {name: x for name, x in weights.items() if name.startswith(HEAD_PREFIXES)}
    if heads and not scores:
        save_file(heads, folder / VALUE_FILE)
    weights = {name: x for name, x in weights.items() if name not in heads}
    if is_adapted(model):
        head = heads.get(HEAD) if scores else None
        write = save_adapter if hasattr(model, "peft_config") else save_reft
        write(folder, model, weights, head)
        if (how := stored_as(model)) is not None:
            (folder / QUANTIZATION_FILE).write_text(json.dumps(how))
        generation.save_pretrained(folder)
    else:
        inner = {name.removeprefix("model."): value for name, value in weights.items()}
        inner |= buffers(causal_lm)
        # one file of any size, so that manifest and resume need to know only one name
        model.save_pretrained(folder, state_dict=inner, max_shard_size="10000GB")
    models.tokenizer.save_pretrained(folder)


def without_idle_flags(generation: Any) -> Any:
    """Return a generation config without settings of sampling that do_sample: false makes idle.

    Old models have them (Llama 2's temperature), and transformers refuses to save them."""
    try:
        generation.validate(strict=True)
    except ValueError:
        plain = type(generation)()
        for name in SAMPLING if not generation.do_sample else ():
            if getattr(generation, name, None) != getattr(plain, name, None):
                log.warning("generation_config.json: %s is idle (do_sample is false)", name)
                setattr(generation, name, getattr(plain, name, None))
    return generation


def save_adapter(
    folder: Path, model: Any, weights: dict[str, Tensor], head: Tensor | None = None
) -> None:
    """Write a PEFT model's adapter_config.json and adapter_model.safetensors.

    With the `head` of a reward model, they are those of a sequence classifier's adapter.
    """
    peft_config = copy.deepcopy(model.peft_config["default"])
    peft_config.inference_mode = True
    base = peft_config.base_model_name_or_path
    if base and Path(base).is_dir():  # a relative path would hold in this directory alone
        peft_config.base_model_name_or_path = str(Path(base).resolve())
    if head is not None:
        saved = getattr(peft_config, "modules_to_save", None) or []
        peft_config.task_type, peft_config.modules_to_save = "SEQ_CLS", [*saved, "score"]
    inner = {name.removeprefix("model."): value for name, value in weights.items()}
    peft_config, tensors = as_plain_lora(model, peft_config, adapter_tensors(model, inner))
    peft_config.save_pretrained(folder)
    if head is not None:
        tensors[ADAPTER_PREFIX + SAVED_HEAD] = head.contiguous()
    save_file(tensors, folder / "adapter_model.safetensors")


def adapter_tensors(model: Any, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors of a PEFT model's adapter by the names in its file.

    Those that are not trained are the model's own, such as a resized base's embedding.
    """
    tied, state, names = first_names(model), model.state_dict(), saved_names(model)
    names |= {name: name for name in getattr(model, "brought", ())}
    tensors = {}
    for saved, name in names.items():
        trained = weights.get(tied.get(name, name))
        value = distributed.full(state[name]).cpu() if trained is None else trained
        tensors[saved] = value.contiguous().clone()  # safetensors writes no tensor twice
    return tensors


def save_classifier(
    folder: Path, causal_lm: Any, weights: dict[str, Tensor], labels: dict[str, Any] | None
) -> None:
    """Write a sequence classifier's config.json and model.safetensors from a policy's weights."""
    config = copy.deepcopy(causal_lm.config)
    config.architectures = [classifier_class(causal_lm.config).__name__]
    describe_classifier(config, labels)
    config.save_pretrained(folder)
    tensors = {
        SAVED_HEAD if name == HEAD else name.removeprefix("model."): x.contiguous()
        for name, x in weights.items()
    }
    save_file(tensors | buffers(causal_lm), folder / "model.safetensors", {"format": "pt"})


def buffers(causal_lm: Any) -> dict[str, Tensor]:
    """Return the persistent buffers on the CPU by name: what a model keeps but does not train."""
    saved = causal_lm.state_dict().keys()
    return {
        name: distributed.full(x.detach()).cpu().contiguous()
        for name, x in causal_lm.named_buffers()
        if name in saved
    }


def save_separator(folder: Path, separator: str) -> None:
    """Mark a folder as that of a process reward model."""
    (folder / STEPS_FILE).write_text(json.dumps({"step_separator": separator}))


def save_labels(folder: Path, labels: dict[str, Any]) -> None:
    """Mark a folder as that of a classifier.

    `labels` holds the labels in their order, `multi_label`, and for label_tokens the token of each
    label, with the tokens that come before it.
    """
    (folder / LABELS_FILE).write_text(json.dumps(labels))


def gather_weights(models: Models) -> dict[str, Tensor]:
    """Return what a checkpoint saves on the CPU by parameter name. A collective if sharded.

    The trainable tensors and, of a model without an adapter, what its architecture never trains."""
    tensors = models.trainable()
    if not is_adapted(models.policy.model):
        causal_lm = models.policy.causal_lm()
        head = causal_lm.get_output_embeddings().weight  # not trained if there is another head
        named = causal_lm.named_parameters()
        frozen = {name: p for name, p in named if not p.requires_grad and p is not head}
        tensors |= {f"model.{name}": p for name, p in frozen.items()}
    return {name: distributed.full(p.detach()).cpu() for name, p in tensors.items()}


def restore_weights(models: Models, path: Path) -> None:
    """Load a checkpoint's weights into the policy; raise ValueError if one is missing."""
    trainable, named = models.trainable(), saved_weights(models, path)
    missing = [name for name in trainable if name not in named]
    if missing:
        raise ValueError(f"{path} lacks {len(missing)} trained tensors, such as {missing[0]}")
    for name, parameter in trainable.items():
        distributed.copy_full(parameter, named[name])


def saved_weights(models: Models, path: Path) -> dict[str, Tensor]:
    """Return a checkpoint's tensors under the policy's names."""
    if hasattr(models.policy.model, "peft_config"):
        saved = own_part(models.policy.model, load_file(path / "adapter_model.safetensors"), path)
        head = saved.pop(ADAPTER_PREFIX + SAVED_HEAD, None)
        names, tied = saved_names(models.policy.model), first_names(models.policy.model)
        places = {name: tied.get(place, place) for name, place in names.items()}
        named = {f"model.{places[name]}": x for name, x in saved.items() if name in places}
        named |= {} if head is None else {HEAD: head}
    elif is_adapted(models.policy.model):
        saved = saved_edits(path)
        named = {HEAD if n == SAVED_HEAD else f"model.{n}": x for n, x in saved.items()}
    else:
        named = load_named(path)
    if (path / VALUE_FILE).is_file():
        named |= load_file(path / VALUE_FILE)
    full = not is_adapted(models.policy.model)
    if full and models.trainable().keys() - named.keys():
        # transformers has written some tensors under other names (each expert's, for example)
        read = load_causal_lm(str(path), torch.float32).state_dict()
        named |= {f"model.{name}": value for name, value in read.items()}
    return named


def load_named(path: Path) -> dict[str, Tensor]:
    """Return a saved model's tensors, including a classifier's head, under the policy's names."""
    tensors = load_file(path / "model.safetensors")
    return {HEAD if name == SAVED_HEAD else f"model.{name}": x for name, x in tensors.items()}
