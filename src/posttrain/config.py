"""One YAML file is one run: strict schema, dotted overrides, errors that name the fix.

No includes, no interpolation, no dotted class paths. The resolved config is saved in the run
directory and can itself be run.
"""

from __future__ import annotations

import functools
import operator
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import yaml
from pydantic import BaseModel, Discriminator, Field, Tag, ValidationError
from pydantic.functional_validators import field_validator, model_validator

from posttrain.algorithms import ALGORITHMS
from posttrain.algorithms.base import Algorithm, ReferenceConfig, StrictConfig
from posttrain.config_errors import explain
from posttrain.evaluation.gate import GateConfig
from posttrain.recipe import read_yaml, with_overrides
from posttrain.rewards import REWARDS


class ScratchConfig(StrictConfig):
    """A small architecture with random weights and a tokenizer trained on the run's data."""

    architecture: Literal["qwen2", "llama"] = "qwen2"
    hidden_size: int = Field(128, ge=8)
    intermediate_size: int = Field(384, ge=8)
    num_layers: int = Field(4, ge=1)
    num_heads: int = Field(4, ge=1)
    num_kv_heads: int = Field(1, ge=1)
    vocab_size: int = Field(1024, ge=300)
    """An upper bound: a tokenizer trained on little text ends up smaller."""
    max_length: int = Field(1024, ge=8)
    """Longest sequence, in tokens."""
    tie_embeddings: bool = True
    initializer_range: float = Field(0.02, gt=0)
    """Standard deviation of the random weights."""


class LoraConfig(StrictConfig):
    r: int = Field(16, ge=1)
    alpha: float = Field(32, gt=0)
    dropout: float = Field(0.0, ge=0, lt=1)
    target_modules: str | list[str] = "all-linear"


class ModelConfig(StrictConfig):
    name: str | None = None
    """A hub name, a model or adapter folder, or a run directory."""
    scratch: ScratchConfig | None = None
    """Random weights instead of `name`."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Compute dtype; trainable parameters and their optimiser state are fp32 whatever it is."""
    use_lora: bool = False
    lora: LoraConfig = LoraConfig()
    gradient_checkpointing: bool = False

    @model_validator(mode="after")
    def _one_start(self) -> ModelConfig:
        if (self.name is None) == (self.scratch is None):
            raise ValueError("give either model.name or model.scratch")
        if "lora" in self.model_fields_set and not self.use_lora:
            raise ValueError("model.lora is set but model.use_lora is false")
        if self.scratch is not None and self.use_lora:
            raise ValueError("model.use_lora needs a pre-trained model, not model.scratch")
        return self


class DataConfig(StrictConfig):
    name: str | None = None
    """A data set by name (see `posttrain data list`)."""
    path: str | None = None
    """A file (.jsonl, .json, .parquet, .csv, .tsv, .txt, each also .gz), a folder, or a hub name;
    with `name`, where that data set's own files lie."""
    split: str = "train"
    options: dict[str, Any] = Field(default_factory=dict)
    """Options of a named data set."""
    columns: dict[str, str] = Field(default_factory=dict)
    """Our column -> the file's column, for example {prompt: question, completion: answer}."""
    prompt_template: str | None = None
    """A name (see `posttrain data templates`) or a text with {columns}: becomes the prompt."""
    template: Literal["auto", "chat", "plain"] = "auto"
    """chat: the tokenizer's chat template; plain: the bare text; auto: chat where there is one."""
    system_prompt: str | None = None
    max_samples: int | None = Field(None, ge=1)
    weight: float = Field(1.0, gt=0)
    """In a mixture: how many times each row is seen per epoch (0.5: half of the rows)."""

    @model_validator(mode="after")
    def _some_source(self) -> DataConfig:
        if self.name is None and self.path is None:
            raise ValueError("give data.name or data.path")
        if self.options and self.name is None:
            raise ValueError("data.options belong to a named data set (data.name)")
        return self


# one section or a list of them, told apart by form so that errors speak of the one that was meant
Mixture = Annotated[
    Annotated[DataConfig, Tag("DataConfig")] | Annotated[list[DataConfig], Tag("list[DataConfig]")],
    Discriminator(lambda data: "list[DataConfig]" if isinstance(data, list) else "DataConfig"),
]


class LengthConfig(StrictConfig):
    max_length: int | None = Field(None, ge=2)
    """Longest sequence in tokens; by default what the model can take."""
    on_overlong: Literal["error", "drop", "truncate", "split"] = "error"
    """truncate keeps the first max_length tokens; split cuts a text into several rows."""


# what one engine alone reads
ENGINE_KEYS = {
    "max_num_seqs": ("native", "vllm"),
    "gpu_memory_utilization": ("vllm",),
    **dict.fromkeys(
        ("servers", "server_type", "timeout", "retries", "max_concurrent_requests", "api_key_env",
         "adapter_dir"), ("server",),
    ),
}  # fmt: skip


