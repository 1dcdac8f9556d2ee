"""Train, inspect the run, evaluate and sample, from Python.

    python examples/train_from_python.py

It takes a minute on a laptop: 60 steps of a model with 0.3M parameters. The keys are those of a
recipe (docs/reference/config.md), and a wrong key gives the same message.
"""

from __future__ import annotations

import sys

import posttrain


def main(output_dir: str = "results") -> None:
    """Train a small model and print what it has learnt."""
    config = posttrain.load_config(
        {
            "model": {"scratch": {"hidden_size": 64, "intermediate_size": 192, "num_layers": 2}},
            "data": {"name": "word_problems", "options": {"families": "seen", "num_rows": 2000}},
            "trainer": {
                "type": "sft",
                "run_name": "from-python",
                "output_dir": output_dir,
                "max_steps": 60,
                "batch_size": 16,
                "learning_rate": 3e-3,
                "eval_steps": 30,
            },
            "eval": {"max_samples": 50},
        }
    )
    run = posttrain.train(config)

    losses = [line["loss"] for line in run.metrics if "loss" in line]
    print(f"loss: {losses[0]:.2f} -> {losses[-1]:.2f}; report: {run.report}")

    results = posttrain.evaluate(run, ["word_problems"], max_samples=20, max_new_tokens=64)
    print(f"accuracy: {results['word_problems']['accuracy']:.1%}")

    for completion in posttrain.generate(run, ["Tom has 3 apples and buys 4."], max_new_tokens=32):
        print(completion)

    model = run.model()  # a transformers model; for a LoRA run, a PEFT model
    print(type(model).__name__, sum(p.numel() for p in model.parameters()), "parameters")


if __name__ == "__main__":
    main(*sys.argv[1:])
