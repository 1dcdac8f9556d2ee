"""Every method trains on the tokens that the chat template gives when it is called directly.

The reference is written out here: `apply_chat_template` on the chat up to a turn with a generation
prompt, and on the chat with that turn; the loss is on what the second adds, up to its stop token.
Whatever else happens to a row must be in the table: dropped and counted, or a note with its rows.
"""

import datetime
import json
import random
from collections import Counter
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
from chat_templates import OTHERS, TEMPLATES, family

from posttrain.algorithms import ALGORITHMS
from posttrain.algorithms.classification import ClassificationConfig
from posttrain.common.registry import load
from posttrain.data.forms import standard_forms
from posttrain.data.kinds import KINDS
from posttrain.data.render import Renderer, make_renderer

Message = dict[str, Any]
Row = dict[str, Any]
Turn = tuple[list[int], list[int]]
"""The ids before a turn, and those of the turn with its stop token."""
DAY = datetime.date(2026, 11, 29)
FAMILIES = [*TEMPLATES, *OTHERS]
CLOSE = dict.fromkeys(FAMILIES, "<|im_end|>") | {
    "channels": "<|return|>",
    "opens": "</s>",
    "inst": "</s>",
    "headers": "<|eot|>",
    "twice": "</s>",
}
TRIMS = ("headers", "parts", "either")
PIECES = [
    "a",
    "Tom",
    " ",
    "12",
    "\n",
    "é",
    "漢",
    "🙂",
    "<b>",
    ". ",
    "has",
    "\u00a0",
    "{{ x }}",
    "'",
]
PIECES += ["<|im_start|>", "<|im_end|>", "</s>", "<|eot|>", "\n\n", "  "]
NAMES = {"user": ["user", "User", "human", "HUMAN"], "assistant": ["assistant", "gpt", "model"]}


# --- the reference --------------------------------------------------------------------------------


def direct(name: str, messages: list[Message], generation: bool = False) -> str:
    """The text by transformers alone, on the day of the tests."""
    template = (TEMPLATES | OTHERS)[name]
    for form, text in (("'%Y-%m-%d'", "2026-11-29"), ('"%d %b %Y"', "29 Nov 2026")):
        template = template.replace(f"strftime_now({form})", f"'{text}'")
    if name == "parts":
        messages = [m | {"content": [{"type": "text", "text": m["content"]}]} for m in messages]
    return str(
        family(name).apply_chat_template(
            messages, chat_template=template, tokenize=False, add_generation_prompt=generation
        )
    )


def ids_of(name: str, text: str) -> list[int]:
    ids: list[int] = family(name)(text, add_special_tokens=False)["input_ids"]
    return ids


def turn_of(name: str, messages: list[Message]) -> Turn | None:
    """The last message after its prompt; None if this template has no way to write it."""
    content = messages[-1]["content"]
    prompt, whole = direct(name, messages[:-1], True), direct(name, messages)
    if whole.startswith(prompt):
        turn = whole.removeprefix(prompt)
    elif name == "inst":  # the system text is in the last question
        turn = whole.rpartition("[/INST]")[2]
    elif name == "block":
        turn = whole.removeprefix(prompt.removesuffix("<think>\n\n</think>\n\n"))
    else:
        assert name == "opens"
        if not content.startswith("<think>\n"):
            return None
        turn = content.removeprefix("<think>\n").lstrip() + "</s>"
    turn = turn[: turn.rindex(CLOSE[name]) + len(CLOSE[name])]
    before = ids_of(name, prompt)
    joint = ids_of(name, prompt + turn)
    if joint[: len(before)] == before:
        return before, joint[len(before) :]
    assert name != "spaces" or content[:1] in (" ", "\u00a0"), "no joining at this edge"
    return before, ids_of(name, turn)


def is_silent(name: str, messages: list[Message], turn: list[int]) -> bool:
    """Whether nothing would be trained on but stop tokens."""
    stops = {*ids_of(name, "<|im_end|></s><|eot|><|return|>")} & {*renderer(name).stop_token_ids}
    return not messages[-1]["content"] or set(turn) <= stops


# --- rows -----------------------------------------------------------------------------------------