class RolloutConfig(StrictConfig):
    group_size: int = Field(8, ge=1)
    """Completions per prompt."""
    max_new_tokens: int = Field(512, ge=1)
    temperature: float = Field(1.0, gt=0)
    max_resamples: int = Field(0, ge=0)
    """How often a group without signal (all rewards equal) is replaced by that of another prompt
    before the step goes on (DAPO's dynamic sampling); 0: never."""
    one_step_off: bool = False
    """Sample the completions of the next step while this one trains. They are one step old then:
    needs trainer.sampler_correction. Meant for the engine server; native needs a copy of the
    policy."""
    engine: Literal["native", "server", "vllm"] = "native"
    """native: in this process; server: over HTTP; vllm: vLLM in this process."""
    max_num_seqs: int = Field(256, ge=1)
    """Completions generated at the same time on one rank: bounds the memory of the cache."""
    gpu_memory_utilization: float = Field(0.3, gt=0, le=1)
    """Share of the GPU's memory that vLLM takes, next to the trainer."""
    servers: list[str] = Field(default_factory=list)
    """Base URLs, such as http://127.0.0.1:8000; requests go to each in turn."""
    server_type: Literal["vllm", "sglang"] = "vllm"
    """vllm: any server with vLLM's OpenAI API."""
    timeout: float = Field(600.0, gt=0)
    """Seconds that a server may take over one completion."""
    retries: int = Field(3, ge=0)
    """Further attempts after a connection error, a timeout or a server's own error."""
    max_concurrent_requests: int = Field(64, ge=1)
    """Of one rank, over all servers."""
    api_key_env: str | None = None
    """The environment variable that holds the servers' API key."""
    adapter_dir: str | None = None
    """Where LoRA weights are handed over: a folder that the servers see under the same path. By
    default in the run directory."""

    @field_validator("servers")
    @classmethod
    def _base_urls(cls, servers: list[str]) -> list[str]:
        for url in servers:
            if not re.fullmatch(r"https?://[^/@\s]+(/\S*)?", url):
                raise ValueError(
                    "rollout.servers: write each as http://host:port, without user or key (a key "
                    "goes into the environment variable that rollout.api_key_env names)"
                )
        return [url.rstrip("/").removesuffix("/v1") for url in servers]

    @model_validator(mode="after")
    def _engine_keys(self) -> RolloutConfig:
        for key in sorted(self.model_fields_set):
            engines = ENGINE_KEYS.get(key, (self.engine,))
            if self.engine not in engines:
                raise ValueError(
                    f"rollout.{key} is for rollout.engine: {' or '.join(engines)}, not for "
                    f"{self.engine}"
                )
        if self.one_step_off and self.engine == "vllm":
            raise ValueError(
                "rollout.one_step_off: vLLM in this process can not take new weights while it "
                "generates, nor train beside it: use rollout.engine: server"
            )
        if self.engine == "server" and not self.servers:
            raise ValueError("rollout.engine: server needs rollout.servers, for example "
                             "[http://127.0.0.1:8000]")  # fmt: skip
        return self


class EvalConfig(StrictConfig):
    """Evaluation during training, on rows that are not trained on."""

    data: Mixture | None = None
    """By default the training data's own `test` split; none where there are only tasks."""
    max_samples: int | None = Field(200, ge=1)
    """Drawn by chance, always the same rows."""
    generate: bool = False
    """Also generate greedily and score with the reward: eval_accuracy."""
    max_new_tokens: int = Field(512, ge=1)
    max_num_seqs: int | None = Field(None, ge=1)
    """As rollout.max_num_seqs, for a method without a rollout section."""
    tasks: list[str] = Field(default_factory=list)
    """Of `posttrain eval` besides, TASK or TASK=PATH of its files: eval_TASK/FIGURE."""
    gate: list[GateConfig] = Field(default_factory=list)
    """Fails the run at its end where it has lost more than these let it."""


class DistributedConfig(StrictConfig):
    """Used under torchrun."""

    strategy: Literal["ddp", "fsdp"] = "ddp"
    """ddp: every rank holds the model; fsdp: parameters and optimiser are sharded (FSDP2)."""


def _union(models: list[type[BaseModel]]) -> Any:
    return Annotated[functools.reduce(operator.or_, models), Field(discriminator="type")]


if TYPE_CHECKING:
    AnyTrainerConfig = Any
    AnyRewardConfig = Any
else:  # built from the registries, which a type checker can not follow
    AnyTrainerConfig = _union([algorithm.config for algorithm in ALGORITHMS.values()])
    AnyRewardConfig = _union([config for config, _ in REWARDS.values()])


