"""What messages say is honoured, or named in a note with the row and the share of rows."""

import json
from pathlib import Path
from typing import Any

import pytest
from chat_templates import CHATML, GENERATE, TEMPLATES, family, tokenizer_with
from hypothesis import given, settings
from hypothesis import strategies as st

from posttrain.common.batch import Sequence
from posttrain.data.config import DataConfig
from posttrain.data.entries import read_messages, without_nulls
from posttrain.data.forms import standard_form
from posttrain.data.holdout import question_of
from posttrain.data.kinds.completion import to_examples
from posttrain.data.kinds.pair import to_examples as to_pairs
from posttrain.data.kinds.prompt import to_examples as to_prompts
from posttrain.data.kinds.unpaired import to_examples as to_judged
from posttrain.data.lengths import LengthTable
from posttrain.data.load import load_rows
from posttrain.data.noted import lines as note_lines
from posttrain.data.render import Renderer, make_renderer
from posttrain.runs.data import table_lines

TOOLS = (
    "{% if tools %}<|im_start|>system\ntools: {{ tools | tojson }}<|im_end|>\n{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m.role }}{{ ' ' + m.name if m.name else '' }}\n"
    "{{ m.content or '' }}{% for c in m.tool_calls or [] %}"
    "call {{ c.function.name }} {{ c.function.arguments | tojson }}{% endfor %}"
    "<|im_end|>\n{% endfor %}" + GENERATE
)
# adds the arguments to a text, and asks for a content in every message
JOINED = (
    "{% for m in messages %}<|im_start|>{{ m.role + '\n' + m.content }}"
    "{% for c in m.tool_calls or [] %}{{ 'call ' + c.function.name + ' ' + c.function.arguments }}"
    "{% endfor %}<|im_end|>\n{% endfor %}" + GENERATE
)
CUTS = CHATML.replace("{{ m.content }}", "{{ m.content.split('</think>')[-1] }}")
SYSTEM_FIRST = (
    "{% if messages[0].role != 'system' %}{{ raise_exception('a system message first') }}"
    "{% endif %}" + CHATML
)
TOOL = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}


def user(text: Any) -> dict[str, Any]:
    return {"role": "user", "content": text}


