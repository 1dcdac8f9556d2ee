"""Reading GGUF files: the quantised weights are expanded to fp32, which loses nothing more."""

from __future__ import annotations

from contextlib import redirect_stderr
from importlib.util import find_spec
from io import StringIO
from pathlib import Path
from typing import Any

import torch


def load_gguf(file: Path) -> tuple[Any, Any]:
    """Return the transformers model, in fp32, and the tokenizer of a GGUF file.

    Raises ValueError if there is no such file, if it is not a GGUF file, or if the library that
    reads one is missing.
    """
    if find_spec("gguf") is None:
        raise ValueError(f"{file}: reading GGUF files needs pip install 'posttrain[gguf]'")
    if not file.is_file():
        raise ValueError(f"no such file: {file}")
    with file.open("rb") as content:
        if content.read(4) != b"GGUF":
            raise ValueError(f"{file} is not a GGUF file")
    import transformers

    transformers.logging.disable_progress_bar()
    where: dict[str, Any] = {"gguf_file": file.name, "local_files_only": True}
    auto: Any = transformers.AutoModelForCausalLM
    with redirect_stderr(StringIO()):  # the expansion has a progress bar that no setting hides
        tokenizer = transformers.AutoTokenizer.from_pretrained(str(file.parent), **where)
        model = auto.from_pretrained(str(file.parent), dtype=torch.float32, **where)
    # transformers refuses to save what it takes for quantised weights; they no longer are
    model.hf_quantizer, model.is_quantized = None, False
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    return model, tokenizer


def convert_gguf(file: Path, folder: Path) -> None:
    """Write a GGUF file's model and tokenizer to a folder, as safetensors in fp32."""
    model, tokenizer = load_gguf(file)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
