"""Which models are language models of text that write from left to right, by their config.json."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from posttrain.model.folder import base_model, holds_classifier, not_found
from posttrain.model.integrity import check_folder, in_one_line

UNLIMITED = 2**31
POSITIONS = ("max_position_embeddings", "max_seq_len")
"""Names in configs of the maximum sequence length, apart from those that transformers maps."""


def read_config(name: str) -> Any:
    """Return the config of a causal language model of text, or of an adapter's base.

    Raises ValueError if it is another model's.
    """
    config = build_config(name)
    check_causal(base_model(name), config)
    return config


def build_config(name: str) -> Any:
    """Return the config of any model, or of an adapter's base.

    Without the attention that it may record, which is a matter of where the model was saved.
    """
    from transformers import AutoConfig

    base = base_model(name)
    check_folder(base)
    with in_one_line(base, "config.json describes no model that transformers can build"):
        try:
            config = AutoConfig.from_pretrained(base, trust_remote_code=False)
        except OSError as error:
            raise ValueError(not_found(base, name)) from error
    config._attn_implementation = None
    return config


def check_causal(name: str, config: Any) -> None:
    """Raise ValueError for encoder-decoders, and for models of more than text or of no text.

    Of some models of images and text, transformers reads the text part as a model (Llama 4's).
    """
    from transformers.models.auto import modeling_auto

    causal: Any = modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING
    kind = (config.architectures or [config.model_type])[0]
    if config.is_encoder_decoder:
        raise ValueError(
            f"model.name: {name} is an encoder-decoder ({kind}): only models that write from left "
            "to right without an encoder can be trained here"
        )
    parts = config.get_text_config(decoder=True) is not config
    known = type(config) in causal
    if known and not (parts and causal[type(config)].config_class is type(config)):
        return
    if parts:
        raise ValueError(
            f"model.name: {name} is a model of more than text ({kind}), which cannot be trained "
            "here: save its text part as a model of its own; docs/architectures.md says how"
        )
    raise ValueError(
        f"model.name: {name} is no language model that writes text ({kind}): transformers has no "
        f"causal language model of the type {config.model_type}"
    )


def refuse_classifier(name: str) -> None:
    """Raise ValueError for a classifier or reward model, or an adapter of one, that is to write.

    Its output head is gone or, if it is the embedding, was not trained."""
    if holds_classifier(Path(name)):
        raise ValueError(
            f"model.name: {name} is a sequence classifier or reward model, which writes no text: "
            "start from the language model that it was trained from"
        )


def max_positions(name: str) -> int:
    """Return the maximum sequence length of a model in tokens."""
    return positions(read_config(name))


def positions(config: Any) -> int:
    """Return the maximum sequence length by a config, UNLIMITED if it has none."""
    text = config.get_text_config(decoder=True)
    values = [getattr(text, key, None) for key in POSITIONS]
    return min((n for n in values if type(n) is int and n > 0), default=UNLIMITED)