def answer(text: Any, **keys: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": text} | keys


def call(**arguments: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": "weather", "arguments": arguments}}


CHAT = [user("q"), answer("one"), user("r"), answer("two")]


def renderer(template: Any = CHATML, **options: Any) -> Renderer:
    return make_renderer(tokenizer_with(template), **options)


def trained(it: Renderer, sequence: Sequence) -> str:
    return str(it.tokenizer.decode(sequence.input_ids[sequence.loss_mask]))


def whole(it: Renderer, sequence: Sequence) -> str:
    return str(it.tokenizer.decode(sequence.input_ids))


def sft(rows: list[dict[str, Any]], it: Renderer) -> tuple[list[str], LengthTable]:
    """The trained text of each sequence, with the table."""
    examples, table = to_examples(rows, it, "set", 9999, "error")
    return [trained(it, sequence) for (sequence,) in examples], table


@pytest.mark.parametrize("role", ["model", "Assistant", "gpt", "bot", "GPT", "ai", "chatgpt"])
@pytest.mark.parametrize("asker", ["User", "human", "HUMAN", "user"])
def test_other_names_of_roles_are_read_and_counted(role: str, asker: str) -> None:
    chat = [{"role": asker, "content": "q"}, {"role": role, "content": "one"}]
    it = renderer()
    texts, table = sft([{"messages": CHAT}, {"messages": chat}, {"messages": chat}], it)
    assert texts == ["one<|im_end|>two<|im_end|>", "one<|im_end|>", "one<|im_end|>"]
    (note,) = [note for note in table.notes if repr(role) in note]
    assert note == f"the role {role!r} is read as 'assistant'"
    lines = table_lines([table])
    assert f"  note on set: {note}; 2 of 3 rows (66.7%), first row 2" in lines
    pairs = [{"prompt": chat[:1], "chosen": chat[1:], "rejected": [answer("no")]}]
    _, table = to_pairs(pairs, it, "set", 99, "error")
    assert note in table.notes
    _, table = to_prompts([{"prompt": chat[:1]}], it, "set", 99, "error")
    assert bool(table.notes) == (asker != "user")


def test_a_chat_without_the_assistant_names_its_roles() -> None:
    chat = [user("q"), {"role": "narrator", "content": "x"}, user("r")]
    with pytest.raises(ValueError, match=r"row 1: no assistant message .* user, narrator$"):
        sft([{"messages": chat}], renderer())


def test_sharegpt_conversations(tmp_path: Path) -> None:
    rows = [
        {
            "conversations": [
                {"from": "system", "value": "Be kind."},
                {"from": "human", "value": "rain?"},
                {"from": "function_call", "value": '{"name": "weather", "arguments": {"x": 1}}'},
                {"from": "observation", "value": "no"},
                {"from": "gpt", "value": "It is dry."},
            ],
            "tools": json.dumps([TOOL]),
        }
    ]
    (tmp_path / "train.jsonl").write_text(json.dumps(rows[0]))
    read = load_rows(DataConfig(path=str(tmp_path / "train.jsonl")))
    it = renderer(TOOLS)
    texts, table = sft(read, it)
    assert texts == ['call weather {"x": 1}<|im_end|>It is dry.<|im_end|>']
    assert not table.notes
    assert question_of(read[0]) == "rain?"
    prompts, _ = to_prompts(read, it, "set", 999, "error")
    assert "<|im_start|>tool\nno<|im_end|>" in it.tokenizer.decode(prompts[0].input_ids)
    pair = {"conversations": [], "chosen": {}, "rejected": {}}
    assert standard_form(pair) == pair
    with pytest.raises(ValueError, match="unknown speaker 'narrator' in from; known: human"):
        sft([{"messages": [{"from": "narrator", "value": "x"}]}], it)


@pytest.mark.parametrize(
    "tools", [[TOOL], json.dumps([TOOL]), json.dumps(TOOL), [json.dumps(TOOL)]]
)
def test_tools_reach_the_template(tools: Any) -> None:
    it = renderer(TOOLS)
    rows = [{"prompt": "q", "completion": "a", "tools": tools}]
    ((sequence,),), _ = to_examples(rows, it, "set", 999, "error")
    expected = it.tokenizer.apply_chat_template(
        [user("q"), answer("a")], tools=[TOOL], tokenize=False
    )
    assert whole(it, sequence) == expected
    assert it.tokenizer.decode(it.prompt_ids(rows[0])) == expected.partition("a<|im_end|>")[0] or (
        expected.startswith(it.tokenizer.decode(it.prompt_ids(rows[0])))
    )
    pair = {"prompt": "q", "chosen": "a", "rejected": "b", "tools": tools}
    (((chosen, _),), _) = to_pairs([pair], it, "set", 999, "error")
    assert chosen.input_ids.tolist() == sequence.input_ids.tolist()
    judged = [{"prompt": p, "completion": "a", "label": True, "tools": tools} for p in "qr"]
    examples, _ = to_judged(judged, it, "set", 999, "error", with_unrelated=True)
    assert all("weather" in whole(it, s) for group in examples for s in group)
    _, table = sft(rows, renderer(CHATML))
    assert any(
        "does not write tools" in line and "'weather'" in line
        for line in note_lines(table.name, table.read, table.notes)
    )


@pytest.mark.parametrize("written", [list, json.dumps])
def test_functions_are_read_as_tools(written: Any) -> None:
    """The form of tools before there were others; a column of that name may also be metadata."""
    it, named = renderer(TOOLS), [TOOL["function"]]

    def rendered(**columns: Any) -> tuple[list[int], list[str]]:
        row = {"prompt": "q", "completion": "a"} | columns
        ((sequence,),), table = to_examples([row], it, "set", 9999, "error")
        return sequence.input_ids.tolist(), list(table.notes)

    with_tools, plain = rendered(tools=[TOOL])[0], rendered()
    assert rendered(functions=written(named)) == (with_tools, ["functions are read as tools"])
    assert rendered(functions=written(["main", "helper"])) == plain
    both = rendered(tools=[TOOL], functions=written(named))
    assert both == (with_tools, ["the column functions is left out: the row has tools"])
    assert with_tools != plain[0]


@pytest.mark.parametrize("tools", ["no json", "3", [3], 7])
def test_tools_that_are_none(tools: Any) -> None:
    with pytest.raises(ValueError, match="row 1: tools must be a list"):
        sft([{"prompt": "q", "completion": "a", "tools": tools}], renderer(TOOLS))


def test_the_template_for_tools_of_several_by_name() -> None:
    it = renderer({"default": CHATML, "tool_use": TOOLS})
    for tools, template in ((None, CHATML), ([TOOL], TOOLS)):
        ((sequence,),), _ = to_examples(
            [{"messages": CHAT, "tools": tools}], it, "set", 999, "error"
        )
        expected = it.tokenizer.apply_chat_template(
            CHAT, chat_template=template, tools=tools, tokenize=False
        )
        assert whole(it, sequence) == expected


def test_a_tool_call_without_content() -> None:
    silent: list[dict[str, Any]] = [{"content": None}, {}, {"content": ""}]
    rows = [
        {"messages": [user("q"), {"role": "assistant", "tool_calls": [call(city="Oslo")]} | keys]}
        for keys in silent
    ]
    texts, table = sft(rows, renderer(TOOLS))
    assert texts == ['call weather {"city": "Oslo"}<|im_end|>'] * 3
    assert not table.notes
    texts, table = sft(rows, renderer(JOINED))
    assert texts == ['call weather {"city": "Oslo"}<|im_end|>'] * 3
    assert any("missing content is an empty text" in note for note in table.notes)
    assert any("passed as JSON text" in note for note in table.notes)
    _, table = to_prompts(rows, renderer(TOOLS), "set", 999, "error")
    with pytest.raises(ValueError, match=r"message 2 of messages \(assistant\) has no content"):
        sft([{"messages": [user("q"), {"role": "assistant", "content": None}]}], renderer())


def test_arguments_in_json_text() -> None:
    """OpenAI writes the arguments as JSON text, which many templates would write as JSON again."""
    chat = [user("q"), answer("", tool_calls=[call(city="Oslo")])]
    chat[1]["tool_calls"][0]["function"]["arguments"] = '{"city": "Oslo"}'
    for template in (TOOLS, JOINED):
        texts, table = sft([{"messages": chat}], renderer(template))
        assert texts == ['call weather {"city": "Oslo"}<|im_end|>']
        assert any("JSON" in note for note in table.notes) == (template is TOOLS)


def test_nulls_of_parquet_are_not_trained_on(tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    calls = [{"city": "Oslo"}, {"x": 1, "y": 2}]
    rows = [{"messages": [user("q"), answer("", tool_calls=[call(**c)])]} for c in calls]
    rows[0]["tools"] = [TOOL, {"type": "function", "function": {"name": "add"}}]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "train.parquet")
    read = load_rows(DataConfig(path=str(tmp_path / "train.parquet")))
    assert "'x': None" in str(read[0])
    texts, table = sft(read, renderer(TOOLS))
    assert texts == [f"call weather {json.dumps(c)}<|im_end|>" for c in calls]
    assert [x.rows for note, x in table.notes.items() if "null arguments" in note] == [2]
    assert any("null entries of tools" in note for note in table.notes)
    assert without_nulls({"a": None, "b": [None, {"c": None}]}) == {"b": [None, {}]}


PARTS = [{"type": "text", "text": "12 "}, {"type": "text", "text": "plus 5?"}]


@pytest.mark.parametrize("name", TEMPLATES)
def test_content_in_parts(name: str) -> None:
    it = make_renderer(family(name))
    text = "<think>\nw</think>17" if name == "opens" else "17"
    as_text = {"messages": [user("12 plus 5?"), answer(text)]}
    parts = [{"type": "text", "text": text, "image": None}]
    as_parts = {"messages": [user(PARTS), answer(parts)]}
    expected = it.training(as_text).sequences[0].input_ids.tolist()
    ids = it.training(as_parts).sequences[0].input_ids.tolist()
    if name in ("parts", "either"):  # these templates trim each part
        assert it.tokenizer.decode(ids) == it.tokenizer.decode(expected).replace("12 p", "12p")
    else:
        assert ids == expected


@pytest.mark.parametrize(
    "part",
    [{"type": "image"}, {"type": "image_url", "image_url": {"url": "x"}}, {"type": "text"}, 3],
)
def test_parts_that_are_no_text_are_refused_by_name(part: Any) -> None:
    kind = part["type"] if isinstance(part, dict) else "int"
    expected = f"row 1: message 1 of messages has a part of type '{kind}' without text"
    with pytest.raises(ValueError, match=expected):
        sft([{"messages": [user([*PARTS, part]), answer("a")]}], renderer())


@pytest.mark.parametrize("column", ["images", "image", "videos", "audio"])
def test_a_column_of_images(column: str) -> None:
    it, row = renderer(), {"prompt": "q", "completion": "a"}
    texts, _ = sft([row | {column: []}, row | {column: None}], it)
    assert len(texts) == 2
    kinds: list[tuple[Any, dict[str, Any]]] = [
        (to_examples, {}),
        (to_prompts, {}),
        (to_pairs, {"chosen": "a", "rejected": "b"}),
    ]
    for kind, other in kinds:
        with pytest.raises(ValueError, match=f"row 1: the column {column} is not empty"):
            kind([row | other | {column: ["a.png"]}], it, "set", 99, "error")
    plain = make_renderer(it.tokenizer, template="plain")
    with pytest.raises(ValueError, match=f"row 1: the column {column} is not empty"):
        sft([row | {column: ["a.png"]}], plain)


@pytest.mark.parametrize(
    "mark", [{"weight": 0}, {"weight": 0.0}, {"train": False}, {"training": 0}]
)
def test_a_turn_with_weight_zero_is_context(mark: dict[str, Any]) -> None:
    it = renderer()
    marked = [CHAT[0], CHAT[1] | mark, CHAT[2], CHAT[3] | {next(iter(mark)): 1}]
    texts, table = sft([{"messages": marked}, {"messages": CHAT}], it)
    assert texts == ["two<|im_end|>", "one<|im_end|>two<|im_end|>"]
    (line,) = note_lines(table.name, table.read, table.notes)
    assert (
        f"with {next(iter(mark))} 0 or false are context; 1 of 2 rows (50.0%), first row 1" in line
    )
    texts, table = sft([{"messages": [CHAT[0], CHAT[1] | mark]}, {"messages": CHAT}], it)
    assert len(texts) == 1
    assert table.reasons == {"empty": 1}


def test_messages_that_are_left_out_are_counted() -> None:
    it = renderer()
    chat = [*CHAT, user("thanks")]
    texts, table = sft([{"messages": chat}, {"messages": CHAT}], it)
    assert texts == ["one<|im_end|>two<|im_end|>"] * 2
    assert list(table.notes) == ["messages after the last turn that is trained on are left out"]
    _, table = to_prompts([{"prompt": CHAT}, {"messages": CHAT}], it, "set", 99, "error")
    (noted,) = table.notes.items()
    assert noted[0] == "a last assistant turn of the prompt is left out"
    assert noted[1].rows == 1


def test_json_text_in_columns(tmp_path: Path) -> None:
    chat = [user("q"), answer("", tool_calls=json.dumps([call(x=1)]))]
    (tmp_path / "rows.jsonl").write_text(json.dumps({"messages": json.dumps(chat)}))
    texts, _ = sft(load_rows(DataConfig(path=str(tmp_path / "rows.jsonl"))), renderer(TOOLS))
    assert texts == ['call weather {"x": 1}<|im_end|>']


@pytest.mark.parametrize("weight", [0.5, 2, -1, "x", [1]])
def test_other_weights_are_refused(weight: Any) -> None:
    chat = [CHAT[0], CHAT[1] | {"weight": weight}]
    with pytest.raises(ValueError, match="row 1: weight of a message must be 0 or 1"):
        sft([{"messages": chat}], renderer())


def test_answers_in_the_prompt_are_context_in_every_method() -> None:
    it = renderer()
    row = {"prompt": CHAT[:3], "completion": CHAT[3:]}
    texts, _ = sft([row], it)
    assert texts == ["two<|im_end|>"]
    pair = {"prompt": CHAT[:3], "chosen": "two", "rejected": "no"}
    (((chosen, _),), _) = to_pairs([pair], it, "set", 999, "error")
    assert trained(it, chosen) == "two<|im_end|>"
    (((judged,),), _) = to_judged([row | {"label": True}], it, "set", 99, "error", False)
    assert trained(it, judged) == "two<|im_end|>"


def test_other_columns_of_a_pair_are_not_its_messages() -> None:
    it = renderer()
    pair = {"prompt": "q", "chosen": "a", "rejected": "b", "messages": CHAT}
    (((chosen, rejected),), _) = to_pairs([pair], it, "set", 999, "error")
    assert [trained(it, side) for side in (chosen, rejected)] == ["a<|im_end|>", "b<|im_end|>"]
    assert "two" not in whole(it, chosen)
    steps = {"prompt": "q", "completions": ["a", "b"], "labels": [True, True], "messages": CHAT}
    assert "two" not in whole(it, it.step_sequence(steps, "\n"))


def test_a_turn_without_text_is_context_or_trained_on_request() -> None:
    chat = [user("q"), answer(""), user("r"), answer("two")]
    rows: list[dict[str, Any]] = [{"messages": chat}, {"messages": chat[:2]}]
    rows.insert(1, {"prompt": "q", "completion": ""})
    texts, table = sft(rows, renderer())
    assert texts == ["two<|im_end|>"]
    assert table.reasons == {"empty": 2}
    (line,) = note_lines(table.name, table.read, table.notes)
    assert "turns without text are context" in line
    assert "3 of 3 rows (100.0%), first row 1: turn 2" in line
    texts, table = sft(rows, renderer(train_empty=True))
    assert texts == ["<|im_end|>two<|im_end|>", "<|im_end|>", "<|im_end|>"]
    assert not table.notes


def test_text_that_the_template_cuts_is_named() -> None:
    rows = [
        {"prompt": "q", "completion": "plain"},
        {"prompt": "q", "completion": "<think>12 and 5</think>17"},
        {"prompt": "q", "completion": "<think>\n3 and 4\n</think>\n\n7"},
    ]
    _, table = sft(rows, renderer(CUTS))
    (line,) = note_lines(table.name, table.read, table.notes)
    assert (
        "leaves out or changes a part of the completion; 2 of 3 rows (66.7%), first row 2: '12 "
        in line
    )


@pytest.mark.parametrize(
    ("message", "note"),
    [
        (answer("a", reasoning_content="because of 7"), "does not write reasoning_content"),
        ({"role": "user", "content": "q", "name": "Ann"}, "does not write name"),
        (answer("a", tool_calls=[call(x=1)]), "does not write tool_calls"),
    ],
)
def test_keys_that_the_template_does_not_write(message: dict[str, Any], note: str) -> None:
    chat = [message, answer("b")] if message["role"] == "user" else [user("q"), message]
    _, table = sft([{"messages": chat}], renderer())
    assert [n for n in table.notes if note in n]
    _, table = sft([{"messages": chat}], renderer(TOOLS))
    assert ("reasoning" in note) == bool(table.notes)


def test_a_role_that_the_template_leaves_out() -> None:
    template = CHATML.replace(
        "%}<|im", "%}{% if m.role == 'critic' %}{% continue %}{% endif %}<|im", 1
    )
    chat = [user("q"), {"role": "critic", "content": "be brief"}, answer("one")]
    _, table = sft([{"messages": chat}], renderer(template))
    assert list(table.notes) == ["the template leaves out or changes text of role 'critic'"]


def test_the_column_system() -> None:
    it = renderer()
    for row in ({"messages": CHAT}, {"prompt": "q", "completion": "a"}):
        (sequence,) = it.training(row | {"system": "Be kind."}).sequences
        assert whole(it, sequence).startswith("<|im_start|>system\nBe kind.<|im_end|>")
    own = [{"role": "system", "content": "Rhyme."}, *CHAT]
    (sequence,) = it.training({"messages": own, "system": "Be kind."}).sequences
    assert "Be kind" not in whole(it, sequence)
    plain = make_renderer(it.tokenizer, template="plain")
    (sequence,) = plain.training({"prompt": "q", "completion": "a", "system": "S"}).sequences
    assert whole(it, sequence) == "S\n\nqa<|im_end|>"


def test_a_template_that_asks_for_a_system_message() -> None:
    it = renderer(SYSTEM_FIRST)
    own = [{"role": "system", "content": "Be kind."}, *CHAT]
    texts, _ = sft([{"messages": own}], it)
    assert texts == ["one<|im_end|>two<|im_end|>"]
    with pytest.raises(ValueError, match="row 1: the chat template refuses this chat: a system"):
        sft([{"messages": CHAT}], it)
    assert sft([{"messages": CHAT}], renderer(SYSTEM_FIRST, system_prompt="S"))[0]


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("{{ raise_exception('never') }}", "the chat template refuses this chat: never"),
        ("{{ 'a' + 3 }}", r"fails on this chat \(TypeError: can only concatenate"),
        ("{% if %}", "the chat template refuses this chat: "),
        ("{{ messages[9].x.y }}", "the chat template refuses this chat: "),
        ("{{ 1 / 0 }}", "fails on this chat .ZeroDivisionError"),
        ("hello<|im_end|>", "does not write the answer of a chat"),
    ],
)
def test_a_template_that_fails_is_one_line(template: str, expected: str) -> None:
    with pytest.raises(ValueError, match=expected) as caught:
        renderer(template)
    assert "\n" not in str(caught.value)


