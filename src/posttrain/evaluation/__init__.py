"""Registry of the evaluation tasks that generate: their data, reward and text metrics."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Task:
    """A task whose completions a reward checks, text metrics measure, or both."""

    data: dict[str, Any]
    """Data section; TASK=PATH on the command line sets its `path`."""
    reward: dict[str, Any] | None
    """Reward section that decides whether a completion is right; None if none can."""
    shots: str | None = "train"
    """Split that the few-shot examples are taken from; None if there is none."""
    metrics: tuple[str, ...] = ()
    """Names in `scores.text.METRICS`, computed over all completions of the task."""
    reference: str = "completion"
    """Column that the metrics compare a completion with."""


_FEVER = ["SUPPORTS", "REFUTES", "NOT ENOUGH INFO"]
_LIAR = ["pants on fire", "false", "barely true", "half true", "mostly true", "true"]
_MATH = {"type": "math_correctness"}
_CODE = {"type": "code_execution"}
_TEXT = ("chrf", "bleu", "rouge", "distinct", "repetition", "length")

TASKS: dict[str, Task] = {
    "gsm8k": Task({"name": "gsm8k", "split": "test"}, _MATH),
    "math500": Task({"name": "math", "split": "test"}, _MATH),
    "humaneval": Task({"name": "humaneval", "split": "test"}, _CODE, shots=None),
    "mbpp": Task({"name": "mbpp", "split": "test"}, _CODE, shots="prompt"),
    "fever": Task({"name": "fever", "split": "test"}, {"type": "classification", "labels": _FEVER}),
    "svamp": Task({"name": "svamp", "split": "test"}, _MATH, shots=None),
    "liar": Task({"name": "liar", "split": "test"}, {"type": "classification", "labels": _LIAR}),
    "xstest": Task(
        {"name": "xstest", "split": "test"},
        {"type": "refusal", "column": "label"},
        shots=None,
        metrics=("xstest",),
        reference="label",
    ),
    "advbench": Task(
        {"name": "advbench", "split": "test"},
        {"type": "refusal", "rule": "advbench"},
        shots=None,
        metrics=("advbench",),
        reference="label",
    ),
    "explanation": Task({"name": "liar_plus", "split": "test"}, None, metrics=_TEXT),
    "dialogue": Task({"name": "smoltalk", "split": "test"}, None, metrics=_TEXT),
    "poetry": Task({"split": "test"}, None, metrics=("poetry", "distinct", "repetition", "length")),
    "word_problems": Task(
        {"name": "word_problems", "split": "test", "options": {"num_rows": 1000}}, _MATH
    ),
    "word_problems_harder": Task(
        {"name": "word_problems", "split": "test_harder", "options": {"num_rows": 1000}}, _MATH
    ),
    "programs": Task({"name": "programs", "split": "test", "options": {"num_rows": 500}}, _CODE),
}
