"""Models with random weights, and tokenizers trained on the run's own text."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from posttrain.model.config import ScratchConfig

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "<|{{ message['role'] }}|>{{ message['content'] }}<|end|>"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def create_from_scratch(scratch: ScratchConfig, tokenizer: Any, seed: int) -> nn.Module:
    """Return a model with random weights from the seed; torch's own state is kept."""
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
    model: nn.Module = model_class(config)
    torch.set_rng_state(state)
    return model


def train_tokenizer(texts: Iterable[str], vocab_size: int, max_length: int) -> Any:
    """Return a byte-level BPE tokenizer of transformers, with a chat template.

    Every digit is a separate token, and turns end in `<|end|>`, the EOS token. It normalises and
    splits like Qwen2's tokenizer and has its `<|endoftext|>`, because AutoTokenizer loads the
    tokenizer of any qwen2 folder as Qwen2's class.
    """
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast
    from transformers.models.qwen2.tokenization_qwen2 import PRETOKENIZE_REGEX

    special = ["<|endoftext|>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>"]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PRETOKENIZE_REGEX), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<|endoftext|>",
        unk_token="<|endoftext|>",
        eos_token="<|end|>",
        extra_special_tokens=special[2:],
        chat_template=CHAT_TEMPLATE,
        model_max_length=max_length,
        clean_up_tokenization_spaces=False,
    )
