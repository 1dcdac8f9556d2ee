"""Preference rows that are odd: prompts that end oddly, nulls, tool calls, halves of characters."""

from __future__ import annotations

import pytest
from test_preference_data import assistant, user
from test_render import renderer, trained

from posttrain.data.preferences import as_pair, to_judged, to_pairs

CHAT = renderer("chatml")


def test_two_turns_of_the_assistant_are_judged_together():
    sides = {k: [user("q"), assistant("yes"), assistant(k)] for k in ("chosen", "rejected")}
    assert as_pair(sides)["prompt"] == [user("q")]
    ((chosen, _),), _ = to_pairs([sides], CHAT, "set", 512, "error")
    assert CHAT.tokenizer.decode(trained(chosen)) == "yes<|im_end|>chosen<|im_end|>"


def test_a_prompt_that_ends_with_the_assistant_is_refused():
    prompt = [user("q"), assistant("maybe")]
    pair = {"prompt": prompt, "chosen": [assistant("yes")], "rejected": [assistant("no")]}
    with pytest.raises(ValueError, match="set, row 1: the prompt ends with the assistant's turn"):
        to_pairs([pair], CHAT, "set", 512, "error")
    judged = {"messages": [*prompt, assistant("yes")], "label": True}
    with pytest.raises(ValueError, match="set, row 1: the prompt ends with the assistant's turn"):
        to_judged([judged], CHAT, "set", 512, "error", with_unrelated=False)
