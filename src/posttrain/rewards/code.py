"""Whether a model-written Python program passes hidden tests, run in a sandbox (docs/sandbox.md).

A row has one of three forms; the first one whose columns are present applies:

    test, entry_point            HumanEval: `test` defines check(candidate); `prompt` may be code
    test_list, test_setup_code   MBPP: assert statements that call the program's functions
    inputs, outputs              a program that reads stdin and writes stdout

The tests and all expected values stay in trusted processes; the candidate sees arguments only.
"""

import ast
import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from pydantic import Field

from posttrain.rewards.base import Reward, RewardConfig
from posttrain.rewards.checks import RowFault, check_each
from posttrain.rewards.score import Score
from posttrain.sandbox.pool import Pool, judge, open_pool
from posttrain.sandbox.stdin_programs import free_outputs
from posttrain.sandbox.tester import Verdict

VERDICTS = (
    "correct",
    "wrong",
    "error",
    "timeout",
    "memory",
    "output",
    "died",
    "protocol",
    "no_code",
)


class CodeExecution(RewardConfig):
    """Settings of the code reward. The limits apply to one process, which runs one row or input."""

    type: Literal["code_execution"] = "code_execution"
    positive: float = 1.0
    """Score of a correct completion."""
    negative: float = 0.0
    """Score of any other completion."""
    partial_credit: bool = False
    """Scale the score from `negative` to `positive` by the share of tests passed. A test is an item
    of test_list, a statement of check, or an input. Tests that a stub passes (one that returns
    None, [], 0, "", True or its argument) do not count; nor do inputs with such an output, or with
    an output that another input has too."""
    isolation: Literal["bubblewrap", "namespace", "process"] | None = None
    """Isolation level. null takes bubblewrap, else namespace, and is an error if neither works."""
    workers: int | None = Field(None, ge=1)
    """Completions judged concurrently; null is one for each of this rank's cores."""
    cpu_seconds: int = Field(4, ge=1)
    """Processor time of a candidate, over all its threads."""
    wall_seconds: float = Field(15.0, gt=0)
    """Wall-clock time of a candidate. It only stops programs that wait, and is long so that correct
    programs pass on a busy machine too."""
    memory_mib: int = Field(512, ge=64)
    """Address space of a candidate, in MiB."""
    processes: int = Field(16, ge=1)
    """Threads of a candidate; new processes are always refused."""
    file_mib: int = Field(1, ge=0)
    """Largest file, in MiB, if the isolation level leaves any file writable."""
    output_bytes: int = Field(32 << 20, ge=1024)
    """Bytes of standard output, or of one returned value with the arguments that it changed."""


@dataclass
class CodeReward:
    """The code reward's function, with the pool of lanes in which it runs programs."""

    config: CodeExecution
    pool: Pool
    free: dict[str, list[int]] = field(default_factory=dict)
    """Numbers of the tests that a stub passes, by the hash of the tests."""
    weak: int = 0
    """Number of rows of whose tests a stub passes all."""
    row_by_row: ClassVar[bool] = True  # rows of several groups in one call keep all lanes busy

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
        """Return a Score with a verdict for every completion.

        Raise ValueError, naming the row, for malformed tests and for tests that fail by themselves.
        """
        columns_by_name = {
            "test": test,
            "entry_point": entry_point,
            "test_list": test_list,
            "test_setup_code": test_setup_code,
            "inputs": inputs,
            "outputs": outputs,
        }
        jobs = []
        for i, completion in enumerate(completions):
            row = {
                name: column[i] for name, column in columns_by_name.items() if column is not None
            }
            try:
                tests = job_of({**row, "prompt": prompts[i]})
            except ValueError as error:
                raise ValueError(f"row {i + 1}: {error}") from None
            jobs.append({**tests, "completion": completion, "partial": self.config.partial_credit})
        if self.config.partial_credit:
            try:
                self._measure(jobs)
            except RowFault as fault:
                raise ValueError(f"row {fault.index + 1}: {fault}") from None
            for job in jobs:
                if job["form"] == "program":
                    job["free"] = free_outputs(job["inputs"], job["outputs"])
                else:
                    job["free"] = self.free.get(_key(job), [])
        verdicts = judge(self.pool, jobs)
        for i, verdict in enumerate(verdicts, 1):
            if verdict.verdict == "bad_test":
                raise ValueError(f"row {i}: the tests do not run: {verdict.detail}")
        return [self.score(verdict) for verdict in verdicts]

    def score(self, verdict: Verdict) -> Score:
        """Return the score of a verdict, by the settings."""
        share = float(verdict.verdict == "correct")
        if self.config.partial_credit and verdict.total and share == 0:
            share = verdict.passed / verdict.total
        low, high = self.config.negative, self.config.positive
        return Score(high if share == 1 else low + (high - low) * share, verdict.verdict)

    def check_rows(self, rows: Sequence[dict[str, Any]]) -> None:
        """Raise RowFault for the first row without tests, or with tests that cannot run."""
        jobs: list[dict[str, Any]] = []
        check_each(lambda row: jobs.append(job_of(row)), rows)
        self._measure(jobs)

    def _measure(self, jobs: Sequence[dict[str, Any]]) -> None:
        """Run the tests of `jobs` against stubs, once for each row; note which ones those pass."""
        first: dict[str, int] = {}
        for index, job in enumerate(jobs):
            if job["form"] != "program" and _key(job) not in self.free:
                first.setdefault(_key(job), index)
        partial = self.config.partial_credit
        stubs = [{**jobs[i], "completion": None, "partial": partial} for i in first.values()]
        for (key, index), verdict in zip(first.items(), judge(self.pool, stubs)):
            if verdict.verdict == "bad_test":
                raise RowFault(index, f"the tests do not run: {verdict.detail}")
            self.free[key] = verdict.free
            self.weak += 0 < verdict.total == verdict.passed

    def about(self) -> dict[str, Any]:
        """Return the isolation level and the number of workers and of weak rows, for the record."""
        about = {"isolation": self.pool.level, "workers": self.pool.workers}
        if self.weak:
            about["rows_whose_tests_a_stub_passes"] = self.weak
        return about | ({"not_isolated": self.pool.open} if self.pool.open else {})


