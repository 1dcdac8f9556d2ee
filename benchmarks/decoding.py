"""Decoding speed of every architecture, and with LoRA: posttrain against `generate`.

The models are the tiny random ones of tests/helpers/architectures.py, or a folder (`--folder`). All
sides run in this process, on one thread, in turn. The greedy completions of a row must be the same
unless two logits tie. Times are CPU time of the process, since rounds on a machine that others use
differ more in wall time. `--lora` adds an adapter of rank 16 to all linear layers; the peer is then
PEFT's model. `--each` measures all with and without one.

    python benchmarks/decoding.py --rounds 3 --new-tokens 64 --names "Llama 3" Mistral --each
"""

from __future__ import annotations

import argparse
import logging
import statistics
import sys
import time
from pathlib import Path
from typing import Any

from common import in_turn, machine, today, versions, write_results

HELPERS = Path(__file__).resolve().parents[1] / "tests" / "helpers"
SHORTEST, LONGEST = 20, 60
"""Tokens of a prompt."""
SAME_TEXT = 0.9
"""Share of the rows that must be equal; the others may have parted at a tie."""


def main() -> None:
    """Measure every case and write the table."""
    args = parse_arguments()
    prepare()
    from architectures import ARCHITECTURES

    names = args.names or (list(ARCHITECTURES) if args.folder is None else [args.folder])
    cases = {}
    print(f"{'':<28}{'adapter':>8}{'posttrain':>11}{'peer':>9}{'ratio':>7}{'same':>7}  how")
    for name in names:
        for lora in (False, True) if args.each else (args.lora,):
            try:
                row = measure(name, lora, args)
            except Exception as error:  # of transformers' generate, on architectures it cannot pad
                row = {"error": repr(error)[:200]}
                print(f"{name[-27:]:<28}{'lora' if lora else '-':>8}  {row['error'][:90]}")
            cases[f"{name}/{'lora' if lora else 'plain'}"] = row
    write_results(
        args.output,
        {
            "benchmark": "decoding",
            "date": today(),
            "machine": machine(1),
            "versions": versions("posttrain", "torch", "transformers", "peft"),
            "settings": {
                "rows": args.rows,
                "prompt_lengths": [SHORTEST, LONGEST],
                "new_tokens": args.new_tokens,
                "rounds": args.rounds,
                "clock": "CPU time of the process",
                "adapter": {"type": "LoRA", "r": 16, "target_modules": "all-linear"},
            },
            "cases": cases,
        },
    )


def prepare() -> None:
    """Make the tests' architectures importable, and everything quiet and single-threaded."""
    import torch
    import transformers

    sys.path.insert(0, str(HELPERS))
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    logging.disable(logging.WARNING)


def measure(name: str, lora: bool, args: argparse.Namespace) -> dict[str, Any]:
    """Return median tokens per second of both sides, and the median ratio of the rounds."""
    ours = ours_of(build(name, lora))
    theirs, prompts = build(name, lora), prompts_of(name, args.rows)
    sides = {
        "posttrain": lambda count: ours(prompts, count),
        "peer": lambda count: generate(theirs, prompts, count),
    }
    texts: dict[str, list[list[int]]] = {side: run(3) for side, run in sides.items()}
    rounds: list[dict[str, float]] = []
    for number in range(args.rounds):
        seconds = {}
        for side in in_turn(list(sides), number):
            started = time.process_time()
            texts[side] = sides[side](args.new_tokens)
            seconds[side] = time.process_time() - started
        tokens = args.rows * args.new_tokens
        rounds.append({side: tokens / value for side, value in seconds.items()})
    same = sum(a == b for a, b in zip(texts["posttrain"], texts["peer"])) / args.rows
    speeds = {side: statistics.median(row[side] for row in rounds) for side in sides}
    ratio = statistics.median(row["posttrain"] / row["peer"] for row in rounds)
    note = "" if same >= SAME_TEXT else "  the peer's padded rows have other text"
    print(
        f"{name[-27:]:<28}{'lora' if lora else '-':>8}{speeds['posttrain']:>11,.0f}"
        f"{speeds['peer']:>9,.0f}{ratio:>7.2f}{same:>7.0%}  {ours.how()}{note}",
        flush=True,
    )
    return {"ratio": ratio, **speeds, "same_text": same, "how": ours.how(), "rounds": rounds}


