"""ReFT: edits of hidden states at positions of the prompt; the model itself stays as it is."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from posttrain.config.base import AlsoCalled
from posttrain.model.adapters.base import Adapter, AdapterConfig
from posttrain.model.reft.positions import parse_positions

Component = Literal[
    "block_output",
    "block_input",
    "mlp_output",
    "attention_output",
    "query",
    "key",
    "value",
]


class ReftConfig(AdapterConfig):
    """Representation finetuning (Wu, Arora et al. 2024, arXiv 2404.03592).

    With h a state, R with orthonormal rows: loreft h + R^T(W h + b - R h), eq. 2; direft
    h + W2^T(W1 h + b), eq. 3; noreft h + W2^T(W1 h + b - W2 h); consreft h + R^T(b - R h); lobireft
    h + R^T b; direft_orthogonal h + R^T(W h + b), which pyreft calls DiReFT and the paper does not.
    """

    type: Literal["loreft", "direft", "noreft", "consreft", "lobireft", "direft_orthogonal"] = (
        "loreft"
    )
    """The form of the edit."""
    rank: Annotated[int, AlsoCalled("low_rank_dimension")] = Field(8, ge=1)
    """Rank r of each edit."""
    positions: Annotated[str, AlsoCalled("position")] = "f7+l7"
    """Edited positions: the first and last tokens of the prompt, such as f7+l7, f1 or l1. Of a
    reward model or classifier, those of the whole text. A prompt shorter than both together is
    divided between them in proportion, the share of the last ones rounded up, each at least one."""
    layers: Literal["all"] | list[int] = "all"
    """Decoder layers with an edit, from 0, or all."""
    component: Component = "block_output"
    """What is edited in these layers."""
    share_weights: bool = True
    """Whether the first and the last tokens share an edit; else each layer has two."""
    activation: Annotated[
        Literal["linear", "relu", "gelu", "silu", "tanh"], AlsoCalled("act_fn")
    ] = "linear"
    """Function applied to W h + b."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """Dropout on the change that an edit makes."""
    identity_start: bool = True
    """Whether edits begin by changing nothing, if their form can. false: a random start, as in
    pyreft."""

    @field_validator("positions")
    @classmethod
    def _readable(cls, text: str) -> str:
        return str(parse_positions(text))

    @field_validator("layers", mode="before")
    @classmethod
    def _layers(cls, layers: Any) -> Any:
        if layers == "all":
            return layers
        texts = [str(layer) for layer in layers] if isinstance(layers, list) else []
        if not texts or not all(text.isdecimal() for text in texts):
            raise ValueError(f"layers: expected all, or a list such as [3, 9], got {layers!r}")
        numbers = sorted(map(int, texts))
        if len(set(numbers)) < len(numbers):
            raise ValueError(f"layers: expected different layers from 0, got {numbers}")
        return numbers


def add(model: Any, section: ReftConfig, seed: int, whole: list[str] | None) -> Any:
    """Return the model, frozen, with new edits that are drawn with the seed."""
    # imported here since it imports torch, and settings are read without it
    from posttrain.model.reft.attach import add_edits
    from posttrain.model.reft.forms import FORMS

    if whole:
        raise ValueError(
            f"model.resize_embeddings: new rows would have to be trained, and {section.type} "
            "trains edits alone: use model.adapter: lora, or a tokenizer that fits the model"
        )
    if section.activation != "linear" and not FORMS[section.type].learned:
        raise ValueError(
            f"model.adapter.activation: {section.type} computes no W h to apply it to: leave it out"
        )
    return add_edits(model, section, seed)


ADAPTER = Adapter(ReftConfig, add)
