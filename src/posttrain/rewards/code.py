"""Does a program pass hidden tests? Model-written Python, run in a sandbox (docs/sandbox.md).

A row has one of three forms; the first whose columns it has decides:

    test, entry_point            HumanEval: `test` defines check(candidate); `prompt` may be code
    test_list, test_setup_code   MBPP: assert statements that call the program's functions
    inputs, outputs              a program that reads stdin and writes stdout

The tests and every expected value stay in trusted processes; the candidate sees arguments only.
"""

import ast
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from pydantic import Field

from posttrain.rewards.base import Reward, RewardConfig
from posttrain.rewards.score import Score
from posttrain.sandbox.pool import Pool, judge, open_pool
from posttrain.sandbox.tester import Verdict

VERDICTS = (
    "correct", "wrong", "error", "timeout", "memory", "output", "died", "protocol", "no_code",
)  # fmt: skip


class CodeExecution(RewardConfig):
    """Settings of the code reward. The limits hold for one process: one row, or one input."""

    type: Literal["code_execution"] = "code_execution"
    positive: float = 1.0
    """Score of a correct completion."""
    negative: float = 0.0
    """Score of a wrong one."""
    partial_credit: bool = False
    """Score the share of tests passed, between `negative` and `positive`."""
    isolation: Literal["bubblewrap", "namespace", "process"] | None = None
    """None takes the stronger of bubblewrap and namespace, and refuses where neither works."""
    workers: int | None = Field(None, ge=1)
    """Completions judged at once; None is one for each core of this rank's."""
    cpu_seconds: int = Field(4, ge=1)
    """Processor time of a candidate, over all its threads."""
    wall_seconds: float = Field(15.0, gt=0)
    """A backstop for programs that wait: a busy machine must not make right answers late."""
    memory_mib: int = Field(512, ge=64)
    """Address space."""
    processes: int = Field(16, ge=1)
    """Threads; new processes are refused altogether."""
    file_mib: int = Field(1, ge=0)
    """Size of a file, where the level leaves any file writable."""
    output_bytes: int = Field(4 << 20, ge=1024)
    """Of standard output, or of one returned value."""


@dataclass
class CodeReward:
    """The reward function of a config, with the lanes that it runs programs in."""

    config: CodeExecution
    pool: Pool
    row_by_row: ClassVar[bool] = True  # lanes are not idle while a small group is judged

    def __call__(
        self,
        prompts: Sequence[Any],
        completions: Sequence[str],
        completion_ids: Sequence[Any],
        *,
        test: Sequence[str | None] | None = None,
        entry_point: Sequence[str | None] | None = None,
        test_list: Sequence[Sequence[str] | None] | None = None,
        test_setup_code: Sequence[str | None] | None = None,
        inputs: Sequence[Sequence[str] | None] | None = None,
        outputs: Sequence[Sequence[str] | None] | None = None,
        **columns: Any,
    ) -> list[float | None]:
        given = {
            "test": test,
            "entry_point": entry_point,
            "test_list": test_list,
            "test_setup_code": test_setup_code,
            "inputs": inputs,
            "outputs": outputs,
        }
        jobs = []
        for i, completion in enumerate(completions):
            row = {name: column[i] for name, column in given.items() if column is not None}
            try:
                tests = job_of({**row, "prompt": prompts[i]})
            except ValueError as error:
                raise ValueError(f"row {i + 1}: {error}") from None
            jobs.append({**tests, "completion": completion, "partial": self.config.partial_credit})
        verdicts = judge(self.pool, jobs)
        for i, verdict in enumerate(verdicts, 1):
            if verdict.verdict == "bad_test":
                raise ValueError(f"row {i}: the tests do not run: {verdict.detail}")
        return [self.score(verdict) for verdict in verdicts]

    def score(self, verdict: Verdict) -> Score:
        share = float(verdict.verdict == "correct")
        if self.config.partial_credit and verdict.total:
            share = verdict.passed / verdict.total
        low, high = self.config.negative, self.config.positive
        return Score(high if share == 1 else low + (high - low) * share, verdict.verdict)

    def check_row(self, row: dict[str, Any]) -> None:
        """Raises ValueError for a row without tests or with malformed ones."""
        job_of(row)

    def about(self) -> dict[str, Any]:
        """What stands in the run's record."""
        about = {"isolation": self.pool.level, "workers": self.pool.workers}
        return about | ({"not_isolated": self.pool.open} if self.pool.open else {})


def build(config: CodeExecution) -> CodeReward:
    """The reward for `config`. Raises ValueError where its isolation does not work."""
    names = (
        "cpu_seconds", "wall_seconds", "memory_mib", "processes", "file_mib", "output_bytes",
    )  # fmt: skip
    limits = {name: getattr(config, name) for name in names}
    ranks = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    workers = config.workers or max(1, len(os.sched_getaffinity(0)) // ranks)
    return CodeReward(config, open_pool(config.isolation, limits, workers))


def job_of(row: dict[str, Any]) -> dict[str, Any]:
    """The tests of a row as a lane takes them.

    Raises:
        ValueError: the row has none of the three forms, or its tests are malformed.
    """
    if row.get("test") is not None:
        name, test = row.get("entry_point"), row["test"]
        if not isinstance(name, str) or not name.isidentifier():
            raise ValueError(f"entry_point must be a function's name; found {name!r}")
        _parse("test", test)
        if not any(
            isinstance(node, ast.FunctionDef) and node.name == "check"
            for node in ast.parse(test).body
        ):
            raise ValueError("test does not define check(candidate)")
        prompt = prompt_text(row.get("prompt"))
        return {"form": "check", "prompt": prompt, "entry_point": name, "test": test}
    if row.get("test_list") is not None:
        tests = _texts("test_list", row["test_list"])
        setup = row.get("test_setup_code") or ""
        for i, test in enumerate(tests):
            _parse(f"test_list[{i}]", test)
        _parse("test_setup_code", setup)
        return {"form": "asserts", "tests": tests, "setup": setup}
    if row.get("inputs") is not None:
        given = _texts("inputs", row["inputs"])
        expected = _texts("outputs", row.get("outputs"))
        if len(given) != len(expected):
            raise ValueError(f"{len(given)} inputs, but {len(expected)} outputs")
        return {"form": "program", "inputs": given, "outputs": expected}
    found = ", ".join(name for name, value in row.items() if value is not None)
    raise ValueError(
        "expected the columns test+entry_point, test_list, or inputs+outputs; "
        f"found {found or 'none'}"
    )


def _texts(name: str, value: Any) -> list[str]:
    if not isinstance(value, (list, tuple)) or not all(isinstance(v, str) for v in value):
        raise ValueError(f"{name} must be a list of texts; found {str(value)[:80]!r}")
    if not value:
        raise ValueError(f"{name} is empty: a program without tests can not be judged")
    return list(value)


def _parse(name: str, text: Any) -> None:
    if not isinstance(text, str):
        raise ValueError(f"{name} must be a text; found {text!r}")
    try:
        compile(text, name, "exec")
    except (SyntaxError, ValueError) as error:
        raise ValueError(f"{name} is not Python: {error}") from None


def prompt_text(prompt: Any) -> str:
    """The text of a prompt: as it is, or the last user message of a conversation."""
    if isinstance(prompt, str):
        return prompt
    for message in reversed(prompt or []):
        if isinstance(message, dict) and message.get("role") == "user":
            return str(message.get("content") or "")
    return ""


REWARD = Reward(CodeExecution, build)
