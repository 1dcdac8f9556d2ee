"""Preference throughput and peak memory: posttrain against TRL's trainers.

The trainers are DPOTrainer, KTOTrainer, ORPOTrainer and RewardTrainer of TRL 1.16.

Whole optimiser steps are timed, including the reference's log-probs (except in `dpo_precomputed`,
for which both sides compute them before the first step). Both sides use the same weights, rows,
loss, optimiser, thread and allocator settings. Every measurement runs in its own process, and the
sides alternate within each round. A scouting round measures every TRL setting; the rounds that
count measure only the fastest ones. If the losses or gradient norms of the sides disagree, the
benchmark fails and writes no results.

tokens/s counts the prompt and completion of every row without padding, which is the same number on
both sides. A pair's prompt counts twice, although posttrain runs it once unless it is short. For
KTO only the rows count, although both sides also run the pairs from which its KL is estimated.

    python benchmarks/preferences.py --rounds 5 --steps 6 --methods dpo kto orpo reward_model
"""

from __future__ import annotations

import argparse
import math
import os
from dataclasses import asdict
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
from preferences_worker import (
    ADAMW,
    COMPLETION,
    HEAD_STD,
    METHODS,
    POSTTRAIN,
    PROMPT,
    TRL,
)

OURS = "posttrain"
FIRST, LAST = 1e-4, 1e-3  # relative tolerances for the first and the last step
LOGPS = ("logps/chosen", "logps/rejected")
COMPARED = {
    "dpo": ("loss", "grad_norm", *LOGPS),
    "kto": ("loss", "grad_norm", *LOGPS),
    "orpo": ("loss", "grad_norm", *LOGPS),
    "reward_model": ("loss", "grad_norm", "rewards/margins"),
}


