"""Small model folders, and what can happen to them: cuts, flipped bits, lost and foreign files."""

from __future__ import annotations

import json
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from posttrain.model.scratch import train_tokenizer

WORDS = ["the cat sat on the mat", "What is 12 plus 5? The answer is 17."]
SHARDED = "60KB"


def save_model_folder(folder: Path, sharded: bool = False) -> Path:
    """Save a Llama of two layers with its tokenizer, in one file or in several."""
    torch.manual_seed(0)
    tokenizer = train_tokenizer(WORDS, 300, 64)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
        pad_token_id=0,
    )
    model = LlamaForCausalLM(config)
    model.save_pretrained(folder, max_shard_size=SHARDED if sharded else "1GB")
    tokenizer.save_pretrained(folder)
    return folder


def save_adapter_folder(folder: Path, base: Path, **changes: Any) -> Path:
    """Save a LoRA adapter of the model in `base`, with weights that matter."""
    import peft

    settings = {"r": 2, "lora_alpha": 4, "target_modules": ["q_proj", "v_proj"]} | changes
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    adapted = peft.get_peft_model(model, peft.LoraConfig(task_type="CAUSAL_LM", **settings))
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter.add_(0.2 * torch.randn_like(parameter))
    adapted.save_pretrained(folder)
    return folder


def pick(folder: Path, chance: random.Random, *ends: str) -> Path:
    """Return one of a folder's files with these endings."""
    return chance.choice(sorted(f for f in folder.iterdir() if f.name.endswith(ends)))


def cut(folder: Path, chance: random.Random) -> None:
    """Cut a file short, sometimes to nothing."""
    file = pick(folder, chance, ".json", ".safetensors")
    file.write_bytes(file.read_bytes()[: chance.randrange(file.stat().st_size)])


def flip_json(folder: Path, chance: random.Random) -> None:
    """Flip one to three bits in a JSON file."""
    file = pick(folder, chance, ".json")
    content = bytearray(file.read_bytes())
    for _ in range(chance.randint(1, 3)):
        content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
    file.write_bytes(content)


def flip_header(folder: Path, chance: random.Random) -> None:
    """Flip a bit in the header of a file of weights, or in the header's length."""
    file = pick(folder, chance, ".safetensors")
    content = bytearray(file.read_bytes())
    length = 8 + int.from_bytes(content[:8], "little")
    content[chance.randrange(length)] ^= 1 << chance.randrange(8)
    file.write_bytes(content)


def lose_file(folder: Path, chance: random.Random) -> None:
    """Delete a file."""
    pick(folder, chance, ".json", ".safetensors").unlink()


def lose_tensor(folder: Path, chance: random.Random) -> None:
    """Leave a tensor out of a file of weights."""
    file = pick(folder, chance, ".safetensors")
    tensors = load_file(file)
    del tensors[chance.choice(sorted(tensors))]
    save_file(tensors, file, {"format": "pt"})


def add_tensor(folder: Path, chance: random.Random) -> None:
    """Add a tensor of a layer that the model does not have."""
    file = pick(folder, chance, ".safetensors")
    tensors = load_file(file)
    name = chance.choice(sorted(tensors))
    tensors[name.replace(".0.", ".7.").replace(".1.", ".7.")] = torch.ones(3)
    save_file(tensors, file, {"format": "pt"})


def other_dtype(folder: Path, chance: random.Random) -> None:
    """Store a tensor as whole numbers, in 8 bits or in fp64."""
    file = pick(folder, chance, ".safetensors")
    tensors = load_file(file)
    name = chance.choice(sorted(tensors))
    dtype = chance.choice([torch.int32, torch.float8_e4m3fn, torch.float64, torch.uint8])
    tensors[name] = tensors[name].to(dtype)
    save_file(tensors, file, {"format": "pt"})


def other_shape(folder: Path, chance: random.Random) -> None:
    """Give a tensor another shape."""
    file = pick(folder, chance, ".safetensors")
    tensors = load_file(file)
    name = chance.choice(sorted(tensors))
    tensors[name] = tensors[name].repeat(2, *[1] * (tensors[name].dim() - 1))
    save_file(tensors, file, {"format": "pt"})


def pointer(folder: Path, chance: random.Random) -> None:
    """Replace a file by a Git LFS pointer."""
    file = pick(folder, chance, ".json", ".safetensors")
    start = "version https://git-lfs.github.com/spec/v1\n"
    file.write_text(f"{start}oid sha256:{'0' * 64}\nsize {file.stat().st_size}\n")


def extra_file(folder: Path, chance: random.Random) -> None:
    """Add a file that is none of the model's, some with names that libraries look for."""
    names = ["notes.txt", "training_args.bin", ".DS_Store", "optimizer.pt", "README.md"]
    names += ["pytorch_model.bin", "merges.txt", "special_tokens_map.json", "vocab.json"]
    file = folder / chance.choice(names)
    if not file.exists():
        file.write_bytes(chance.choice([b"", b"{}", b"[]", os.urandom(64)]))


def other_value(folder: Path, chance: random.Random) -> None:
    """Change a value of config.json to one of another type or size."""
    file = folder / chance.choice(
        [f.name for f in folder.iterdir() if f.name in ("config.json", "adapter_config.json")]
    )
    config = json.loads(file.read_text())
    values = [None, -1, 0, 1.5, "x", [], {}, True, 10**6]
    config[chance.choice(sorted(config))] = chance.choice(values)
    file.write_text(json.dumps(config))


KINDS: list[Callable[[Path, random.Random], None]] = [
    cut,
    flip_json,
    flip_header,
    lose_file,
    lose_tensor,
    add_tensor,
    other_dtype,
    other_shape,
    pointer,
    extra_file,
    other_value,
]


def damaged(source: Path, target: Path, seed: int) -> str:
    """Copy a folder and damage the copy; return what was done, to name it in a failure."""
    chance = random.Random(seed)
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(source, target)
    kind = KINDS[seed % len(KINDS)]
    kind(target, chance)
    return f"{kind.__name__}, seed {seed}"
