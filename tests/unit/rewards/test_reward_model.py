"""The reward-model reward on a tiny random classifier: the scores, the rendering, the refusals."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
import yaml
from test_rewards import make
from tokenizers import processors
from transformers import (
    AutoTokenizer,
    BertConfig,
    BertForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
)

from posttrain.model.load import load_classifier
from posttrain.model.scratch import train_tokenizer
from posttrain.rewards.base import RewardFailure
from posttrain.rewards.classifier_scores import score_ids, token_batches
from posttrain.rewards.scoring import score

TEXTS = ["What is 2 + 2?", "The answer is 4.", "It is 5, I think.", "hello world", "no"] * 4
TEMPLATE = (
    "{{ '<|bos|>' }}{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
SHAPE = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "initializer_range": 0.3,
    "attention_dropout": 0.5,
}


def save(folder: Path, chat: bool = True, kind: Any = None, **changes: Any) -> Path:
    """A reward model with random weights; `changes` go to its config."""
    tokenizer = train_tokenizer(TEXTS, 400, 64)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|bos|>", "<|end|>"]})
    bos = ("<|bos|>", tokenizer.convert_tokens_to_ids("<|bos|>"))
    post = processors.TemplateProcessing(single="<|bos|> $A", special_tokens=[bos])
    tokenizer._tokenizer.post_processor = post  # it writes a BOS, and so does the template
    tokenizer.chat_template = TEMPLATE if chat else None
    kind = kind or LlamaForSequenceClassification
    torch.manual_seed(0)
    config = {"vocab_size": len(tokenizer), "pad_token_id": None, "bos_token_id": None, **SHAPE}
    if kind is LlamaForSequenceClassification:
        config["num_labels"] = 1
    kind(LlamaConfig(**(config | changes))).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def chat_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(tmp_path_factory.mktemp("rm"))


def scores(folder: Path, prompts: list[Any], completions: list[str], **settings: Any) -> list[Any]:
    reward = make(type="reward_model", path=str(folder), dtype="float32", **settings)
    rows: list[dict[str, Any]] = [{} for _ in prompts]
    return score(reward, prompts, completions, [[1] for _ in prompts], rows)


def direct(folder: Path, text: str) -> float:
    """The score of one text, already rendered: alone, without padding and without our code."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = LlamaForSequenceClassification.from_pretrained(folder).eval()
    ids = torch.tensor([tokenizer(text, add_special_tokens=False)["input_ids"]])
    with torch.no_grad():
        hidden = model.model(ids).last_hidden_state[0, -1]
        return float(model.score.weight[0] @ hidden)


PROMPTS = ["What is 2 + 2?", "hello world", "no"]
COMPLETIONS = ["The answer is 4.", "It is 5, I think. It is 5.", ""]


def test_scores_equal_those_of_the_model_itself(chat_model: Path) -> None:
    found = scores(chat_model, PROMPTS, COMPLETIONS)
    expected = [
        direct(chat_model, f"<|bos|><|user|>{p}<|end|><|assistant|>{c}<|end|>")
        for p, c in zip(PROMPTS, COMPLETIONS)
    ]
    assert found == pytest.approx(expected, abs=1e-5)
    assert len({round(value, 3) for value in expected}) == 3
    assert scores(chat_model, PROMPTS, COMPLETIONS) == found, "dropout, or noise"


def test_chats_are_rendered_by_the_reward_models_template(chat_model: Path) -> None:
    chat = [
        {"role": "system", "content": "no"},
        {"role": "user", "content": "hello"},
        {"role": "assistant", "content": "It is"},
        {"role": "user", "content": "2 + 2?"},
    ]
    text = "<|system|>no<|end|><|user|>hello<|end|><|assistant|>It is<|end|><|user|>2 + 2?<|end|>"
    expected = direct(chat_model, f"<|bos|>{text}<|assistant|>4<|end|>")
    assert scores(chat_model, [chat], ["4"]) == pytest.approx([expected], abs=1e-5)


