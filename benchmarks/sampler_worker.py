"""One measurement of sampling throughput: one side, one case, in its own process.

sampler.py runs this script.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from common import answer, peak_memory, posttrain_policy, random_qwen2

SIDES = ("posttrain", "transformers_dynamic", "transformers_static")
STORIES = Path(__file__).resolve().parents[2] / "shared" / "models" / "stories260k"

MODELS: dict[str, dict[str, Any]] = {
    "small": {"shape": "small", "vocab": 1024},
    "stories260k": {},
    "8m": {"shape": "8m", "vocab": 4096},
}
INITIALIZER_RANGE = 0.1  # large enough for the most likely token to stand out

SHORTEST, LONGEST = 20, 100  # tokens of a prompt
GROUP = 8  # completions per prompt in the case `group`
TIE = 1e-3  # rounding may swap two logits that are closer than this

TEXT = """Once upon a time there was a little girl named Ann. She liked to play in the garden with
her dog. One day the dog ran away and Ann was very sad. Her mother said they should look for him in
the park. The park was big and green, and many children played there. A boy named Tom had a red
ball. He threw it high into the sky and it fell into the pond. The fish were not happy. Tom said he
was sorry and asked a duck for help. The duck swam to the ball and pushed it with her yellow beak.
In the old house by the hill lived a cat who could not sleep. Every night she looked at the moon
and counted the stars. A small mouse heard her and wanted to be her friend. They sat by the window
and told each other stories. When the sun came up the cat was tired at last. The mouse gave her a
soft blanket and said good night. It was raining, so Ben stayed at home and made a boat of paper.
He put the boat in the bath and blew on it until it moved. His sister wanted a boat too, and they
had a race. She won and laughed. Then they ate warm soup and bread with their grandfather."""


def load_model(name: str) -> Any:
    """Return the model of MODELS with this name, in fp32 and eval mode."""
    if name != "stories260k":
        settings = MODELS[name]
        return random_qwen2(
            settings["shape"], settings["vocab"], initializer_range=INITIALIZER_RANGE
        ).eval()
    import torch
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(str(STORIES), dtype=torch.float32).eval()


def make_prompts(name: str, number: int) -> list[list[int]]:
    """Return prompts of random lengths: random ids, but BOS and real text for stories260k."""
    import torch

    generator = torch.Generator().manual_seed(3)
    lengths = torch.randint(SHORTEST, LONGEST + 1, (number,), generator=generator).tolist()
    if name != "stories260k":
        vocab = MODELS[name]["vocab"]
        return [torch.randint(0, vocab, (n,), generator=generator).tolist() for n in lengths]
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(str(STORIES))
    words = " ".join(TEXT.split()).split(" ")
    prompts = []
    for i, length in enumerate(lengths):
        begin = i * 7 % (len(words) // 2)
        ids = tokenizer(" ".join(words[begin:]), add_special_tokens=False).input_ids
        prompts.append([tokenizer.bos_token_id, *ids[: length - 1]])
    return prompts


def stop_tokens(name: str, mode: str) -> list[int]:
    """Return the stop tokens of a case.

    With random weights, greedy completions run to the limit, and sampled ones (mode `group`) stop
    at random, after about 128 tokens on average.
    """
    if name == "stories260k":
        return [1, 2]
    return list(range(MODELS[name]["vocab"] // 128)) if mode == "group" else []


def measure(settings: dict[str, Any]) -> dict[str, Any]:
    """Run the measurement, or the check, that `settings` describe and return its result."""
    name, mode, new_tokens = settings["model"], settings["mode"], settings["new_tokens"]
    if settings["side"] == "check":
        prompts = make_prompts(name, settings["prompts"])
        return {"ties": count_ties(load_model(name), prompts, settings["a"], settings["b"])}
    prompts = make_prompts(name, settings["prompts"])
    stops = stop_tokens(name, mode)
    model = load_model(name)
    start = peak_memory()
    if settings["side"] == "posttrain":
        generate = posttrain_sampler(model, stops, mode)
    else:
        cache = settings["side"].removeprefix("transformers_")
        generate = transformers_sampler(model, stops, mode, cache)
    # warm-up: training samples in every step, so the extra cost of the first call does not matter
    generate(prompts, new_tokens)
    started = time.perf_counter()
    completions = generate(prompts, new_tokens)
    seconds = time.perf_counter() - started
    tokens = sum(len(ids) for ids in completions)
    return {
        "tokens_per_second": tokens / seconds,
        "tokens": tokens,
        "seconds": seconds,
        "peak_mib": peak_memory(),
        "start_mib": start,
        "longest": max(len(ids) for ids in completions),
        "completions": completions if mode == "greedy" else None,
    }


def posttrain_sampler(model: Any, stops: list[int], mode: str) -> Any:
    """Return a function (prompts, new_tokens) -> ids of the completions, including the stop token.

    It also computes log-probs, which `model.generate` does not.
    """
    from posttrain.rollout.native.sampler import NativeSampler
    from posttrain.rollout.sampler import SamplingParams

    sampler = NativeSampler(posttrain_policy(model), max_num_seqs=256)
    copies, temperature = (GROUP, 1.0) if mode == "group" else (1, 0.0)

    def generate(prompts: list[list[int]], new_tokens: int) -> list[list[int]]:
        rows = [prompt for prompt in prompts for _ in range(copies)]
        params = SamplingParams(new_tokens, tuple(stops), temperature)
        rollouts = sampler.generate(rows, params, seeds=range(len(rows)))
        return [rollout.response_ids for rollout in rollouts]

    return generate


def transformers_sampler(model: Any, stops: list[int], mode: str, cache: str) -> Any:
    """Return the same function using `model.generate` on one batch, padded on the left."""
    import torch
    from transformers import GenerationConfig

    group = mode == "group"
    keys: dict[str, Any] = {"cache_implementation": "static"} if cache == "static" else {}
    keys |= {"do_sample": True, "temperature": 1.0, "top_k": 0, "top_p": 1.0} if group else {}
    torch.manual_seed(0)

    def generate(prompts: list[list[int]], new_tokens: int) -> list[list[int]]:
        width = max(len(prompt) for prompt in prompts)
        ids = torch.zeros(len(prompts), width, dtype=torch.int64)
        mask = torch.zeros_like(ids)
        for i, prompt in enumerate(prompts):
            ids[i, width - len(prompt) :] = torch.tensor(prompt)
            mask[i, width - len(prompt) :] = 1
        model.generation_config = GenerationConfig(
            max_new_tokens=new_tokens,
            eos_token_id=stops or None,
            pad_token_id=0,
            num_return_sequences=GROUP if group else 1,
            **keys,
        )
        with torch.no_grad():
            output = model.generate(input_ids=ids, attention_mask=mask)
        return [up_to_stop(row, stops) for row in output[:, width:].tolist()]

    return generate


def up_to_stop(ids: list[int], stops: list[int]) -> list[int]:
    """Return the ids up to and including the first stop token."""
    ends = [i for i, token in enumerate(ids) if token in stops]
    return ids[: ends[0] + 1] if ends else ids


def count_ties(model: Any, prompts: list[list[int]], a: list[list[int]], b: list[list[int]]) -> int:
    """Return the number of rows whose greedy ids differ between the sides.

    Raise AssertionError unless each first differs at a tie of two logits, which rounding decides.
    """
    import torch

    model = model.double()
    ties = 0
    for prompt, left, right in zip(prompts, a, b):
        if left == right:
            continue
        first = next(i for i, (x, y) in enumerate(zip(left, right)) if x != y)
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([prompt + left[:first]])).logits[0, -1]
        gap = float((logits[left[first]] - logits[right[first]]).abs())
        below_best = float(logits.max() - logits[left[first]])
        largest = max(gap, below_best)
        assert largest < TIE, f"greedy ids differ at a gap of {largest:.2g} between logits"
        ties += 1
    return ties


if __name__ == "__main__":
    answer(measure)
