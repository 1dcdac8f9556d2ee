"""One renderer makes ids and masks for training, sampling and evaluation, and they agree."""

import unicodedata
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from conftest import shared
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from transformers import GenerationConfig

from posttrain.common.batch import Sequence
from posttrain.data.render import Renderer, make_renderer
from posttrain.model.folder import generation_stops, trained_with
from posttrain.model.scratch import train_tokenizer

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
WITH_BOS = (  # in the way of Llama 3: the template writes the BOS token itself
    "{{ bos_token }}{% for m in messages %}<|head|>{{ m['role'] }}\n\n{{ m['content'] }}<|eot|>"
    "{% endfor %}{% if add_generation_prompt %}<|head|>assistant\n\n{% endif %}"
)
TEXTS = [
    "Tom has 12 apples and buys 30 more. How many apples does Tom have?\nTom has 42.\n#### 42",
    "  indented\n\n\ttabs and  double spaces ; punctuation!? the user and the assistant",
    "Zażółć gęślą jaźń 日本語 \U0001f600 naïve café",
]


def build(added: list[str], **options: Any) -> Any:
    """Another tokenizer on the same byte-level BPE."""
    from tokenizers import Tokenizer, processors
    from transformers import PreTrainedTokenizerFast

    bpe = Tokenizer.from_str(train_tokenizer(TEXTS, 500, 4096).backend_tokenizer.to_str())
    bpe.add_special_tokens(added)
    if "bos_token" in options:
        bos = options["bos_token"]
        bpe.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", special_tokens=[(bos, bpe.token_to_id(bos))]
        )
    return PreTrainedTokenizerFast(tokenizer_object=bpe, **options)


TOKENIZERS: dict[str, Any] = {
    "own": train_tokenizer(TEXTS, 500, 4096),
    "chatml": build(
        ["<|im_start|>", "<|im_end|>"],
        eos_token="<|im_end|>",
        pad_token="<|im_end|>",
        chat_template=CHATML,
    ),
    "plain": build(["</s>"], eos_token="</s>", pad_token="</s>"),
    "plain_bos": build(["<s>", "</s>"], bos_token="<s>", eos_token="</s>"),
    "chat_bos": build(
        ["<s>", "</s>", "<|head|>", "<|eot|>"],
        bos_token="<s>",
        eos_token="</s>",
        pad_token="</s>",
        chat_template=WITH_BOS,
    ),
}
CHAT = ["own", "chatml", "chat_bos"]
STOP = {
    "own": "<|end|>",
    "chatml": "<|im_end|>",
    "plain": "</s>",
    "plain_bos": "</s>",
    "chat_bos": "<|eot|>",
}
EDGES = ["", " ", "\n", "  \n\t", "\n\n", "\r\n", "'s", "12", "\u3000", "\ufeff", "\0"]
SPECIAL = {"<|", "|>", "<s>", "</s>"}
raw_text = st.builds(
    "".join, st.tuples(st.sampled_from(EDGES), st.text(max_size=30), st.sampled_from(EDGES))
)
# Qwen2's tokenizer, and so our own, turns text into its composed form (NFC) before anything else
text = raw_text.map(partial(unicodedata.normalize, "NFC")).filter(
    lambda s: not any(mark in s for mark in SPECIAL)
)


def renderer(name: str, **options: Any) -> Renderer:
    return make_renderer(TOKENIZERS[name], **options)


def trained(sequence: Sequence) -> list[int]:
    return sequence.input_ids[sequence.loss_mask].tolist()


def turns(sequence: Sequence) -> list[list[int]]:
    """The runs of trained tokens."""
    runs: list[list[int]] = []
    previous = False
    for token, here in zip(sequence.input_ids.tolist(), sequence.loss_mask.tolist()):
        if here and not previous:
            runs.append([])
        if here:
            runs[-1].append(token)
        previous = here
    return runs


