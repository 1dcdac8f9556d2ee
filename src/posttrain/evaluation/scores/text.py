"""Registry of the text metrics, which turn predictions and their references into figures.

    metric(predictions, references, **options) -> Figures

Predictions and references are texts, one reference per prediction; some metrics read no reference,
and xstest reads labels. To add a metric, write a function and a line in METRICS.
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
    """Return a metric over all predictions, `per_problem` successive ones for each problem.

    If there are several, the intervals of shares are those of the problems' means, since
    predictions of one problem depend on one another.
    """
    figures = metric(predictions, references)
    shares = [name for name in figures if f"{name}_ci95" in figures]
    if per_problem == 1 or not shares:
        return figures
    problems = [slice(i, i + per_problem) for i in range(0, len(predictions), per_problem)]
    by_problem = [metric(predictions[part], references[part]) for part in problems]
    for name in shares:
        means = [problem[name] for problem in by_problem if not math.isnan(problem[name])]
        figures[f"{name}_ci95"] = interval(means, per_problem)
    return figures


def bleu(predictions: Sequence[str], references: Sequence[str]) -> Figures:
    """Return corpus BLEU, 0 to 100, by sacrebleu with its defaults.

    Papineni et al. 2002; Post 2018, arXiv 1804.08771.
    """
    sacrebleu = _library("bleu", "sacrebleu")
    _check(predictions, references)
    return {"bleu": sacrebleu.corpus_bleu(list(predictions), [list(references)]).score}


def chrf(predictions: Sequence[str], references: Sequence[str]) -> Figures:
    """Return corpus chrF2, 0 to 100, by sacrebleu with its defaults.

    F-score of character n-grams up to 6, recall weighted twice (Popović 2015, W15-3049).
    """
    sacrebleu = _library("chrf", "sacrebleu")
    _check(predictions, references)
    return {"chrf": sacrebleu.corpus_chrf(list(predictions), [list(references)]).score}


def rouge(predictions: Sequence[str], references: Sequence[str]) -> Figures:
    """Return mean F-scores of ROUGE-1, ROUGE-2 and ROUGE-L, 0 to 1, without stemming.

    By rouge-score (Lin 2004, W04-1013). Its words consist of a-z and 0-9: for English only.
    """
    scorer = _library("rouge", "rouge_score.rouge_scorer")
    _check(predictions, references)
    kinds = ["rouge1", "rouge2", "rougeL"]
    score = scorer.RougeScorer(kinds, use_stemmer=False).score
    scores = [score(reference, text) for text, reference in zip(predictions, references)]
    return {kind: statistics.fmean(s[kind].fmeasure for s in scores) for kind in kinds}


def bertscore(
    predictions: Sequence[str],
    references: Sequence[str],
    *,
    model_path: str | None = None,
    num_layers: int | None = None,
    device: str = "cpu",
) -> Figures:
    """Return mean precision, recall and F1 of BERTScore, without rescaling.

    Zhang et al. 2020, arXiv 1904.09675. `model_path` is the folder of an encoder; nothing is
    downloaded. `num_layers` is the layer whose states are compared, the last by default; the paper
    chose it for each model (17 for roberta-large). Figures of different models or layers cannot be
    compared.
    """
    folder = _encoder("bertscore", model_path)
    library = _library("bertscore", "bert_score")
    _check(predictions, references)
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(folder)
    layers = num_layers or config.num_hidden_layers
    scorer = library.BERTScorer(model_type=folder, num_layers=layers, device=device)
    tokenizer = scorer._tokenizer
    # many tokenizers do not know the model's maximum length, and the library asks only them
    tokenizer.model_max_length = min(tokenizer.model_max_length, config.max_position_embeddings)
    # a pair with an empty text scores 0; with transformers 5 the library fails on it
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
    """Return MAUVE, 0 to 1: how close the distributions of predictions and references are.

    By mauve-text with its defaults (Pillutla et al. 2021, arXiv 2102.01454). `model_path` is the
    folder of the model whose states are compared; nothing is downloaded. The library only takes
    paths that contain gpt2 or bert. `device` is a GPU's number, or -1. The authors ask for a few
    thousand texts; with fewer it says little. Empty texts are left out.
    """
    folder = _encoder("mauve", model_path)
    if "gpt2" not in folder and "bert" not in folder:
        raise ValueError(f"the metric mauve needs gpt2 or bert in model_path, got {folder}")
    library = _library("mauve", "mauve")
    _check(predictions, references)
    result = library.compute_mauve(
        p_text=list(predictions),
        q_text=list(references),
        featurize_model_name=folder,
        max_text_length=max_length,
        device_id=device,
        seed=seed,
        verbose=False,
    )
    return {"mauve": float(result.mauve)}


def distinct(predictions: Sequence[str], references: Sequence[str] = ()) -> Figures:
    """Return distinct-1, -2 and -3: the number of different n-grams over that of all words.

    Over all predictions (Li et al. 2016, arXiv 1510.03055). It falls with the number of words:
    compare only equal amounts of text.
    """
    texts = [words(text) for text in predictions]
    total = sum(map(len, texts))
    figures: Figures = {}
    for n in (1, 2, 3):
        ngrams = {tuple(text[i : i + n]) for text in texts for i in range(len(text) - n + 1)}
        figures[f"distinct_{n}"] = len(ngrams) / max(total, 1)
    return figures


def length(predictions: Sequence[str], references: Sequence[str] = ()) -> Figures:
    """Return lengths in words and characters; `words_ratio` is all words over the references'."""
    if not predictions:
        raise ValueError("there is no prediction to measure")
    counts = [len(words(text)) for text in predictions]
    reference_words = sum(len(words(text)) for text in references)
    return {
        "words_mean": statistics.fmean(counts),
        "words_median": float(statistics.median(counts)),
        "words_min": min(counts),
        "words_max": max(counts),
        "characters_mean": statistics.fmean(map(len, predictions)),
        **({"words_ratio": sum(counts) / reference_words} if reference_words else {}),
        **share_with_interval("empty", [not text.strip() for text in predictions]),
    }


