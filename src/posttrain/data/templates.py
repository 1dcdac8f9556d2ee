"""Named prompt templates: texts with {fields} that the columns of a row fill.

`data.prompt_template: NAME` makes a row's prompt from its columns, after data.columns.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from posttrain.common.errors import SettingError
from posttrain.common.suggest import did_you_mean
from posttrain.data.rows import Row


@dataclass(frozen=True)
class Template:
    """A prompt template, with the columns of an example row."""

    text: str
    example: dict[str, str]


TEMPLATES = {
    "math_cot": Template(
        "{prompt}\n\nThink step by step, and put the final answer in \\boxed{}.",
        {"prompt": "Tom has 3 boxes of 4 apples. How many apples are that?"},
    ),
    "code": Template(
        "{prompt}\n\nAnswer with one block of Python code between ```python and ```.",
        {"prompt": "Write a function double(x) that returns twice x."},
    ),
    "chat": Template(
        "User: {prompt}\n\nAssistant:",  # for models without a chat template
        {"prompt": "What is the capital of Norway?"},
    ),
    "instruction": Template(
        "{instruction}\n\n{input}",  # the columns of Alpaca; the input may be empty
        {"instruction": "Translate into French.", "input": "Good morning."},
    ),
    "claim": Template(
        "Is this claim true? Answer with SUPPORTS, REFUTES or NOT ENOUGH INFO.\nClaim: {claim}",
        {"claim": "Oslo is the capital of Norway."},
    ),
    "justification": Template(
        "Claim: {claim}\nVerdict: {label}\nSay in a few sentences why.",
        {"claim": "Oslo is the capital of Sweden.", "label": "REFUTES"},
    ),
}
FIELD = re.compile(r"\{(\w+)\}")  # \w+: the braces of \boxed{} are not a field


def fill(name: str, row: Row, where: str, fix: str = "map it with data.columns") -> Row:
    """Return the row with the filled template as its prompt.

    `name` is one of TEMPLATES, or a text with {fields} itself. Raise ValueError naming a field that
    the row lacks or that is not a string or number; `fix` says how to supply a column.
    """
    text = template_text(name)
    values = {}
    for field in fields(text):
        value = values[field] = row.get(field)
        if field not in row:
            raise ValueError(
                f"{where}: the prompt template {name!r} needs the column {field}; the row has "
                f"{', '.join(row)} ({fix})"
            )
        if value is None and field == "input":
            values[field] = ""  # Alpaca's, which is null in Parquet if it is empty
        elif not isinstance(value, (str, int, float)) or value != value:
            raise ValueError(
                f"{where}: the prompt template {name!r} needs a string in {field}; got "
                f"{str(value)[:60]!r}"
            )
    filled = FIELD.sub(lambda match: str(values[match[1]]), text)
    return {**row, "prompt": filled.rstrip()}


def template_text(name: str) -> str:
    """Return the text of a named template; `name` itself if it has {fields}."""
    if name in TEMPLATES:
        return TEMPLATES[name].text
    if fields(name):
        return name
    hint = did_you_mean(name, TEMPLATES)
    raise SettingError(
        "data.prompt_template", f"{name!r} is not a template and has no {{field}}; {hint}"
    )


def fields(text: str) -> list[str]:
    """Return the names of a template's fields, each once, in order."""
    return list(dict.fromkeys(FIELD.findall(text)))


def described() -> Iterator[str]:
    """Yield the lines that `posttrain data templates` prints."""
    for name, template in TEMPLATES.items():
        yield f"{name}  ({', '.join(fields(template.text))})"
        filled = fill(name, template.example, name)["prompt"]
        yield from (f"    {line}".rstrip() for line in filled.splitlines())
        yield ""
