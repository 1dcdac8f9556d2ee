"""RL throughput and peak memory: posttrain against TRL's GRPOTrainer and RLOOTrainer.

Whole optimiser steps are timed: sampling, scoring, training. Both sides use the same weights,
prompts, token limits, reward, optimiser, thread and allocator settings. Every measurement runs in
its own process, and the sides alternate within each round. A scouting round measures every TRL
setting; the rounds that count measure only the fastest ones. The sides sample different
completions, so the means of their lengths and rewards must agree within the sampling error.

    python benchmarks/rl.py --rounds 5 --steps 4 --methods grpo rloo
"""

from __future__ import annotations

import argparse
import math
import os
import statistics
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
from rl_worker import ADAMW, LONGEST, METHODS, POSTTRAIN, SHORTEST, TRL

OURS = "posttrain"
TOLERANCE = 5.0  # largest difference between the means of two sides, in standard errors


def main() -> None:
    """Run the benchmark and write its results."""
    args = parse_arguments()
    methods = {method: compare(method, args) for method in args.methods}
    name = "rl-quick" if args.quick else "rl"
    results = {
        "benchmark": name,
        "date": today(),
        "machine": machine(args.threads),
        "versions": versions("posttrain", "torch", "transformers", "trl"),
        "settings": {
            "model": {"architecture": "qwen2", "tied head": True, **SHAPES[args.shape]},
            "vocab": args.vocab,
            "dtype": "float32",
            "prompt_lengths": [SHORTEST, LONGEST],
            "prompts_per_step": args.prompts,
            "completions_per_prompt": args.completions,
            "new_tokens": args.new_tokens,
            "stop_tokens": 2 * args.vocab // args.new_tokens,
            "temperature": 1.0,
            "reward": "share of even token ids",
            "methods": METHODS,
            "steps": args.steps,
            "warmup_steps": args.warmup,
            "rounds": args.rounds,
            "optimizer": ADAMW,
            "posttrain_micro_batch_tokens": POSTTRAIN,
            "trl": TRL,
            "allocator": ALLOCATORS[args.allocator],
        },
        "ratio": {method: m["ratio"] for method, m in methods.items()},
        "memory_ratio": {method: m["memory_ratio"] for method, m in methods.items()},
        "methods": methods,
    }
    write_results(name, results)


def compare(method: str, args: argparse.Namespace) -> dict[str, Any]:
    """Return every measurement of one method, with medians and ratios."""
    print(
        f"\n{method}: {args.shape} model, {args.prompts} x {args.completions} completions of at "
        f"most {args.new_tokens} tokens, {args.threads} thread(s)"
    )

    def measure(side: str, number: int) -> dict[str, Any]:
        settings = {
            "side": side,
            "method": method,
            "shape": args.shape,
            "vocab": args.vocab,
            "prompts": args.prompts,
            "completions": args.completions,
            "new_tokens": args.new_tokens,
            "warmup": args.warmup,
            "steps": args.steps,
            "seed": number,  # different completions in each round
        }
        row = run_worker("rl_worker.py", settings, args.allocator, args.threads)
        shares = "".join(f"  {name} {share:.0%}" for name, share in row["time_shares"].items())
        print(
            f"  round {number}  {side:<20}{row['tokens_per_second']:>8,.0f} tokens/s"
            f"{row['peak_mib']:>7,.0f} MiB{row['mean_length']:>7.1f} tokens each{shares}",
            flush=True,
        )
        return {"round": number, "side": side, **row}

    names = args.peers or list(TRL)
    scouting = [measure(side, 0) for side in [*POSTTRAIN, *names]]
    speed = {row["side"]: row["tokens_per_second"] for row in scouting}
    peers = sorted(names, key=lambda name: -speed[name])[: args.finalists]
    sides = [*POSTTRAIN, *peers]
    rounds = [
        measure(side, number)
        for number in range(1, args.rounds + 1)
        for side in in_turn(sides, number)
    ]
    agreement = check(scouting + rounds)
    return summary(scouting, rounds, peers, agreement)