def text(rng: random.Random, name: str, answer: bool = False) -> str:
    """A text of odd pieces, at times empty, that does not end with a stop token."""
    words = "".join(rng.choices(PIECES, k=rng.choice([0, 1, 2, 3, 5])))
    if words.rstrip().endswith("|>") or words.rstrip().endswith("</s>"):
        words += "."
    if name == "spaces" and answer:
        words = words.lstrip(" \u00a0")  # after a space, the tokenizer joins the two
    if answer and rng.random() < (0.9 if name == "opens" else 0.2):
        return f"<think>\n{words or 'w'}</think>\n\n{rng.choice(['', '17'])}"
    return words


def chat(rng: random.Random, name: str, turns: int) -> list[Message]:
    messages = []
    if rng.random() < 0.3:
        messages.append({"role": "system", "content": text(rng, name) or "S"})
    for _ in range(turns):
        messages.append({"role": "user", "content": text(rng, name)})
        messages.append({"role": "assistant", "content": text(rng, name, answer=True)})
    return messages


def written(rng: random.Random, messages: list[Message]) -> Any:
    """The messages as some data set writes them."""
    sharegpt = rng.random() < 0.3
    entries = []
    for message in messages:
        names = NAMES.get(message["role"], [message["role"]])
        role = rng.choice(names) if rng.random() < 0.3 else message["role"]
        entry: Row = {"role": role, "content": message["content"]}
        if rng.random() < 0.2:
            entry["content"] = [{"type": "text", "text": message["content"], "image": None}]
        if sharegpt:
            entry = {"from": role, "value": entry["content"]}
        if rng.random() < 0.2:
            entry |= {"tool_calls": None, "name": None, "reasoning_content": None}
        entries.append(entry)
    return json.dumps(entries) if rng.random() < 0.2 else entries


def plain_or_written(rng: random.Random, messages: list[Message], role: str) -> Any:
    """The text of a single message of `role`, or messages."""
    if len(messages) == 1 and messages[0]["role"] == role and rng.random() < 0.5:
        return messages[0]["content"]
    return written(rng, messages)


def renderer(name: str) -> Renderer:
    return make_renderer(family(name), date=DAY)


# --- each kind of row: what is written, and what must come of it ----------------------------------

Expected = tuple[list[Any], Counter[str]]
"""The examples, and the reasons for dropping with their counts."""


def completion(rng: random.Random, name: str, rows: int) -> tuple[list[Row], Expected]:
    """Chats: the trained turns with what precedes them, in order."""
    given, turns, dropped = [], [], Counter[str]()
    for _ in range(rows):
        messages = chat(rng, name, rng.choice([1, 1, 2, 3]))
        if name == "opens":
            messages = messages[-2:]
        ends = [i + 1 for i, m in enumerate(messages) if m["role"] == "assistant"]
        prompt, answer = messages[:-1], messages[-1:]
        if len(ends) == 1 and rng.random() < 0.4:
            row = {"prompt": plain_or_written(rng, prompt, "user")}
            row["completion"] = plain_or_written(rng, answer, "assistant")
        else:
            row = {rng.choice(["messages", "conversations"]): written(rng, messages)}
        found = [(messages[:end], turn_of(name, messages[:end])) for end in ends]
        if any(turn is None and m[-1]["content"] for m, turn in found):
            continue  # refused: test_turns.py
        given.append(row)
        spoken = [turn for m, turn in found if turn and not is_silent(name, m, turn[1])]
        dropped["empty"] += not spoken
        turns += spoken
    return given, (turns, dropped)


def trained_turns(examples: list[Any], masks: str) -> list[Turn]:
    """The runs under the loss mask, each with all ids before it."""
    found = []
    for group in examples:
        for sequence in group:
            ids = sequence.input_ids.tolist()
            mask = sequence.loss_mask.tolist()
            if masks == "completion":
                mask = [bool(x) for x in sequence.per_token["completion"].tolist()]
            edges = [i for i in range(1, len(ids)) if mask[i] != mask[i - 1]] + [len(ids)]
            for start, end in pairwise(edges):
                if mask[start]:
                    found.append((ids[:start], ids[start:end]))
    return found


