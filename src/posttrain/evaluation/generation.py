"""The evaluator of completions: sample, score, append to a file, and count.

`posttrain eval`, evaluation during training and the comparison of a pipeline's stages all use it,
greedily or with several samples per problem.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from statistics import fmean
from typing import Any

from posttrain.common import distributed
from posttrain.common.console import CONSOLE
from posttrain.common.files import write_text
from posttrain.common.seeds import mix
from posttrain.common.telling import tell
from posttrain.data.kinds.prompt import Prompt
from posttrain.data.render import Renderer
from posttrain.data.rows import Row
from posttrain.evaluation.answers import UNREAD, Reader, majority
from posttrain.evaluation.problems import NEXT_QUESTION, Problem, problem_ids
from posttrain.evaluation.statistics import interval, pass_at, share
from posttrain.rewards.base import RewardFn
from posttrain.rewards.score import is_correct, parts_of, verdict_of
from posttrain.rewards.scoring import score
from posttrain.rollout.generation import generate
from posttrain.rollout.sampler import Sampler, SamplingParams

CHUNK = 256  # completions between two writes to the file

Record = dict[str, Any]
"""A completion: its problem's id, its number among that problem's, texts, score and verdict."""


@dataclass(frozen=True)
class Asking:
    """How a model is asked the problems of a task, and how its completions are judged."""

    name: str
    renderer: Renderer
    params: SamplingParams
    reward: RewardFn | None
    """None if completions are not right or wrong."""
    num_samples: int = 1
    seed: int = 0
    stops_at_question: bool = False
    """Whether completions end where the next question of few-shot text begins."""
    reader: Reader | None = None
    """Reads answers, for majority votes and strict accuracy."""
    reward_model: RewardFn | None = None
    """Chooses the best of a problem's completions, for best@n."""


