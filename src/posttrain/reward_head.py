"""The linear head of a reward model or a classifier, and its folder: transformers' sequence
classifier, with one label or several, or a PEFT adapter of one.

Scores are read by position, at a sequence's last token. transformers finds that token as the last
that is not `pad_token_id`; so that id is never saved as one that ends a sequence. Those of a
process reward model are read at the ends of steps; what separates them lies in a file beside, as
do the labels of a classification.
"""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from posttrain.forward import LanguageModel
from posttrain.models import adapter_lacks

HEAD, SAVED = "value_head.weight", "score.weight"
ADAPTER_PREFIX = "base_model.model."
STEPS_FILE = "process_reward_model.json"
LABELS_FILE = "classification.json"


def add_reward_head(policy: LanguageModel, name: str | None, num_labels: int = 1) -> None:
    """A head [num_labels, width] on the policy's own states: that of the reward model or classifier
    in the folder `name` where it holds one, else 0, and so is every first reward. The output head
    is not trained."""
    causal_lm = policy.causal_lm()
    classifier_class(causal_lm)
    embeddings = causal_lm.get_input_embeddings().weight
    width, device = embeddings.shape[1], embeddings.device
    policy.value_head = nn.Linear(width, num_labels, bias=False, device=device)
    with torch.no_grad():
        saved = saved_head(Path(name)) if name is not None else None
        if saved is None and _is_classifier(causal_lm.config):
            raise ValueError(
                f"model.name: {name} is a sequence classifier, but no folder with a "
                f"model.safetensors that holds {SAVED}: copy it here, in one file"
            )
        if saved is not None and len(saved) != num_labels:
            wanted = "a reward model has one" if num_labels == 1 else f"this run has {num_labels}"
            raise ValueError(f"model.name: {name} has {len(saved)} labels; {wanted}")
        policy.value_head.weight.copy_(torch.zeros(()) if saved is None else saved)
    output = causal_lm.get_output_embeddings().weight
    if output is not embeddings:
        output.requires_grad_(False)


def classifier_class(causal_lm: Any) -> str:
    """The name of the architecture's sequence classifier; ValueError where it has none."""
    import transformers

    own = type(causal_lm).__name__
    name = own.replace("ForCausalLM", "ForSequenceClassification")
    if name == own or not hasattr(transformers, name):
        raise ValueError(
            f"transformers has no sequence classifier for {own}: it can be no reward model"
        )
    return name


def _is_classifier(config: Any) -> bool:
    return any(kind.endswith("ForSequenceClassification") for kind in config.architectures or [])


def holds_classifier(folder: Path) -> bool:
    """Whether a folder is that of a reward model or classifier, or of an adapter of one. Such a
    folder has no output head of its own, yet loads as a model that writes where heads are tied."""
    adapter, config = folder / "adapter_config.json", folder / "config.json"
    if adapter.is_file():
        return json.loads(adapter.read_text()).get("task_type") == "SEQ_CLS"
    known = json.loads(config.read_text()) if config.is_file() else {}
    kinds = known.get("architectures") or []
    return any(kind.endswith("ForSequenceClassification") for kind in kinds)


def saved_head(folder: Path) -> Tensor | None:
    places = {"model.safetensors": SAVED, "adapter_model.safetensors": ADAPTER_PREFIX + SAVED}
    for name, key in places.items():
        if (folder / name).is_file():
            with safe_open(folder / name, "pt") as file:
                return file.get_tensor(key) if key in file.keys() else None  # noqa: SIM118
    return None


def save_classifier(
    folder: Path, causal_lm: Any, weights: dict[str, Tensor], labels: dict[str, Any] | None
) -> None:
    """config.json and model.safetensors of a sequence classifier from a policy's whole weights."""
    config = copy.deepcopy(causal_lm.config)
    config.architectures = [classifier_class(causal_lm)]
    config.num_labels = 1 if labels is None else len(labels["labels"])
    if labels is not None:
        config.id2label = dict(enumerate(labels["labels"]))
        config.label2id = {label: k for k, label in config.id2label.items()}
        kind = "multi" if labels["multi_label"] else "single"
        config.problem_type = f"{kind}_label_classification"
    if config.pad_token_id in _ends(config):
        config.pad_token_id = None
    config.save_pretrained(folder)
    tensors = {
        SAVED if name == HEAD else name.removeprefix("model."): x.contiguous()
        for name, x in weights.items()
    }
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def save_separator(folder: Path, separator: str) -> None:
    """Marks a folder as that of a process reward model."""
    (folder / STEPS_FILE).write_text(json.dumps({"step_separator": separator}))


def saved_separator(folder: Path) -> str | None:
    """What stands between two steps, of a process reward model; None for any other folder."""
    file = folder / STEPS_FILE
    return str(json.loads(file.read_text())["step_separator"]) if file.is_file() else None


def save_labels(folder: Path, labels: dict[str, Any]) -> None:
    """Marks a folder as that of a classification: labels in their order, multi_label, and where
    there is no head the token of each, and those before."""
    (folder / LABELS_FILE).write_text(json.dumps(labels))


def saved_labels(folder: Path) -> dict[str, Any] | None:
    """What save_labels() wrote; of a classifier from elsewhere its labels; None for any other."""
    file, config = folder / LABELS_FILE, folder / "config.json"
    if file.is_file():
        return dict(json.loads(file.read_text()))
    known = json.loads(config.read_text()) if config.is_file() else {}
    kinds, names = known.get("architectures") or [], known.get("id2label") or {}
    if len(names) < 2 or not any(kind.endswith("ForSequenceClassification") for kind in kinds):
        return None
    multi = known.get("problem_type") == "multi_label_classification"
    return {"labels": [names[k] for k in sorted(names, key=int)], "multi_label": multi}


def _ends(config: Any) -> list[int]:
    eos = config.eos_token_id
    return eos if isinstance(eos, list) else [eos]


def load_named(path: Path) -> dict[str, Tensor]:
    """A saved model's tensors under the policy's names, the head of a classifier too."""
    found = load_file(path / "model.safetensors")
    return {HEAD if name == SAVED else f"model.{name}": x for name, x in found.items()}


def load_classifier(folder: str, dtype: torch.dtype) -> tuple[Any, list[str]]:
    """The classifier in a folder, an adapter merged into its base model, and the names of weights
    that the folder lacks. Neither pickled weights nor code are loaded."""
    from transformers import AutoModelForSequenceClassification

    keys: dict[str, Any] = {
        "dtype": dtype, "use_safetensors": True, "trust_remote_code": False,
        "local_files_only": True, "output_loading_info": True,
    }  # fmt: skip
    adapter = Path(folder) / "adapter_config.json"
    if not adapter.is_file():
        model, info = AutoModelForSequenceClassification.from_pretrained(folder, **keys)
        return model, sorted(info["missing_keys"])
    from peft import PeftModel

    base = json.loads(adapter.read_text())["base_model_name_or_path"]
    model, info = AutoModelForSequenceClassification.from_pretrained(base, num_labels=1, **keys)
    if saved_head(Path(folder)) is None:
        return model, [SAVED]
    model = PeftModel.from_pretrained(model, folder)
    lacking = {*adapter_lacks(model, Path(folder)), *info["missing_keys"]} - {SAVED}
    return model.merge_and_unload(), sorted(lacking)
