"""Preference rows that are odd: prompts that end oddly, nulls, tool calls, halves of characters."""

from __future__ import annotations

import json

import pytest
from test_preference_data import assistant, user
from test_render import CHATML, renderer, trained, with_template

from posttrain.data.kinds.pair import to_examples as to_pairs
from posttrain.data.kinds.preference_forms import as_judged, as_pair
from posttrain.data.kinds.unpaired import to_examples as to_judged
from posttrain.data.render import make_renderer
from posttrain.data.sets import hh_rlhf

CHAT = renderer("chatml")
SYSTEM = {"role": "system", "content": "be brief"}
THREE = [user("a"), assistant("b"), user("q")]


def test_two_turns_of_the_assistant_are_judged_together():
    sides = {k: [user("q"), assistant("yes"), assistant(k)] for k in ("chosen", "rejected")}
    assert as_pair(sides)["prompt"] == [user("q")]
    ((chosen, _),), _ = to_pairs([sides], CHAT, "set", 512, "error")
    assert CHAT.tokenizer.decode(trained(chosen)) == "yes<|im_end|>chosen<|im_end|>"


def test_a_prompt_that_ends_with_the_assistant_is_refused():
    prompt = [user("q"), assistant("maybe")]
    pair = {"prompt": prompt, "chosen": [assistant("yes")], "rejected": [assistant("no")]}
    with pytest.raises(ValueError, match="set, row 1: the prompt ends with an assistant turn"):
        to_pairs([pair], CHAT, "set", 512, "error")
    judged = {"messages": [*prompt, assistant("yes")], "label": True}
    with pytest.raises(ValueError, match="set, row 1: the prompt ends with an assistant turn"):
        to_judged([judged], CHAT, "set", 512, "error", with_unrelated=False)


def conversations(*turns):
    return {k: [*turns, assistant(k)] for k in ("chosen", "rejected")}


@pytest.mark.parametrize(
    ("prompt", "turns", "expected"),
    [
        ([user("q")], [user("q")], [user("q")]),
        ([SYSTEM, user("q")], [user("q")], [SYSTEM, user("q")]),
        ([user("q")], [SYSTEM, user("q")], [SYSTEM, user("q")]),
        (THREE[:1], THREE, THREE),
        (THREE, THREE[2:], THREE),
    ],
)
def test_what_the_column_prompt_holds_is_not_lost(prompt, turns, expected):
    pair = as_pair({"prompt": prompt} | conversations(*turns))
    assert pair == {k: [assistant(k)] for k in ("chosen", "rejected")} | {"prompt": expected}


def test_conversations_that_do_not_begin_with_their_prompt():
    row = {"prompt": [user("a"), assistant("b")]} | conversations(user("q"))
    with pytest.raises(ValueError, match="do not repeat the prompt's turns"):
        as_pair(row)


@pytest.mark.parametrize("name", ["prompt", "conversations"])
def test_a_prompt_in_the_form_of_sharegpt(name):
    """With completions in any form, also those that repeat it."""
    prompt = [{"from": "human", "value": "q"}]
    expected = {k: [assistant(k)] for k in ("chosen", "rejected")} | {"prompt": [user("q")]}
    for sides in (
        {k: [assistant(k)] for k in ("chosen", "rejected")},
        {k: [*prompt, {"from": "gpt", "value": k}] for k in ("chosen", "rejected")},
    ):
        assert as_pair({name: prompt} | sides) == expected
    texts = {k: k for k in ("chosen", "rejected")}
    assert as_pair({name: prompt} | texts) == texts | {"prompt": [user("q")]}


COLUMNS = ("conversations", "prompt", "instruction", "input", "margin", "messages", "label")


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "q", "chosen": "yes", "rejected": "no"},
        {"instruction": "q", "chosen": "yes", "rejected": "no"},
        conversations(user("q")),
    ],
)
def test_a_null_is_as_good_as_no_column(row):
    """Of a Parquet file that holds several forms, every row has all columns."""
    nulls = dict.fromkeys(COLUMNS) | row
    assert as_pair(nulls) == as_pair(row)
    assert as_judged(nulls) == as_judged(row)
    with pytest.raises(ValueError, match=r"expected the columns prompt.completion.label"):
        as_judged(nulls | {"rejected": None})


