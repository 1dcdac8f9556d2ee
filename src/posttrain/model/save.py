"""Write the folders that transformers, PEFT and vLLM load, and read them back into a policy."""

from __future__ import annotations

import copy
import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from posttrain.common import distributed, shards
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
from posttrain.model.integrity import INDEX
from posttrain.model.kernels.quantized import stored_as
from posttrain.model.language_model import LanguageModel
from posttrain.model.load import load_causal_lm
from posttrain.model.models import Models
from posttrain.model.parts import gather, local, places
from posttrain.model.reft.folder import save_reft, saved_edits
from posttrain.model.tensor_files import TensorFiles, names_in, weights_in, write_tensors

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
FILE_BYTES = 5_000_000_000
"""Bytes of weights in one file; a larger model has several, and an index."""


def save_model(folder: Path, models: Models, weights: dict[str, Tensor]) -> None:
    """Write a folder that transformers or PEFT load: weights, config, tokenizer, stop tokens."""
    describe_model(folder, models, weights)
    if (index := index_of(models, weights)) is not None:
        (folder / INDEX).write_text(json.dumps(index, indent=2))
    for file, tensors in files_of(models, weights, weights).items():
        write_tensors(folder / file, tensors, metadata_of(file))


def describe_model(folder: Path, models: Models, weights: dict[str, Tensor]) -> None:
    """Write everything of `save_model` except the files that `files_of` returns.

    On several ranks, rank 0 calls it: what is not in such files is among its `weights`."""
    import transformers

    transformers.logging.disable_progress_bar()  # it would have a single step
    model: Any = models.policy.model
    causal_lm = models.policy.causal_lm()
    generation, config = without_idle_flags(causal_lm.generation_config), causal_lm.config
    stops = models.stop_token_ids
    pad = models.tokenizer.pad_token_id
    config.eos_token_id = generation.eos_token_id = stops[0] if len(stops) == 1 else stops
    config.pad_token_id = generation.pad_token_id = stops[0] if pad is None else pad
    scores = is_scorer(models)
    if models.step_separator is not None:
        save_separator(folder, models.step_separator)
    if models.labels is not None:
        save_labels(folder, models.labels)
    if is_adapted(model):
        write = save_adapter if hasattr(model, "peft_config") else save_reft
        own = {name: x for name, x in weights.items() if not name.startswith(HEAD_PREFIXES)}
        write(folder, model, own, weights.get(HEAD) if scores else None)
        if (how := stored_as(model)) is not None:
            (folder / QUANTIZATION_FILE).write_text(json.dumps(how))
        generation.save_pretrained(folder)
    elif scores:
        config = copy.deepcopy(config)
        config.architectures = [classifier_class(config).__name__]
        describe_classifier(config, models.labels)
        config.save_pretrained(folder)
    else:
        inner = {}
        if not saved_as_named(models):
            named = (item for item in weights.items() if not item[0].startswith(HEAD_PREFIXES))
            inner = {n.removeprefix("model."): x for n, x in named} | buffers(causal_lm)
        # without a tensor it writes config.json and generation_config.json alone
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
        value = shards.full(state[name]).cpu() if trained is None else trained
        tensors[saved] = value.contiguous().clone()  # safetensors writes no tensor twice
    return tensors