def check(rows: list[dict[str, Any]]) -> dict[str, dict[str, tuple[float, float]]]:
    """Raise AssertionError unless all sides did the same work, which a fair comparison requires.

    Remove the rewards and lengths of single completions from the rows, and return their means and
    standard errors by side.
    """
    for key, problem in (
        ("weights", "started from different weights"),
        ("steps", "ran different numbers of steps"),
        ("prompt_tokens", "saw different prompts"),
    ):
        assert len({row[key] for row in rows}) == 1, f"the sides {problem}"
    agreement: dict[str, dict[str, tuple[float, float]]] = {}
    for key in ("first_rewards", "first_lengths", "lengths"):
        by_side: dict[str, list[float]] = {}
        for row in rows:
            by_side.setdefault(row["side"], []).extend(row.pop(key))
        means = {
            side: (statistics.fmean(x), statistics.stdev(x) / math.sqrt(len(x)))
            for side, x in by_side.items()
        }
        ours, our_error = means[OURS]
        for side, (mean, error) in means.items():
            limit = TOLERANCE * math.hypot(our_error, error)
            assert abs(mean - ours) <= limit, (
                f"the mean of {key} differs: {side} has {mean:.4g}, {OURS} {ours:.4g}"
            )
        agreement[key] = means
    return agreement


def summary(
    scouting: list[dict[str, Any]],
    rounds: list[dict[str, Any]],
    peers: list[str],
    agreement: dict[str, dict[str, tuple[float, float]]],
) -> dict[str, Any]:
    """Print medians and ratios as a table, and return them for the results file."""
    sides = [*POSTTRAIN, *peers]
    keys = ("tokens_per_second", "completion_tokens_per_second", "peak_mib", "mean_length")
    medians = {key: {side: median_of(rounds, side, key) for side in sides} for key in keys}
    speed, memory = medians["tokens_per_second"], medians["peak_mib"]
    best = max(peers, key=lambda side: speed[side])
    ratio, completion_ratio, memory_ratio = (
        median_ratio(rounds, OURS, best, key) for key in keys[:3]
    )
    shares = {side: median_shares([r for r in rounds if r["side"] == side]) for side in sides}
    print(f"  {'':<22}{'tokens/s':>10}{'sampled/s':>11}{'peak MiB':>10}{'length':>8}")
    for side in sides:
        print(
            f"  {side:<22}{speed[side]:>10,.0f}"
            f"{medians['completion_tokens_per_second'][side]:>11,.0f}"
            f"{memory[side]:>10,.0f}{medians['mean_length'][side]:>8.1f}"
        )
    lengths = {side: agreement["lengths"][side] for side in (OURS, best)}
    shown = ", ".join(f"{side} {x:.1f} +- {error:.1f}" for side, (x, error) in lengths.items())
    print(f"  mean length over all measurements: {shown}")
    print(f"  {OURS} / TRL {best}: tokens/s {ratio:.2f}, peak memory {memory_ratio:.2f}")
    return {
        "parameters": rounds[0]["parameters"],
        "peer": best,
        "ratio": ratio,
        "completion_ratio": completion_ratio,
        "memory_ratio": memory_ratio,
        **medians,
        "time_shares": shares,
        "first_grad_norm": {side: median_of(rounds, side, "first_grad_norm") for side in sides},
        "agreement": agreement,
        "scouting": scouting,
        "rounds": rounds,
    }


def median_shares(rows: list[dict[str, Any]]) -> dict[str, float]:
    """Return the median over `rows` of each part's share of the time."""
    names = rows[0]["time_shares"]
    return {name: statistics.median(row["time_shares"][name] for row in rows) for name in names}


def parse_arguments() -> argparse.Namespace:
    """Return the arguments of the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--methods", nargs="+", choices=list(METHODS), default=list(METHODS))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=4, help="timed optimiser steps")
    parser.add_argument(
        "--warmup", type=int, default=1, help="untimed steps before the timed ones, at least 1"
    )
    parser.add_argument("--prompts", type=int, default=8, help="prompts in an optimiser step")
    parser.add_argument("--completions", type=int, default=8, help="completions of each prompt")
    parser.add_argument(
        "--new-tokens", type=int, default=256, help="maximum length of a completion"
    )
    parser.add_argument("--shape", choices=list(SHAPES), default="8m")
    parser.add_argument("--vocab", type=int, default=4096)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--allocator", choices=list(ALLOCATORS), default="tuned")
    parser.add_argument(
        "--finalists", type=int, default=2, help="number of TRL settings that every round measures"
    )
    parser.add_argument("--peers", nargs="+", choices=list(TRL), help="TRL settings to scout")
    parser.add_argument(
        "--quick", action="store_true", help="use a tiny model, to check that it runs"
    )
    args = parser.parse_args()
    if args.quick:
        args.shape, args.rounds, args.steps, args.warmup = "tiny", 1, 2, 1
        args.prompts, args.completions, args.new_tokens = 2, 4, 16
    return args


if __name__ == "__main__":
    main()
