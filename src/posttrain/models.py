"""Load or create the policy, check it, and keep the reference.

The reference policy is the policy's trainable tensors as they were at the start of the run.
Swapping them in gives the reference for any start: a full model, a fresh adapter (whose start is
the base model), or an adapter that was trained before. They may follow the policy, or the
reference is a model of its own.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from posttrain import distributed
from posttrain.attention import Packed, use_attention
from posttrain.batch import Batch, Sequence, pack
from posttrain.forward import VALUE, LanguageModel, Output, forward, unwrapped
from posttrain.linear import use_onednn

if TYPE_CHECKING:
    from posttrain.config import ModelConfig, ScratchConfig

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass
class Models:
    policy: nn.Module
    """A LanguageModel, sharded or not."""
    tokenizer: Any
    stop_token_ids: list[int]
    temperature: float = 1.0
    """Log-probs are those of the distribution that rollouts are sampled from."""
    is_reward_model: bool = False
    """The value head is what is trained for, and the folder a classifier's."""
    step_separator: str | None = None
    """Of a process reward model: what stands between two steps; saved with it."""
    labels: dict[str, Any] | None = None
    """Of a classification: `labels` in their order, `multi_label`, and `tokens` where it has no
    head; saved with it."""
    start: dict[str, Tensor] = field(default_factory=dict)
    """Trainable tensors at the start of the run, kept where a reference is needed."""
    other: LanguageModel | None = None
    """A reference that is no earlier state of the policy."""

    def trainable(self) -> dict[str, nn.Parameter]:
        return {name: p for name, p in self.policy.named_parameters() if p.requires_grad}

    def keep_reference(self) -> None:
        own = {n: p for n, p in self.trainable().items() if not n.startswith(VALUE)}
        self.start = {name: p.detach().clone() for name, p in own.items()}

    @contextmanager
    def reference(self) -> Iterator[None]:
        """The policy is the reference inside the block."""
        if self.other is not None:
            policy, self.policy = self.policy, self.other
            try:
                yield
            finally:
                self.policy = policy
            return
        assert self.start, "keep_reference() was not called"
        self._exchange()
        try:
            yield
        finally:
            self._exchange()

    @torch.no_grad()
    def _exchange(self) -> None:
        # contents are exchanged in place, so optimiser, FSDP shards and hooks keep their tensors
        trainable = self.trainable()
        for name in self.start:
            parameter = trainable[name]
            current = parameter.detach().clone()
            parameter.copy_(self.start[name])
            self.start[name].copy_(current)

    @torch.no_grad()
    def move_reference(self, alpha: float) -> None:
        """start <- (1 - alpha) start + alpha policy."""
        trainable = self.trainable()
        for name, tensor in self.start.items():
            tensor.lerp_(trainable[name].detach(), alpha)

    def logprobs(self, batch: Batch, max_tokens: int) -> Tensor:
        """Log-probs [T] of the policy as it is now, without grad and without dropout."""
        return self.outputs(batch, max_tokens).logprobs

    @torch.no_grad()
    def outputs(self, batch: Batch, max_tokens: int, values: bool = False) -> Output:
        """Log-probs [T], and values [T] and [N], without grad and without dropout."""
        was_training = self.policy.training
        self.policy.eval()
        parts = batch.split(max_tokens)
        keys: dict[str, Any] = {"temperature": self.temperature, "values": values}
        # every rank of a sharded policy waits for the one with most parts; asked before the first
        # forward pass, since ranks must not meet in two different collectives
        sharded = distributed.is_sharded(self.policy)
        missing = max(distributed.all_gather(len(parts))) - len(parts) if sharded else 0
        found = [forward(self.policy, part, **keys) for part in parts]
        for _ in range(missing):
            forward(self.policy, parts[0], **keys)
        self.policy.train(was_training)

        def joined(name: str) -> Any:
            return torch.cat([getattr(out, name) for out in found]) if values else None

        logprobs = torch.cat([out.logprobs for out in found])
        return Output(logprobs, values=joined("values"), last_values=joined("last_values"))


def choose_device(name: str) -> torch.device:
    if name != "auto":
        if name.startswith("cuda") and not torch.cuda.is_available():
            raise ValueError("model.device is cuda, but torch sees no CUDA device")
        return torch.device(name)
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def choose_dtype(name: str, device: torch.device) -> torch.dtype:
    """Compute dtype. bf16 where the hardware multiplies it natively; on a CPU that is AMX only."""
    if name != "auto":
        return DTYPES[name]
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float32
    return torch.bfloat16 if torch.cpu._is_amx_tile_supported() else torch.float32