def buffers(causal_lm: Any) -> dict[str, Tensor]:
    """Return the persistent buffers on the CPU by name: what a model keeps but does not train."""
    saved = causal_lm.state_dict().keys()
    return {
        name: shards.full(x.detach()).cpu().contiguous()
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


def saved_tensors(models: Models) -> dict[str, Tensor]:
    """Return what a checkpoint saves, by parameter name, as the policy holds it.

    The trainable tensors and, of a model without an adapter, what its architecture never trains."""
    tensors: dict[str, Tensor] = dict(models.trainable())
    model: Any = models.policy.model
    if not is_adapted(model):
        causal_lm = models.policy.causal_lm()
        head = causal_lm.get_output_embeddings().weight  # not trained if there is another head
        named = causal_lm.named_parameters()
        frozen = {name: p for name, p in named if not p.requires_grad and p is not head}
        tensors |= {f"model.{name}": p for name, p in frozen.items()}
    elif hasattr(model, "peft_config") and not is_whole(models.policy):
        # what an adapter brings and does not train, which rank 0 could not gather alone
        state, first = dict(model.named_parameters()), first_names(model)
        names = {first.get(name, name) for name in saved_names(model).values()}
        tensors |= {f"model.{name}": state[name] for name in sorted(names & state.keys())}
    return tensors


def gather_weights(
    models: Models, copied: bool = False, largest: int | None = None
) -> dict[str, Tensor]:
    """Return what this rank writes of a checkpoint: whole tensors on the CPU, by parameter name.

    Rank k of n writes the files k, k + n, ... of `planned_files`, and rank 0 what is in no such
    file; no rank sees another's share. With `copied`, the tensors are not the policy's own, so that
    training may go on. With `largest`, rank 0 gets all of at most so many elements. A collective.
    """
    tensors = saved_tensors(models)
    owners = dict.fromkeys(tensors, 0)
    if largest is None:
        for k, names in enumerate(planned_files(models, tensors).values()):
            owners |= dict.fromkeys(names, k % distributed.num_ranks())
    else:
        tensors = {name: x for name, x in tensors.items() if x.numel() <= largest}
    where = places(tensors)
    share = {}
    for name, tensor in tensors.items():
        value = gather(tensor, where[name], owners[name])
        if value is not None:
            is_own = copied and value.data_ptr() == local(tensor).data_ptr()
            share[name] = value.clone() if is_own else value
    return share


def planned_files(models: Models, tensors: Mapping[str, Tensor]) -> dict[str, list[str]]:
    """Return the names of the tensors in each file of weights, of at most FILE_BYTES each.

    The same on all ranks and for any number of them. An adapter's are not among them, nor those of
    a model that transformers saves under other names."""
    # a scorer's head is among the model's own tensors
    apart = () if is_scorer(models) else HEAD_PREFIXES
    heads = [name for name in tensors if name.startswith(apart)]
    inner = [name for name in tensors if not name.startswith(apart)]
    files: dict[str, list[str]] = {}
    if not is_adapted(models.policy.model) and saved_as_named(models):
        parts: list[list[str]] = [[]]
        filled = 0
        for name in inner:
            size = tensors[name].numel() * tensors[name].element_size()
            if parts[-1] and filled + size > FILE_BYTES:
                parts.append([])
                filled = 0
            parts[-1].append(name)
            filled += size
        files = {_file_name(k, len(parts)): names for k, names in enumerate(parts)}
    if heads:
        files[VALUE_FILE] = heads
    return files


def files_of(
    models: Models, weights: dict[str, Tensor], everything: Mapping[str, Tensor]
) -> dict[str, dict[str, Tensor]]:
    """Return the contents of the files for which `weights` has tensors, by their names there.

    `everything` is what all ranks save, for the names of the files."""
    files = {}
    for k, (file, names) in enumerate(planned_files(models, everything).items()):
        value = file == VALUE_FILE
        own = {
            name if value else SAVED_HEAD if name == HEAD else name.removeprefix("model."): x
            for name, x in ((name, weights[name]) for name in names if name in weights)
        }
        if own and k == 0 and not value:
            own |= buffers(models.policy.causal_lm())
        if own:
            files[file] = own
    return files


def index_of(models: Models, tensors: Mapping[str, Tensor]) -> dict[str, Any] | None:
    """Return the content of model.safetensors.index.json; None if there is a single file."""
    files = planned_files(models, tensors)
    files.pop(VALUE_FILE, None)
    if len(files) < 2:
        return None
    extra = buffers(models.policy.causal_lm())
    where = {
        SAVED_HEAD if name == HEAD else name.removeprefix("model."): file
        for file, names in files.items()
        for name in names
    }
    where |= dict.fromkeys(extra, next(iter(files)))
    total = sum(x.numel() * x.element_size() for x in [*tensors.values(), *extra.values()])
    return {"metadata": {"total_size": total}, "weight_map": where}


def metadata_of(file: str) -> dict[str, str] | None:
    """Return the metadata in the header of a file of weights, as transformers writes it."""
    return None if file == VALUE_FILE else {"format": "pt"}


def _file_name(k: int, count: int) -> str:
    return "model.safetensors" if count == 1 else f"model-{k + 1:05d}-of-{count:05d}.safetensors"


def is_whole(policy: LanguageModel) -> bool:
    """Whether each rank holds all of a policy's tensors."""
    return not distributed.is_sharded(policy) and policy.vocab_shard is None


def is_scorer(models: Models) -> bool:
    """Whether a checkpoint is a sequence classifier: a reward model or a classifier."""
    return models.policy.head_kind in ("score", "labels")


def saved_as_named(models: Models) -> bool:
    """Whether transformers saves the model's tensors one for one and under their own names.

    It renames, splits or turns those of some architectures (single experts, for example)."""
    if is_scorer(models):
        return True
    from transformers.core_model_loading import revert_weight_conversion

    causal_lm = models.policy.causal_lm()
    if causal_lm._keys_to_ignore_on_save:
        return False
    own = {
        name: torch.empty(x.shape, dtype=x.dtype, device="meta")
        for name, x in causal_lm.named_parameters()
    }
    saved = revert_weight_conversion(causal_lm, dict(own))
    return saved.keys() == own.keys() and all(saved[name] is own[name] for name in own)


def restore_weights(models: Models, path: Path) -> None:
    """Load a checkpoint's weights into the policy; raise ValueError if one is missing.

    Of the tensors of a model without an adapter, each rank reads its own part."""
    trainable = models.trainable()
    if not is_adapted(models.policy.model):
        files = named_files(path)
        if trainable.keys() <= files.keys():
            for name, parameter in trainable.items():
                source, inner = files[name]
                source.fill(inner, parameter)
            return
    named = saved_weights(models, path)
    missing = [name for name in trainable if name not in named]
    if missing:
        raise ValueError(f"{path} lacks {len(missing)} trained tensors, such as {missing[0]}")
    for name, parameter in trainable.items():
        shards.copy_full(parameter, named[name])


def saved_weights(models: Models, path: Path) -> dict[str, Tensor]:
    """Return a checkpoint's tensors under the policy's names."""
    if hasattr(models.policy.model, "peft_config"):
        saved = own_part(models.policy.model, load_file(path / "adapter_model.safetensors"), path)
        head = saved.pop(ADAPTER_PREFIX + SAVED_HEAD, None)
        names, tied = saved_names(models.policy.model), first_names(models.policy.model)
        homes = {name: tied.get(place, place) for name, place in names.items()}
        named = {f"model.{homes[name]}": x for name, x in saved.items() if name in homes}
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


def named_files(path: Path) -> dict[str, tuple[TensorFiles, str]]:
    """Return where a saved model's tensors are, and their names there, by the policy's names."""
    weights = weights_in(path)
    found = {
        HEAD if name == SAVED_HEAD else f"model.{name}": (weights, name) for name in weights.places
    }
    if (path / VALUE_FILE).is_file():
        values = TensorFiles(dict.fromkeys(names_in(path / VALUE_FILE), path / VALUE_FILE))
        found |= {name: (values, name) for name in values.places}
    return found


def load_named(path: Path) -> dict[str, Tensor]:
    """Return a saved model's tensors, with its heads, under the policy's names."""
    return {name: files.read_whole(inner) for name, (files, inner) in named_files(path).items()}