def build(name: str, lora: bool) -> Any:
    """Return a transformers model in fp32, or PEFT's with an adapter that is not the identity."""
    import peft
    import torch
    from architectures import ARCHITECTURES, causal_lm
    from transformers import AutoModelForCausalLM

    if name in ARCHITECTURES:
        model = causal_lm(name)
    else:
        model = AutoModelForCausalLM.from_pretrained(name, dtype=torch.float32).eval()
    if not lora:
        return model
    from posttrain.model.quirks import not_adapted

    torch.manual_seed(0)
    settings = peft.LoraConfig(
        r=16,
        lora_alpha=32,
        target_modules="all-linear",
        exclude_modules=not_adapted(model),
        task_type="CAUSAL_LM",
    )
    model = peft.get_peft_model(model, settings)
    for key, parameter in model.named_parameters():
        if "lora_B" in key:
            torch.nn.init.normal_(parameter, std=0.02)
    return model.eval()


def prompts_of(name: str, count: int) -> list[list[int]]:
    """Return prompts of random ids and ragged lengths."""
    import torch

    generator = torch.Generator().manual_seed(3)
    lengths = torch.randint(SHORTEST, LONGEST + 1, (count,), generator=generator).tolist()
    return [torch.randint(4, 97, (n,), generator=generator).tolist() for n in lengths]


class Ours:
    """The native sampler of a policy, as a function of prompts and a number of tokens."""

    def __init__(self, policy: Any) -> None:
        """Make the sampler of a policy."""
        from posttrain.rollout.native.sampler import NativeSampler

        self.policy, self.sampler = policy, NativeSampler(policy, 64)

    def __call__(self, prompts: list[list[int]], count: int) -> list[list[int]]:
        """Return the ids of greedy completions of `count` tokens."""
        from posttrain.rollout.sampler import SamplingParams

        params = SamplingParams(count, (), 0.0)
        rollouts = self.sampler.generate(prompts, params, [0] * len(prompts))
        return [rollout.response_ids for rollout in rollouts]

    def how(self) -> str:
        """Return how completions are sampled."""
        from posttrain.rollout.native.forms import network_of

        if not self.sampler.batched:
            way = self.sampler.way
            run = "generate" if way.generated else "own cache"
            return f"{run}, {way.batches}" + ("" if way.cached else ", without a cache")
        return "modules" if network_of(self.policy, 16) is None else "written out"


def ours_of(model: Any) -> Ours:
    """Return posttrain's side for a transformers or PEFT model."""
    import torch

    from posttrain.model.config import ModelConfig
    from posttrain.model.load import prepare_policy

    config = ModelConfig(name="model", use_lora=False)
    return Ours(prepare_policy(model, config, torch.device("cpu"), torch.float32, 0))


def generate(model: Any, prompts: list[list[int]], count: int) -> list[list[int]]:
    """Return greedy completions of one batch, padded on the left, by transformers."""
    import torch
    from transformers import GenerationConfig

    width = max(map(len, prompts))
    ids = torch.tensor([[0] * (width - len(p)) + p for p in prompts])
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts])
    plain = model.get_base_model() if hasattr(model, "get_base_model") else model
    plain.generation_config = GenerationConfig()
    keys = {"do_sample": False, "pad_token_id": 0, "use_cache": True}
    with torch.no_grad():
        out = model.generate(input_ids=ids, attention_mask=mask, max_new_tokens=count, **keys)
    texts: list[list[int]] = out[:, width:].tolist()
    return texts


def parse_arguments() -> argparse.Namespace:
    """Return the arguments of the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--names", nargs="+", help="architectures; all of them by default")
    parser.add_argument("--folder", help="a model folder instead of the tiny architectures")
    parser.add_argument("--lora", action="store_true")
    parser.add_argument("--each", action="store_true", help="with and without LoRA")
    parser.add_argument("--output", default="decoding")
    parser.add_argument("--quick", action="store_true", help="a few tokens of two architectures")
    args = parser.parse_args()
    if args.quick:
        args.rounds, args.rows, args.new_tokens, args.output = 1, 8, 8, "decoding-quick"
        args.names = args.names or ["Llama 3", "GPT-J"]
    return args


if __name__ == "__main__":
    main()
