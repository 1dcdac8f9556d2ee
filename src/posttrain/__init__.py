"""Post-training of language models: readable, offline, exact.

    import posttrain

    config = posttrain.load_config("recipes/sft/gsm8k.yaml", trainer={"max_steps": 100})
    run = posttrain.train(config)
    print(run.metrics[-1]["loss"], run.best_checkpoint)
    results = posttrain.evaluate(run, ["gsm8k"])
    texts = posttrain.generate(run, ["How many legs do three cats have?"])

Importing the package imports nothing heavy; each name is loaded when it is first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from posttrain.common.environment import make_products_reproducible

if TYPE_CHECKING:
    from posttrain.runs.api import (
        compare,
        dry_run,
        evaluate,
        load_config,
        plot,
        preview,
        train,
        write_report,
    )
    from posttrain.runs.config import Config
    from posttrain.runs.generate import Completion, generate
    from posttrain.runs.generate_file import generate_file
    from posttrain.runs.run import Run

__version__ = "0.2.0"
__all__ = [
    "Completion",
    "Config",
    "Run",
    "compare",
    "dry_run",
    "evaluate",
    "generate",
    "generate_file",
    "load_config",
    "plot",
    "preview",
    "train",
    "write_report",
]

_MODULES = {
    "Completion": "posttrain.runs.generate",
    "Config": "posttrain.runs.config",
    "Run": "posttrain.runs.run",
    "compare": "posttrain.runs.api",
    "dry_run": "posttrain.runs.api",
    "evaluate": "posttrain.runs.api",
    "generate": "posttrain.runs.generate",
    "generate_file": "posttrain.runs.generate_file",
    "load_config": "posttrain.runs.api",
    "plot": "posttrain.runs.api",
    "preview": "posttrain.runs.api",
    "train": "posttrain.runs.api",
    "write_report": "posttrain.runs.api",
}

make_products_reproducible()


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'posttrain' has no attribute {name!r}")
    return getattr(import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return [*globals(), *__all__]