def ask(
    problems: Sequence[Problem],
    asking: Asking,
    sampler: Sampler,
    file: Path | None = None,
    chunk: int = CHUNK,
) -> list[Record]:
    """Return a record of every completion, num_samples per problem, in the problems' order.

    Records are appended to `file`, `chunk` at a time. Those that it holds already are not sampled
    again: a completion depends only on its problem, its number and the seed.

    Problems are split over the ranks; each returns the records of all. `file` is rank 0's.
    """
    n, ranks = asking.num_samples, distributed.num_ranks()
    per_rank = max(1, chunk // n)
    size = per_rank * ranks
    records: list[Record] = distributed.from_rank_0(
        [] if file is None else kept(file, len(problems), per_rank, n)
    )
    for start in range(len(records) // n, len(problems), size):
        places = range(start, min(start + size, len(problems)))
        mine = places[distributed.rank() :: ranks]
        parts = distributed.all_gather(complete([problems[i] for i in mine], mine, asking, sampler))
        shares = [iter(part) for part in parts]
        new = [record for i in places for record in islice(shares[(i - start) % ranks], n)]
        records += new
        tell("finished", {"what": f"{len(records) // n:,} problems of {asking.name}"})
        if file is not None:
            with file.open("a") as out:
                out.write("".join(json.dumps(record, default=str) + "\n" for record in new))
        if len(problems) > size and distributed.rank() == 0:
            done = len(records) // n
            CONSOLE.print(f"{asking.name}: {done:,} of {len(problems):,} problems", markup=False)
    return records


def kept(file: Path, num_problems: int, size: int, num_samples: int) -> list[Record]:
    """Return the records of the file's whole chunks, and cut off what a kill left after them.

    Chunks are counted as one rank's, since there may have been fewer ranks than now.
    """
    if not file.is_file():
        return []
    lines = [line for line in file.read_text().splitlines(keepends=True) if line.endswith("\n")]
    whole = min(len(lines) // num_samples, num_problems)
    if whole < num_problems:
        whole -= whole % size
    lines = lines[: whole * num_samples]
    write_text(file, "".join(lines))
    return [json.loads(line) for line in lines]


def complete(
    problems: Sequence[Problem], places: Sequence[int], asking: Asking, sampler: Sampler
) -> list[Record]:
    """Return the records of sampled and scored completions of problems.

    `places` are the problems' indices among all problems of the task; seeds depend on them.
    """
    n, decode = asking.num_samples, asking.renderer.tokenizer.decode
    seeds = [mix(asking.seed, place, number) for place in places for number in range(n)]
    ids = [problem.input_ids for problem in problems for _ in range(n)]
    rollouts = generate(sampler, ids, asking.params, seeds)
    records: list[Record] = []
    for i, rollout in enumerate(rollouts):
        text, reason = asking.renderer.decode(rollout.response_ids), rollout.finish_reason
        if asking.stops_at_question and NEXT_QUESTION in text:
            text, reason = text.partition(NEXT_QUESTION)[0], "stop"
        records.append(
            {
                "id": problems[i // n].id,
                "number": i % n,
                "prompt": decode(rollout.prompt_ids),
                "completion": text,
                "finish_reason": reason,
                "num_tokens": len(rollout.response_ids),
                "answer": expected(problems[i // n].row, asking.reward is not None),
            }
        )
    # equal completions of a problem are scored once, since a sandbox takes time
    keys = [(x["id"], x["completion"], *r.response_ids) for x, r in zip(records, rollouts)]
    first_index: dict[tuple[Any, ...], int] = {}
    for i, key in enumerate(keys):
        first_index.setdefault(key, i)
    rows = [problems[i // n].row for i in first_index.values()]
    prompts = [row.get("prompt", row.get("messages")) for row in rows]  # no few-shot examples
    texts = [records[i]["completion"] for i in first_index.values()]
    response_ids = [rollouts[i].response_ids for i in first_index.values()]

    def scores(reward: RewardFn) -> list[float | None]:
        by_completion = dict(zip(first_index, score(reward, prompts, texts, response_ids, rows)))
        return [by_completion[key] for key in keys]

    for record, value in zip(records, scores(asking.reward) if asking.reward else ()):
        record["reward"] = None if value is None else float(value)
        record["verdict"], record["rewards"] = verdict_of(value), parts_of(value)
        record["correct"] = None if value is None else is_correct(value)
        if asking.reader is not None:
            record["vote"] = asking.reader.vote(record["completion"])
            record["in_format"] = asking.reader.in_format(record["completion"])
    if asking.reward_model is not None:
        for record, value in zip(records, scores(asking.reward_model)):
            record["reward_model"] = value
    return records


def expected(row: Row, judged: bool) -> Any:
    """Return what a completion is compared with: answer or label if judged, else the reference."""
    return row.get("answer", row.get("label")) if judged else row.get("completion")


def count(records: Sequence[Record], asking: Asking) -> dict[str, Any]:
    """Return the result of a task.

    A problem counts if all its completions have a score. (If a reward gives verdicts, a score
    without one does not count: it is that of a weighted reward whose judging part could not read
    the reference.) Figures are over the problems that count, except `unscored` and `verdicts`,
    which are over all completions.

    `accuracy` is the mean over problems of the share of their completions that are right (pass@1);
    for `strict_accuracy` they must also have the answer in the form that was asked for.
    """
    n = asking.num_samples
    groups = [records[i : i + n] for i in range(0, len(records), n)]
    if asking.reward is None:
        return {"num_problems": len(groups)} | lengths(records)
    has_verdicts = any(r["verdict"] is not None for r in records)

    def counts(record: Record) -> bool:
        return record["correct"] is not None and not (has_verdicts and record["verdict"] is None)

    known = [group for group in groups if all(map(counts, group))]
    judged = [record for group in known for record in group]
    num_right = [sum(r["correct"] for r in group) for group in known]

    def mean(name: str, values: Sequence[float]) -> dict[str, Any]:
        return {name: fmean(values) if values else math.nan, f"{name}_ci95": interval(values, n)}

    means = [right / n for right in num_right]
    result = {
        "accuracy": fmean(means) if means else math.nan,
        "ci95": interval(means, n),
        "num_problems": len(known),
        "num_correct": sum(num_right),
    }
    if asking.reader is not None:
        strict = [sum(r["correct"] and r["in_format"] for r in group) / n for group in known]
        result |= mean("strict_accuracy", strict)
    if n > 1:
        for k in powers_up_to(n):
            result |= mean(f"pass@{k}", [pass_at(k, n, right) for right in num_right])
        if asking.reader is not None:
            places = [majority([r["vote"] for r in group]) for group in known]
            chosen = zip(known, places)
            right = [p is not None and group[p]["correct"] for group, p in chosen]
            result |= mean(f"maj@{n}", [float(x) for x in right])
        if asking.reward_model is not None:
            best = [max(group, key=lambda r: r["reward_model"]) for group in known]
            result |= mean(f"best@{n}", [float(r["correct"]) for r in best])
    return result | {
        "mean_score": fmean([r["reward"] for r in judged]) if judged else math.nan,
        "unscored": share([r["correct"] is None for r in records]),
        "parse_failures": share([r["verdict"] in UNREAD for r in judged]),
        **lengths(judged),
        "verdicts": dict(Counter(r["verdict"] for r in records if r["verdict"] is not None)),
        "outcomes": {
            group[0]["id"]: "".join(str(int(r["correct"])) for r in group) for group in known
        },
    }


def lengths(records: Sequence[Record]) -> dict[str, float]:
    """Return the share of truncated completions, and the mean length in tokens."""
    return {
        "truncated": share([r["finish_reason"] == "length" for r in records]),
        "mean_length": fmean([r["num_tokens"] for r in records]) if records else math.nan,
    }


def powers_up_to(n: int) -> list[int]:
    """Return the powers of 2 below n, and n itself."""
    return [*(k for k in (2**i for i in range(n.bit_length())) if k < n), n]


def evaluate_prompts(
    prompts: Sequence[Prompt], asking: Asking, sampler: Sampler
) -> tuple[dict[str, Any], list[Record]]:
    """Return the result and the records of rendered prompts, in one chunk. A collective."""
    ids = problem_ids([prompt.row for prompt in prompts])
    problems = [Problem(key, p.input_ids, p.row) for key, p in zip(ids, prompts, strict=True)]
    records = ask(problems, asking, sampler, chunk=len(problems) * asking.num_samples)
    return count(records, asking), records
