"""A local language model that answers questions, greedily, for a reward that asks one."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from posttrain.data.render import Renderer, make_renderer
from posttrain.model.adapters.peft import load_adapter
from posttrain.model.device import choose_device, choose_dtype
from posttrain.model.folder import (
    generation_stops,
    is_adapter,
    refuse_reft,
    resolve_model_path,
    trained_date,
    trained_with,
)
from posttrain.model.load import load_stored, load_tokenizer
from posttrain.model.quantized import with_adapter_applied
from posttrain.model.suited import max_positions, refuse_classifier

Answer = tuple[str, bool]
"""The text, and whether it is complete."""


def asker(
    path: str, device: str, dtype: str, max_tokens: int
) -> Callable[[Sequence[str]], list[Answer | None]]:
    """Return a function from questions to the model's answers; None for one that is too long.

    Questions are rendered as in the model's training, and asked one at a time, so that an answer
    does not depend on the others. The folder is checked here; the weights are loaded at the first
    call.
    """
    name = resolve_model_path(path)
    if not Path(name).is_dir():
        raise ValueError(f"reward.path: {path} is not a folder; expected that of a language model")
    try:
        refuse_reft(name, "run by transformers: use a server (reward.url)")
        refuse_classifier(name)
        template, system_prompt, _ = trained_with(name)
        tokenizer, date = load_tokenizer(name), trained_date(name)
        renderer = make_renderer(tokenizer, template, system_prompt, generation_stops(name), date)
        longest = max_positions(name)
    except ValueError as error:
        raise ValueError(f"reward.path {path}: {error}") from None
    if longest <= max_tokens:
        raise ValueError(
            f"reward.max_tokens: {max_tokens} leaves no room for a question: the model {path} "
            f"takes {longest} tokens"
        )
    chosen = choose_device(device)
    compute = choose_dtype(dtype, chosen)
    loaded: list[Any] = []
    lock = threading.Lock()

    def answers(questions: Sequence[str]) -> list[Answer | None]:
        prompts = [renderer.prompt_ids({"prompt": question}) for question in questions]
        with lock:
            if prompts and not loaded:
                loaded.append(_load(name, renderer, chosen, compute))
            return [
                _answer(loaded[0], renderer, prompt, max_tokens)
                if len(prompt) + max_tokens <= longest
                else None
                for prompt in prompts
            ]

    return answers


def _load(name: str, renderer: Renderer, device: torch.device, dtype: torch.dtype) -> Any:
    from transformers import GenerationConfig

    model = load_stored(name, None, device, dtype, dtype)
    if is_adapter(name):
        model = with_adapter_applied(load_adapter(model, name))
    # greedy: penalties and temperatures of the model's own are for conversations
    model.generation_config = GenerationConfig(
        do_sample=False, eos_token_id=list(renderer.stop_token_ids), pad_token_id=renderer.turn_end
    )
    return model.requires_grad_(False).eval().to(device)


@torch.inference_mode()
def _answer(model: Any, renderer: Renderer, prompt: list[int], max_tokens: int) -> Answer:
    ids = torch.tensor([prompt], device=model.device)
    output = model.generate(
        input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=max_tokens
    )
    answer = output[0, len(prompt) :].tolist()
    return renderer.decode(answer), bool(answer) and answer[-1] in renderer.stop_token_ids