def test_a_template_that_fails_on_one_row() -> None:
    template = CHATML.replace(
        "{{ m.content }}", "{{ 'x' + (m.content if m.content != 'b' else 3) }}"
    )
    with pytest.raises(ValueError, match=r"set, row 2: the chat template fails .*TypeError"):
        sft([{"messages": CHAT}, {"messages": [user("b"), answer("a")]}], renderer(template))


def test_chat_template_kwargs_reach_the_template() -> None:
    template = "{% if fast %}<|im_start|>fast\n{% endif %}" + CHATML
    it, row = renderer(template), {"prompt": "q", "completion": "a"}
    for kwargs in ({"fast": True, "slow": None}, '{"fast": true}'):
        (sequence,) = it.training(row | {"chat_template_kwargs": kwargs}).sequences
        assert whole(it, sequence).startswith("<|im_start|>fast")
    with pytest.raises(ValueError, match="chat_template_kwargs must be"):
        it.training(row | {"chat_template_kwargs": [1]})


def test_what_only_a_template_reads_is_named_without_one() -> None:
    plain = make_renderer(tokenizer_with(CHATML), template="plain")
    _, table = sft([{"prompt": "q", "completion": "a", "tools": [TOOL]}], plain)
    assert list(table.notes) == ["tools is not read without a chat template"]


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 3) | st.text("ab<|>x1 ", max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("abc"), inner, max_size=2)
    ),
    max_leaves=4,
)
roles = (
    st.sampled_from(["user", "assistant", "system", "tool", "model", "gpt", "User", "x"])
    | json_values
)
contents = st.text("ab c</think>", max_size=9) | st.just(None) | st.just(PARTS) | json_values
KEYS = (
    "role",
    "content",
    "from",
    "value",
    "name",
    "weight",
    "train",
    "tool_calls",
    "reasoning_content",
)
messages = st.fixed_dictionaries(
    {"role": roles, "content": contents},
    optional={
        "tool_calls": json_values | st.just([call(a=None, b=1)]),
        "weight": json_values | st.sampled_from([0, 1]),
        "name": json_values,
        "reasoning_content": json_values,
    },
) | st.dictionaries(st.sampled_from(KEYS), json_values, max_size=3)
fuzzed = st.fixed_dictionaries(
    {},
    optional={
        "messages": st.lists(messages, max_size=4) | json_values,
        "prompt": st.lists(messages, max_size=3) | st.text("ab", max_size=3) | json_values,
        "completion": st.lists(messages, max_size=2) | st.text("ab", max_size=3) | json_values,
        "chosen": st.lists(messages, max_size=2) | st.just("one"),
        "rejected": st.lists(messages, max_size=2) | st.just("two"),
        "label": json_values | st.booleans(),
        "tools": json_values | st.just([TOOL]),
        "system": json_values,
        "images": json_values,
        "chat_template_kwargs": json_values,
    },
)


