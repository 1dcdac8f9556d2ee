"""What another program on the machine costs a run on a CPU.

    python benchmarks/neighbours.py [--rounds 3] [--steps 25] [--quick]

The demo's model, SFT, DPO and GRPO steps as `posttrain train` makes them, on all cores: by workers
that each compute micro-batches of their own (as it is), and by threads that share every operation.
Beside each run are none, one or two processes that only count. The sides take turns, round after
round.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
from typing import Any

from common import machine, run_worker, today, versions, write_results

SIDES = ("workers", "operations")
METHODS = {"sft": 1.0, "dpo": 0.5, "grpo": 0.3}
"""Share of the steps that each method makes: those of GRPO take a hundred times as long."""


def measure(method: str, side: str, busy: int, steps: int, threads: int) -> dict[str, Any]:
    """Return the seconds of a step, beside so many busy processes."""
    counting = [sys.executable, "-c", "while True: pass"]
    others = [subprocess.Popen(counting) for _ in range(busy)]
    try:
        settings = {"method": method, "side": side, "steps": steps}
        found = run_worker("neighbours_worker.py", settings, "tuned", threads)
    finally:
        for other in others:
            other.kill()
            other.wait()
    return {"method": method, "side": side, "busy": busy, **found}


def main() -> None:
    """Measure, print the table and write the result."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--busy", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--quick", action="store_true", help="one round of 4 steps")
    asked = parser.parse_args()
    threads = os.cpu_count() or 1
    rounds, steps = (1, 4) if asked.quick else (asked.rounds, asked.steps)
    rows = []
    for number in range(rounds):
        for method in asked.methods:
            for busy in asked.busy:
                for side in SIDES if number % 2 == 0 else reversed(SIDES):
                    count = max(4, round(steps * METHODS[method]))
                    row = measure(method, side, busy, count, threads)
                    rows.append({"round": number, **row})
                    print(f"{number} {method:<5} {busy} busy  {side:<11}{row['median']:8.3f} s")
    table = []
    for method in asked.methods:
        for busy in asked.busy:
            seconds = {
                side: statistics.median(
                    row["median"]
                    for row in rows
                    if (row["method"], row["busy"], row["side"]) == (method, busy, side)
                )
                for side in SIDES
            }
            table.append({"method": method, "busy": busy, **seconds})
    for row in table:
        print("{method:<5} {busy} busy  {workers:8.3f}  {operations:8.3f} s".format(**row))
    if not asked.quick:
        result = {
            "date": today(),
            "machine": machine(threads),
            "versions": versions("posttrain", "torch"),
            "seconds_of_a_step": table,
            "measurements": rows,
        }
        write_results("neighbours", result)


if __name__ == "__main__":
    main()