def test_without_a_template_the_text_is_joined_and_closed(tmp_path: Path, chat_model: Path) -> None:
    folder = save(tmp_path / "plain", chat=False)
    eos = AutoTokenizer.from_pretrained(folder).eos_token
    expected = direct(folder, f"<|bos|>no hello{eos}")
    assert scores(folder, ["no"], [" hello"]) == pytest.approx([expected], abs=1e-5)
    plain = scores(chat_model, ["no"], [" hello"], template="plain")
    assert plain == pytest.approx([direct(chat_model, f"<|bos|>no hello{eos}")], abs=1e-5)
    with pytest.raises(ValueError, match=r"row 1 .*prompt must be a string without a chat"):
        scores(folder, [[{"role": "user", "content": "no"}]], ["hello"])
    with pytest.raises(ValueError, match=r"reward\.path .*the tokenizer has no chat template"):
        scores(folder, ["no"], ["hello"], template="chat")


def test_a_runs_reward_model_reads_rows_as_it_was_trained_on_them(
    tmp_path: Path, chat_model: Path
) -> None:
    run = tmp_path / "run"
    shutil.copytree(chat_model, run / "checkpoint-1")
    (run / "metrics.jsonl").write_text("")
    tree = {"template": "plain", "system_prompt": "2 +"}
    (run / "config.yaml").write_text(yaml.safe_dump({"data": [{"name": "d"} | tree]}))
    eos = AutoTokenizer.from_pretrained(chat_model).eos_token
    expected = direct(chat_model, f"<|bos|>2 +\n\nno hello{eos}")
    assert scores(run / "checkpoint-1", ["no"], [" hello"]) == pytest.approx([expected], abs=1e-5)
    (run / "config.yaml").write_text(yaml.safe_dump({"data": {"name": "d", "template": "auto"}}))
    text = "<|bos|><|user|>no<|end|><|assistant|> hello<|end|>"
    found = scores(run / "checkpoint-1", ["no"], [" hello"])
    assert found == pytest.approx([direct(chat_model, text)], abs=1e-5)


def test_a_score_does_not_depend_on_its_batch(chat_model: Path) -> None:
    completions = ["It is 5. " * n for n in (1, 6, 2, 0, 4, 3)]
    prompts = ["no"] * 6
    together = scores(chat_model, prompts, completions)
    alone = [scores(chat_model, [p], [c])[0] for p, c in zip(prompts, completions)]
    assert together == pytest.approx(alone, abs=1e-5)
    for tokens in (1, 40, 100):
        found = scores(chat_model, prompts, completions, micro_batch_tokens=tokens)
        assert found == pytest.approx(alone, abs=1e-5)
    backwards = scores(chat_model, prompts, completions[::-1])
    assert backwards[::-1] == pytest.approx(alone, abs=1e-5)


@pytest.mark.parametrize("pad", [None, 5, 7])
def test_the_last_token_is_read_whatever_the_pad_token_is(tmp_path: Path, pad: int | None) -> None:
    # 5 ends one of the sequences, twice: a pad token that equals eos
    folder = save(tmp_path, pad_token_id=pad)
    model = LlamaForSequenceClassification.from_pretrained(folder).eval()
    sequences = [[9, 8, 5, 5], [9, 8, 7], [5], [4, 7, 5, 6, 8, 9]]
    with torch.no_grad():
        expected = [
            float(model.score.weight[0] @ model.model(torch.tensor([ids])).last_hidden_state[0, -1])
            for ids in sequences
        ]
    assert score_ids(model, sequences, 1000) == pytest.approx(expected, abs=1e-5)
    assert score_ids(model, sequences, 1) == pytest.approx(expected, abs=1e-5)
    assert model.config.pad_token_id == pad


def test_padding_is_masked_where_attention_goes_both_ways() -> None:
    torch.manual_seed(0)
    shape = {name: value for name, value in SHAPE.items() if "key_value" not in name}
    model = BertForSequenceClassification(BertConfig(vocab_size=20, num_labels=1, **shape)).eval()
    sequences = [[9, 8, 5, 5], [9, 8, 7], [5], [4, 7, 5, 6, 8, 9]]
    with torch.no_grad():
        alone = [float(model(torch.tensor([ids])).logits) for ids in sequences]
    assert score_ids(model, sequences, 1000) == pytest.approx(alone, abs=1e-5)
    assert len({round(value, 3) for value in alone}) == 4


