"""The registry of text metrics: predictions and their references to a dict of numbers.

    metric(predictions, references, **options) -> dict[str, Any]

Predictions and references are texts, one reference for each prediction; some metrics read no
reference, and those of safety.py read labels. To add one: a function, and a line below.
"""

from __future__ import annotations

import importlib
import math
import re
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from posttrain.evaluation.scores.safety import advbench, repetition, toxicity, xstest
from posttrain.evaluation.statistics import Figures, interval, share_with_interval

WORD = re.compile(r"[^\W_]+(?:['\N{RIGHT SINGLE QUOTATION MARK}-][^\W_]+)*")


Metric = Callable[..., Figures]
"""(predictions, references, **options) -> figures."""


def measured(
    metric: Metric,
    predictions: Sequence[str],
    references: Sequence[str],
    per_problem: int,
) -> Figures:
    """A metric over all predictions, `per_problem` neighbours of which answer one problem.

    Where there are several, the intervals of its shares are those of the problems' means, for
    predictions of one problem depend on one another.
    """
    found = metric(predictions, references)
    shares = [name for name in found if f"{name}_ci95" in found]
    if per_problem == 1 or not shares:
        return found
    problems = [slice(i, i + per_problem) for i in range(0, len(predictions), per_problem)]
    each = [metric(predictions[own], references[own]) for own in problems]
    for name in shares:
        means = [one[name] for one in each if not math.isnan(one[name])]
        found[f"{name}_ci95"] = interval(means, per_problem)
    return found


def bleu(predictions: Sequence[str], references: Sequence[str]) -> Figures:
    """BLEU of the corpus, 0 to 100, by sacrebleu with its defaults (Papineni et al. 2002; Post
    2018, arXiv 1804.08771)."""
    sacrebleu = _library("bleu", "sacrebleu")
    _check(predictions, references)
    return {"bleu": sacrebleu.corpus_bleu(list(predictions), [list(references)]).score}


def chrf(predictions: Sequence[str], references: Sequence[str]) -> Figures:
    """chrF2 of the corpus, 0 to 100, by sacrebleu with its defaults (Popović 2015, W15-3049):
    F-score of character n-grams up to 6, recall weighted twice."""
    sacrebleu = _library("chrf", "sacrebleu")
    _check(predictions, references)
    return {"chrf": sacrebleu.corpus_chrf(list(predictions), [list(references)]).score}


def rouge(predictions: Sequence[str], references: Sequence[str]) -> Figures:
    """Mean F-scores of ROUGE-1, ROUGE-2 and ROUGE-L, 0 to 1, by rouge-score without stemming (Lin
    2004, W04-1013). Its words are made of a-z and 0-9: for English only."""
    scorer = _library("rouge", "rouge_score.rouge_scorer")
    _check(predictions, references)
    kinds = ["rouge1", "rouge2", "rougeL"]
    score = scorer.RougeScorer(kinds, use_stemmer=False).score
    found = [score(reference, text) for text, reference in zip(predictions, references)]
    return {kind: statistics.fmean(f[kind].fmeasure for f in found) for kind in kinds}


def bertscore(
    predictions: Sequence[str],
    references: Sequence[str],
    *,
    model_path: str | None = None,
    num_layers: int | None = None,
    device: str = "cpu",
) -> Figures:
    """Mean precision, recall and F1 of BERTScore, without rescaling (Zhang et al. 2020, arXiv
    1904.09675).

    `model_path` is the folder of an encoder; nothing is fetched. `num_layers` is the layer whose
    states are compared, the last by default; the paper chose it for each model (17 of
    roberta-large). Figures of different models or layers can not be compared.
    """
    folder = _encoder("bertscore", model_path)
    library = _library("bertscore", "bert_score")
    _check(predictions, references)
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(folder)
    layers = num_layers or config.num_hidden_layers
    scorer = library.BERTScorer(model_type=folder, num_layers=layers, device=device)
    tokenizer = scorer._tokenizer
    # many tokenizers do not say where to cut, and the library asks them alone
    tokenizer.model_max_length = min(tokenizer.model_max_length, config.max_position_embeddings)
    # where one of the two is empty nothing agrees; with transformers 5 the library fails there
    pairs = [(p, r) for p, r in zip(predictions, references) if p.strip() and r.strip()]
    parts = scorer.score(*map(list, zip(*pairs))) if pairs else [torch.zeros(0)] * 3
    names = ("bertscore_precision", "bertscore_recall", "bertscore_f1")
    return {name: float(part.sum()) / len(predictions) for name, part in zip(names, parts)}


def mauve(
    predictions: Sequence[str],
    references: Sequence[str],
    *,
    model_path: str | None = None,
    max_length: int = 256,
    device: int = -1,
    seed: int = 0,
) -> Figures:
    """MAUVE, 0 to 1: how near the distribution of the predictions is to that of the references, by
    mauve-text with its defaults (Pillutla et al. 2021, arXiv 2102.01454).

    `model_path` is the folder of the model whose states are compared; nothing is fetched. The
    library takes those with gpt2 or bert in their path. `device` is a GPU's number, or -1. The
    authors ask for a few thousand texts; of fewer it says little. Empty texts are left out.
    """
    folder = _encoder("mauve", model_path)
    if "gpt2" not in folder and "bert" not in folder:
        raise ValueError(f"the metric mauve takes a folder with gpt2 or bert in its path: {folder}")
    library = _library("mauve", "mauve")
    _check(predictions, references)
    found = library.compute_mauve(
        p_text=list(predictions),
        q_text=list(references),
        featurize_model_name=folder,
        max_text_length=max_length,
        device_id=device,
        seed=seed,
        verbose=False,
    )
    return {"mauve": float(found.mauve)}