class Config(StrictConfig):
    model: ModelConfig
    data: Mixture
    length: LengthConfig = LengthConfig()
    trainer: AnyTrainerConfig
    rollout: RolloutConfig | None = None
    reward: AnyRewardConfig | None = None
    reference: ReferenceConfig | None = None
    eval: EvalConfig | None = None
    distributed: DistributedConfig = DistributedConfig()

    @property
    def algorithm(self) -> Algorithm:
        return ALGORITHMS[self.trainer.type]

    @property
    def mixture(self) -> list[DataConfig]:
        return self.data if isinstance(self.data, list) else [self.data]

    @field_validator("data")
    @classmethod
    def _some_data(cls, data: Any) -> Any:
        if data == []:
            raise ValueError("the mixture is empty")
        return data

    @model_validator(mode="after")
    def _consistent(self) -> Config:
        """A section or key that this method would not read is an error."""
        trainer, method = self.trainer, self.trainer.type
        if (trainer.num_epochs is None) == (trainer.max_steps is None):
            raise ValueError(
                "give either trainer.num_epochs or trainer.max_steps; the other is null"
            )
        if self.algorithm.online:
            if self.reward is None:
                example = next(iter(REWARDS))
                raise ValueError(f"{method} needs a reward section, for example type: {example}")
            self.rollout = self.rollout or RolloutConfig()
            if self.rollout.group_size == 1 and self.algorithm.needs_groups(trainer):
                raise ValueError(
                    f"{method} compares the completions of a prompt: rollout.group_size must be 2 "
                    "or more, or the trainer's baseline and scale_rewards none"
                )
            if self.rollout.one_step_off and trainer.sampler_correction == "none":
                raise ValueError(
                    "rollout.one_step_off trains on completions of older weights: set "
                    "trainer.sampler_correction, for example token"
                )
            if "length" in self.model_fields_set and self.length.on_overlong == "truncate":
                raise ValueError("a prompt can not be truncated: length.on_overlong: error or drop")
        elif self.rollout is not None:
            raise ValueError(f"{method} samples nothing: remove the rollout section")
        at_once = None if self.eval is None else self.eval.max_num_seqs
        if self.rollout is not None and at_once is not None:
            raise ValueError(f"eval.max_num_seqs: for {method} it is rollout.max_num_seqs")
        generates = self.eval is not None and (self.eval.generate or self.algorithm.online)
        if self.reward is not None and not self.algorithm.online and not generates:
            raise ValueError(f"{method} uses a reward with eval.generate: true only")
        if generates and self.reward is None:
            raise ValueError("eval.generate needs a reward section")
        if self.reference is not None:
            in_advance = self.algorithm.precomputes_reference(trainer)
            if not (self.algorithm.needs_reference(trainer) or in_advance):
                raise ValueError(f"{method} has no reference here: remove the reference section")
            if in_advance and self.reference.sync_steps is not None:
                raise ValueError("reference.sync_steps: precompute_reference holds it still")
        if self.length.on_overlong == "split" and self.algorithm.rows != "text":
            raise ValueError("length.on_overlong: split is for texts (trainer.type: pretrain)")
        if trainer.eval_steps is not None and self.eval is None:
            raise ValueError("trainer.eval_steps needs an eval section")
        if self.eval is not None and trainer.eval_steps is None:
            raise ValueError("the eval section needs trainer.eval_steps")
        if trainer.early_stopping is not None and self.eval is None:
            raise ValueError("trainer.early_stopping needs an eval section")
        return self


def load_config(path: str | Path, overrides: list[str] | None = None) -> Config:
    """The config of a YAML file with `section.key=value` overrides; ValueError says what to fix."""
    return parse_config(with_overrides(read_yaml(path), overrides or []), str(path))


def parse_config(tree: dict[str, Any], source: str) -> Config:
    try:
        return Config.model_validate(tree)
    except ValidationError as error:
        raise ValueError(f"{source}: {explain(error, Config)}") from None


def save_config(config: Config, path: Path) -> None:
    path.write_text(yaml.safe_dump(dump(config), sort_keys=False))


def dump(config: BaseModel) -> dict[str, Any]:
    """The resolved tree: what was given and every default that applies."""
    tree = config.model_dump(mode="json")
    _drop_default_nones(config, tree)
    if not tree.get("model", {}).get("use_lora", True):
        tree["model"].pop("lora", None)
    if tree.get("rollout"):
        engine = tree["rollout"]["engine"]
        for key, engines in ENGINE_KEYS.items():
            if engine not in engines:
                tree["rollout"].pop(key, None)
    return tree


def _drop_default_nones(model: BaseModel, tree: dict[str, Any]) -> None:
    """None is left out where it is the default; elsewhere it is a choice (max_grad_norm: null)."""
    for name, info in type(model).model_fields.items():
        value = getattr(model, name)
        if value is None and info.default is None:
            tree.pop(name, None)
        elif isinstance(value, BaseModel):
            _drop_default_nones(value, tree[name])
        elif isinstance(value, list):
            for item, part in zip(value, tree[name]):
                if isinstance(item, BaseModel):
                    _drop_default_nones(item, part)
