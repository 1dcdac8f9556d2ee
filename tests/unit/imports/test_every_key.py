"""No key of a source is lost: each has one line, and what it became is in the recipe's text."""

from __future__ import annotations

import contextlib
import random
import re
from typing import Any

import pytest
import yaml
from foreign import SAMPLES, flat, imported, text_of
from repeats import choice

from posttrain.imports import SOURCES
from posttrain.imports.draft import FATES, Draft
from posttrain.imports.keys import axolotl, hf, llamafactory, open_instruct, torchtune, trl, verl
from posttrain.imports.read import flatten, sources
from posttrain.imports.write import table_text, tree_of
from posttrain.runs.config import parse_config

TABLES = {
    "axolotl": axolotl,
    "llamafactory": llamafactory,
    "open_instruct": open_instruct,
    "torchtune": torchtune,
    "trl": trl,
    "verl": verl,
}
FIRST = list({source: (source, *rest) for source, *rest in reversed(SAMPLES)}.values())
IDS = [f"{source}-{method or index}" for index, (source, method, _) in enumerate(SAMPLES)]
TRAINING = [
    "learning_rate",
    "num_train_epochs",
    "max_steps",
    "per_device_train_batch_size",
    "warmup_ratio",
    "warmup_steps",
    "gradient_accumulation_steps",
    "lr_scheduler_type",
    "weight_decay",
    "seed",
    "logging_steps",
    "save_steps",
    "save_strategy",
    "eval_strategy",
    "eval_steps",
    "bf16",
    "fp16",
    "gradient_checkpointing",
    "report_to",
    "deepspeed",
    "load_best_model_at_end",
    "metric_for_best_model",
    "optim",
    "adam_beta1",
    "packing",
    "max_grad_norm",
]
VALUES: list[Any] = [None, True, False, 0, 1, 7, 0.5, "text", "a,b", [], ["x", "y"], {}]
GOOD: dict[str, list[Any]] = {
    "learning_rate": [1e-4, None],
    "num_train_epochs": [1, 2.5, None],
    "max_steps": [-1, 10, None],
    "per_device_train_batch_size": [1, 4, None],
    "gradient_accumulation_steps": [1, 3, None],
    "warmup_ratio": [0.0, 0.1, None],
    "warmup_steps": [0, 5, None],
    "lr_scheduler_type": ["cosine", "linear", "constant", "polynomial", None],
    "weight_decay": [0.0, 0.1, None],
    "seed": [1, None],
    "logging_steps": [5, 0.5, None],
    "save_steps": [10, 0.1, None],
    "save_strategy": ["epoch", "steps", "no", False, None],
    "eval_strategy": ["epoch", "steps", "no", False, None],
    "eval_steps": [10, 0.1, None],
    "adam_beta1": [0.8, None],
    "max_grad_norm": [0.3, 0, None],
    "deepspeed": ["ds_z3.json", "ds_z2.json", "", None],
    "report_to": ["none", "all", "wandb", "clearml", ["tensorboard"], None],
    "metric_for_best_model": ["loss", "eval_accuracy", None],
    "optim": ["adamw_torch", "adafactor", "paged_adamw_8bit", None],
}


def check(draft: Draft, settings: dict[str, Any]) -> None:
    """Assert that every key has one line, and that the recipe and its table say what it became."""
    assert set(draft.lines) == set(settings)
    text = text_of(draft)
    words, table = flat(text), table_text(draft)
    for key, line in draft.lines.items():
        start = re.compile(rf"(?:{'|'.join(FATES)})\s+{re.escape(key)}(?:\s|$)")
        assert sum(start.match(row) is not None for row in table.splitlines()) == 1, key
        assert line.fate in FATES
        if line.fate in ("mapped", "changed"):
            for target in line.target.split(", "):
                section = target.partition(".")[0]
                assert target in draft.recipe or (section == "data" and "data" in draft.recipe), (
                    line
                )
        if line.fate in ("changed", "refused"):
            assert line.note
            assert all(" ".join(part.split()) in words for part in line.note.split("; ")), line
        if line.fate in ("without effect", "refused"):
            assert line.note
            assert key in words
    assert yaml.safe_load(text) == tree_of(draft)
    assert sum(draft.counts().values()) == len(settings)


@pytest.mark.parametrize(("source", "method", "tree"), SAMPLES, ids=IDS)
def test_a_plain_config_becomes_a_recipe_that_parses(
    source: str, method: str | None, tree: dict[str, Any]
) -> None:
    draft = imported(tree, None if source in ("experiments", "verl_sft") else source, method)
    check(draft, flatten(tree))
    parse_config(yaml.safe_load(text_of(draft)), "recipe")
    assert draft.counts()["refused"] == 0


@pytest.mark.parametrize(("source", "method", "tree"), SAMPLES, ids=IDS)
def test_unknown_keys_are_refused_by_name(
    source: str, method: str | None, tree: dict[str, Any]
) -> None:
    extra = {"zzz_unknown": 3, "zzz.nested.unknown": "text", "zzz_null": None}
    draft = imported({**tree, **extra}, source, method)
    check(draft, {**flatten(tree), **extra})
    assert {k for k, line in draft.lines.items() if line.fate == "refused"} == {
        "zzz_unknown",
        "zzz.nested.unknown",
    }


@pytest.mark.parametrize(("source", "method", "tree"), choice(SAMPLES, FIRST), ids=IDS)
def test_any_mixture_of_known_keys_is_decided(
    source: str, method: str | None, tree: dict[str, Any]
) -> None:
    """Keys of the tables with any value, and keys of transformers with values that it takes."""
    random.seed(f"{source} {method} {tree}")
    tables = [hf.WITHOUT_EFFECT, hf.REFUSED]
    if source in TABLES:
        tables += [TABLES[source].WITHOUT_EFFECT, TABLES[source].REFUSED]
    names = [p.replace("*", "x") for table in tables for key in table for p in key.split()]
    for _ in range(8):
        settings = flatten(tree)
        for name in random.sample(TRAINING, 8):
            settings.setdefault(name, random.choice(GOOD.get(name, [True, False, None])))
        for name in random.sample(names, 8):
            settings.setdefault(name, random.choice(VALUES))
        with contextlib.suppress(ValueError):  # a value of no use, which is named
            check(imported(settings, source, method), settings)


def test_every_source_is_in_the_samples_and_recognises_its_own() -> None:
    assert {source for source, _, _ in SAMPLES} == set(SOURCES)
    for source, _, tree in SAMPLES:
        found = [name for name, one in sources().items() if one.recognise(flatten(tree))]
        assert found == [source], tree


def test_tables_name_no_key_twice() -> None:
    for module in (*TABLES.values(), hf):
        names = [p for t in (module.WITHOUT_EFFECT, module.REFUSED) for k in t for p in k.split()]
        assert len(names) == len(set(names)), [n for n in names if names.count(n) > 1]
