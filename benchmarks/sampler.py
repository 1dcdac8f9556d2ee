"""Sampling throughput: posttrain's sampler against `generate` of transformers.

Both sides use the same weights, prompts, thread and allocator settings. Every measurement runs in
its own process, and the sides alternate within each round. Greedy completions must be identical,
except after a tie of two logits.

    python benchmarks/sampler.py --rounds 5
"""

from __future__ import annotations

import argparse
import os
from typing import Any

from common import (
    ALLOCATORS,
    SHAPES,
    in_turn,
    machine,
    median_of,
    median_ratio,
    run_worker,
    today,
    versions,
    write_results,
)
from sampler_worker import GROUP, INITIALIZER_RANGE, LONGEST, MODELS, SHORTEST, SIDES, STORIES

OURS, PEERS = SIDES[0], SIDES[1:]


def main() -> None:
    """Run the benchmark and write its results."""
    args = parse_arguments()
    cases = {f"{name}/{mode}": compare(name, mode, args) for name, mode in cases_of(args)}
    name = "sampler-quick" if args.quick else "sampler"
    results = {
        "benchmark": name,
        "date": today(),
        "machine": machine(args.threads),
        "versions": versions("posttrain", "torch", "transformers"),
        "settings": {
            "models": {k: {**v, **SHAPES.get(v.get("shape", ""), {})} for k, v in MODELS.items()},
            "initializer_range": INITIALIZER_RANGE,
            "dtype": "float32",
            "greedy": {"prompts": args.prompts, "completions": 1},
            "group": {"prompts": args.prompts // 2, "completions": GROUP, "temperature": 1.0},
            "prompt_lengths": [SHORTEST, LONGEST],
            "new_tokens": args.new_tokens,
            "rounds": args.rounds,
            "allocator": ALLOCATORS[args.allocator],
        },
        "ratio": {case: values["ratio"] for case, values in cases.items()},
        "memory_ratio": {case: values["memory_ratio"] for case, values in cases.items()},
        "cases": cases,
    }
    write_results(name, results)


def cases_of(args: argparse.Namespace) -> list[tuple[str, str]]:
    """Return the cases to measure, (model, mode); skip stories260k if it is not on disk."""
    available = [name for name in args.models if name != "stories260k" or STORIES.is_dir()]
    for name in args.models:
        if name not in available:
            print(f"{name}: skipped, {STORIES} does not exist")
    return [(name, mode) for name in available for mode in ("greedy", "group")]


def compare(name: str, mode: str, args: argparse.Namespace) -> dict[str, Any]:
    """Return every measurement of one case, with medians and ratios."""
    print(f"\n{name}, {mode}: {args.new_tokens} new tokens, {args.threads} thread(s)")
    settings = {
        "model": name,
        "mode": mode,
        "prompts": args.prompts if mode == "greedy" else args.prompts // 2,
        "new_tokens": args.new_tokens,
    }

    def run(side: str, **more: Any) -> dict[str, Any]:
        message = {**settings, "side": side, **more}
        return run_worker("sampler_worker.py", message, args.allocator, args.threads)

    rounds, completions = [], {}
    for number in range(1, args.rounds + 1):
        for side in in_turn(list(SIDES), number):
            row = {"round": number, "side": side, **run(side)}
            ids = row.pop("completions")
            assert completions.setdefault(side, ids) == ids, (
                f"{side}: greedy ids differ between rounds"
            )
            rounds.append(row)
    ties = {}
    if mode == "greedy":
        for peer in PEERS:
            if completions[OURS] == completions[peer]:
                ties[peer] = 0
            else:
                ties[peer] = run("check", a=completions[OURS], b=completions[peer])["ties"]
    return summary(rounds, ties)


def summary(rounds: list[dict[str, Any]], ties: dict[str, int]) -> dict[str, Any]:
    """Print medians and ratios as a table, and return them for the results file."""
    speed = {side: median_of(rounds, side, "tokens_per_second") for side in SIDES}
    memory = {side: median_of(rounds, side, "peak_mib") for side in SIDES}
    best = max(PEERS, key=lambda side: speed[side])
    ratio = median_ratio(rounds, OURS, best, "tokens_per_second")
    memory_ratio = median_ratio(rounds, OURS, best, "peak_mib")
    print(f"  {'':<22}{'tokens/s':>10}{'peak MiB':>10}{'tokens':>9}{'seconds':>9}")
    for side in SIDES:
        tokens, seconds = median_of(rounds, side, "tokens"), median_of(rounds, side, "seconds")
        print(
            f"  {side:<22}{speed[side]:>10,.0f}{memory[side]:>10,.0f}{tokens:>9,.0f}{seconds:>9.2f}"
        )
    print(f"  {OURS} / {best}: tokens/s {ratio:.2f}, peak memory {memory_ratio:.2f}")
    if any(ties.values()):
        print(f"  rows that differ after a tie of two logits: {ties}")
    return {
        "peer": best,
        "ratio": ratio,
        "memory_ratio": memory_ratio,
        "tokens_per_second": speed,
        "peak_mib": memory,
        "rows_parted_at_a_tie": ties,
        "rounds": rounds,
    }


def parse_arguments() -> argparse.Namespace:
    """Return the arguments of the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--prompts", type=int, default=64, help="prompts in mode greedy; mode group uses half"
    )
    parser.add_argument("--new-tokens", type=int, default=256)
    parser.add_argument("--models", nargs="+", choices=list(MODELS), default=list(MODELS))
    parser.add_argument("--allocator", choices=list(ALLOCATORS), default="tuned")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument(
        "--quick", action="store_true", help="sample a few tokens, to check that it runs"
    )
    args = parser.parse_args()
    if args.quick:
        args.rounds, args.prompts, args.new_tokens = 1, 8, 16
    return args


if __name__ == "__main__":
    main()