def distinct(predictions: Sequence[str], references: Sequence[str] = ()) -> Figures:
    """distinct-1, -2 and -3: different n-grams over all words of all predictions (Li et al. 2016,
    arXiv 1510.03055). Falls with the number of words: compare equal amounts of text only."""
    texts = [words(text) for text in predictions]
    total = sum(map(len, texts))
    found: Figures = {}
    for n in (1, 2, 3):
        ngrams = {tuple(text[i : i + n]) for text in texts for i in range(len(text) - n + 1)}
        found[f"distinct_{n}"] = len(ngrams) / max(total, 1)
    return found


def length(predictions: Sequence[str], references: Sequence[str] = ()) -> Figures:
    """Words and characters of the predictions; `words_ratio` is all words over the references'."""
    if not predictions:
        raise ValueError("there is no prediction to measure")
    counts = [len(words(text)) for text in predictions]
    wanted = sum(len(words(text)) for text in references)
    return {
        "words_mean": statistics.fmean(counts),
        "words_median": float(statistics.median(counts)),
        "words_min": min(counts),
        "words_max": max(counts),
        "characters_mean": statistics.fmean(map(len, predictions)),
        **({"words_ratio": sum(counts) / wanted} if wanted else {}),
        **share_with_interval("empty", [not text.strip() for text in predictions]),
    }


def poetry(predictions: Sequence[str], references: Sequence[str] = ()) -> Figures:
    """The form of poems: lines, stanzas (parted by empty lines) and syllables of a line. With
    references the shares of poems that have as many lines, and lines in each stanza, as theirs.

    `syllables_spread` is the mean over poems of the standard deviation over a poem's lines: 0 where
    all lines are equally long. Syllables are those of `syllables`, an estimate for English.
    """
    if not predictions:
        raise ValueError("there is no prediction to measure")
    forms = [stanzas(text) for text in predictions]
    lines = [[syllables(line) for stanza in form for line in stanza] for form in forms]
    every = [count for poem in lines for count in poem]
    found: Figures = {
        "lines_mean": statistics.fmean(map(len, lines)),
        "stanzas_mean": statistics.fmean(map(len, forms)),
        "syllables_per_line": statistics.fmean(every) if every else 0.0,
        "syllables_spread": statistics.fmean(statistics.pstdev(poem or [0]) for poem in lines),
    }
    if references:
        _check(predictions, references)
        theirs = [list(map(len, stanzas(text))) for text in references]
        ours = [list(map(len, form)) for form in forms]
        found |= share_with_interval("same_lines", [sum(a) == sum(b) for a, b in zip(ours, theirs)])
        found |= share_with_interval("same_stanzas", [a == b for a, b in zip(ours, theirs)])
    return found


def words(text: str) -> list[str]:
    """Case-folded words: letters and digits, with apostrophes and hyphens inside."""
    return WORD.findall(text.casefold())


def stanzas(text: str) -> list[list[str]]:
    """The lines of each stanza; lines of spaces part them."""
    found: list[list[str]] = [[]]
    for line in text.splitlines():
        if line.strip():
            found[-1].append(line.strip())
        elif found[-1]:
            found.append([])
    return [stanza for stanza in found if stanza]


def syllables(line: str) -> int:
    """About how many syllables a line of English has.

    Of each word the groups of vowels (y is one), less a silent e: at the end of the word, also
    before an s, unless a consonant and l or r come before it (ta-ble) or a hiss and then the s
    (hors-es); and in -ed but after d and t. A word has one at least. Names, numbers, and vowels
    that meet without being one sound (cre-ate) are miscounted.
    """
    plain = line.lower().replace("'", "").replace("\N{RIGHT SINGLE QUOTATION MARK}", "")
    return sum(map(_syllables, re.findall(r"[a-z]+", plain)))


def _syllables(word: str) -> int:
    groups = len(re.findall(r"[aeiouy]+", word))
    stem = word[:-1] if re.search(r"(?:[^csxzgh]|[^cs]h)es$", word) else word
    silent = re.search(r"(?:[^aeiouylr]|[aeiouy][lr])e$|[^aeiouytd]ed$", stem)
    return max(1, groups - bool(silent))


def _check(predictions: Sequence[str], references: Sequence[str]) -> None:
    if len(predictions) != len(references) or not predictions:
        raise ValueError(
            f"a metric needs one reference for each prediction; got {len(predictions)} predictions "
            f"and {len(references)} references"
        )


def _library(metric: str, name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ValueError(
            f"the metric {metric} needs pip install 'posttrain[metrics]' ({error})"
        ) from None


def _encoder(metric: str, model_path: str | None) -> str:
    if model_path is None:
        raise ValueError(
            f"the metric {metric} needs a model: set model_path to the folder of one on this "
            "machine (config.json and its weights); none is fetched"
        )
    if not (Path(model_path) / "config.json").is_file():
        raise ValueError(f"the metric {metric}: {model_path} is no model folder (config.json)")
    return model_path


METRICS: dict[str, Callable[..., Figures]] = {
    "advbench": advbench,
    "bertscore": bertscore,
    "bleu": bleu,
    "chrf": chrf,
    "distinct": distinct,
    "length": length,
    "mauve": mauve,
    "poetry": poetry,
    "repetition": repetition,
    "rouge": rouge,
    "toxicity": toxicity,
    "xstest": xstest,
}