@pytest.mark.parametrize("name", TOKENIZERS)
@settings(deadline=None, max_examples=60)
@given(prompt=text, completion=text)
@example(prompt="a ", completion=" b")
@example(prompt="a", completion="")
@example(prompt="1", completion="2")
@example(prompt="\n", completion="\n\n")
@example(prompt="e", completion="\u0301")
def test_exactly_completion_and_stop_are_trained(name: str, prompt: str, completion: str) -> None:
    assume(prompt or name != "plain")
    it = renderer(name)
    row = {"prompt": prompt, "completion": completion}
    sequence = it.training_sequence(row)
    prompt_ids = it.prompt_ids({"prompt": prompt})
    assert sequence.input_ids[: len(prompt_ids)].tolist() == prompt_ids, "as in sampling"
    assert it.turn_end in it.stop_token_ids
    assert not sequence.loss_mask[0]
    if completion == "":
        assert trained(sequence) == [], "a bare stop token"
        sequence = renderer(name, train_empty=True).training_sequence(row)
    assert TOKENIZERS[name].decode(trained(sequence)) == completion + STOP[name]
    assert trained(sequence)[-1] == it.turn_end
    assert it.decode(trained(sequence)) == completion
    assert len(turns(sequence)) == 1
    assert int(sequence.loss_mask.nonzero()[0]) == len(prompt_ids)
    assert it.prompt_ids(row) == prompt_ids, "the completion leaked into the sampler's prompt"


@pytest.mark.parametrize("name", CHAT)
@settings(deadline=None, max_examples=40)
@given(st.lists(st.tuples(text, text), min_size=1, max_size=4), st.booleans())
def test_every_assistant_turn_is_trained_and_nothing_else(
    name: str, pairs: list[tuple[str, str]], system: bool
) -> None:
    it = renderer(name, train_empty=True)
    messages = [{"role": "system", "content": "Be kind."}] if system else []
    for user, assistant in pairs:
        messages += [
            {"role": "user", "content": user},
            {"role": "assistant", "content": assistant},
        ]
    sequence = it.training_sequence({"messages": messages})
    runs = turns(sequence)
    decoded = [TOKENIZERS[name].decode(run) for run in runs]
    assert decoded == [assistant + STOP[name] for _, assistant in pairs]
    assert all(run[-1] in it.stop_token_ids for run in runs)
    spoken = turns(renderer(name).training_sequence({"messages": messages}))
    assert spoken == [run for run, (_, assistant) in zip(runs, pairs) if assistant]
    # what stands before the k-th turn is what the sampler gets for that turn
    starts = [
        i
        for i in range(1, len(sequence))
        if sequence.loss_mask[i] and not sequence.loss_mask[i - 1]
    ]
    for k, start in enumerate(starts):
        asked = it.prompt_ids({"messages": messages[: system + 2 * k + 1]})
        context = sequence.input_ids[:start].tolist()
        if context != asked:  # the tokenizer joins a line end of the prompt and one of the turn
            assert TOKENIZERS[name].decode(context) == TOKENIZERS[name].decode(asked)
            notes = it.training({"messages": messages}, one=True).notes
            assert any("joins the end of a turn's prompt" in note for note in notes)


@pytest.mark.parametrize("name", CHAT)
@given(prompt=text, completion=text)
@settings(deadline=None, max_examples=20)
def test_bos_is_written_as_often_as_by_the_canonical_call(
    name: str, prompt: str, completion: str
) -> None:
    tokenizer, it = TOKENIZERS[name], renderer(name)
    user = [{"role": "user", "content": prompt}]
    chat = [*user, {"role": "assistant", "content": completion}]
    ours = it.training_sequence({"messages": chat}).input_ids.tolist()
    theirs = tokenizer.apply_chat_template(chat, tokenize=True, return_dict=False)
    asked = tokenizer.apply_chat_template(
        user, tokenize=True, add_generation_prompt=True, return_dict=False
    )
    assert it.prompt_ids({"prompt": prompt}) == asked
    for special in tokenizer.all_special_ids:
        assert ours.count(special) == theirs.count(special)
    assert ours.count(tokenizer.bos_token_id) == (name == "chat_bos")


@given(prompt=text, completion=text)
@settings(deadline=None, max_examples=20)
def test_one_bos_in_plain_text(prompt: str, completion: str) -> None:
    tokenizer, it = TOKENIZERS["plain_bos"], renderer("plain_bos")
    row = {"prompt": prompt, "completion": completion}
    bos = tokenizer.bos_token_id
    for ids in (
        it.training_sequence(row).input_ids.tolist(),
        it.prompt_ids(row),
        it.text_ids(prompt + completion),
    ):
        assert ids[0] == bos
        assert ids.count(bos) == 1


@pytest.mark.parametrize("name", TOKENIZERS)
def test_text_is_closed_by_one_stop_token(name: str) -> None:
    it = renderer(name)
    ids = it.text_ids("Tom has 12 apples.")
    assert ids[-1] == it.turn_end
    assert sum(token in it.stop_token_ids for token in ids) == 1
    assert it.text_ids(f"Tom has 12 apples.{STOP[name]}") == ids


