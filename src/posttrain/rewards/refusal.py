"""The refusal reward: whether a completion refuses, or answers, as it should.

Refusals are found by phrases (rules/refusal.py) or by a language model (refusal_judge.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from posttrain.config.base import Free
from posttrain.config.paths import LocalPath
from posttrain.rewards.base import (
    Column,
    Reward,
    RewardConfig,
    RewardFn,
    Scores,
    each_row_alone,
    needs_columns,
)
from posttrain.rewards.checks import check_each
from posttrain.rewards.refusal_judge import PROMPT_VERSION, classifier
from posttrain.rewards.remote.http import KeyName, Url
from posttrain.rewards.rules.refusal import CLASSES, LABELS, Partial, is_counted, is_refusal
from posttrain.rewards.score import Parts, Score


class Refusal(RewardConfig):
    """Settings of the refusal reward."""

    type: Literal["refusal"] = "refusal"
    rule: Literal["xstest", "advbench", "judge"] = "xstest"
    """How a refusal is recognised: by the phrases of XSTest or AdvBench, or by a judge, which is a
    chat server (url and model) or a local model (path). The keys below `negative` are the judge's.
    """
    column: Column | None = None
    """Column that labels each prompt as `safe`, to be answered, or `unsafe`, to be refused. By
    default every prompt is to be refused."""
    positive: float = 1.0
    """Score of a completion that answers or refuses as it should."""
    negative: float = 0.0
    """Score of any other completion."""
    partial: Partial = "answer"
    """What a partial refusal counts as. answer: only full refusals are refusals, as for the rule
    xstest; refusal: both are; neither: it is wrong for safe and for unsafe prompts."""
    url: Annotated[Url | None, Free()] = None
    """Base URL of the judge's server, such as http://127.0.0.1:8000, with or without /v1."""
    model: str | None = Field(None, min_length=1)
    """Name of the judge on the server."""
    path: LocalPath | None = None
    """Instead of a server: folder of a language model, or a run, that is asked in this process."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """As model.device, for `path`."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """As model.dtype, for `path`."""
    max_tokens: int = Field(64, ge=1)
    """Longest reply, in tokens. A reply that is cut off has no class. A model that reasons before
    it answers needs more."""
    timeout: float = Field(120.0, gt=0)
    """Time limit of one try in seconds, from the connection to the last byte."""
    retries: Annotated[int, Free()] = Field(3, ge=0)
    """Number of tries after the first."""
    backoff: Annotated[float, Free()] = Field(1.0, ge=0)
    """Wait before the second try, in seconds; doubled before each further try."""
    max_wait: Annotated[float, Free()] = Field(60.0, ge=0)
    """Longest wait before a try, in seconds; a longer Retry-After is an error."""
    api_key_env: Annotated[KeyName, Free()] = None
    """NAME of an environment variable, whose value is sent as a bearer token."""
    max_concurrency: Annotated[int, Free()] = Field(16, ge=1)
    """Maximum number of concurrent requests."""

    @model_validator(mode="after")
    def _one_judge(self) -> Refusal:
        for key, field in Refusal.model_fields.items():
            given = key not in OWN and getattr(self, key) != field.default
            if given and self.rule != "judge":
                raise ValueError(f"{key} is read with rule: judge, not with rule: {self.rule}")
        if self.rule == "judge" and (self.url is None) == (self.path is None):
            raise ValueError("rule: judge needs url and model of a server, or path of a model")
        if (self.url is None) != (self.model is None):
            raise ValueError("url and model go together: the judge's server, and the name on it")
        return self


OWN = ("type", "rule", "column", "positive", "negative")  # keys that all rules read


def build(config: Refusal) -> RewardFn:
    """Return the reward function.

    The verdicts are correct and, with the score `negative`, answered (instead of refused) and
    refused (instead of answered); with a judge also partly_refused, and empty for a completion
    without text, about which no judge is asked. The class that a judge names is in the score's
    parts. A row whose label is None or empty gives None, and so does a completion of which the
    judge names no class. The function raises ValueError for a label that is neither safe nor
    unsafe.
    """

    def check_rows(rows: Sequence[dict[str, Any]]) -> None:
        if (column := config.column) is not None:
            check_each(lambda row: check_label(row.get(column), column), rows)

    reward: Any = _judged(config) if config.rule == "judge" else _by_phrases(config)
    reward.check_rows = check_rows
    reward.about = lambda: about(config)
    return needs_columns(reward, [] if config.column is None else [config.column])


def about(config: Refusal) -> dict[str, Any]:
    """Return facts for the run's record: the rule and, of a judge, its name and its prompt's."""
    facts: dict[str, Any] = {"refusal_rule": config.rule}
    if config.rule == "judge":
        facts |= {"judge": config.model or config.path, "judge_prompt": PROMPT_VERSION}
    return facts


def check_label(label: Any, column: str) -> None:
    """Raise ValueError for a label that is neither safe nor unsafe nor missing."""
    if label not in (*LABELS, "", None):
        raise ValueError(f"the column {column} must be {' or '.join(LABELS)}; got {label!r}")


def _labels(number: int, columns: dict[str, Any], config: Refusal) -> list[str | None]:
    """Return the labels of rows, None for a row without one."""
    if config.column is None:
        return ["unsafe"] * number
    for label in columns[config.column]:
        check_label(label, config.column)
    return [label or None for label in columns[config.column]]


def _by_phrases(config: Refusal) -> RewardFn:
    assert config.rule != "judge"
    rule = config.rule

    @each_row_alone
    def reward(
        prompts: Sequence[Any], completions: Sequence[str], completion_ids: Any, **columns: Any
    ) -> Scores:
        labels = _labels(len(completions), columns, config)
        return [
            None if label is None else scored(is_refusal(text, rule), label, config)
            for text, label in zip(completions, labels, strict=True)
        ]

    return reward


def _judged(config: Refusal) -> RewardFn:
    classify = classifier(config)

    @each_row_alone
    async def reward(
        prompts: Sequence[Any], completions: Sequence[str], completion_ids: Any, **columns: Any
    ) -> Scores:
        labels = _labels(len(completions), columns, config)
        rows = [i for i, label in enumerate(labels) if label is not None]
        judged = [i for i in rows if is_visible(completions[i])]
        classes = await classify([prompts[i] for i in judged], [completions[i] for i in judged])
        scores: Scores = [None] * len(completions)
        for i in rows:
            scores[i] = Score(config.negative, "empty")
        for i, name in zip(judged, classes, strict=True):
            scores[i] = None if name is None else in_class(name, str(labels[i]), config)
        return scores

    return reward


def is_visible(text: str) -> bool:
    """Whether a text has a character that can be seen, not only spaces and the like."""
    return any(c.isprintable() and not c.isspace() for c in text)


def scored(refused: bool | None, label: str, config: Refusal) -> Score:
    """Return the score of a refusal (True), an answer (False) or neither (None) for a label."""
    if refused is not None and refused == (label == "unsafe"):
        return Score(config.positive, "correct")
    return Score(config.negative, "refused" if refused else "answered")


def in_class(name: str, label: str, config: Refusal) -> Score:
    """Return the score of a completion in one of the three classes, which is in the parts."""
    score = scored(is_counted(name, config.partial), label, config)
    wrong = score.verdict != "correct" and name == "partial_refusal"
    parts = {each: float(each == name) for each in CLASSES}
    return Score(score, "partly_refused" if wrong else score.verdict, parts)


def class_of(parts: Parts | None) -> str | None:
    """Return the class that the parts of a score name; None if they name none."""
    return next((name for name in CLASSES if (parts or {}).get(name)), None)


REWARD = Reward(Refusal, build)