def prompt_row(rng: random.Random, name: str) -> tuple[list[Message], Row]:
    """A chat that ends with a question, and a row that holds it."""
    messages = chat(rng, name, rng.choice([1, 1, 2]))[:-1]
    if rng.random() < 0.3 and len(messages) > 1:
        return messages, {"messages": written(rng, messages)}
    return messages, {"prompt": plain_or_written(rng, messages, "user")}


def prompt(rng: random.Random, name: str, rows: int) -> tuple[list[Row], Expected]:
    pairs = [prompt_row(rng, name) for _ in range(rows)]
    expected = [ids_of(name, direct(name, messages, True)) for messages, _ in pairs]
    return [row for _, row in pairs], (expected, Counter())


def labelled(rng: random.Random, name: str, rows: int) -> tuple[list[Row], Expected]:
    pairs = [prompt_row(rng, name) for _ in range(rows)]
    blank = ("prompt" in row and not str(row["prompt"]).strip() for _, row in pairs)
    pairs = [pair for pair, is_blank in zip(pairs, blank) if not is_blank]
    expected = [ids_of(name, direct(name, messages, True)) for messages, _ in pairs]
    return [row | {"label": rng.choice("ab")} for _, row in pairs], (expected, Counter())


def judged(rng: random.Random, name: str) -> tuple[list[Message], list[Message], Any]:
    """A prompt, an answer, and the answer as a row writes it."""
    messages = chat(rng, name, rng.choice([1, 2]))
    return messages[:-1], messages[-1:], plain_or_written(rng, messages[-1:], "assistant")


def pair(rng: random.Random, name: str, rows: int) -> tuple[list[Row], Expected]:
    given, expected, dropped = [], [], Counter[str]()
    for _ in range(rows):
        asked, good, _ = judged(rng, name)
        bad = [{"role": "assistant", "content": text(rng, name, answer=True)}]
        turns = [turn_of(name, asked + answer) for answer in (good, bad)]
        if any(t is None and m[0]["content"] for t, m in zip(turns, (good, bad))):
            continue
        whole = rng.random() < 0.5
        chosen, rejected = ((asked + side) if whole else side for side in (good, bad))
        row = {"chosen": written(rng, chosen), "rejected": written(rng, rejected)}
        if not whole or rng.random() < 0.5:
            row["prompt"] = plain_or_written(rng, asked, "user")
        elif good == bad or isinstance(row.get("prompt"), str):
            continue  # without a prompt, what is common is the prompt
        given.append(row)
        if any(t is None or is_silent(name, m, t[1]) for t, m in zip(turns, (good, bad))):
            dropped["empty"] += 1
        elif turns[0] == turns[1]:
            dropped["equal"] += 1
        else:
            expected += turns
    return given, (expected, dropped)


def unpaired(rng: random.Random, name: str, rows: int) -> tuple[list[Row], Expected]:
    given, kept, dropped = [], [], Counter[str]()
    for _ in range(rows):
        asked, answer, text_or_messages = judged(rng, name)
        turn = turn_of(name, asked + answer)
        if turn is None and answer[0]["content"]:
            continue
        row: Row = {"prompt": plain_or_written(rng, asked, "user"), "completion": text_or_messages}
        if rng.random() < 0.4:
            row = {"messages": written(rng, asked + answer)}
        given.append(row | {"label": rng.choice([True, False, 1, 0])})
        if turn is None or is_silent(name, asked + answer, turn[1]):
            dropped["empty"] += 1
        else:
            kept.append((asked, answer, turn))
    expected = []
    for i, (asked, _, turn) in enumerate(kept):
        earlier = [kept[(i - k) % len(kept)] for k in range(1, len(kept))]
        other = next((answer for _, answer, before in earlier if before[0] != turn[0]), None)
        expected += [turn, other and turn_of(name, asked + other)]
    return given, (expected, dropped)


def steps(rng: random.Random, name: str, rows: int) -> tuple[list[Row], Expected]:
    given, expected = [], []
    for _ in range(rows):
        asked, row = prompt_row(rng, name)
        row = {"prompt": row.get("prompt", row.get("messages"))}
        parts = [rng.choice(["a", "Tom has 12.", "é"]) for _ in range(rng.choice([1, 2, 3]))]
        if name == "opens":
            return [], ([], Counter())  # the reasoning begins with the separator
        given.append(row | {"completions": parts, "labels": [True] * len(parts)})
        turn = turn_of(name, [*asked, {"role": "assistant", "content": "\n".join(parts)}])
        assert turn is not None
        expected.append((turn[0], family(name).decode(turn[1]), parts))
    return given, (expected, Counter())