def create_from_scratch(scratch: ScratchConfig, tokenizer: Any, seed: int) -> nn.Module:
    """A model with random weights, reproducible from the seed."""
    from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

    config_class, model_class = {
        "qwen2": (Qwen2Config, Qwen2ForCausalLM),
        "llama": (LlamaConfig, LlamaForCausalLM),
    }[scratch.architecture]
    config = config_class(
        vocab_size=len(tokenizer),
        hidden_size=scratch.hidden_size,
        intermediate_size=scratch.intermediate_size,
        num_hidden_layers=scratch.num_layers,
        num_attention_heads=scratch.num_heads,
        num_key_value_heads=scratch.num_kv_heads,
        max_position_embeddings=scratch.max_length,
        tie_word_embeddings=scratch.tie_embeddings,
        initializer_range=scratch.initializer_range,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    state = torch.get_rng_state()
    torch.manual_seed(seed)
    model = model_class(config)
    torch.set_rng_state(state)
    return model


def load_policy(
    config: ModelConfig, name: str, device: torch.device, seed: int, scores: bool = False
) -> LanguageModel:
    """A pre-trained model or adapter, full or with LoRA, ready to train. `scores`: for a reward
    model, which needs no output head.

    Trainable tensors are fp32; frozen ones have the compute dtype.
    """
    from peft import PeftConfig, PeftModel

    compute = choose_dtype(config.dtype, device)
    is_adapter = (Path(name) / "adapter_config.json").is_file()
    frozen_base = is_adapter or config.use_lora
    base_name = PeftConfig.from_pretrained(name).base_model_name_or_path if is_adapter else name
    if base_name is None:
        raise ValueError(f"{name}/adapter_config.json does not name its base model")
    model = load_causal_lm(base_name, compute if frozen_base else torch.float32, scores)
    if is_adapter:
        check_adapter_file(Path(name))
        model = PeftModel.from_pretrained(model, name, is_trainable=True)
        refuse_random(name, adapter_lacks(model, Path(name)))
    return prepare_policy(model, config, device, compute, seed)


def load_reference(config: ModelConfig, name: str, policy: LanguageModel, tokenizer: Any) -> Any:
    """A reference of its own, frozen in the compute dtype."""
    if load_tokenizer(name).get_vocab() != tokenizer.get_vocab():
        raise ValueError(f"reference.name: {name} has another tokenizer than the policy")
    device = next(policy.parameters()).device
    keys = config.model_copy(update={"use_lora": False, "gradient_checkpointing": False})
    reference = load_policy(keys, name, device, seed=0).requires_grad_(False).eval()
    return reference.to(reference.autocast or torch.float32)


def prepare_policy(
    model: Any, config: ModelConfig, device: torch.device, compute: torch.dtype, seed: int
) -> LanguageModel:
    """Adapter, dtypes, checkpointing and checks for a transformers or PEFT model."""
    from posttrain.fused import use_fused

    if config.use_lora and not hasattr(model, "peft_config"):
        model = add_lora(model, config, seed)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    model = model.to(device)
    if config.gradient_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
        if hasattr(model, "enable_input_require_grads"):
            model.enable_input_require_grads()
    use_onednn(model)
    use_fused(model)
    policy = LanguageModel(model, autocast=None if compute == torch.float32 else compute)
    use_attention(policy.causal_lm())
    check_packing(policy)
    if not any(p.requires_grad for p in policy.parameters()):
        raise ValueError("the model has no trainable parameter")
    return policy


def add_value_model(policy: LanguageModel, own_network: bool) -> None:
    """A value model for `ppo`: a head on the policy's own states, or on those of a network that
    starts as a copy of the policy's. The head starts at 0, and so does every value."""
    width = policy.causal_lm().get_input_embeddings().weight.shape[1]
    device = next(policy.parameters()).device
    policy.value_head = nn.Linear(width, 1, device=device)
    nn.init.zeros_(policy.value_head.weight)
    nn.init.zeros_(policy.value_head.bias)
    if own_network:
        policy.value_model = copy.deepcopy(policy.model)
        network: Any = unwrapped(policy.value_model)
        head = network.get_output_embeddings().weight
        if head is not network.get_input_embeddings().weight:
            head.requires_grad_(False)  # nobody asks it for a token


def load_causal_lm(name: str, dtype: torch.dtype, scores: bool = False) -> Any:
    """ValueError where weights are missing, but for the output head of what only `scores`."""
    import transformers

    transformers.logging.disable_progress_bar()
    keys: dict[str, Any] = {"dtype": dtype, "use_safetensors": True, "output_loading_info": True}
    auto: Any = transformers.AutoModelForCausalLM
    try:
        model, info = auto.from_pretrained(name, **keys)
    except OSError as error:
        raise ValueError(model_not_found(name)) from error
    head = model.get_output_embeddings() if scores else None
    unread = {n for n, p in model.named_parameters() if head is not None and p is head.weight}
    refuse_random(name, sorted(set(info["missing_keys"]) - unread))
    return model


def refuse_random(name: str, missing: list[str]) -> None:
    """transformers and PEFT only warn of weights that a folder lacks, and draw them."""
    if missing:
        raise ValueError(
            f"model.name: {name} lacks weights that the model has, which would be random: "
            f"{', '.join(missing[:3])}"
        )


def check_adapter_file(folder: Path) -> None:
    if not (folder / "adapter_model.safetensors").is_file():
        raise ValueError(
            f"{folder} holds no adapter_model.safetensors; pickled weights (.bin) can run code and "
            "are never loaded"
        )


def adapter_lacks(model: Any, folder: Path) -> list[str]:
    """The names of tensors that the adapter of a PEFT model has and its file has not."""
    from peft import get_peft_model_state_dict
    from safetensors import safe_open

    with safe_open(folder / "adapter_model.safetensors", "pt") as file:
        saved = set(file.keys())
    return sorted(set(get_peft_model_state_dict(model, save_embedding_layers=False)) - saved)


def load_tokenizer(name: str) -> Any:
    from transformers import AutoTokenizer

    folder = Path(name)
    configs = ("config.json", "adapter_config.json")
    if folder.is_dir() and not any((folder / config).is_file() for config in configs):
        raise ValueError(model_not_found(name))
    try:
        return AutoTokenizer.from_pretrained(name)
    except OSError as error:
        raise ValueError(model_not_found(name)) from error


def model_not_found(name: str) -> str:
    path = Path(name)
    if path.is_dir():
        found = ", ".join(sorted(p.name for p in path.iterdir())[:8]) or "nothing"
        return (
            f"model.name: {name} is no model folder (config.json + safetensors); it holds {found}"
        )
    if path.is_absolute() or name.startswith(".") or name.count("/") != 1:
        return f"model.name: the folder {name} does not exist"
    return (
        f"model.name: no folder {name}, and the model hub has no such model or can not be reached"
    )


def add_lora(model: Any, config: ModelConfig, seed: int) -> Any:
    from peft import LoraConfig, get_peft_model

    lora = LoraConfig(
        r=config.lora.r,
        lora_alpha=config.lora.alpha,  # type: ignore[arg-type]  # PEFT takes any number
        lora_dropout=config.lora.dropout,
        target_modules=config.lora.target_modules,
        task_type="CAUSAL_LM",
    )
    state = torch.get_rng_state()
    torch.manual_seed(seed)
    try:
        model = get_peft_model(model, lora)
    except ValueError as error:
        raise ValueError(f"model.lora: {error}".splitlines()[0]) from error
    torch.set_rng_state(state)
    return model


def resolve_model_path(name: str) -> str:
    """A run directory stands for its best checkpoint, or its newest one."""
    from posttrain.checkpoint import best_or_newest

    path = Path(name)
    if path.is_dir() and (path / "metrics.jsonl").is_file():
        return str(best_or_newest(path))
    return name


@torch.no_grad()
def check_packing(policy: LanguageModel, tolerance: float | None = None) -> None:
    """Short sequences packed and apart must agree, two of which share their prompt, and our head
    with the model's own.

    Raises ValueError for an architecture that lets packed rows see each other (linear attention,
    position ids ignored) or whose output head does more than we know of.
    """
    was_training = policy.training
    policy.eval()
    device = next(policy.parameters()).device
    vocab = policy.causal_lm().config.vocab_size
    texts = [([9], [8, 7, 6, 5, 4]), ([3, 4, 5], [6, 7]), ([3, 4, 5], [8])]
    rows = []
    for prompt, completion in texts:
        ids = torch.tensor(prompt + completion) % vocab
        rows.append(Sequence(ids, torch.arange(len(ids)) >= len(prompt)))
    packed = forward(policy, pack(rows).to(device)).logprobs
    apart = torch.cat([forward(policy, pack([row]).to(device)).logprobs for row in rows])
    if tolerance is None:
        tolerance = 1e-4 if policy.autocast is None else 5e-2
    difference = float((packed - apart).abs().max())
    name = type(policy.causal_lm()).__name__
    if not difference <= tolerance:
        raise ValueError(
            f"{name} gives other log-probs (by {difference:.2g}) where sequences are packed or "
            "share their prompt: this architecture can not be trained so"
        )
    with policy.precision():
        batch = pack(rows[:1]).to(device)
        layout = Packed(batch.lengths, batch.cu_seqlens)
        logits = policy.causal_lm()(
            input_ids=batch.input_ids[None],
            position_ids=batch.position_ids[None],
            use_cache=False,
            layout=layout,
        ).logits[0, :-1]
    theirs = logits.float().log_softmax(-1).gather(1, batch.input_ids[1:, None])[:, 0]
    difference = float((theirs - apart[1 : len(rows[0])]).abs().max())
    if not difference <= tolerance:
        raise ValueError(
            f"{name} has an output head that is not supported (log-probs differ by "
            f"{difference:.2g} from the model's own)"
        )
    policy.train(was_training)


def weights_hash(policy: nn.Module) -> str:
    """SHA-256 of all weights by name, as fp32."""
    digest = hashlib.sha256()
    for name, tensor in sorted(policy.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
