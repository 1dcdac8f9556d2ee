"""LoRA and its variants, by PEFT."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from posttrain.config.base import AlsoCalled
from posttrain.model.adapters.base import Adapter, AdapterConfig

MUTATING = ("pissa", "olora")
"""Types that take the adapter's start out of the base's weights."""
NEED_DATA = {
    "eva": "needs passes over data before training",
    "corda": "needs passes over data before training",
    "lora_ga": "needs gradients of data before training",
    "loftq": "is made for a quantised base",
}


SAME_NAME = (
    "r",
    "target_modules",
    "exclude_modules",
    "layers_to_transform",
    "rank_pattern",
    "alpha_pattern",
    "bias",
)
"""Keys that PEFT has under the same name."""


class LoraConfig(AdapterConfig):
    """A low-rank adapter (Hu et al. 2022, arXiv 2106.09685), by PEFT.

    lora scales the update by alpha / r; rslora by alpha / sqrt(r) (Kalajdzievski 2023, arXiv
    2312.03732); dora trains the weight's magnitudes too (Liu et al. 2024, arXiv 2402.09353); pissa
    starts from the largest singular values of each weight (Meng et al. 2024, arXiv 2404.02948) and
    olora from its QR decomposition (Buyukakyuz 2024, arXiv 2406.01775).
    """

    type: Annotated[
        Literal["lora", "rslora", "dora", "pissa", "olora"],
        AlsoCalled(use_dora="model.adapter.type: dora", use_rslora="model.adapter.type: rslora"),
    ] = "lora"
    """lora, rslora, dora, pissa or olora."""
    r: Annotated[int, AlsoCalled("lora_r", "lora_rank")] = Field(16, ge=1)
    """Rank of the update."""
    alpha: Annotated[float, AlsoCalled("lora_alpha")] = Field(32, gt=0)
    """The update is scaled by alpha / r, for rslora by alpha / sqrt(r)."""
    dropout: Annotated[float, AlsoCalled("lora_dropout")] = Field(0.0, ge=0, lt=1)
    """Dropout on the adapter's input."""
    target_modules: Annotated[str | list[str], AlsoCalled("lora_target_modules", "lora_target")] = (
        "all-linear"
    )
    """Names of the layers to adapt, a regular expression for their full names, or all-linear: all
    except the output head."""
    exclude_modules: str | list[str] | None = None
    """Names of layers that are not adapted, or a regular expression for their full names."""
    layers_to_transform: list[int] | None = None
    """Decoder layers that are adapted, from 0; by default all."""
    rank_pattern: dict[str, Annotated[int, Field(ge=1)]] = Field(default_factory=dict)
    """Other ranks by layer: a name, or a regular expression for its end, such as q_proj: 32."""
    alpha_pattern: dict[str, Annotated[float, Field(gt=0)]] = Field(default_factory=dict)
    """Other values of alpha by layer."""
    modules_to_save: Annotated[
        list[str] | None, AlsoCalled("lora_modules_to_save", "additional_target")
    ] = None
    """Names of layers that are trained and saved whole, beside the adapter."""
    bias: Literal["none", "all", "lora_only"] = "none"
    """Which of the model's own biases are trained too: none, all, or those of adapted layers."""
    init_lora_weights: Literal["default", "gaussian", "orthogonal"] = "default"
    """How A is drawn: default, uniform as in a linear layer; gaussian; orthogonal, with B A = 0 up
    to rounding and r even. B is 0 except with orthogonal."""
    lr_ratio: Annotated[float, AlsoCalled("loraplus_lr_ratio")] = Field(1.0, gt=0)
    """Learning rate of B divided by that of A, which is the trainer's (LoRA+, Hayou et al. 2024,
    arXiv 2402.12354, who suggest 16)."""

    @field_validator("init_lora_weights", mode="before")
    @classmethod
    def _start(cls, value: Any) -> Any:
        name = str(value)
        if name.startswith(MUTATING):
            kind = "pissa" if name.startswith("pissa") else "olora"
            raise ValueError(f"model.adapter.init_lora_weights: write type: {kind}")
        if name in NEED_DATA:
            raise ValueError(
                f"model.adapter.init_lora_weights: {name} {NEED_DATA[name]}, which is not offered"
            )
        if value is False:
            raise ValueError(
                "model.adapter.init_lora_weights: false would begin with a random change of the "
                "model: leave it out"
            )
        return "default" if value is True else value

    @model_validator(mode="after")
    def _together(self) -> LoraConfig:
        start = self.init_lora_weights
        if self.type in MUTATING and start != "default":
            raise ValueError(f"model.adapter.init_lora_weights: {self.type} is a start of its own")
        ranks = [self.r, *self.rank_pattern.values()]
        if start == "orthogonal" and any(rank % 2 for rank in ranks):
            raise ValueError("model.adapter.r: init_lora_weights: orthogonal needs an even rank")
        return self


def add(model: Any, section: LoraConfig, seed: int, whole: list[str] | None) -> Any:
    """Return the model with a new LoRA, drawn with the seed; torch's own state is kept.

    The layers named in `whole` are trained and saved as they are, not by a low rank.
    """
    # imported here since they import torch, and settings are read without it
    from posttrain.model.adapters.creation import add_peft, check_start, logits_of, settle_layers
    from posttrain.model.adapters.starts import check_base, keep_start
    from posttrain.model.quirks import are_tied

    saved = sorted({*(section.modules_to_save or []), *(whole or [])})
    keys: dict[str, Any] = {name: getattr(section, name) for name in SAME_NAME}
    keys |= {
        "lora_alpha": section.alpha,
        "lora_dropout": section.dropout,
        "use_rslora": section.type == "rslora",
        "use_dora": section.type == "dora",
        "init_lora_weights": _start(section),
        "modules_to_save": saved or None,
        "ensure_weight_tying": bool(saved) and are_tied(model),
    }
    keys = settle_layers(model, keys)
    before = None
    if section.type in MUTATING:
        check_base(model, section.type)
        before = logits_of(model)
    adapted = add_peft(model, "lora", keys, seed)
    _check_ranks(adapted)
    if section.type in MUTATING:
        keep_start(adapted, section.type)
        check_start(adapted, section.type, before, changes_base=True)
    return adapted


def _start(section: LoraConfig) -> bool | str:
    if section.type in MUTATING:
        return section.type
    return section.init_lora_weights == "default" or section.init_lora_weights


def _check_ranks(model: Any) -> None:
    """Raise ValueError for a rank above the width of every layer that it is used in."""
    widths: dict[int, int] = {}
    for module in model.modules():
        if rank := getattr(module, "r", {}).get("default") if hasattr(module, "lora_A") else None:
            narrow = min(module.in_features, module.out_features)
            widths[rank] = max(widths.get(rank, 0), narrow)
    for rank, width in widths.items():
        if rank > width:
            raise ValueError(
                f"model.adapter.r: rank {rank} is above the width of the adapted layers, {width}: "
                "the update cannot have it"
            )


ADAPTER = Adapter(LoraConfig, add)