def check_row(row: dict[str, Any], name: str) -> None:
    """Every method renders a row, or refuses it in one line."""
    it = make_renderer(family(name))
    kinds: list[tuple[Any, tuple[Any, ...]]] = [
        (to_examples, ()),
        (to_prompts, ()),
        (to_pairs, ()),
        (to_judged, (False,)),
    ]
    for kind, options in kinds:
        problem = "set"
        try:
            kind([row], it, "set", 9999, "error", *options)
        except ValueError as error:
            problem = str(error)
        assert problem.startswith("set")
        assert "\n" not in problem


@pytest.mark.parametrize("name", ["chatml", "thinking", "inst", "parts"])
@settings(max_examples=60)
@given(fuzzed)
def test_any_row_is_rendered_or_refused_in_one_line(name: str, row: dict[str, Any]) -> None:
    check_row(row, name)


@pytest.mark.slow
@pytest.mark.parametrize("name", TEMPLATES)
@settings(max_examples=700)
@given(fuzzed)
def test_thousands_of_rows_are_rendered_or_refused(name: str, row: dict[str, Any]) -> None:
    check_row(row, name)


def test_reading_messages_twice_changes_nothing() -> None:
    raw = [
        {"role": "User", "content": PARTS, "weight": 0, "tool_calls": None},
        {"from": "gpt", "value": "x"},
        {"role": "model", "content": None, "tool_calls": [call(a=None, b=1)]},
    ]
    once = read_messages(raw, "messages")
    assert read_messages(once, "messages") == once
