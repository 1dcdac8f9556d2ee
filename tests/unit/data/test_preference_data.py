"""Preference rows in every form that is read, what is dropped and why, and data made by a model."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet
import pytest
import tiny
import torch
from conftest import shared
from test_render import CHATML

from posttrain.cli.main import main
from posttrain.data.files import read_file
from posttrain.data.kinds.pair import to_examples as to_pairs
from posttrain.data.kinds.preference_forms import as_judged, as_pair, as_pairs, dialogue
from posttrain.data.kinds.prompt import Prompt
from posttrain.data.kinds.unpaired import to_examples as to_judged
from posttrain.data.render import Renderer, make_renderer
from posttrain.data.sets import hh_rlhf, stack_exchange_paired, ultrafeedback
from posttrain.model.scratch import train_tokenizer
from posttrain.runs import synthesize
from posttrain.runs.config import parse_config
from posttrain.runs.plan import plan
from posttrain.runs.train import train


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


PAIR = {"prompt": [user("q")], "chosen": [assistant("yes")], "rejected": [assistant("no")]}
FORMS = {
    "messages": PAIR,
    "implicit": {k: [user("q"), *PAIR[k]] for k in ("chosen", "rejected")},
    "prompt_and_whole_conversations": {"prompt": "q"}
    | {k: [user("q"), *PAIR[k]] for k in ("chosen", "rejected")},
    "sharegpt": {
        "conversations": [{"from": "human", "value": "q"}],
        "chosen": {"from": "gpt", "value": "yes"},
        "rejected": {"from": "gpt", "value": "no"},
    },
    "dialogue": {
        "chosen": "\n\nHuman: q\n\nAssistant: yes",
        "rejected": "\n\nHuman: q\n\nAssistant: no",
    },
}
TEXTS = {
    "texts": {"prompt": "q", "chosen": "yes", "rejected": "no"},
    "alpaca": {"instruction": "q", "input": "", "chosen": "yes", "rejected": "no", "output": "yes"},
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_is_the_same_pair(form):
    assert as_pair(FORMS[form]) == PAIR


@pytest.mark.parametrize("form", TEXTS)
def test_forms_of_texts(form):
    found = as_pair(TEXTS[form])
    assert {k: found[k] for k in ("prompt", "chosen", "rejected")} == TEXTS["texts"]


def test_an_input_joins_its_instruction():
    row = TEXTS["alpaca"] | {"input": "more"}
    assert as_pair(row)["prompt"] == "q\n\nmore"


def test_system_and_earlier_turns_of_alpaca_rows():
    """Columns of LLaMA-Factory's form; a system message of the row's own stays the only one."""
    row = TEXTS["alpaca"] | {"history": [["a", "b"], ["c", "d"]], "system": "s"}
    system = {"role": "system", "content": "s"}
    turns = [user("a"), assistant("b"), user("c"), assistant("d"), user("q")]
    found = as_pair(row)
    assert found == {"prompt": [system, *turns], "chosen": "yes", "rejected": "no", "output": "yes"}
    assert as_pair(row | {"system": None})["prompt"] == turns
    assert as_pair(row | {"system": "", "history": []})["prompt"] == "q"
    for form in FORMS.values():
        assert as_pair(form | {"system": "s"}) == PAIR | {"prompt": [system, user("q")]}
    own = {"prompt": [{"role": "system", "content": "own"}, user("q")], "system": "s"}
    assert as_pair(PAIR | own)["prompt"] == own["prompt"]
    assert as_pair(TEXTS["texts"] | {"system": "s"})["prompt"] == [system, user("q")]


def test_a_shared_beginning_of_texts_is_the_prompt():
    row = {"chosen": "Name a colour. Red it is", "rejected": "Name a colour. Round it is"}
    found = as_pair(row)
    assert found == {"prompt": "Name a colour.", "chosen": " Red it is", "rejected": " Round it is"}


def test_later_turns_may_differ_from_each_other():
    chosen = [user("a"), assistant("b"), user("c"), assistant("d")]
    rejected = [user("a"), assistant("x")]
    found = as_pair({"chosen": chosen, "rejected": rejected})
    assert found["prompt"] == [user("a")]
    assert found["chosen"] == chosen[1:]


def test_other_columns_stay():
    assert as_pair(TEXTS["texts"] | {"margin": 0.5, "score": 3})["margin"] == 0.5


def test_several_rejected():
    found = as_pairs(TEXTS["texts"] | {"rejected": ["no", "never"]})
    assert [row["rejected"] for row in found] == ["no", "never"]
    assert all(row["chosen"] == "yes" for row in found)
    judged = as_judged(TEXTS["texts"] | {"rejected": ["no", "never"]})
    assert [(row["completion"], row["label"]) for row in judged] == [
        ("yes", True),
        ("no", False),
        ("never", False),
    ]


def test_judged_forms():
    row = {"messages": [user("q"), assistant("yes")], "label": False}
    expected = {"prompt": [user("q")], "completion": [assistant("yes")], "label": False}
    assert as_judged(row) == [expected]
    assert as_judged({"prompt": "q", "completion": "a", "label": 1})[0]["label"] is True


def test_dialogue():
    text = "\n\nHuman: a\nb\n\nAssistant: c\n\nHuman: d\n\nAssistant:"
    assert dialogue(text) == [user("a\nb"), assistant("c"), user("d"), assistant("")]


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ({"prompt": "q", "chosen": "a"}, "expected the columns prompt.chosen.rejected.*got"),
        ({"prompt": "q", "chosen": "a", "rejected": [user("b")]}, "both be strings or both"),
        ({"prompt": "q", "chosen": 3, "rejected": 4}, "chosen must be a string, or messages"),
        ({"chosen": "a b", "rejected": "c d"}, "no common beginning"),
        ({"chosen": [user("a")], "rejected": [user("b")]}, "no common prompt"),
        (
            {"instruction": "q", "history": [["a"]], "chosen": "b", "rejected": "c"},
            "history must be a list of .question, answer.; got",
        ),
        ({"instruction": "q", "history": 3, "chosen": "b", "rejected": "c"}, r"got '.3.'"),
        ({"chosen": [], "rejected": [user("b"), assistant("c")]}, "no common prompt"),
        ({"chosen": [assistant("a")], "rejected": [assistant("b")]}, "no common prompt"),
    ],
)
def test_malformed_pairs(row, problem):
    with pytest.raises(ValueError, match=problem):
        as_pair(row)


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ({"prompt": "q", "completion": "a", "label": "good"}, "label must be true or false"),
        ({"prompt": "q", "label": True}, "expected the columns prompt.completion.label"),
        ({"messages": [user("q")], "label": True}, "end with the assistant turn"),
    ],
)
def test_malformed_judged_rows(row, problem):
    with pytest.raises(ValueError, match=problem):
        as_judged(row)


@pytest.fixture(scope="module")
def renderer() -> Renderer:
    return make_renderer(train_tokenizer(["q yes no never maybe 12 34"], 300, 128), "plain")


@pytest.fixture(scope="module")
def chat() -> Renderer:
    tokenizer = train_tokenizer(["q yes no user assistant"], 300, 512)
    tokenizer.chat_template = CHATML
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    return make_renderer(tokenizer, "chat")


def test_pairs_share_the_prompts_ids_and_train_on_the_completion(renderer):
    row = TEXTS["texts"] | {"prompt": "q 12 34 maybe"}
    prompt = renderer.prompt_ids(row)
    assert len(prompt) > 2
    ((chosen, rejected),), table = to_pairs([row], renderer, "set", 64, "error")
    own = [s.input_ids[s.per_token["completion"].bool()].tolist() for s in (chosen, rejected)]
    assert [renderer.decode(ids) for ids in own] == ["yes", "no"]
    assert all(ids[-1] == renderer.turn_end for ids in own)
    assert [s.input_ids.tolist() for s in (chosen, rejected)] == [prompt + ids for ids in own]
    assert torch.equal(chosen.loss_mask, chosen.per_token["completion"].bool())
    assert table.trained_tokens == sum(map(len, own))
    ((chosen, rejected),), _ = to_pairs([row], renderer, "set", 64, "error", True)
    assert chosen.loss_mask.tolist() == [False] + [True] * (len(chosen) - 1)
    assert torch.equal(rejected.loss_mask, rejected.per_token["completion"].bool())
    ((chosen, _),), _ = to_pairs([row], renderer, "set", 64, "error", False, True)
    assert not chosen.loss_mask.any()


def test_only_the_last_turns_are_judged(chat):
    row = {"prompt": [user("a"), assistant("earlier"), user("q")]} | {
        k: PAIR[k] for k in ("chosen", "rejected")
    }
    ((chosen, _),), _ = to_pairs([row], chat, "set", 512, "error")
    own = chosen.input_ids[chosen.loss_mask].tolist()
    assert chat.decode(own) == "yes"


def test_useless_pairs_are_counted_and_dropped(renderer):
    rows = [
        TEXTS["texts"],
        TEXTS["texts"] | {"rejected": "yes"},
        TEXTS["texts"] | {"chosen": ""},
        TEXTS["texts"] | {"chosen": "1" * 80, "rejected": "1" * 80 + "2"},
        TEXTS["texts"] | {"chosen": "1" * 80},
    ]
    kept, table = to_pairs(rows, renderer, "set", 40, "truncate")
    assert table.reasons == {"equal": 1, "empty": 1, "equal, after the cut": 1}
    assert (table.kept, table.dropped, table.truncated) == (2, 3, 1)
    assert max(len(s) for pair in kept for s in pair) == 40
    _, table = to_pairs(rows, renderer, "set", 40, "drop")
    assert table.reasons == {"equal": 1, "empty": 1, "overlong": 2}
    with pytest.raises(ValueError, match=r"set, row 4: the pair has 8\d tokens"):
        to_pairs(rows, renderer, "set", 40, "error")
    with pytest.raises(ValueError, match=r"none of the 1 rows is left .1 equal; .*check the data"):
        to_pairs(rows[1:2], renderer, "set", 40, "error")


def test_margins_are_the_rows(renderer):
    rows = [TEXTS["texts"] | {"margin": 0.5}, TEXTS["texts"]]
    kept, _ = to_pairs(rows, renderer, "set", 64, "error")
    assert [[side.per_seq["margin"] for side in pair] for pair in kept] == [[0.5] * 2, [0.0] * 2]
    with pytest.raises(ValueError, match="set, row 1: margin must be a finite number"):
        to_pairs([TEXTS["texts"] | {"margin": "big"}], renderer, "set", 64, "error")


def test_an_unrelated_completion_is_that_of_another_prompt(renderer):
    rows = [
        {"prompt": "q 1", "chosen": "yes", "rejected": "no"},
        {"prompt": "q 2", "completion": "maybe", "label": True},
    ]
    groups, _ = to_judged(rows, renderer, "set", 64, "error", with_unrelated=True)
    texts = [
        [renderer.decode(s.input_ids[s.loss_mask].tolist()) for s in group] for group in groups
    ]
    assert texts == [["yes", "maybe"], ["no", "maybe"], ["maybe", "no"]]
    assert [own.per_seq["label"] for own, _ in groups] == [1.0, 0.0, 1.0]
    for own, other in groups:
        prompt = int(own.loss_mask.nonzero()[0])
        assert torch.equal(own.input_ids[:prompt], other.input_ids[:prompt])
    groups, _ = to_judged(rows, renderer, "set", 64, "error", with_unrelated=False)
    assert [len(group) for group in groups] == [1, 1, 1]


def test_hh_rlhf_files():
    path = str(shared("data/hh_rlhf"))
    train_rows, test_rows = (hh_rlhf.load(split, path=path) for split in ("train", "test"))
    # 5 of the 2,312 have no common prompt, or do not begin with the human
    assert len(train_rows) + len(test_rows) == 2307
    assert 200 < len(test_rows) < 260
    row = train_rows[0]
    assert row["prompt"][0]["role"] == "user"
    assert row["prompt"][-1]["role"] == "user"
    assert row["chosen"][0]["role"] == "assistant"
    prompts = {str(row["prompt"]) for row in train_rows}
    assert not any(str(row["prompt"]) in prompts for row in test_rows)
    text = hh_rlhf.load("train", path=path, form="text")[0]
    assert text["prompt"].endswith("\n\nAssistant:")
    assert text["chosen"].strip() == row["chosen"][0]["content"]


@pytest.mark.parametrize(
    ("file", "pairs", "make"),
    [
        ("dpo_sharegpt.json", 300, as_pair),
        ("instruction-data-with-preference.json", 1100, as_pair),
        ("kto_messages.json", 300, as_judged),
    ],
)
def test_files_of_other_projects(file, pairs, make):
    rows = list(read_file(shared("data/preference") / file))
    assert len([make(row) for row in rows]) == pairs


def test_ultrafeedback_leaves_ties_out(tmp_path):
    sides = {k: [user("q"), *PAIR[k]] for k in ("chosen", "rejected")}
    rows = [
        {"prompt": "q", "score_chosen": 8.0, "score_rejected": 7.0} | sides,
        {"prompt": "q", "score_chosen": 7.0, "score_rejected": 7.0} | sides,
    ]
    file = tmp_path / "train.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (row,) = ultrafeedback.load("train", path=str(tmp_path))
    assert row == PAIR | {"score_chosen": 8.0, "score_rejected": 7.0}
    file.write_text('{"prompt": "q", "chosen": "a"}\n')
    with pytest.raises(ValueError, match="row 1: expected the columns"):
        ultrafeedback.load("train", path=str(tmp_path))


def test_stack_exchange_paired(tmp_path):
    row = {
        "qid": 1,
        "question": "Why?",
        "metadata": ["x"],
        "response_j": "So.",
        "response_k": "No.",
    }
    file = tmp_path / "train.jsonl"
    file.write_text(json.dumps(row) + "\n")
    expected = [{"prompt": "Why?", "chosen": "So.", "rejected": "No."}]
    assert stack_exchange_paired.load("train", path=str(tmp_path)) == expected
    file.write_text(json.dumps(row | {"response_k": None}) + "\n")
    with pytest.raises(ValueError, match="row 1: column response_k must be a string, got"):
        stack_exchange_paired.load("train", path=str(tmp_path))
    with pytest.raises(ValueError, match="unknown split 'dev'"):
        stack_exchange_paired.load("dev", path=str(tmp_path))


def scored(*entries: tuple[str, float | None]) -> list[dict[str, Any]]:
    return [
        {
            "text": text,
            "score": score,
            "verdict": None,
            "num_tokens": len(text),
            "finish_reason": "length" if text.endswith("...") else "stop",
        }
        for text, score in entries
    ]


def texts_of_pairs(kind: str, *entries: tuple[str, float | None], **keys: Any) -> list[tuple]:
    config = synthesize.PreferencesConfig(pairs=kind, **keys)
    return [
        (row["chosen"], row["rejected"]) for row in synthesize.pairs_of(scored(*entries), config)
    ]


def test_pairs_by_score():
    entries = [("a", 1.0), ("b", 0.0), ("c", 0.5), ("a", 1.0), ("d", None), ("  ", 0.0)]
    assert texts_of_pairs("best_worst", *entries) == [("a", "b")]
    assert texts_of_pairs("all", *entries) == [("a", "c"), ("a", "b"), ("c", "b")]
    assert texts_of_pairs("multi", *entries) == [("a", ["c", "b"])]
    assert texts_of_pairs("all", *entries, min_difference=0.6) == [("a", "b")]
    assert texts_of_pairs("best_worst", ("a", 1.0), ("b", 1.0)) == []
    # what was cut off is never the better one
    assert texts_of_pairs("best_worst", ("a...", 1.0), ("b", 0.5), ("c", 0.0)) == [("b", "c")]


def test_rejection_sampling_keeps_what_is_right():
    entries = scored(("long answer", 1.0), ("b", 0.0), ("ab", 1.0), ("ab", 1.0), ("cut...", 1.0))

    def kept(**keys: Any) -> list[str]:
        config = synthesize.FilterConfig(**keys)
        return [row["completion"] for row in synthesize.right_ones(entries, config)]

    assert kept() == ["long answer", "ab"]
    assert kept(keep="first") == ["long answer"]
    assert kept(keep="shortest") == ["ab"]
    assert kept(keep=2) == ["long answer", "ab"]
    assert kept(min_score=0.0) == ["long answer", "b", "ab"]


@pytest.mark.parametrize(("n", "correct", "k"), [(4, 2, 2), (5, 1, 3), (6, 0, 2), (3, 3, 1)])
def test_pass_at_k_by_counting(n, correct, k):
    from itertools import combinations

    answers = [i < correct for i in range(n)]
    choices = list(combinations(answers, k))
    assert synthesize.pass_at(k, n, correct) == pytest.approx(sum(map(any, choices)) / len(choices))


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    return train(parse_config(tiny.run_config(folder, "sft", max_steps=2), "test"))


def making_tree(folder: Path, base: Path, **make: Any) -> dict[str, Any]:
    reward = folder / "reward.py"
    reward.write_text(
        "def reward(prompts, completions, completion_ids, **columns):\n"
        "    return [float(len(set(ids)) > 6) for ids in completion_ids]\n"
    )
    return {
        "model": {"name": str(base)},
        "data": {"name": "word_problems", "options": {"num_rows": 150}},
        "sampling": {"num_completions": 4, "max_new_tokens": 16},
        "reward": {"type": "custom", "path": str(reward)},
        "make": make,
        "output_dir": str(folder / "made"),
        "val_split": 0.2,
    }


def test_the_answer_that_ends_a_conversation_is_no_part_of_the_prompt(chat, renderer):
    asked_of, messages = synthesize.asked_of, [user("q"), assistant("gold")]
    assert asked_of(Prompt([1], {"messages": messages, "prompt": "x"}), chat) == [user("q")]
    assert asked_of(Prompt([1], {"messages": [user("q")]}), chat) == [user("q")]
    assert asked_of(Prompt([1], {"prompt": messages}), chat) == [user("q")]
    assert asked_of(Prompt([1], {"prompt": "q"}), chat) == "q"
    # without a chat template the model got the column prompt
    assert asked_of(Prompt([1], {"messages": messages, "prompt": "x"}), renderer) == "x"


def test_kto_needs_a_second_prompt(renderer):
    with pytest.raises(ValueError, match="more than one prompt"):
        to_judged([TEXTS["texts"]], renderer, "set", 64, "error", with_unrelated=True)


@pytest.mark.parametrize("kind", ["preferences", "filter"])
def test_making_is_resumable_and_gives_the_same_rows(kind, base, tmp_path, monkeypatch):
    # random weights do not stop by themselves, and what was cut off is not chosen
    monkeypatch.setattr(synthesize, "CHUNK", 40)
    sample = synthesize.sample_and_score

    def all_stop(*args: Any) -> Any:
        return [[one | {"finish_reason": "stop"} for one in group] for group in sample(*args)]

    monkeypatch.setattr(synthesize, "sample_and_score", all_stop)
    trees = {name: making_tree(tmp_path, base, type=kind) for name in ("whole", "parts")}
    trees["parts"]["output_dir"] = str(tmp_path / "again")
    whole = synthesize.make(synthesize.parse_making(trees["whole"], "test"))
    calls = 0

    def dies(*args: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise KeyboardInterrupt
        return all_stop(*args)

    monkeypatch.setattr(synthesize, "sample_and_score", dies)
    with pytest.raises(KeyboardInterrupt):
        synthesize.make(synthesize.parse_making(trees["parts"], "test"))
    again = synthesize.make(synthesize.parse_making(trees["parts"], "test"))
    assert calls == 5, "finished chunks were made again"
    assert again == whole
    for name in ("train", "validation"):
        tables = [
            pyarrow.parquet.read_table(tmp_path / folder / f"{name}.parquet")
            for folder in ("made", "again")
        ]
        assert tables[0].equals(tables[1])
        assert tables[0].num_rows == whole["num_rows"][name] > 0
    metadata = json.loads(tables[0].schema.metadata[b"posttrain"])
    assert metadata["weights"]
    assert metadata["config"]["sampling"]["num_completions"] == 4
    prompts = [
        {row["prompt"] for row in read_file(tmp_path / "made" / f"{name}.parquet")}
        for name in ("train", "validation")
    ]
    assert not prompts[0] & prompts[1]
    assert not (tmp_path / "made" / ".parts").exists()
    # what was made is trained on as it is
    method = "dpo" if kind == "preferences" else "sft"
    tree = tiny.run_config(tmp_path / "run", method, max_steps=1)
    tree["data"] = {"path": str(tmp_path / "made")}
    tree["model"] = {"name": str(base)}
    assert plan(parse_config(tree, "test")).data.examples


def test_the_commands(base, tmp_path, monkeypatch, capsys):
    import yaml

    tree = making_tree(tmp_path, base, type="preferences")
    recipe = tmp_path / "make.yaml"
    recipe.write_text(yaml.safe_dump(tree))
    monkeypatch.setattr(sys, "argv", ["posttrain", "data", "filter", str(recipe)])
    with pytest.raises(SystemExit):
        main()
    assert "has make.type preferences" in capsys.readouterr().err
    argv = ["posttrain", "data", "preferences", str(recipe), "sampling.num_completion=3"]
    monkeypatch.setattr(sys, "argv", argv)
    with pytest.raises(SystemExit):
        main()
    assert "sampling.num_completion" in capsys.readouterr().err