def main() -> None:
    """Run the benchmark and write its results."""
    args = parse_arguments()
    methods = {method: compare(method, args) for method in args.methods}
    name = "preferences-quick" if args.quick else "preferences"
    results = {
        "benchmark": name,
        "date": today(),
        "machine": machine(args.threads),
        "versions": versions("posttrain", "torch", "transformers", "trl"),
        "settings": {
            "model": {"architecture": "qwen2", "tied head": True, **SHAPES[args.shape]},
            "vocab": args.vocab,
            "dtype": "float32",
            "prompt_lengths": PROMPT,
            "completion_lengths": COMPLETION,
            "pairs_per_step": args.pairs,
            "methods": {method: asdict(METHODS[method]) for method in args.methods},
            "reward_head_std": HEAD_STD,
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
        f"\n{method}: {args.shape} model, vocabulary {args.vocab:,}, "
        f"{2 * args.pairs} rows per step, {args.threads} thread(s)"
    )

    def measure(side: str, number: int) -> dict[str, Any]:
        settings = {
            "side": side,
            "method": method,
            "shape": args.shape,
            "vocab": args.vocab,
            "pairs_per_step": args.pairs,
            "warmup": args.warmup,
            "steps": args.steps,
        }
        row = run_worker("preferences_worker.py", settings, args.allocator, args.threads)
        print(
            f"  round {number}  {side:<18}{row['tokens_per_second']:>9,.0f} tokens/s"
            f"{row['peak_mib']:>8,.0f} MiB",
            flush=True,
        )
        return {"round": number, "side": side, **row}

    names = args.peers or settings_of(METHODS[method].algorithm, 2 * args.pairs)
    scouting = [measure(side, 0) for side in [*POSTTRAIN, *names]]
    speed = {row["side"]: row["tokens_per_second"] for row in scouting}
    peers = sorted(names, key=lambda name: -speed[name])[: args.finalists]
    sides = [*POSTTRAIN, *peers]
    rounds = [
        measure(side, number)
        for number in range(1, args.rounds + 1)
        for side in in_turn(sides, number)
    ]
    check(METHODS[method].algorithm, scouting + rounds, 2 * args.pairs)
    return summary(scouting, rounds, peers)


def settings_of(algorithm: str, rows_per_step: int) -> list[str]:
    """Return the TRL settings that differ from each other for a step of this size."""
    names = [name for name, setting in TRL.items() if setting["rows"] <= rows_per_step]
    # sorting changes nothing if a forward pass holds the whole step or a single pair
    redundant = {
        name for name in names if TRL[name].get("sorted") and TRL[name]["rows"] == rows_per_step
    }
    if algorithm != "kto":
        redundant.add("rows_2_sorted")
    return [name for name in names if name not in redundant]


def check(algorithm: str, rows: list[dict[str, Any]], rows_per_step: int) -> None:
    """Raise AssertionError unless all sides did the same work, which a fair comparison requires."""
    for key, problem in (
        ("weights", "started from different weights"),
        ("steps", "ran different numbers of steps"),
        ("tokens", "saw different rows"),
    ):
        assert len({row[key] for row in rows}) == 1, f"the sides {problem}"
    ours = next(row for row in rows if row["side"] == OURS)
    for row in rows:
        side, names = row["side"], COMPARED[algorithm]
        moments = {"first": FIRST, "last": LAST}
        # TRL forms the pairs for the KL within a forward pass, posttrain over the data set: the
        # estimates are equal only in the first step, when both are 0
        if algorithm == "kto":
            del moments["last"]
        # ORPO's NLL is a mean over the tokens of a forward pass in TRL, but of a step in posttrain
        accumulates = side in TRL and TRL[side]["rows"] < rows_per_step
        if algorithm == "orpo" and accumulates:
            names = LOGPS
            del moments["last"]
        for moment, limit in moments.items():
            for name in names:
                value, expected = row[moment][name], ours[moment][name]
                assert math.isclose(value, expected, rel_tol=limit, abs_tol=limit / 10), (
                    f"{name} of the {moment} step differs: {side} has {value:.6g}, "
                    f"{OURS} {expected:.6g}"
                )


def summary(
    scouting: list[dict[str, Any]], rounds: list[dict[str, Any]], peers: list[str]
) -> dict[str, Any]:
    """Print medians and ratios as a table, and return them for the results file."""
    sides = [*POSTTRAIN, *peers]
    speed = {side: median_of(rounds, side, "tokens_per_second") for side in sides}
    memory = {side: median_of(rounds, side, "peak_mib") for side in sides}
    best = max(peers, key=lambda side: speed[side])
    ratio = median_ratio(rounds, OURS, best, "tokens_per_second")
    memory_ratio = median_ratio(rounds, OURS, best, "peak_mib")
    print(f"  {'':<20}{'tokens/s':>10}{'peak MiB':>10}{'first loss':>12}{'last loss':>12}")
    for side in sides:
        row = next(row for row in rounds if row["side"] == side)
        print(
            f"  {side:<20}{speed[side]:>10,.0f}{memory[side]:>10,.0f}"
            f"{row['first']['loss']:>12.5f}{row['last']['loss']:>12.5f}"
        )
    print(f"  {OURS} / TRL {best}: tokens/s {ratio:.2f}, peak memory {memory_ratio:.2f}")
    return {
        "parameters": rounds[0]["parameters"],
        "peer": best,
        "ratio": ratio,
        "memory_ratio": memory_ratio,
        "tokens_per_second": speed,
        "peak_mib": memory,
        "scouting": scouting,
        "rounds": rounds,
    }


def parse_arguments() -> argparse.Namespace:
    """Return the arguments of the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--methods", nargs="+", choices=list(METHODS), default=list(METHODS))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=6, help="timed optimiser steps")
    parser.add_argument(
        "--warmup", type=int, default=1, help="untimed steps before the timed ones, at least 1"
    )
    parser.add_argument(
        "--pairs", type=int, default=16, help="pairs in a step; kto uses twice as many rows"
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
        args.shape, args.rounds, args.steps, args.warmup, args.pairs = "tiny", 1, 2, 1, 4
    return args


if __name__ == "__main__":
    main()
