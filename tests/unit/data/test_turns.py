"""Chats of several turns: what is trained on is what the template writes at that time."""

import datetime
import itertools
from typing import Any

import pytest
from chat_templates import CHATML, TEMPLATES, family, tokenizer_with
from hypothesis import given, settings
from hypothesis import strategies as st

from posttrain.common.batch import Sequence
from posttrain.data.kinds.completion import to_examples
from posttrain.data.kinds.pair import to_examples as to_pairs
from posttrain.data.kinds.prompt import to_examples as to_prompts
from posttrain.data.kinds.unpaired import to_examples as to_judged
from posttrain.data.noted import lines as note_lines
from posttrain.data.render import Renderer, make_renderer

DAY = datetime.date(2026, 11, 29)
STABLE = ["chatml", "closed", "headers", "parts", "either"]
words = st.text(alphabet="ab c1.é", max_size=12).map(str.strip).filter(bool)


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def answer(text: str, **keys: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": text} | keys


def direct(name: str, messages: list[dict[str, Any]], generation: bool = False) -> str:
    """The text by transformers alone, on the day of the tests."""
    tokenizer = family(name)
    template = TEMPLATES[name].replace("strftime_now", "day")
    day = {"'%Y-%m-%d'": "2026-11-29", '"%d %b %Y"': "29 Nov 2026"}
    for form, text in day.items():
        template = template.replace(f"day({form})", f"'{text}'")
    if name == "parts":
        messages = [m | {"content": [{"type": "text", "text": m["content"]}]} for m in messages]
    return str(
        tokenizer.apply_chat_template(
            messages, chat_template=template, tokenize=False, add_generation_prompt=generation
        )
    )


def renderer(name: str, **options: Any) -> Renderer:
    return make_renderer(family(name), date=DAY, **options)


def runs(sequence: Sequence) -> list[tuple[int, list[int]]]:
    """The runs of trained tokens, each with its start."""
    found: list[tuple[int, list[int]]] = []
    places = enumerate(zip(sequence.input_ids.tolist(), sequence.loss_mask.tolist()))
    for trained, group in itertools.groupby(places, key=lambda x: x[1][1]):
        items = list(group)
        if trained:
            found.append((items[0][0], [token for _, (token, _) in items]))
    return found


def decoded(it: Renderer, ids: list[int]) -> str:
    return str(it.tokenizer.decode(ids))


@st.composite
def chats(draw: Any) -> list[dict[str, Any]]:
    messages = []
    if draw(st.booleans()):
        messages.append({"role": "system", "content": draw(words)})
    for _ in range(draw(st.integers(1, 3))):
        messages.append(user(draw(words)))
        why = draw(st.sampled_from(["", "<think>\n"]))
        messages.append(
            answer(f"{why}{draw(words)}\n</think>\n\n{draw(words)}" if why else draw(words))
        )
    return messages


@pytest.mark.parametrize("name", TEMPLATES)
@settings(max_examples=25)
@given(chats())
def test_a_row_of_each_turn_is_the_direct_rendering_of_its_prefix(
    name: str, messages: list[dict[str, Any]]
) -> None:
    it = renderer(name, turns="split")
    places = [i for i, m in enumerate(messages) if m["role"] == "assistant"]
    if name == "opens" and not all(m["content"].startswith("<think>") for m in messages[-1:]):
        with pytest.raises(ValueError, match=r"generation prompt ends with .*<think>"):
            it.training({"messages": messages[-2:]})
        return
    if name == "opens":
        messages, places = messages[-2:], [1]
    sequences = it.training({"messages": messages}).sequences
    assert len(sequences) == len(places)
    for i, sequence in zip(places, sequences):
        prompt = direct(name, messages[:i], generation=True)
        whole = direct(name, messages[: i + 1])
        ((start, trained),) = runs(sequence)
        context = sequence.input_ids[:start].tolist()
        assert decoded(it, context) == prompt
        assert context == it.prompt_ids({"prompt": messages[:i]})
        text = decoded(it, trained)
        assert trained[-1] in it.stop_token_ids
        if name == "opens":
            assert text == messages[i]["content"].removeprefix("<think>\n") + "</s>"
        elif whole.startswith(prompt):
            turn = whole.removeprefix(prompt)
            assert turn.startswith(text)
            assert turn.removeprefix(text).strip() in ("", "</s>"), "what follows the stop token"
            ids = it.tokenizer(turn, add_special_tokens=False)["input_ids"]
            assert trained == ids[: len(trained)]
        else:
            assert name == "inst", "the system text is in the last user turn only"
            assert whole.endswith(text)


@pytest.mark.parametrize("name", TEMPLATES)
@settings(max_examples=25)
@given(chats())
def test_one_sequence_holds_what_the_rows_of_its_turns_hold(
    name: str, messages: list[dict[str, Any]]
) -> None:
    """By default a chat is one sequence only if every turn's context and text are in it."""
    if name == "opens":
        return
    rendered = renderer(name).training({"messages": messages})
    split = renderer(name, turns="split").training({"messages": messages}).sequences
    if len(rendered.sequences) > 1:
        assert name not in STABLE
        assert any("data.turns: split" in note for note in rendered.notes)
        assert [s.input_ids.tolist() for s in rendered.sequences] == [
            s.input_ids.tolist() for s in split
        ]
        return
    (whole,) = rendered.sequences
    parts = [(start, ids) for s in split for start, ids in runs(s)]
    assert [ids for _, ids in runs(whole)] == [ids for _, ids in parts]
    for (start, _), sequence in zip(runs(whole), split):
        (own,) = runs(sequence)
        assert whole.input_ids[:start].tolist() == sequence.input_ids[: own[0]].tolist()


@pytest.mark.parametrize("name", [n for n in TEMPLATES if n != "opens"])
@settings(max_examples=15)
@given(chats())
def test_the_last_turn_alone(name: str, messages: list[dict[str, Any]]) -> None:
    (last,) = renderer(name, turns="last").training({"messages": messages}).sequences
    split = renderer(name, turns="split").training({"messages": messages}).sequences
    assert last.input_ids.tolist() == split[-1].input_ids.tolist()
    assert last.loss_mask.tolist() == split[-1].loss_mask.tolist()


TWO = [user("a"), answer("<think>\nx\n</think>\n\none"), user("b"), answer("two")]


@pytest.mark.parametrize(
    ("name", "messages", "reason"),
    [
        ("thinking", TWO, r"turn 2 \(assistant\).*'<think>\\nx.* at first, then 'one"),
        ("channels", TWO, r"turn 2 \(assistant\).*'<\|return\|>' at first, then '<\|im_end\|>"),
        (
            "inst",
            [{"role": "system", "content": "Be kind."}, *TWO],
            r"turn 2 \(user\).*'Be kind.* at first, then 'a\[/INST\]",
        ),
    ],
)
def test_the_reason_names_the_turn_and_the_text(
    name: str, messages: list[dict[str, Any]], reason: str
) -> None:
    with pytest.raises(ValueError, match=rf"{reason}.*set data\.turns: split or last"):
        renderer(name, turns="all").training({"messages": messages})
    _, table = to_examples([{"messages": messages}], renderer(name), "set", 999, "error")
    (line,) = [
        x for x in note_lines(table.name, table.read, table.notes) if "data.turns: split" in x
    ]
    assert "1 of 1 rows" in line
    assert (table.read, table.rows, table.kept) == (1, 2, 2)


def test_eos_after_the_whole_text_is_not_trained() -> None:
    it = renderer("closed")
    (sequence,) = it.training(
        {"messages": [user("a"), answer("one"), user("b"), answer("two")]}
    ).sequences
    assert [decoded(it, ids) for _, ids in runs(sequence)] == ["one<|im_end|>", "two<|im_end|>"]


def test_tool_turns_of_a_thinking_template_share_their_reasoning() -> None:
    """Between a question and the last answer reasoning is kept, so the turns are one sequence."""
    call = {"type": "function", "function": {"name": "weather", "arguments": {"city": "Oslo"}}}
    messages = [
        user("rain in Oslo?"),
        answer("", reasoning_content="I ask.", tool_calls=[call]),
        {"role": "tool", "content": "no", "name": "weather"},
        answer("It is dry.", reasoning_content="It said no."),
    ]
    tools = [{"type": "function", "function": {"name": "weather", "parameters": {}}}]
    it = renderer("thinking")
    rendered = it.training({"messages": messages, "tools": tools})
    (sequence,) = rendered.sequences
    assert [decoded(it, ids) for _, ids in runs(sequence)] == [
        '<think>\nI ask.\n</think>\n\nweather {"city": "Oslo"}<|im_end|>',
        "<think>\nIt said no.\n</think>\n\nIt is dry.<|im_end|>",
    ]
    whole = it.tokenizer.apply_chat_template(messages, tools=tools, tokenize=False)
    assert decoded(it, sequence.input_ids.tolist()) == whole
    assert rendered.notes.keys() == {"the template does not write name"} or not rendered.notes


def test_the_generation_prompt_that_opens_the_reasoning() -> None:
    it = renderer("opens")
    row = {"prompt": "12 plus 5?", "completion": "<think>\n12 and 5\n</think>\n\n17"}
    rendered = it.training(row)
    ((start, trained),) = runs(rendered.sequences[0])
    assert rendered.sequences[0].input_ids[:start].tolist() == it.prompt_ids(row)
    assert decoded(it, trained) == "12 and 5\n</think>\n\n17</s>"
    assert any("generation prompt" in note for note in rendered.notes)
    with pytest.raises(ValueError, match="begin the answer with it"):
        it.training({"prompt": "12 plus 5?", "completion": "17"})


def test_pairs_are_rendered_after_the_prompt_that_the_sampler_gets() -> None:
    row = {"prompt": TWO[:3], "chosen": "yes", "rejected": "no"}
    for name in ("thinking", "channels", "inst", "closed"):
        it = renderer(name)
        (((chosen, rejected),), table) = to_pairs([row], it, "set", 999, "error")
        for side, text in ((chosen, "yes"), (rejected, "no")):
            ((start, trained),) = runs(side)
            assert side.input_ids[:start].tolist() == it.prompt_ids({"prompt": TWO[:3]})
            assert text in decoded(it, trained)
        assert table.kept == 1


def test_several_turns_in_a_completion_that_the_template_rewrites() -> None:
    row = {"prompt": "q", "completion": TWO[1:], "label": True}
    with pytest.raises(ValueError, match=r"row 1: .*keep one assistant turn in each completion"):
        to_judged([row], renderer("thinking"), "set", 999, "error", False)


@pytest.mark.parametrize("name", ["headers", "channels"])
def test_the_date_is_that_of_the_run(name: str) -> None:
    row = {"prompt": "a"}
    text = decoded(renderer(name), renderer(name).prompt_ids(row))
    assert ("29 Nov 2026" in text) or ("2026-11-29" in text)
    other = make_renderer(family(name), date=datetime.date(2026, 11, 30))
    assert other.prompt_ids(row) != renderer(name).prompt_ids(row)
    today = make_renderer(family(name))
    expected = family(name).apply_chat_template(
        [user("a")], tokenize=False, add_generation_prompt=True
    )
    assert decoded(today, today.prompt_ids(row)) == expected


def test_a_date_whose_format_is_computed_is_refused() -> None:
    template = "{{ strftime_now(form or '%d') }}" + CHATML
    it = make_renderer(tokenizer_with(template))
    assert it.prompt_ids({"prompt": "a"})
    with pytest.raises(ValueError, match="strftime_now with a computed format"):
        make_renderer(tokenizer_with(template), date=DAY).prompt_ids({"prompt": "a"})


def test_date_string_of_templates_without_today() -> None:
    template = "{% if not date_string is defined %}{% set date_string = '26 Jul 2024' %}{% endif %}"
    tokenizer = tokenizer_with(template + "<|im_start|>{{ date_string }}\n" + CHATML)
    for date, text in ((DAY, "29 Nov 2026"), (None, "26 Jul 2024")):
        it = make_renderer(tokenizer, date=date)
        assert text in decoded(it, it.prompt_ids({"prompt": "a"}))


def test_prompts_of_several_turns() -> None:
    rows = [{"messages": TWO}, {"prompt": TWO[:3]}]
    for name in TEMPLATES:
        prompts, _ = to_prompts(rows, renderer(name), "set", 999, "error")
        assert prompts[0].input_ids == prompts[1].input_ids
        assert decoded(renderer(name), prompts[0].input_ids) == direct(name, TWO[:3], True)


def test_consecutive_assistant_turns_of_a_thinking_template() -> None:
    """The second turn gets an empty block, and the first one loses its own once it follows."""
    it = renderer("thinking")
    chat = [user("q"), answer("one"), answer("two")]
    first, second = it.training({"messages": chat}).sequences
    assert decoded(it, runs(first)[0][1]) == "<think>\n\n</think>\n\none<|im_end|>"
    ((start, trained),) = runs(second)
    assert decoded(it, trained) == "<think>\n\n</think>\n\ntwo<|im_end|>"
    assert decoded(it, second.input_ids[:start].tolist()) == direct("thinking", chat[:2], True)


@pytest.mark.parametrize("turns", [None, "all", "split"])
def test_a_turn_that_the_tokenizer_joins_with_its_prompt(turns: Any) -> None:
    """Two line ends are one token: the context of the next turn holds it, as the sampler's does."""
    it = renderer("chatml", turns=turns)
    chat = [user("q"), answer("\none"), user("r"), answer("two")]
    if turns == "all":
        with pytest.raises(
            ValueError, match=r"joins the end .*'\\n\\n' is one token.*split or last"
        ):
            it.training({"messages": chat})
        return
    rendered = it.training({"messages": chat})
    assert any("the tokenizer joins the end" in note for note in rendered.notes) == (turns is None)
    for sequence, end in zip(rendered.sequences, (1, 3), strict=True):
        ((start, trained),) = runs(sequence)
        prompt = it.tokenizer(direct("chatml", chat[:end], True), add_special_tokens=False)
        assert sequence.input_ids[:start].tolist() == prompt["input_ids"]
        assert decoded(it, trained) == chat[end]["content"] + "<|im_end|>"
    judged = {"prompt": "q", "completion": chat[1:], "label": True}
    _, table = to_judged([judged], renderer("chatml"), "set", 99, "error", False)
    assert any("which are tokenised apart" in note for note in table.notes)


def test_calls_that_the_template_does_not_write() -> None:
    call = {"type": "function", "function": {"name": "weather", "arguments": {"city": "Oslo"}}}
    chat = [user("q"), answer("", tool_calls=[call]), user("r"), answer("two")]
    rendered = renderer("chatml").training({"messages": chat})
    assert "assistant turns of which the template writes nothing are context" in rendered.notes
    assert not any("without text" in note for note in rendered.notes)


def test_a_generation_prompt_that_ends_with_an_empty_block() -> None:
    """Gemma 4 asks with an empty thought, and writes answers without it."""
    it = renderer("block")
    row = {"prompt": "q", "completion": "a"}
    rendered = it.training(row)
    ((start, trained),) = runs(rendered.sequences[0])
    assert rendered.sequences[0].input_ids[:start].tolist() == it.prompt_ids(row)
    assert decoded(it, it.prompt_ids(row)).endswith("</think>\n\n")
    assert decoded(it, trained) == "a<|im_end|>"
    assert any("ends with a block" in note for note in rendered.notes)
    # an earlier answer may begin with that block
    chat = [user("q"), answer("<think>\n\n</think>\n\n17"), user("r"), answer("two")]
    sequences = it.training({"messages": chat}).sequences
    assert [decoded(it, runs(s)[0][1]) for s in sequences] == ["17<|im_end|>", "two<|im_end|>"]
