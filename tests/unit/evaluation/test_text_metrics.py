"""Metrics of texts: against numbers worked out by hand, and the libraries that they go through."""

from __future__ import annotations

import importlib
import math
from pathlib import Path
from typing import Any

import pytest
import test_render
from conftest import ROOT

from posttrain.evaluation.scores import text as text_metrics
from posttrain.evaluation.scores.text import METRICS, stanzas, syllables, words

SAID = ["the cat sat on the mat", "a dog barks at night", "nothing at all"]
WANTED = ["the cat sat on a mat", "the dog barks all night", "something else entirely"]


# --- through libraries ----------------------------------------------------------------------------


def test_bleu_by_hand_and_by_sacrebleu() -> None:
    sacrebleu = pytest.importorskip("sacrebleu")
    # of the n-grams 5 of 6, 3 of 5, 2 of 4 and 1 of 3 are in the reference, which is as long
    by_hand = 100 * (5 / 6 * 3 / 5 * 2 / 4 * 1 / 3) ** 0.25
    assert METRICS["bleu"](SAID[:1], WANTED[:1]) == {"bleu": pytest.approx(by_hand)}
    # every n-gram is in the reference, which has 6 words: the brevity penalty alone is left
    short = METRICS["bleu"](["the cat sat on"], ["the cat sat on the mat"])
    assert short == {"bleu": pytest.approx(100 * math.exp(1 - 6 / 4))}
    theirs = sacrebleu.corpus_bleu(SAID, [WANTED]).score
    assert METRICS["bleu"](SAID, WANTED) == {"bleu": theirs}


def test_chrf_by_hand_and_by_sacrebleu() -> None:
    sacrebleu = pytest.importorskip("sacrebleu")
    # 2 of 3 characters, 1 of 2 pairs and 0 of 1 triples agree, as precision and as recall
    by_hand = 100 * (2 / 3 + 1 / 2 + 0) / 3
    assert METRICS["chrf"](["abc"], ["abd"]) == {"chrf": pytest.approx(by_hand)}
    theirs = sacrebleu.corpus_chrf(SAID, [WANTED]).score
    assert METRICS["chrf"](SAID, WANTED) == {"chrf": theirs}


def test_rouge_by_hand() -> None:
    pytest.importorskip("rouge_score")
    # words: 5 of 6 agree; pairs: 3 of 5; the longest common subsequence is "the cat sat on mat"
    found = METRICS["rouge"](SAID[:1], WANTED[:1])
    assert found == {
        "rouge1": pytest.approx(5 / 6),
        "rouge2": pytest.approx(3 / 5),
        "rougeL": pytest.approx(5 / 6),
    }
    half = METRICS["rouge"](["a b", SAID[0]], ["c d", WANTED[0]])
    assert half["rouge1"] == pytest.approx(5 / 12)


