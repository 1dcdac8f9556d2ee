"""The model and reference sections."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from posttrain.config.base import AlsoCalled, Free, StrictConfig
from posttrain.config.paths import LocalPath
from posttrain.model.adapters.base import AdapterSection, NoAdapter
from posttrain.model.adapters.lora import LoraConfig

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


class QuantizationConfig(StrictConfig):
    """How frozen weights are stored, by bitsandbytes; needs the extra `quantization`."""

    type: Annotated[Literal["none", "nf4", "fp4", "int8"], AlsoCalled("bnb_4bit_quant_type")] = (
        "nf4"
    )
    """nf4, fp4: 4 bits and a scale for every 64 weights (Dettmers et al. 2023, arXiv 2305.14314).
    int8: 8 bits and a scale for every row. none: as in the model's files, even if the adapter in
    `model.name` was trained on quantised weights."""
    double_quant: Annotated[bool | None, AlsoCalled("bnb_4bit_use_double_quant")] = None
    """Store the scales of nf4 and fp4 in 8 bits, by default true: 4.13 instead of 4.5 bits for
    each weight."""

    @model_validator(mode="before")
    @classmethod
    def _by_name(cls, tree: Any) -> Any:
        # true and 4 are no sections either, but a type that is not known names those that are
        return {"type": tree} if isinstance(tree, str | bool | int | float) else tree

    @model_validator(mode="after")
    def _scales(self) -> QuantizationConfig:
        if self.type in ("nf4", "fp4"):
            self.double_quant = self.double_quant is not False
        elif self.double_quant is not None:
            raise ValueError(f"model.quantization.double_quant is for nf4 and fp4, not {self.type}")
        return self


class ModelConfig(StrictConfig):
    """The model to train, and its initial weights."""

    name: Annotated[
        LocalPath | None,
        AlsoCalled("model_name_or_path", "base_model", "pretrained_model_name_or_path"),
    ] = None
    """A hub name, a model or adapter folder, a GGUF file, or a run directory."""
    resume_from: LocalPath | None = None
    """A run, checkpoint or adapter whose weights the run starts from instead of `name`, which may
    stay. The optimiser and the schedule are new: trainer.resume_from_checkpoint continues a run."""
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
    quantization: Annotated[
        QuantizationConfig | None,
        AlsoCalled(
            "quantization_bit",
            load_in_4bit="model.quantization: nf4",
            load_in_8bit="model.quantization: int8",
        ),
    ] = None
    """Store the linear layers of the frozen model in 4 or 8 bits: a name, such as nf4, or a
    section. By default as the adapter in `name` was trained, else as in the model's files."""
    deterministic: Annotated[bool, AlsoCalled("full_determinism")] = False
    """On a GPU, use only operators that give the same bits every time; slower. The promise is
    torch's, for one GPU model and one version of torch and CUDA. On a CPU it changes nothing: fp32
    runs there have the same bits already."""
    adapter: AdapterSection = Field(None, validate_default=False)  # type: ignore[assignment]
    """What is trained on the frozen model, chosen by `type` (lora if there is none); none: all
    weights are trained. By default a LoRA on a pre-trained model and none on random weights. An
    adapter that `name` holds is trained further."""
    use_lora: Annotated[bool | None, AlsoCalled("use_peft")] = None
    """Short for adapter: lora, or with false for adapter: none."""
    lora: LoraConfig | None = None
    """Short for the keys of adapter, of the type lora."""
    resize_embeddings: Annotated[
        bool,
        AlsoCalled(
            "resize_vocab",
            resize_token_embeddings_to_32x="model.resize_multiple: 32 and resize_embeddings: true",
        ),
    ] = False
    """Give the embedding and the output head a row for each of the tokenizer's tokens. With
    an adapter, both are then trained and saved whole, beside the adapter."""
    resize_multiple: Annotated[int | None, AlsoCalled("pad_to_multiple_of")] = Field(None, ge=1)
    """With resize_embeddings, round the number of rows up to a multiple of this."""
    dropout: bool | None = None
    """Whether the dropout, layer drop and router jitter in the model's config, and adapter.dropout,
    apply while training. By default they do, as in transformers, except in preference methods and
    RL, which compare the policy's log-probs with those of a reference or of the sampler."""
    gradient_checkpointing: bool = False
    """Keep only each layer's input and recompute the rest in the backward pass."""

    @property
    def short_form(self) -> str | None:
        """The short form that the adapter was given in, lora or use_lora; None for neither."""
        if "adapter" in self.model_fields_set or not self.trains_adapter:
            return None
        return next((key for key in ("lora", "use_lora") if key in self.model_fields_set), None)

    @field_validator("adapter", mode="before")
    @classmethod
    def _lora_by_default(cls, section: Any) -> Any:
        return {"type": "lora", **section} if isinstance(section, dict) else section

    @model_validator(mode="after")
    def _one_start(self) -> ModelConfig:
        if self.resume_from is not None:
            self.name, self.resume_from = self.resume_from, None
            self.model_fields_set.discard("resume_from")
        if (self.name is None) == (self.scratch is None):
            raise ValueError("give either model.name or model.scratch")
        if self.resize_multiple is not None and not self.resize_embeddings:
            raise ValueError("model.resize_multiple is set but model.resize_embeddings is false")
        if self.scratch is not None and self.resize_embeddings:
            raise ValueError("model.resize_embeddings needs a pre-trained model, not model.scratch")
        if self.scratch is not None and self.quantization is not None:
            raise ValueError("model.quantization needs a pre-trained model, not model.scratch")
        return self

    @model_validator(mode="after")
    def _one_adapter(self) -> ModelConfig:
        """Put what the short forms say, or the default, into `adapter`."""
        use, lora, section = self.use_lora, self.lora, self.adapter
        if lora is not None and use is False:
            raise ValueError("model.lora is set but model.use_lora is false")
        if section is not None and lora is not None:
            raise ValueError("give either model.adapter or model.lora, not both")
        if section is not None and use is False and section.type != "none":
            raise ValueError(
                f"model.use_lora is false, but model.adapter is {section.type}: leave "
                "model.use_lora out, or set it to null"
            )
        if section is not None and use and section.type == "none":
            raise ValueError(
                "model.use_lora is true, but model.adapter is none: remove one of the two"
            )
        if section is None:
            wanted = use or lora is not None or (use is None and self.scratch is None)
            section = (lora or LoraConfig()) if wanted else NoAdapter()
        if self.scratch is not None and section.type != "none":
            key = "use_lora" if use else "lora" if lora is not None else "adapter"
            raise ValueError(f"model.{key} needs a pre-trained model, not model.scratch")
        written = {name for name in self.model_fields_set if getattr(self, name) is not None}
        self.adapter, self.use_lora, self.lora = section, None, None
        self.model_fields_set.intersection_update(written)  # an assignment counts as written
        return self

    @property
    def trains_adapter(self) -> bool:
        """Whether the model itself is frozen, and an adapter is trained."""
        return self.adapter.type != "none"


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