def poetry(predictions: Sequence[str], references: Sequence[str] = ()) -> Figures:
    """Return the form of poems: lines, stanzas (separated by empty lines) and syllables per line.

    With references, also the shares of poems with as many lines, and as many in each stanza, as
    their references. `syllables_spread` is the mean over poems of the standard deviation over a
    poem's lines: 0 if all lines are equally long. `syllables` estimates them, for English.
    """
    if not predictions:
        raise ValueError("there is no prediction to measure")
    forms = [stanzas(text) for text in predictions]
    lines = [[syllables(line) for stanza in form for line in stanza] for form in forms]
    every = [count for poem in lines for count in poem]
    figures: Figures = {
        "lines_mean": statistics.fmean(map(len, lines)),
        "stanzas_mean": statistics.fmean(map(len, forms)),
        "syllables_per_line": statistics.fmean(every) if every else 0.0,
        "syllables_spread": statistics.fmean(statistics.pstdev(poem or [0]) for poem in lines),
    }
    if references:
        _check(predictions, references)
        theirs = [list(map(len, stanzas(text))) for text in references]
        ours = [list(map(len, form)) for form in forms]
        pairs = list(zip(ours, theirs))
        figures |= share_with_interval("same_lines", [sum(a) == sum(b) for a, b in pairs])
        figures |= share_with_interval("same_stanzas", [a == b for a, b in pairs])
    return figures


def words(text: str) -> list[str]:
    """Return case-folded words: letters and digits, with apostrophes and hyphens inside."""
    return WORD.findall(text.casefold())


def stanzas(text: str) -> list[list[str]]:
    """Return the lines of each stanza; blank lines separate stanzas."""
    form: list[list[str]] = [[]]
    for line in text.splitlines():
        if line.strip():
            form[-1].append(line.strip())
        elif form[-1]:
            form.append([])
    return [stanza for stanza in form if stanza]


def syllables(line: str) -> int:
    """Return an estimate of the number of syllables in a line of English.

    A word has one for each group of vowels (y is one), less a silent e, and at least one. An e is
    silent at the end of a word and before a final s, except after a consonant and l or r (ta-ble)
    and in -es after a hiss (hors-es); and in -ed, except after d or t. Names, numbers, and adjacent
    vowels of two syllables (cre-ate) are miscounted.
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
            "a metric needs predictions and one reference for each; "
            f"got {len(predictions)} predictions and {len(references)} references"
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
            "machine (config.json and its weights); none is downloaded"
        )
    if not (Path(model_path) / "config.json").is_file():
        raise ValueError(f"the metric {metric}: {model_path} is not a model folder (config.json)")
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