def build(config: CodeExecution) -> CodeReward:
    """Return the reward function; raise ValueError if its isolation does not work here."""
    names = (
        "cpu_seconds",
        "wall_seconds",
        "memory_mib",
        "processes",
        "file_mib",
        "output_bytes",
    )
    limits = {name: getattr(config, name) for name in names}
    ranks = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    workers = config.workers or max(1, len(os.sched_getaffinity(0)) // ranks)
    return CodeReward(config, open_pool(config.isolation, limits, workers))


def _key(job: dict[str, Any]) -> str:
    """Return what tells the tests of one job from those of another."""
    names = ("form", "prompt", "entry_point", "test", "tests", "setup")
    return hashlib.sha256(json.dumps([job.get(name) for name in names]).encode()).hexdigest()


def job_of(row: dict[str, Any]) -> dict[str, Any]:
    """Return the tests of a row in the form of a lane's job.

    Raises:
        ValueError: The row has none of the three forms, or its tests are malformed.
    """
    if row.get("test") is not None:
        name, test = row.get("entry_point"), row["test"]
        if not isinstance(name, str) or not name.isidentifier():
            raise ValueError(f"entry_point must be the name of a function; got {name!r}")
        _check_python("test", test)
        if not any(
            isinstance(node, ast.FunctionDef) and node.name == "check"
            for node in ast.parse(test).body
        ):
            raise ValueError("test does not define check(candidate)")
        prompt = prompt_text(row.get("prompt"))
        return {"form": "check", "prompt": prompt, "entry_point": name, "test": test}
    if row.get("test_list") is not None:
        tests = _strings("test_list", row["test_list"])
        setup = row.get("test_setup_code") or ""
        for i, test in enumerate(tests):
            _check_python(f"test_list[{i}]", test)
        _check_python("test_setup_code", setup)
        return {"form": "asserts", "tests": tests, "setup": setup}
    if row.get("inputs") is not None:
        inputs = _strings("inputs", row["inputs"])
        outputs = _strings("outputs", row.get("outputs"))
        if len(inputs) != len(outputs):
            raise ValueError(
                f"expected one output for each input, got {len(inputs)} inputs and "
                f"{len(outputs)} outputs"
            )
        return {"form": "program", "inputs": inputs, "outputs": outputs}
    present = ", ".join(name for name, value in row.items() if value is not None)
    raise ValueError(
        "expected the columns test+entry_point, test_list, or inputs+outputs; "
        f"got {present or 'none'}"
    )


def _strings(name: str, value: Any) -> list[str]:
    if not isinstance(value, (list, tuple)) or not all(isinstance(v, str) for v in value):
        raise ValueError(f"{name} must be a list of strings; got {str(value)[:80]!r}")
    if not value:
        raise ValueError(f"{name} is empty: a program cannot be judged without tests")
    return list(value)


def _check_python(name: str, text: Any) -> None:
    if not isinstance(text, str):
        raise ValueError(f"{name} must be a string; got {text!r}")
    try:
        compile(text, name, "exec")
    except (SyntaxError, ValueError) as error:
        raise ValueError(f"{name} is not valid Python: {error}") from None


def prompt_text(prompt: Any) -> str:
    """Return a prompt's text: the prompt itself, or the last user message of a conversation."""
    if isinstance(prompt, str):
        return prompt
    for message in reversed(prompt or []):
        if isinstance(message, dict) and message.get("role") == "user":
            return str(message.get("content") or "")
    return ""


REWARD = Reward(CodeExecution, build)
