"""Sequence classifiers: transformers' own and, for architectures without one, those made here.

Made as transformers makes its own, from its generic class, under the name that it would have. Only
posttrain knows it: another program reads the backbone with AutoModel, and `score.weight` beside it.
"""

from __future__ import annotations

import inspect
from typing import Any


def has_own_classifier(config: Any) -> bool:
    """Whether transformers itself has a sequence classifier of a config's architecture."""
    from transformers.models.auto import modeling_auto

    return config.model_type in modeling_auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES


def classifier_class(config: Any) -> Any:
    """Return the class of the sequence classifier of a config's architecture.

    Raises ValueError if there is none and none can be made.
    """
    import transformers
    from transformers.modeling_layers import GenericForSequenceClassification
    from transformers.models.auto import modeling_auto

    known: Any = modeling_auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING
    if type(config) in known:
        return known[type(config)]
    causal: Any = modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    base = _base_of(causal)
    if base is None:
        raise ValueError(
            f"transformers has no sequence classifier for {causal.__name__}, and none can be made: "
            "it cannot become a reward model"
        )
    stem = causal.__name__.removesuffix("ForCausalLM").removesuffix("LMHeadModel")
    made = type(f"{stem}ForSequenceClassification", (GenericForSequenceClassification, base), {})
    made.base_model_prefix = base.base_model_prefix or "model"  # type: ignore[attr-defined]
    made.config_class = type(config)  # type: ignore[attr-defined]  # not that of a larger model
    auto: Any = transformers.AutoModelForSequenceClassification
    auto.register(type(config), made, exist_ok=True)
    return made


def describe_classifier(config: Any, labels: dict[str, Any] | None) -> None:
    """Make a model's config that of a classifier with these labels, as `save.save_labels` has them.

    None is a reward model, which has one score. The score is read at the last token that is not the
    pad token, so that a pad token that also ends texts is left out.
    """
    config.num_labels = 1 if labels is None else len(labels["labels"])
    if labels is not None:
        config.id2label = dict(enumerate(labels["labels"]))
        config.label2id = {label: k for k, label in config.id2label.items()}
        kind = "multi" if labels["multi_label"] else "single"
        config.problem_type = f"{kind}_label_classification"
    ends = config.eos_token_id
    if config.pad_token_id in (ends if isinstance(ends, list) else [ends]):
        config.pad_token_id = None


def _base_of(causal: Any) -> Any:
    """Return the architecture's base class, or None if a generic classifier cannot call it."""
    from transformers import PreTrainedModel
    from transformers.models.auto import modeling_auto

    backbones: Any = modeling_auto.MODEL_MAPPING
    if causal.config_class not in backbones:
        return None
    taken = inspect.signature(backbones[causal.config_class].forward).parameters
    if not {"attention_mask", "position_ids", "past_key_values", "use_cache"} <= set(taken):
        return None
    kinds = [k for k in causal.__mro__[1:] if issubclass(k, PreTrainedModel)]
    return kinds[0] if kinds and kinds[0] is not PreTrainedModel else None