@pytest.mark.parametrize("name", ["bleu", "chrf", "rouge", "bertscore", "mauve"])
def test_a_missing_library_is_one_line_with_the_command(
    name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def absent(module: str) -> Any:
        raise ModuleNotFoundError(f"No module named {module!r}")

    monkeypatch.setattr(text_metrics.importlib, "import_module", absent)
    (tmp_path / "bert").mkdir()
    (tmp_path / "bert/config.json").write_text("{}")
    options = {"model_path": str(tmp_path / "bert")} if name in ("bertscore", "mauve") else {}
    with pytest.raises(ValueError, match=rf"^the metric {name} needs pip install 'posttrain\[met"):
        METRICS[name](SAID, WANTED, **options)


@pytest.mark.parametrize("name", ["bertscore", "mauve"])
def test_an_encoder_is_never_fetched(name: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=rf"^the metric {name} needs a model: set model_path to"):
        METRICS[name](SAID, WANTED)
    with pytest.raises(ValueError, match=r"is not a model folder \(config\.json\)$"):
        METRICS[name](SAID, WANTED, model_path=str(tmp_path))
    with pytest.raises(ValueError, match=r"is not a model folder"):
        METRICS[name](SAID, WANTED, model_path="roberta-large")


def encoder(folder: Path, kind: str) -> str:
    """A folder with a tiny random model; its tokenizer does not say where to cut."""
    from transformers import BertConfig, BertModel, GPT2Config, GPT2Model

    special = {
        "unk_token": "[UNK]",
        "pad_token": "[PAD]",
        "cls_token": "[CLS]",
        "sep_token": "[SEP]",
        "eos_token": "[SEP]",
    }
    tokenizer = test_render.build(sorted(set(special.values())), **special)
    size = len(tokenizer)
    if kind == "bert":
        shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
        model: Any = BertModel(BertConfig(vocab_size=size, intermediate_size=32, **shape))
    else:
        shape = {"n_embd": 32, "n_layer": 2, "n_head": 2}
        model = GPT2Model(GPT2Config(vocab_size=size, **shape))
    path = folder / kind
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return str(path)


def test_bertscore_of_equal_texts_is_1(tmp_path: Path) -> None:
    pytest.importorskip("bert_score")
    path = encoder(tmp_path, "bert")
    same = METRICS["bertscore"](SAID, SAID, model_path=path)
    other = METRICS["bertscore"](SAID, WANTED, model_path=path)
    assert same["bertscore_f1"] == pytest.approx(1.0, abs=1e-4)
    assert other["bertscore_f1"] < 0.999
    assert METRICS["bertscore"](SAID, WANTED, model_path=path, num_layers=1) != other
    long = METRICS["bertscore"](["word " * 3000], ["word " * 3000], model_path=path)
    assert long["bertscore_recall"] == pytest.approx(1.0, abs=1e-4)
    empty = METRICS["bertscore"]([" ", "a b"], ["a b", "a b"], model_path=path)
    assert empty["bertscore_f1"] == pytest.approx(0.5, abs=1e-4)
    assert METRICS["bertscore"]([""], ["a"], model_path=path)["bertscore_f1"] == 0


def test_mauve_of_equal_texts_is_higher(tmp_path: Path) -> None:
    pytest.importorskip("mauve")
    path = encoder(tmp_path, "gpt2")
    texts = [f"once there was a {x} {y}" for x in "abcdefgh" for y in "klmn"]
    same = METRICS["mauve"](texts, texts, model_path=path)["mauve"]
    assert METRICS["mauve"](["no", "yes!"] * 16, texts, model_path=path)["mauve"] < same
    (tmp_path / "other").mkdir()
    (tmp_path / "other/config.json").write_text("{}")
    with pytest.raises(ValueError, match=r"mauve needs gpt2 or bert in model_path, got"):
        METRICS["mauve"](texts, texts, model_path=str(tmp_path / "other"))


@pytest.mark.parametrize("name", ["bleu", "chrf", "rouge"])
def test_each_prediction_needs_a_reference(name: str) -> None:
    library = {"rouge": "rouge_score"}.get(name, "sacrebleu")
    pytest.importorskip(library)
    for said, wanted in ((SAID, WANTED[:2]), ([], [])):
        with pytest.raises(ValueError, match=r"needs predictions and one reference for each; got"):
            METRICS[name](said, wanted)


# --- our own --------------------------------------------------------------------------------------


def test_distinct_by_hand() -> None:
    # 8 words, 5 of them different
    found = METRICS["distinct"](["To be or not to be", "that that"])
    assert found == {
        "distinct_1": 5 / 8,
        "distinct_2": 5 / 8,  # to be, be or, or not, not to, that that
        "distinct_3": 4 / 8,
    }
    assert METRICS["distinct"](["a b", "b a", "a c"])["distinct_1"] == 3 / 6  # over all texts
    assert METRICS["distinct"]([""]) == {f"distinct_{n}": 0.0 for n in (1, 2, 3)}


def test_lengths_by_hand() -> None:
    found = METRICS["length"](["one two three", "", "four's five-six, seven!"], ["a b c", "d", "e"])
    assert (found["words_mean"], found["words_median"]) == (2.0, 3.0)
    assert (found["words_min"], found["words_max"]) == (0, 3)
    assert found["words_ratio"] == 6 / 5
    assert found["characters_mean"] == (13 + 0 + 23) / 3
    assert found["empty"] == pytest.approx(1 / 3)
    assert "words_ratio" not in METRICS["length"](["one"])
    text = "It's well-known, isn't it? -- 3 x_y"
    assert words(text) == ["it's", "well-known", "isn't", "it", "3", "x", "y"]


@pytest.mark.parametrize(
    ("word", "count"),
    [
        ("cat", 1), ("the", 1), ("whale", 1), ("table", 2), ("tables", 2), ("little", 2),
        ("walked", 1), ("wanted", 2), ("makes", 1), ("horses", 2), ("wishes", 2), ("bathes", 1),
        ("happy", 2), ("yellow", 2), ("eye", 1), ("beautiful", 3), ("don't", 1),
        ("banana", 3), ("spring", 1), ("were", 1), ("acre", 2), ("", 0), ("...", 0),
    ],
)  # fmt: skip
def test_syllables(word: str, count: int) -> None:
    assert syllables(word) == count


def test_syllables_of_lines() -> None:
    lines = ["Shall I compare thee to a summer's day?", "Rough winds do shake the darling buds"]
    assert [syllables(line) for line in lines] == [10, 8]


HAIKU = "An old silent pond\nA frog jumps into the pond\nSplash! Silence again"


def test_the_form_of_poems_by_hand() -> None:
    two = f"\n{HAIKU}\n\n \n{HAIKU}\n"
    assert [len(stanza) for stanza in stanzas(two)] == [3, 3]
    assert stanzas(" \n") == []
    found = METRICS["poetry"]([HAIKU, two], [HAIKU.upper(), HAIKU])
    assert (found["lines_mean"], found["stanzas_mean"]) == (4.5, 1.5)
    assert found["syllables_per_line"] == pytest.approx((5 + 7 + 5) / 3)
    assert found["syllables_spread"] == pytest.approx((8 / 9) ** 0.5)
    assert (found["same_lines"], found["same_stanzas"]) == (0.5, 0.5)
    split = "a\nb\n\nc"
    other = METRICS["poetry"]([split], [HAIKU])
    assert (other["same_lines"], other["same_stanzas"]) == (1.0, 0.0)
    assert METRICS["poetry"]([""])["syllables_per_line"] == 0.0


def test_the_registry_is_in_order_and_documented() -> None:
    assert list(METRICS) == sorted(METRICS)
    page = (ROOT / "docs/evaluation_scores.md").read_text()
    assert [name for name in METRICS if f"`{name}`" not in page] == []
    assert importlib.import_module("posttrain.evaluation.likelihood").LIKELIHOOD_TASKS