def whole_text(rng: random.Random, name: str, rows: int) -> tuple[list[Row], Expected]:
    texts = [text(rng, name) + "." for _ in range(rows)]
    expected = [[*family(name)(t)["input_ids"], renderer(name).turn_end] for t in texts]
    kept = [ids for ids in expected if len(ids) > 2]  # the first token has no probability
    return [{"text": t} for t in texts], (kept, Counter(empty=rows - len(kept)))


Make = Callable[[random.Random, str, int], tuple[list[Row], Expected]]
ROWS: dict[str, Make] = {
    "completion": completion,
    "prompt": prompt,
    "labelled": labelled,
    "pair": pair,
    "unpaired": unpaired,
    "steps": steps,
    "text": whole_text,
}


def compare(name: str, kind: str, examples: list[Any], expected: list[Any]) -> None:
    if kind == "prompt":
        assert [example.input_ids for example in examples] == expected
    elif kind in ("labelled", "text"):
        assert [sequence.input_ids.tolist() for (sequence,) in examples] == expected
        trained = [int(sequence.loss_mask.sum()) for (sequence,) in examples]
        assert trained == [len(ids) - 1 if kind == "text" else 0 for ids in expected]
    elif kind == "steps":
        decode = family(name).decode
        for (sequence,), (before, turn, parts) in zip(examples, expected, strict=True):
            ids, ends = sequence.input_ids.tolist(), sequence.loss_mask.nonzero().flatten().tolist()
            assert ids[: len(before)] == before
            begun = len(decode(before))
            assert decode(ids[: ends[-1] + 1])[begun:].strip() == turn.strip()
            for k, end in enumerate(ends[:-1], 1):
                written_steps = "".join(decode(ids[: end + 1])[begun:].split())
                assert written_steps.endswith("".join("".join(parts[:k]).split()))
            assert len(ends) == len(parts)
    else:
        assert trained_turns(examples, "completion" if kind == "pair" else "loss") == expected


def options_of(config: Any) -> dict[str, Any]:
    if config is ClassificationConfig:
        return dict(ClassificationConfig(labels=["a", "b"]).row_options)
    return dict(config().row_options)


def check(method: str, name: str, seed: int, rows: int) -> None:
    """Compare what the method makes of fuzzed rows with the reference."""
    algorithm = load(ALGORITHMS[method])
    rng = random.Random(f"{method} {name} {seed}")
    given, (expected, dropped) = ROWS[algorithm.rows](rng, name, rows)
    if not given:
        return
    problem, examples, table = "", [], None
    try:
        examples, table = load(KINDS[algorithm.rows]).to_examples(
            standard_forms(given, "set"),
            renderer(name),
            "set",
            9999,
            "error",
            **options_of(algorithm.config),
        )
    except ValueError as error:
        problem = str(error)
    if table is None:  # nothing is left to train on, or KTO has a single prompt
        assert "none of the" in problem or "more than one prompt" in problem, f"{problem}\n{given}"
        assert not expected or expected[1] is None, problem
        return
    compare(name, algorithm.rows, examples, expected)
    assert table.read == len(given)
    assert Counter(table.reasons) == +dropped
    assert table.rows == table.kept + table.dropped + table.truncated


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("method", ALGORITHMS)
def test_every_method_trains_on_what_the_template_gives(method: str, name: str) -> None:
    check(method, name, seed=0, rows=8)


def distinct() -> list[str]:
    """The first of the methods that read the same rows in the same way."""
    first: dict[str, str] = {}
    for method, place in ALGORITHMS.items():
        algorithm = load(place)
        first.setdefault(f"{algorithm.rows} {options_of(algorithm.config)}", method)
    return list(first.values())


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("method", distinct())
def test_thousands_of_rows_are_the_direct_rendering(method: str, name: str) -> None:
    for seed in range(1, 101):
        check(method, name, seed, rows=30)