@pytest.mark.parametrize("name", CHAT)
@settings(deadline=None, max_examples=30)
@given(prompt=text, completion=text)
def test_pad_token_makes_no_difference(name: str, prompt: str, completion: str) -> None:
    tokenizer = TOKENIZERS[name]
    row = {"prompt": prompt, "completion": completion}
    before = tokenizer.pad_token
    try:
        found = []
        for pad in (tokenizer.eos_token, "<|pad|>", None):
            tokenizer.pad_token = pad
            it = make_renderer(tokenizer)
            sequence = it.training_sequence(row)
            found.append((sequence.input_ids.tolist(), sequence.loss_mask.tolist(), it.turn_end))
    finally:
        tokenizer.pad_token = before
    assert found[0] == found[1] == found[2]


def test_stop_set_is_eos_turn_end_and_what_the_generation_config_names() -> None:
    tokenizer = TOKENIZERS["chat_bos"]
    ids = tokenizer.convert_tokens_to_ids
    it = make_renderer(tokenizer, generation_stops=[ids("<|head|>")])
    assert it.turn_end == ids("<|eot|>")
    assert set(it.stop_token_ids) == {ids("</s>"), ids("<|eot|>"), ids("<|head|>")}
    plain = make_renderer(tokenizer, template="plain")
    assert plain.turn_end == ids("</s>")
    assert not plain.chat


@pytest.mark.parametrize("name", CHAT)
def test_system_prompt_comes_first_and_only_once(name: str) -> None:
    it = renderer(name, system_prompt="Answer briefly.")
    bare = renderer(name)
    by_row = [{"role": "system", "content": "Answer briefly."}, {"role": "user", "content": "Hi"}]
    assert it.prompt_ids({"prompt": "Hi"}) == bare.prompt_ids({"messages": by_row})
    other = [{"role": "system", "content": "Rhyme."}, *by_row[1:]]
    assert it.prompt_ids({"messages": other}) == bare.prompt_ids({"messages": other})
    sequence = it.training_sequence({"prompt": "Hi", "completion": "Ho"})
    assert TOKENIZERS[name].decode(trained(sequence)) == "Ho" + STOP[name]
    assert "Answer briefly." in TOKENIZERS[name].decode(sequence.input_ids.tolist())


def test_system_prompt_of_plain_text() -> None:
    it = renderer("plain", system_prompt="Answer briefly.")
    assert TOKENIZERS["plain"].decode(it.prompt_ids({"prompt": "Hi"})) == "Answer briefly.\n\nHi"


@pytest.mark.parametrize("name", CHAT)
def test_prompt_and_completion_may_be_messages(name: str) -> None:
    it = renderer(name)
    as_text = it.training_sequence({"prompt": "Hi", "completion": "Ho"})
    prompt = [{"role": "user", "content": "Hi"}]
    completion = [{"role": "assistant", "content": "Ho"}]
    as_messages = it.training_sequence({"prompt": prompt, "completion": completion})
    assert as_text.input_ids.tolist() == as_messages.input_ids.tolist()
    assert as_text.loss_mask.tolist() == as_messages.loss_mask.tolist()


def with_template(template: str) -> Any:
    tokenizer = build(["<|im_start|>", "<|im_end|>"], eos_token="<|end|>", pad_token="<|end|>")
    tokenizer.chat_template = template
    return tokenizer


def two_turns(first: str = "one") -> list[dict[str, str]]:
    return [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": first},
        {"role": "user", "content": "b"},
        {"role": "assistant", "content": "two"},
    ]


@pytest.mark.parametrize(
    "template",
    [
        "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}",
        "{% for m in messages %}<|im_start|>{{ m['content'] }}{% endfor %}",
        "{% for m in messages %}{% if m['role'] == 'user' %}{{ m['content'] }}<|end|>{% else %}"
        "{{ m['content'] }}{% endif %}{% endfor %}",
    ],
)
def test_template_that_renders_no_stop_token(template: str) -> None:
    with pytest.raises(ValueError, match="without a stop token"):
        make_renderer(with_template(template))


