"""verl's Parquet layouts (its docs/preparation/prepare_data.rst), read and written.

RL    data_source, prompt (messages), ability, reward_model {style, ground_truth}, extra_info
SFT   messages; or prompt and response
"""

from __future__ import annotations

from typing import Any

from posttrain.common.errors import SettingError
from posttrain.data.rows import Row

RL_COLUMNS = ("data_source", "prompt", "ability", "reward_model", "extra_info")


def from_verl(row: Row) -> Row:
    """Return a row of verl's layout with posttrain's columns added; any other row unchanged.

    `answer` is reward_model.ground_truth, `completion` is response. A prompt of one user message
    becomes its text, which a chat template renders alike and which also works without one.
    """
    model = row.get("reward_model")
    if isinstance(model, dict) and "ground_truth" in model and "prompt" in row:
        answer = row.get("answer", model["ground_truth"])
        return {**row, "prompt": as_text(row["prompt"]), "answer": answer}
    if {"prompt", "response"} <= row.keys() and not {"completion", "chosen"} & row.keys():
        return {**row, "prompt": as_text(row["prompt"]), "completion": row["response"]}
    return row


def as_text(prompt: Any) -> Any:
    """Return the content of a prompt of one user message; any other prompt unchanged."""
    if isinstance(prompt, list) and len(prompt) == 1 and isinstance(prompt[0], dict):
        message = prompt[0]
        if message.get("role") == "user" and isinstance(message.get("content"), str):
            return message["content"]
    return prompt


def to_verl_sft(row: Row) -> Row:
    """Return the row with `messages`, made of prompt and completion if need be."""
    if "messages" in row:
        return row
    if "completion" not in row:
        problem = "verl_sft needs a completion of the prompt: name its column"
        raise SettingError("response_key", problem)
    rest = {k: v for k, v in row.items() if k not in ("prompt", "completion")}
    messages = [*as_messages(row["prompt"]), *as_messages(row["completion"], "assistant")]
    return {"messages": messages, **rest}


def to_verl_rl(
    row: Row, split: str, index: int, data_source: str | None, ability: str | None
) -> Row:
    """Return a row with an answer in verl's layout for RL.

    A last assistant turn of messages is left out; other columns are kept. Raise SettingError if the
    row lacks something that the layout needs.
    """
    sources = {
        "data_source": row.get("data_source", data_source),
        "ability": row.get("ability", ability),
    }
    for name, value in sources.items():
        if not isinstance(value, str):
            raise SettingError(name, f"verl_rl needs {name}, a string; got {value!r}: set it")
    answer = row.get("answer")
    if isinstance(answer, bool) or not isinstance(answer, (str, int, float)):
        raise SettingError(
            "answer_key",
            f"verl_rl needs an answer, a string or a number; got {answer!r}: name its column",
        )
    prompt = as_messages(row["messages"] if "messages" in row else row["prompt"])
    if prompt and prompt[-1]["role"] == "assistant":
        prompt = prompt[:-1]
    rest = {k: v for k, v in row.items() if k not in ("messages", "answer", *RL_COLUMNS)}
    return {
        "data_source": sources["data_source"],
        "prompt": prompt,
        "ability": sources["ability"],
        "reward_model": {"style": "rule", "ground_truth": str(answer)},
        "extra_info": {"split": split, "index": index},
        **rest,
    }


def as_messages(value: Any, role: str = "user") -> list[dict[str, Any]]:
    """Return a string as one message of `role`; messages as a list."""
    return [{"role": role, "content": value}] if isinstance(value, str) else list(value)
