"""A custom data set, registered under a name from a script.

    python examples/new_dataset.py

A file of your own needs no code: `data: {path: my.jsonl, columns: {...}}`. A named data set is for
rows that code generates or converts. In the package this would be a file `data/sets/squares.py` and
a line in `data/sets/__init__.py`.
"""

from __future__ import annotations

import random
import sys

import posttrain
from posttrain.data.rows import Row, check_split
from posttrain.data.sets import DATASETS


def load(split: str, *, num_rows: int = 1000, largest: int = 99) -> list[Row]:
    """Return rows with prompt, completion and answer; `test` has the multiples of 5.

    Keyword arguments are the data set's options (`data.options`), which are checked against their
    types. Raise ValueError with one line for anything that is wrong.
    """
    check_split("squares", split, ("train", "test"))
    numbers = [n for n in range(largest + 1) if (n % 5 == 0) == (split == "test")]
    draw = random.Random(split)
    return [
        {
            "prompt": f"What is {n} squared?",
            "completion": f"{n}*{n} = {n * n}",
            "answer": str(n * n),
        }
        for n in (draw.choice(numbers) for _ in range(num_rows))
    ]


DATASETS["squares"] = load  # in the package: a line "posttrain.data.sets.squares:load"


def main(output_dir: str = "results") -> None:
    """Train for 20 steps and print the held-out loss."""
    run = posttrain.train(
        {
            "model": {"scratch": {"hidden_size": 64, "intermediate_size": 192, "num_layers": 2}},
            "data": {"name": "squares", "options": {"num_rows": 400}},
            "trainer": {
                "type": "sft",
                "run_name": "squares",
                "output_dir": output_dir,
                "max_steps": 20,
                "learning_rate": 3e-3,
                "eval_steps": 20,
            },
            "eval": {"max_samples": 50},
        }
    )
    print(f"held-out loss: {run.metrics[-1]['eval_loss']:.3f}")


if __name__ == "__main__":
    main(*sys.argv[1:])
