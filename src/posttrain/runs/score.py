"""`posttrain score`: a reward applied to the rows of a file."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from posttrain.common.files import write_json_lines
from posttrain.config.errors import explain
from posttrain.config.yaml_values import parse_value
from posttrain.data.files import read_path
from posttrain.data.rows import Row
from posttrain.rewards.build import build_reward, check_columns, config_of
from posttrain.rewards.checks import Checked
from posttrain.rewards.score import parts_of, verdict_of
from posttrain.rewards.scoring import score


def score_file(reward: str, file: Path, options: list[str], output: Path | None) -> Iterator[str]:
    """Yield lines to print: the score and verdict of every row, then the mean and the counts."""
    settings = settings_of(options)
    if reward.endswith(".py"):
        raise ValueError(f"no reward {reward!r}: write custom, and path={reward} after the rows")
    model = config_of(reward)
    try:
        function = build_reward(model.model_validate({"type": reward, **settings}))
    except ValidationError as error:
        raise ValueError(explain(error, model)) from None
    rows = read_path(str(file), "train")
    if not rows:
        raise ValueError(f"{file}: no rows")
    check_columns(function, rows, str(file), "rename a column of the file")
    for number, row in enumerate(rows, 1):
        if not isinstance(row.get("completion"), str):
            raise ValueError(
                f"{file}, row {number}: expected a text column completion, got {', '.join(row)}"
            )
    if isinstance(function, Checked):
        yield "  ".join(f"{name} {fact}" for name, fact in function.about().items())
    completions = [row["completion"] for row in rows]
    prompts = [row.get("prompt") for row in rows]
    scores = score(function, prompts, completions, [[] for _ in rows], rows)
    for number, value in enumerate(scores, 1):
        shown = "none" if value is None else f"{value:g}"
        yield f"{number:>6}  {shown:>6}  {verdict_of(value) or ''}"
    known = [value for value in scores if value is not None]
    counts = Counter(verdict_of(v) or ("not applicable" if v is None else "scored") for v in scores)
    mean = f"{sum(known) / len(known):.4f}" if known else "none"
    by_verdict = "  ".join(f"{verdict} {n}" for verdict, n in counts.most_common())
    yield f"rows {len(rows)}  mean {mean}  {by_verdict}"
    parts = [p for value in scores if (p := parts_of(value)) is not None]
    for name in dict.fromkeys(name for part in parts for name in part):
        values = [value for part in parts if (value := part[name]) is not None]
        yield f"{name}: rows {len(values)}  mean {sum(values) / max(len(values), 1):.4f}"
    if output is not None:
        write_json_lines(output, map(scored, rows, scores))


def settings_of(options: list[str]) -> dict[str, Any]:
    """Return the keys of a reward that are written as `key=value`."""
    settings = {}
    for option in options:
        key, equals, setting = option.partition("=")
        if not equals:
            raise ValueError(f"option {option!r} is not of the form key=value")
        settings[key] = parse_value(option, setting)
    return settings


def scored(row: Row, value: float | None) -> Row:
    """Return a row with its score, verdict and, for a weighted reward, the scores of its parts."""
    parts = parts_of(value)
    rewards = {} if parts is None else {"rewards": parts}
    return {**row, "score": value, "verdict": verdict_of(value), **rewards}