def test_each_of_several_rejected_keeps_its_own_prompt():
    rejected = [[*THREE, assistant("no")], [user("a"), assistant("never")]]
    row = {"chosen": [*THREE, assistant("yes")], "rejected": rejected}
    assert as_judged(row) == [
        {"prompt": THREE, "completion": [assistant("yes")], "label": True},
        {"prompt": THREE, "completion": [assistant("no")], "label": False},
        {"prompt": THREE[:1], "completion": [assistant("never")], "label": False},
    ]


def test_what_kto_misses_is_named():
    with pytest.raises(ValueError, match=r"expected the columns prompt.completion.label.*got"):
        as_judged({"prompt": "q", "completion": "a"})


def test_what_a_template_reads_of_a_message_besides_its_content_is_kept():
    template = CHATML.replace("{{ m['content'] }}", "{{ m['content'] }}{{ m['tool_calls'] }}")
    calls = [{"name": "f"}]
    sides = {
        "chosen": [user("q") | {"id": 1}, assistant("") | {"tool_calls": calls, "name": None}],
        "rejected": [user("q") | {"id": 2}, assistant("no") | {"tool_calls": None}],
    }
    pair = as_pair(sides)
    assert pair["prompt"] == [user("q") | {"id": 1}]
    assert pair["chosen"] == [assistant("") | {"tool_calls": calls}]
    assert pair["rejected"] == [assistant("no")]
    ((chosen, _),), _ = to_pairs(
        [sides], make_renderer(with_template(template)), "set", 99, "error"
    )
    assert "'name': 'f'" in CHAT.tokenizer.decode(trained(chosen))


def test_an_unknown_speaker_is_named():
    prompt = [{"from": "human", "value": "q"}, {"from": "narrator", "value": "42"}]
    with pytest.raises(ValueError, match="conversations: unknown speaker 'narrator' in from"):
        as_pair({"conversations": prompt, "chosen": "yes", "rejected": "no"})


def test_a_prompt_that_fills_the_length_leaves_empty_completions_not_equal_ones():
    rows = [{"prompt": "q " * n, "chosen": "yes", "rejected": "no"} for n in (1, 90)]
    _, table = to_pairs(rows, CHAT, "set", 40, "truncate")
    assert table.reasons == {"empty, after the cut": 1}


@pytest.mark.parametrize("margin", [float("nan"), float("inf"), True, "0.5"])
def test_a_margin_is_a_finite_number(margin):
    row = {"prompt": "q", "chosen": "yes", "rejected": "no", "margin": margin}
    with pytest.raises(ValueError, match="set, row 1: margin must be a finite number; got"):
        to_pairs([row], CHAT, "set", 99, "error")


def test_an_empty_answer_of_hh_rlhf_is_empty_as_text_too(tmp_path):
    file = tmp_path / "train.jsonl"
    sides = {
        k: f"\n\nHuman: q\n\nAssistant:{v}" for k, v in (("chosen", " yes"), ("rejected", " "))
    }
    file.write_text(json.dumps(sides) + "\n")
    rows = [
        row
        for split in ("train", "test")
        for row in hh_rlhf.load(split, path=str(file), form="text")
    ]
    assert rows == [{"prompt": "\n\nHuman: q\n\nAssistant:", "chosen": " yes", "rejected": ""}]


@pytest.mark.parametrize("template", ["chat", "plain"])
@pytest.mark.parametrize("column", ["prompt", "chosen"])
def test_half_of_a_character_is_named_by_its_row(template, column):
    """JSON can hold one, as a cut-off text has it."""
    row = {"prompt": "q", "chosen": "yes", "rejected": "no"} | json.loads(
        f'{{"{column}": "\\ud83d"}}'
    )
    with pytest.raises(
        ValueError, match=r"set, row 1: a text contains '.ud83d', half of a character"
    ):
        to_pairs([row], renderer("chatml", template=template), "set", 99, "error")
