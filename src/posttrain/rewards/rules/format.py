"""Whether the whole completion matches a regular expression.

`think_answer` requires reasoning in one pair of think tags, followed by an answer. It is TRL's
think_format_reward, except that a second closing tag or an empty answer does not match.
"""

import re
from collections.abc import Callable, Sequence
from typing import Any, Literal

from pydantic import field_validator

from posttrain.rewards.base import Reward, RewardConfig, each_row_alone

PATTERNS = {
    "think_answer": r"\s*<think>(?!.*<think>)(?:(?!</think>).)*</think>(?=\s*\S)(?!.*</think>).*",
}


class Format(RewardConfig):
    """Settings of the format reward."""

    type: Literal["format"] = "format"
    pattern: str
    """A name from PATTERNS, or a regular expression (Python's `re`; a dot matches newlines too)."""
    positive: float = 1.0
    """Score of a completion in the format."""
    negative: float = 0.0
    """Score of any other completion."""

    @field_validator("pattern")
    @classmethod
    def _compiles(cls, pattern: str) -> str:
        try:
            re.compile(PATTERNS.get(pattern, pattern))
        except re.error as error:
            raise ValueError(
                f"pattern {pattern!r} is neither a regular expression ({error}) nor one of "
                f"{', '.join(PATTERNS)}"
            ) from None
        return pattern


def build(config: Format) -> Callable[..., list[float | None]]:
    """Return the reward function: `positive` if the whole completion matches, else `negative`."""
    pattern = re.compile(PATTERNS.get(config.pattern, config.pattern), re.DOTALL)

    @each_row_alone
    def reward(
        prompts: Sequence[Any], completions: Sequence[str], completion_ids: Any, **columns: Any
    ) -> list[float | None]:
        return [
            config.positive if pattern.fullmatch(text) else config.negative for text in completions
        ]

    return reward


REWARD = Reward(Format, build)
