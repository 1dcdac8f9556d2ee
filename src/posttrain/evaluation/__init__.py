"""The registry of evaluation tasks: which data, checked by which reward."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Task:
    data: dict[str, Any]
    """A data section; `path` may be given on the command line as TASK=PATH."""
    reward: dict[str, Any]


_MATH = {"type": "math_correctness"}

TASKS: dict[str, Task] = {
    "gsm8k": Task({"name": "gsm8k", "split": "test"}, _MATH),
    "word_problems": Task(
        {"name": "word_problems", "split": "test", "options": {"num_rows": 1000}}, _MATH
    ),
    "word_problems_harder": Task(
        {"name": "word_problems", "split": "test_harder", "options": {"num_rows": 1000}}, _MATH
    ),
}