def test_batches_keep_to_the_number_of_tokens() -> None:
    lengths = [5, 1, 9, 3, 3, 30, 2]
    for limit in (1, 6, 10, 12, 1000):
        batches = list(token_batches(lengths, limit))
        assert sorted(i for batch in batches for i in batch) == list(range(7))
        for batch in batches:
            assert len(batch) == 1 or len(batch) * max(lengths[i] for i in batch) <= limit
    assert len(list(token_batches(lengths, 1000))) == 1
    assert list(token_batches([3, 3, 3, 3], 6)) == [[0, 1], [2, 3]]
    assert list(token_batches([], 6)) == []


def test_a_sequence_that_is_too_long_is_refused_not_cut(chat_model: Path) -> None:
    with pytest.raises(
        RewardFailure, match=r"row 2 has \d+ tokens, but .* takes at most 64: lower"
    ):
        scores(chat_model, ["no", "no"], ["", "hello world " * 40])
    with pytest.raises(RewardFailure, match="takes at most 4"):
        scores(chat_model, ["no"], ["hello world"], max_length=4)


def test_weights_are_loaded_once_and_late(
    chat_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from posttrain.rewards import classifier_scores

    loads = []
    load = classifier_scores.load
    monkeypatch.setattr(classifier_scores, "load", lambda *a: loads.append(a) or load(*a))  # type: ignore[func-returns-value]
    reward = make(type="reward_model", path=str(chat_model))
    assert loads == []
    for _ in range(3):
        score(reward, ["no"], ["hello"], [[1]], [{}])
    assert len(loads) == 1


def test_bf16_is_near_fp32(chat_model: Path) -> None:
    reward = make(type="reward_model", path=str(chat_model), dtype="bfloat16")
    (low,) = score(reward, ["no"], ["hello"], [[1]], [{}])
    (high,) = scores(chat_model, ["no"], ["hello"])
    assert low == pytest.approx(high, abs=0.1)
    assert low != high


# --- what is refused, before anything is loaded ---------------------------------------------------


def edit_config(folder: Path, **changes: Any) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def with_three_labels(folder: Path) -> None:
    shutil.rmtree(folder)
    save(folder, num_labels=3)


def causal_lm(folder: Path) -> None:
    shutil.rmtree(folder)
    save(folder, kind=LlamaForCausalLM)


def pickled(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    torch.save({}, folder / "pytorch_model.bin")


def adapter(folder: Path) -> None:
    (folder / "config.json").rename(folder / "adapter_config.json")


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (shutil.rmtree, "is not a folder; expected the folder of a reward model"),
        (lambda folder: (folder / "config.json").unlink(), "has no config.json"),
        (adapter, "holds an adapter, but not of a reward model"),
        (with_three_labels, "has 3 outputs; a reward model has one"),
        (causal_lm, "is a LlamaForCausalLM, not a reward model"),
        (pickled, r"has no \*\.safetensors; pickled weights"),
    ],
)
def test_a_folder_that_is_no_reward_model(
    change: Any, expected: str, chat_model: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(chat_model, folder)
    make(type="reward_model", path=str(folder))
    change(folder)
    with pytest.raises(ValueError, match=expected) as caught:
        make(type="reward_model", path=str(folder))
    assert str(folder) in str(caught.value)


def test_a_head_that_is_missing_is_not_made_up(tmp_path: Path) -> None:
    folder = save(tmp_path, kind=LlamaForCausalLM)
    edit_config(
        folder, architectures=["LlamaForSequenceClassification"], id2label={"0": "x"}, num_labels=1
    )
    with pytest.raises(RewardFailure, match=r"lacks weights \(score.weight\)"):
        scores(folder, ["no"], ["hello"])


def test_code_in_a_model_folder_is_not_run(chat_model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(chat_model, folder)
    edit_config(folder, model_type="mine", auto_map={"AutoConfig": "mine.Config"})
    (folder / "mine.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Config: ...\n")
    with pytest.raises(ValueError, match="code in a model folder is never run"):
        make(type="reward_model", path=str(folder))
    assert not (tmp_path / "ran").exists()


def test_loading_shows_no_progress_bar(chat_model: Path) -> None:
    transformers.logging.enable_progress_bar()
    load_classifier(str(chat_model), torch.float32)
    assert not transformers.logging.is_progress_bar_enabled()
