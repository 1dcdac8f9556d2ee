"""SFT throughput and peak memory: posttrain against TRL's SFTTrainer.

Both sides use the same weights, rows, optimiser, thread and allocator settings. Every measurement
runs in its own process, and the sides alternate within each round. A scouting round measures every
TRL setting; the rounds that count measure only the fastest ones. If the losses of the sides
disagree, the benchmark fails and writes no results.

    python benchmarks/sft.py --rounds 5 --steps 12 --vocab 4096 32768
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
from sft_worker import ADAMW, LONGEST, POSTTRAIN, SHORTEST, TRL

OURS = "posttrain"  # with the default micro_batch_tokens
TOLERANCE = 1e-4  # for the loss of the first step, in nats per token


def main() -> None:
    """Run the benchmark and write its results."""
    args = parse_arguments()
    vocabularies = {str(vocab): compare(vocab, args) for vocab in args.vocab}
    name = "sft-quick" if args.quick else "sft"
    results = {
        "benchmark": name,
        "date": today(),
        "machine": machine(args.threads),
        "versions": versions("posttrain", "torch", "transformers", "trl"),
        "settings": {
            "model": {"architecture": "qwen2", "tied head": True, **SHAPES[args.shape]},
            "dtype": "float32",
            "row_lengths": [SHORTEST, LONGEST],
            "rows_per_step": args.rows,
            "steps": args.steps,
            "warmup_steps": args.warmup,
            "rounds": args.rounds,
            "optimizer": ADAMW,
            "posttrain_micro_batch_tokens": POSTTRAIN,
            "trl": TRL,
            "allocators": ALLOCATORS,
        },
        "ratio": {vocab: v["ratio"] for vocab, v in vocabularies.items()},
        "memory_ratio": {vocab: v["memory_ratio"] for vocab, v in vocabularies.items()},
        "model_flops_utilization": {
            vocab: v["model_flops_utilization"] for vocab, v in vocabularies.items()
        },
        "vocabularies": vocabularies,
    }
    write_results(name, results)


def compare(vocab: int, args: argparse.Namespace) -> dict[str, Any]:
    """Return every measurement with one vocabulary, with medians and ratios."""
    print(f"\nvocabulary {vocab:,}: {args.shape} model, {args.threads} thread(s)")

    def measure(side: str, number: int, allocator: str) -> dict[str, Any]:
        settings = {
            "side": side,
            "vocab": vocab,
            "shape": args.shape,
            "rows_per_step": args.rows,
            "warmup": args.warmup,
            "steps": args.steps,
        }
        row = run_worker("sft_worker.py", settings, allocator, args.threads)
        row = {"round": number, "side": side, "allocator": allocator, **row}
        if side != "matmul":
            print(
                f"  {allocator:<8} round {number}  {side:<18}{row['tokens_per_second']:>9,.0f} "
                f"tokens/s{row['peak_mib']:>8,.0f} MiB",
                flush=True,
            )
        return row

    names = args.peers or list(TRL)
    scouting = [measure(side, 0, "tuned") for side in [*POSTTRAIN, *names]]
    peers = fastest(scouting, names, args.finalists)
    sides = ["matmul", *POSTTRAIN, *peers]
    rounds = [
        measure(side, number, "tuned")
        for number in range(1, args.rounds + 1)
        for side in in_turn(sides, number)
    ]
    untuned = [measure(side, 1, "default") for side in [*POSTTRAIN, *peers]]
    check([row for row in scouting + rounds + untuned if row["side"] != "matmul"])
    return summary(vocab, scouting, rounds, untuned, peers)


def fastest(rows: list[dict[str, Any]], names: list[str], number: int) -> list[str]:
    """Return the `number` fastest of the settings `names`."""
    speed = {row["side"]: row["tokens_per_second"] for row in rows}
    return sorted(names, key=lambda name: -speed[name])[:number]


def check(rows: list[dict[str, Any]]) -> None:
    """Raise AssertionError unless all sides did the same work, which a fair comparison requires."""
    assert len({row["weights"] for row in rows}) == 1, "the sides started from different weights"
    assert len({row["steps"] for row in rows}) == 1, "the sides ran different numbers of steps"
    # packing puts different rows into a step: it is checked only against its own reference loss
    comparable = [row for row in rows if row["side"] != "packing_bfd"]
    assert len({row["tokens"] for row in comparable}) == 1, "the sides saw different rows"
    for row in rows:
        difference = abs(row["first_loss"] - row["reference_loss"])
        assert difference < TOLERANCE, (
            f"{row['side']}: first loss is {difference:.2g} off its reference"
        )
    for key, limit in (("first_loss", TOLERANCE), ("last_loss", 10 * TOLERANCE)):
        values = [row[key] for row in comparable]
        spread = max(values) - min(values)
        assert spread < limit, f"{key} differs between the sides by {spread:.2g}"


def summary(
    vocab: int,
    scouting: list[dict[str, Any]],
    rounds: list[dict[str, Any]],
    untuned: list[dict[str, Any]],
    peers: list[str],
) -> dict[str, Any]:
    """Print medians and ratios as a table, and return them for the results file."""
    sides = [*POSTTRAIN, *peers]
    speed = {side: median_of(rounds, side, "tokens_per_second") for side in sides}
    memory = {side: median_of(rounds, side, "peak_mib") for side in sides}
    best = max(peers, key=lambda side: speed[side])
    # the head is tied to the embedding, so all parameters take part in matrix products
    parameters = next(row["parameters"] for row in rounds if row["side"] == OURS)
    rate = median_of(rounds, "matmul", "flops_per_second")
    # utilisation is relative to the rate measured in the same round
    matmul = {r["round"]: r["flops_per_second"] for r in rounds if r["side"] == "matmul"}
    used = [
        {**r, "used": 6 * parameters * r["tokens_per_second"] / matmul[r["round"]]}
        for r in rounds
        if r["side"] != "matmul"
    ]
    utilization = {side: median_of(used, side, "used") for side in sides}
    tokens_per_second = {
        side: median_ratio(rounds, side, best, "tokens_per_second") for side in POSTTRAIN
    }
    print(f"  {'':<20}{'tokens/s':>10}{'peak MiB':>10}{'FLOP use':>10}{'first loss':>12}")
    for side in sides:
        loss = median_of(rounds, side, "first_loss")
        print(
            f"  {side:<20}{speed[side]:>10,.0f}{memory[side]:>10,.0f}{utilization[side]:>10.3f}"
            f"{loss:>12.5f}"
        )
    ratio = tokens_per_second[OURS]
    memory_ratio = median_ratio(rounds, OURS, best, "peak_mib")
    print(f"  {OURS} / TRL {best}: tokens/s {ratio:.2f}, peak memory {memory_ratio:.2f}")
    return {
        "vocab": vocab,
        "parameters_in_matmuls": parameters,
        "matmul_flops_per_second": rate,
        "peer": best,
        "ratio": ratio,
        "memory_ratio": memory_ratio,
        "model_flops_utilization": utilization,
        "ratio_of_each_setting": tokens_per_second,
        "ratio_default_allocator": {
            peer: median_ratio(untuned, OURS, peer, "tokens_per_second") for peer in peers
        },
        "tokens_per_second": speed,
        "peak_mib": memory,
        "scouting": scouting,
        "rounds": rounds,
        "default_allocator": untuned,
    }


def parse_arguments() -> argparse.Namespace:
    """Return the arguments of the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=12, help="timed optimiser steps")
    parser.add_argument(
        "--warmup", type=int, default=2, help="untimed steps before the timed ones, at least 1"
    )
    parser.add_argument("--rows", type=int, default=16, help="rows in an optimiser step")
    parser.add_argument("--vocab", type=int, nargs="+", default=[4096, 32768])
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument(
        "--finalists", type=int, default=2, help="number of TRL settings that every round measures"
    )
    parser.add_argument("--peers", nargs="+", choices=list(TRL), help="TRL settings to scout")
    parser.add_argument(
        "--quick", action="store_true", help="use a tiny model, to check that it runs"
    )
    args = parser.parse_args()
    args.shape = "8m"
    if args.quick:
        args.shape, args.rounds, args.steps, args.warmup = "tiny", 1, 3, 1
        args.vocab = [4096]
    return args


if __name__ == "__main__":
    main()