@pytest.mark.parametrize(
    ("template", "turn"),
    [
        # earlier reasoning is dropped, as by the templates of thinking models
        (
            "{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
            "{% if loop.last %}{{ m['content'] }}"
            "{% else %}{{ m['content'].split('</think>')[-1] }}{% endif %}<|im_end|>\n{% endfor %}"
            "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}",
            "turn 2 .assistant. .*'<think>x</think>one",
        ),
        # only the last turn is closed
        (
            "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}"
            "{% if loop.last %}<|im_end|>{% endif %}{% endfor %}"
            "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}",
            "turn 1 .user. .*'<|im_end|>",
        ),
    ],
)
def test_template_that_renders_earlier_turns_anew(template: str, turn: str) -> None:
    it = make_renderer(with_template(template))
    row = {"messages": two_turns("<think>x</think>one")}
    with pytest.raises(ValueError, match=f"renders {turn}"):
        it.training_sequence(row)
    with pytest.raises(ValueError, match=r"set data\.turns: split or last"):
        make_renderer(it.tokenizer, turns="all").training(row)
    rendered = it.training(row)
    decoded = [it.tokenizer.decode(trained(sequence)) for sequence in rendered.sequences]
    assert decoded == ["<think>x</think>one<|im_end|>", "two<|im_end|>"]
    assert any("data.turns: split" in note for note in rendered.notes)
    (last,) = make_renderer(it.tokenizer, turns="last").training(row).sequences
    assert last.input_ids.tolist() == rendered.sequences[-1].input_ids.tolist()


def test_generation_prompt_that_training_does_not_render() -> None:
    template = CHATML.replace("assistant\n{% endif %}", "assistant\n<think></think>{% endif %}")
    it = make_renderer(with_template(template))
    rendered = it.training({"prompt": "a", "completion": "b"})
    (sequence,) = rendered.sequences
    first = int(sequence.loss_mask.nonzero()[0])
    assert sequence.input_ids[:first].tolist() == it.prompt_ids({"prompt": "a"})
    assert it.tokenizer.decode(trained(sequence)) == "b<|im_end|>"
    assert any("ends with a block that the template does not write" in n for n in rendered.notes)
    opened = template.replace("</think>", "")
    with pytest.raises(ValueError, match="generation prompt ends with '<think>', but this answer"):
        make_renderer(with_template(opened)).training({"prompt": "a", "completion": "b"})


def test_template_that_trims_is_followed() -> None:
    it = make_renderer(with_template(CHATML.replace("m['content']", "m['content'] | trim")))
    sequence = it.training_sequence({"prompt": "  a ", "completion": " b\n"})
    assert it.tokenizer.decode(trained(sequence)) == "b<|im_end|>"
    first = int(sequence.loss_mask.nonzero()[0])
    assert sequence.input_ids[:first].tolist() == it.prompt_ids({"prompt": "a"})


@pytest.mark.parametrize("name", CHAT)
@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"messages": [{"role": "user", "content": "Hi"}]}, "no assistant message"),
        ({"messages": []}, "no assistant message"),
        ({"messages": "Hi"}, "messages must be"),
        ({"messages": [{"role": "user"}]}, "messages must be"),
        ({"messages": [{"role": "user", "content": None}]}, "messages must be"),
        ({"messages": {"role": "user", "content": "x"}}, "messages must be"),
        ({"messages": None}, "messages must be"),
        ({"messages": ["Hi"]}, "messages must be"),
        ({"prompt": 7, "completion": "x"}, "prompt must be"),
        ({"prompt": "x", "completion": None}, "completion must be"),
        ({"prompt": [{"content": "x"}], "completion": "x"}, "prompt must be"),
    ],
)
def test_malformed_rows_are_value_errors(name: str, row: dict[str, Any], expected: str) -> None:
    with pytest.raises(ValueError, match=expected):
        renderer(name).training_sequence(row)
    if "messages" in row and expected != "no assistant message":
        with pytest.raises(ValueError, match=expected):
            renderer(name).prompt_ids(row)


def test_chat_that_begins_with_the_assistant() -> None:
    chat = [{"role": "assistant", "content": "Hello!"}, *two_turns()]
    rendered = renderer("own").training({"messages": chat})
    assert (
        renderer("own").tokenizer.decode(trained(rendered.sequences[0])) == "one<|end|>two<|end|>"
    )
    assert any("begins with the assistant" in note for note in rendered.notes)
    with pytest.raises(ValueError, match="the chat begins with the assistant"):
        renderer("own").training_sequence({"messages": chat[:2]})
    with pytest.raises(ValueError, match="the chat is empty"):
        renderer("own").prompt_ids({"messages": chat[:1]})


def test_chat_that_the_template_refuses() -> None:
    it = renderer("own")
    it.tokenizer.chat_template, before = (
        "{{ raise_exception('roles must alternate') }}",
        it.tokenizer.chat_template,
    )
    try:
        with pytest.raises(ValueError, match="refuses this chat: roles must alternate"):
            it.training_sequence({"messages": two_turns()})
    finally:
        it.tokenizer.chat_template = before


