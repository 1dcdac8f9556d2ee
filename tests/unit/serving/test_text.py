"""Texts that grow by tokens: equal to the whole, characters never cut, stop strings found."""

from __future__ import annotations

import random

import chat_templates
import pytest

from posttrain.data.render import make_renderer
from posttrain.serving.text import HALF, TextStream, decoder

SAMPLES = (
    "What is 12 plus 5? The answer is 17.",
    "na\u00efve caf\u00e9, 12 \u20ac, \U0001f600\U0001f680 \u4f60\u597d\uff0c\u4e16\u754c",
    "  two  spaces\n\nand lines\t\ttabs ",
    "\u0915\u094d\u0937 e\u0301 \U0001f468\u200d\U0001f469\u200d\U0001f467",
)


def renderers():
    for name in ("chatml", "spaces"):  # byte-level BPE, and SentencePiece's kind with bytes
        for template in ("chat", "plain"):
            yield make_renderer(chat_templates.family(name), template)


def sequences(renderer, number: int = 60):
    """Ids of texts, cut and repeated, and random ids."""
    chance = random.Random(0)
    special = set(renderer.tokenizer.all_special_ids)
    for i in range(number):
        ids = []
        while len(ids) < chance.randint(1, 150):
            if chance.random() < 0.5:
                text = chance.choice(SAMPLES)
                part = renderer.tokenizer(text, add_special_tokens=False)["input_ids"]
                ids += part[chance.randint(0, 3) : chance.randint(1, len(part))]
            else:
                some = [chance.randrange(len(renderer.tokenizer)) for _ in range(3)]
                ids += [token for token in some if token not in special]
        yield ids, i


@pytest.mark.parametrize("renderer", renderers())
def test_the_parts_are_the_whole(renderer):
    for ids, _ in sequences(renderer):
        stream = TextStream(decoder(renderer))
        parts = []
        for place, token in enumerate(ids, 1):
            assert stream.push(token) == 1
            parts.append(stream.new(ended=place == len(ids)))
        at_once = TextStream(decoder(renderer))
        at_once.push(*ids)
        assert (
            "".join(parts)
            == stream.text
            == at_once.text
            == renderer.decode([*ids, renderer.turn_end])
        )


@pytest.mark.parametrize("renderer", renderers())
def test_a_character_is_never_cut(renderer):
    text = SAMPLES[1] * 3
    ids = renderer.tokenizer(text, add_special_tokens=False)["input_ids"]
    stream = TextStream(decoder(renderer))
    for place, token in enumerate(ids, 1):
        stream.push(token)
        assert HALF not in stream.new(ended=place == len(ids))


@pytest.mark.parametrize("renderer", renderers())
def test_stop_strings_are_found_wherever_they_begin(renderer):
    """The text ends before the first of them, and nothing of one is ever sent."""
    chance = random.Random(1)
    found = 0
    for ids, _ in sequences(renderer, 40):
        whole = decoder(renderer)(ids)
        start = chance.randrange(max(1, len(whole)))
        stop = whole[start : start + chance.randint(1, 9)].strip(HALF)
        if not stop or HALF in stop:
            continue
        stream, parts = TextStream(decoder(renderer), ["never there", stop]), []
        for place, token in enumerate(ids, 1):
            stream.push(token)
            parts.append(stream.new(ended=place == len(ids)))
            if stream.stopped:
                break
        expected = whole[: whole.find(stop)]
        assert stream.stopped
        assert stream.text == expected
        assert "".join(parts) == expected
        at_once = TextStream(decoder(renderer), ["never there", stop])
        assert at_once.push(*ids) == place
        assert at_once.text == expected
        found += 1
    assert found > 10


def test_what_only_begins_like_a_stop_string_is_sent_in_the_end():
    renderer = make_renderer(chat_templates.family("chatml"), "plain")
    ids = renderer.tokenizer("abc ###", add_special_tokens=False)["input_ids"]
    stream = TextStream(decoder(renderer), ["####"])
    parts = []
    for place, token in enumerate(ids, 1):
        stream.push(token)
        parts.append(stream.new(ended=place == len(ids)))
    assert "".join(parts) == "abc ###"
    assert "#" not in "".join(parts[:-1])
