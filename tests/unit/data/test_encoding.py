"""A piece of a text has the ids that it has in the whole text, whatever the tokenizer."""

import json
from functools import cache
from typing import Any

import pytest
from chat_templates import family, tokenizer_with

from posttrain.data.encoding import decoded_after, encoded, encoded_after
from posttrain.data.labels import LabelSet, label_tokens
from posttrain.data.render import make_renderer

TEXT = "<|im_start|>Tom\nhas 12 apples</s>\n42. The answer\nis é漢<|im_end|> 7"


@cache
def tokenizer(kind: str) -> Any:
    """A small tokenizer that puts a space before texts in one of the ways that there are."""
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    in_bytes = kind.startswith("bytes")
    spec = json.loads(family("chatml" if in_bytes else "spaces").backend_tokenizer.to_str())
    if in_bytes:
        bytes_of = {"type": "ByteLevel", "trim_offsets": True, "use_regex": True}
        spec["pre_tokenizer"] = bytes_of | {"add_prefix_space": kind == "bytes with a space"}
    elif kind == "prepend":  # as Llama's and Mistral's converted files do
        prepend = {"type": "Prepend", "prepend": "\N{LOWER ONE EIGHTH BLOCK}"}
        replace = {"type": "Replace", "pattern": {"String": " "}, "content": prepend["prepend"]}
        spec["normalizer"] = {"type": "Sequence", "normalizers": [prepend, replace]}
        spec["pre_tokenizer"] = None
    else:
        spec["pre_tokenizer"]["prepend_scheme"] = kind
    backend = Tokenizer.from_str(json.dumps(spec))
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>")


def edges(it: Any) -> list[int]:
    """The places in TEXT at which a token of it begins."""
    spans = it(TEXT, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    return [k for k in range(1, len(TEXT)) if not any(a < k < b for a, b in spans)]


KINDS = ["always", "first", "never", "prepend", "bytes", "bytes with a space"]


@pytest.mark.parametrize("kind", KINDS)
def test_pieces_have_the_ids_of_the_whole_text(kind: str) -> None:
    it = tokenizer(kind)
    whole = encoded(it, TEXT, add_special_tokens=False)
    places = edges(it)
    assert len(places) > 20
    for edge in places:
        before = encoded(it, TEXT[:edge], add_special_tokens=False)
        assert [*before, *encoded_after(it, TEXT[edge:], before)] == whole, TEXT[:edge]
    pieces: list[int] = []
    for start, end in zip([0, *places], [*places, len(TEXT)]):
        pieces += encoded_after(it, TEXT[start:end], pieces)
    assert pieces == whole


@pytest.mark.parametrize("kind", KINDS)
def test_a_completion_keeps_the_space_that_it_begins_with(kind: str) -> None:
    it = tokenizer(kind)
    before = encoded(it, "Tom:", add_special_tokens=False)
    for text in ("has", " has 12", "\nhas", "42."):
        assert decoded_after(it, encoded_after(it, text, before)) == text


def test_what_cannot_be_encoded() -> None:
    before = [1]
    with pytest.raises(ValueError, match="half of a character"):
        encoded_after(tokenizer("always"), "a\ud800", before)
    assert encoded_after(tokenizer("always"), "", before) == []


def test_no_space_is_trained_before_a_completion() -> None:
    """TinyLlama's, Zephyr's and Phi-3's tokenizers put one before each text that they get."""
    it = make_renderer(family("spaces"))
    whole = it.tokenizer.apply_chat_template(
        [{"role": "user", "content": "Tom"}, {"role": "assistant", "content": "has 12"}],
        return_dict=False,
    )
    sequence = it.training_sequence({"prompt": "Tom", "completion": "has 12"})
    assert sequence.input_ids.tolist() == whole
    plain = make_renderer(family("spaces"), template="plain")
    for prompt, completion in (("print(", "12)"), ("Tom\n", "has"), ("Tom:", " 42")):
        row = {"prompt": prompt, "completion": completion}
        ids = plain.training_sequence(row).input_ids.tolist()
        assert ids[:-1] == plain.tokenizer(prompt + completion)["input_ids"]
        completion_ids = ids[len(plain.prompt_ids(row)) :]
        assert plain.decode(completion_ids) == completion
    steps = {"prompt": "Tom:\n", "completions": ["has 12.", "42"]}
    ids = plain.step_sequence(steps, "\n").input_ids.tolist()
    assert ids[:-1] == plain.tokenizer("Tom:\nhas 12.\n42")["input_ids"]


@pytest.mark.parametrize("name", ["spaces", "chatml"])
def test_labels_are_read_at_the_tokens_that_answers_begin_with(name: str) -> None:
    it = make_renderer(family(name))
    labels = ["Tom", "42"]
    before, tokens = label_tokens(LabelSet(labels, False, as_tokens=True), it)
    for label, token in zip(labels, tokens):
        answer = it.training_sequence({"prompt": "q", "completion": label})
        start = len(it.prompt_ids({"prompt": "q"}))
        assert [*before, token] == answer.input_ids[start : start + 1 + len(before)].tolist()


def test_an_answer_that_is_closed_before_its_turn() -> None:
    """Command A writes <|END_RESPONSE|>, then the turn's end, which is its EOS."""
    it = make_renderer(family("twice"))
    close = it.tokenizer.convert_tokens_to_ids("</s>")
    assert (it.turn_end, it.stop_token_ids) == (close, (close,))
    sequence = it.training_sequence({"prompt": "q", "completion": "a"})
    trained = sequence.input_ids[sequence.loss_mask]
    assert it.tokenizer.decode(trained) == "a<|im_end|></s>"
    # whatever generation config says ends the next header is not what closes an answer
    head = it.tokenizer.convert_tokens_to_ids("<|im_start|>")
    chatml = make_renderer(tokenizer_with(family("chatml").chat_template), generation_stops=[head])
    assert chatml.turn_end == chatml.tokenizer.convert_tokens_to_ids("<|im_end|>")