def test_the_first_token_is_never_trained() -> None:
    template = (
        "{% for m in messages %}{% if m['role'] == 'assistant' %}{{ m['content'] }}<|end|>"
        "{% endif %}{% endfor %}"
    )
    it = make_renderer(with_template(template))
    sequence = it.training_sequence({"prompt": "unseen", "completion": "Hello you!"})
    assert len(sequence) > 2
    assert sequence.loss_mask.tolist() == [False] + [True] * (len(sequence) - 1)


@pytest.mark.parametrize("template", ["chat", "auto"])
def test_tokenizer_without_template_or_eos(template: str) -> None:
    tokenizer = build(["</s>"])
    expected = "has no chat template" if template == "chat" else "no EOS token"
    with pytest.raises(ValueError, match=expected):
        make_renderer(tokenizer, template=template)


def test_plain_prompt_must_be_a_text_that_is_not_empty() -> None:
    it = renderer("plain")
    with pytest.raises(ValueError, match="the prompt is empty"):
        it.prompt_ids({"prompt": ""})
    with pytest.raises(ValueError, match="prompt must be a string"):
        it.prompt_ids({"prompt": [{"role": "user", "content": "x"}]})


@given(prompt=st.text(max_size=30), completion=st.text(alphabet="abc \nXYZ.,0", max_size=30))
@settings(deadline=None, max_examples=60)
def test_a_tokenizer_of_the_sentencepiece_kind(prompt: str, completion: str) -> None:
    from transformers import AutoTokenizer

    if "stories" not in TOKENIZERS:
        folder = shared("models/stories260k")
        TOKENIZERS["stories"] = AutoTokenizer.from_pretrained(str(folder))
    it = renderer("stories", generation_stops=[1, 2])
    assume(prompt and not any(mark in prompt for mark in ("<s>", "</s>", "<unk>")))
    row = {"prompt": prompt, "completion": completion}
    sequence = make_renderer(
        it.tokenizer, generation_stops=[1, 2], train_empty=True
    ).training_sequence(row)
    assert trained(sequence)[-1] == it.turn_end == TOKENIZERS["stories"].eos_token_id
    assert it.stop_token_ids == (1, 2)
    first = int(sequence.loss_mask.nonzero()[0])
    assert sequence.loss_mask[first:].all()
    assert sequence.input_ids[:first].tolist() == it.prompt_ids(row)
    assert sequence.input_ids.tolist().count(1) == 1, "one BOS"
    assert it.decode(trained(sequence)) == completion
    decode = it.tokenizer.decode
    if not any(mark in decode(it.prompt_ids(row)) for mark in ("\ufffd", "<unk>")):
        whole = decode(sequence.input_ids[:-1])
        assert whole == decode(sequence.input_ids[:first]) + completion


def test_the_stop_set_is_the_same_wherever_the_model_lies(tmp_path, monkeypatch):
    """In a folder, on the hub, and under an adapter that brings no generation config."""
    base, adapter = tmp_path / "base", tmp_path / "adapter"
    for folder in (base, adapter):
        folder.mkdir()
    saved = GenerationConfig(eos_token_id=[1, 2])
    saved.save_pretrained(base)
    (adapter / "adapter_config.json").write_text(f'{{"base_model_name_or_path": "{base}"}}')
    there = {"org/model": saved}

    def from_hub(name):
        if name not in there:
            raise OSError(f"{name} has no generation_config.json")
        return there[name]

    monkeypatch.setattr(GenerationConfig, "from_pretrained", from_hub)
    for name in (base, adapter, "org/model"):
        assert generation_stops(str(name)) == [1, 2]
    assert generation_stops("org/other") == generation_stops(str(tmp_path)) == []
    assert generation_stops(None) == []


@pytest.mark.parametrize(
    ("written", "found"),
    [
        ("data: {template: plain, system_prompt: S}", ("plain", "S", None)),
        ("data: [{prompt_template: chat}, {template: plain}]", ("auto", None, "chat")),
        ("data: rows.jsonl", ("auto", None, None)),
        ("model: m", ("auto", None, None)),
        ("", ("auto", None, None)),
    ],
)
def test_what_a_folder_was_trained_with(written: str, found: Any, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(written)
    assert trained_with(str(tmp_path / "checkpoint-1")) == ("auto", None, None), "it is no run"
    (tmp_path / "metrics.jsonl").write_text("")
    assert trained_with(str(tmp_path / "checkpoint-1")) == found
