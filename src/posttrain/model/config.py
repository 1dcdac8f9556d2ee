"""The model and reference sections."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from posttrain.config.base import AlsoCalled, Free, StrictConfig
from posttrain.config.paths import LocalPath

HeadKind = Literal["value", "score", "labels", "label_tokens"]
"""An additional head. value: V(s) of every state, for `ppo`. score: one number for a text or a step
of it. labels: one logit per label. label_tokens: no layer of its own, but the output head's logits
of the labels' tokens."""

HEAD_PREFIXES = ("head.", "value_network.")
"""Prefixes of the names of tensors that are not part of the language model itself."""


class ScratchConfig(StrictConfig):
    """A small architecture with random weights and a tokenizer trained on the run's data."""

    architecture: Literal["qwen2", "llama"] = "qwen2"
    """The transformers architecture."""
    hidden_size: int = Field(128, ge=8)
    """Width of the residual stream."""
    intermediate_size: int = Field(384, ge=8)
    """Width of the SwiGLU layers."""
    num_layers: int = Field(4, ge=1)
    """Number of decoder layers."""
    num_heads: int = Field(4, ge=1)
    """Number of query heads; must divide hidden_size."""
    num_kv_heads: int = Field(1, ge=1)
    """Number of key and value heads; must divide num_heads."""
    vocab_size: int = Field(1024, ge=300)
    """Upper bound of the vocabulary; a tokenizer trained on little text has fewer tokens."""
    max_length: int = Field(1024, ge=8)
    """Maximum sequence length in tokens."""
    tie_embeddings: bool = True
    """Whether the output head is the embedding matrix."""
    initializer_range: float = Field(0.02, gt=0)
    """Standard deviation of the random weights."""


class LoraConfig(StrictConfig):
    """A low-rank adapter (Hu et al. 2022, arXiv 2106.09685), by PEFT."""

    r: Annotated[int, AlsoCalled("lora_r", "lora_rank")] = Field(16, ge=1)
    """Rank of the update."""
    alpha: Annotated[float, AlsoCalled("lora_alpha")] = Field(32, gt=0)
    """The update is scaled by alpha / r."""
    dropout: Annotated[float, AlsoCalled("lora_dropout")] = Field(0.0, ge=0, lt=1)
    """Dropout on the adapter's input."""
    target_modules: Annotated[str | list[str], AlsoCalled("lora_target_modules", "lora_target")] = (
        "all-linear"
    )
    """Names of the layers to adapt, or all-linear: all except the output head."""


class ModelConfig(StrictConfig):
    """The model to train, and its initial weights."""

    name: Annotated[
        LocalPath | None,
        AlsoCalled("model_name_or_path", "base_model", "pretrained_model_name_or_path"),
    ] = None
    """A hub name, a model or adapter folder, or a run directory."""
    scratch: ScratchConfig | None = None
    """Random weights instead of `name`."""
    device: Annotated[Literal["auto", "cpu", "cuda"], Free()] = "auto"
    """auto: a CUDA device if torch sees one, else the CPU."""
    dtype: Annotated[
        Literal["auto", "float32", "bfloat16"],
        AlsoCalled(
            "torch_dtype",
            bf16="model.dtype: bfloat16",
            fp16="model.dtype: bfloat16 (fp16 would need loss scaling)",
        ),
    ] = "auto"
    """Compute dtype. auto: bfloat16 if the device multiplies it natively. Trainable parameters and
    their optimiser state are always fp32."""
    deterministic: Annotated[bool, AlsoCalled("full_determinism")] = False
    """On a GPU, use only operators that give the same bits every time; slower. The promise is
    torch's, for one GPU model and one version of torch and CUDA. On a CPU it changes nothing: fp32
    runs there have the same bits already."""
    use_lora: Annotated[bool, AlsoCalled("use_peft")] = False
    """Train a LoRA adapter on the frozen model."""
    lora: LoraConfig = LoraConfig()
    """The adapter's settings; read only with use_lora."""
    resize_embeddings: Annotated[
        bool,
        AlsoCalled(
            "resize_vocab",
            resize_token_embeddings_to_32x="model.resize_multiple: 32 and resize_embeddings: true",
        ),
    ] = False
    """Give the embedding and the output head a row for each of the tokenizer's tokens. With
    use_lora, both are then trained and saved whole, beside the adapter."""
    resize_multiple: Annotated[int | None, AlsoCalled("pad_to_multiple_of")] = Field(None, ge=1)
    """With resize_embeddings, round the number of rows up to a multiple of this."""
    dropout: bool | None = None
    """Whether the dropout, layer drop and router jitter in the model's config, and lora.dropout,
    apply while training. By default they do, as in transformers, except in preference methods and
    RL, which compare the policy's log-probs with those of a reference or of the sampler."""
    gradient_checkpointing: bool = False
    """Keep only each layer's input and recompute the rest in the backward pass."""

    @model_validator(mode="after")
    def _one_start(self) -> ModelConfig:
        if (self.name is None) == (self.scratch is None):
            raise ValueError("give either model.name or model.scratch")
        if "lora" in self.model_fields_set and not self.use_lora:
            raise ValueError("model.lora is set but model.use_lora is false")
        if self.resize_multiple is not None and not self.resize_embeddings:
            raise ValueError("model.resize_multiple is set but model.resize_embeddings is false")
        if self.scratch is not None and self.resize_embeddings:
            raise ValueError("model.resize_embeddings needs a pre-trained model, not model.scratch")
        if self.scratch is not None and self.use_lora:
            raise ValueError("model.use_lora needs a pre-trained model, not model.scratch")
        return self


class ReferenceConfig(StrictConfig):
    """The reference, if it is not the policy at the start of the run."""

    name: LocalPath | None = None
    """Another model with the policy's tokenizer: a hub name, a folder, or a run directory."""
    sync_steps: int | None = Field(None, ge=1)
    """Steps between two moves of the reference towards the policy (Gorbatovski et al. 2024, arXiv
    2404.09656): ref <- (1 - sync_alpha) ref + sync_alpha policy."""
    sync_alpha: float = Field(0.6, gt=0, le=1)
    """How far the reference moves towards the policy each time; 1 makes them equal."""

    @model_validator(mode="after")
    def _one_kind(self) -> ReferenceConfig:
        if (self.name is None) == (self.sync_steps is None):
            raise ValueError(
                "reference: give either name (another model) or sync_steps (the initial policy, "
                "moved towards the policy); without the section it is the initial policy"
            )
        if self.sync_steps is None and "sync_alpha" in self.model_fields_set:
            raise ValueError("reference.sync_alpha needs reference.sync_steps")
        return self
