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
